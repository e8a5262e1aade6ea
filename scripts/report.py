"""A page, tables and figures of runs and chains, finished or not.

    python scripts/report.py RUN [RUN …] [--out=DIR] [--watch=SECONDS] [--data_root=DIR] [--against=TICKET]

RUN is a folder that imp.py, train.py or sweep.py has written; what is damaged is shown as such. Written are
report.html (one file, needs no network), figures/*.{png,pdf} and tables/*.{md,csv,tex}, into RUN/report, or
of several runs into --out. Of a chain, and of a run whose mask changed while it trained, report.md and its
tables too.

  --watch[=30]     go on, and write again when something has changed; the page then loads itself again
  --data_root=DIR  where the data is: pictures of the examples whose answer pruning turned wrong
  --against=…      of one run whose mask changed, a ticket of the same network: the ranks of every layer
                   stand beside those of its largest weights
"""

import contextlib
import sys
import time

from etils import epath

from giung2_ext.core.errors import Refusal
from giung2_ext.experiments import command, examples
from giung2_ext.experiments.flags import convert, parse_own
from giung2_ext.reports import gather, report

OWN = {"against": None, "out": None, "watch": None, "data_root": None}
EVERY = "30"


def main():
    words = ["--watch=" + EVERY if word == "--watch" else word for word in sys.argv[1:]]
    names = [word for word in words if not word.startswith("--")]
    if "--help" in words:
        print(__doc__.strip())
        return
    given = parse_own([word for word in words if word.startswith("--")], OWN)
    if not names or (len(names) > 1 and (given["against"] or not given["out"])):
        raise Refusal(
            "usage: python scripts/report.py DIR [DIR …] [--out=DIR] [--watch] [--against=TICKET], DIR a "
            "folder of imp.py, train.py or sweep.py; several need --out, and --against is of one"
        )
    folders = [epath.Path(name) for name in names]
    out = epath.Path(given["out"]) if given["out"] else None
    watch = convert(given["watch"], int, False, "watch") if given["watch"] else None
    if watch is not None and watch < 1:
        raise Refusal(f"--watch must be at least 1 second, got {watch}")
    pictures = examples.pictures(given["data_root"])
    before = gather.signature(folders)
    report.write(folders, out, given["against"], watch, pictures, examples.names)
    with contextlib.suppress(KeyboardInterrupt):  # which ends the watch
        while watch:
            time.sleep(watch)
            now = gather.signature(folders)
            if now != before:
                report.write(folders, out, given["against"], watch, pictures, examples.names)
                before = now


if __name__ == "__main__":
    command.guarded(main)
