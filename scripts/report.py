"""Tables and figures of a chain, or of one run whose mask changed while it trained.

    python scripts/report.py DIR [--against=TICKET]

DIR is a folder that imp.py has written, or one of train.py with a method such as rigl, gradual or rpg. Of a
run, --against names a ticket of the same network, such as the dense one that it started from: the ranks of
every layer stand beside those of its largest weights.
"""

import sys

from etils import epath

from giung2_ext.core.errors import Refusal
from giung2_ext.experiments import command
from giung2_ext.experiments.flags import parse_own
from giung2_ext.reports import chain, mask_history
from giung2_ext.storage import paths


def main():
    folders = [word for word in sys.argv[1:] if not word.startswith("--")]
    if "--help" in sys.argv:
        print(__doc__.strip())
        return
    if len(folders) != 1:
        raise Refusal(
            "usage: python scripts/report.py DIR [--against=TICKET], DIR a folder of imp.py or train.py"
        )
    flags = [word for word in sys.argv[1:] if word.startswith("--")]
    against = parse_own(flags, {"against": None})["against"]
    folder = epath.Path(folders[0])
    if mask_history.has_history(folder) and not paths.is_chain(folder):
        mask_history.write_report(folders[0], against)
    elif against or (not paths.is_chain(folder) and (folder / "result.json").exists()):
        raise Refusal(f"{folder} is a run whose mask was not changed by updates: it has no masks.jsonl")
    else:
        chain.write_report(folders[0])


if __name__ == "__main__":
    command.guarded(main)
