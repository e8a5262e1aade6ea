"""Is sparsity real? Examines a ticket, a run or a chain, and says what is wrong in plain words.

    python scripts/doctor.py TICKET|RUN|CHAIN [--distributed=auto]

  TICKET  DIR/best_acc.ckpt or any other name of one, or its folder
  RUN     a folder that train.py has written
  CHAIN   a folder that imp.py has written, with its trials, arms and cycles

Looks at weights, optimizer slots and moving averages where the mask is 0, at counts, digests and parents,
at nesting and rewinding, at emptied layers and dead channels. Nothing is written. A line for every finding:
a fault is something that must not be; a note is worth knowing. Exit status 1 where there is a fault. All
processes of a job read for themselves, and say whether they have read the same. Computes on the CPU.
"""

import sys

import jax

from giung2_ext.core.errors import Refusal
from giung2_ext.experiments import command, flags
from giung2_ext.experiments.doctor import examination
from giung2_ext.training import processes


def main():
    arguments = sys.argv[1:]
    if "--help" in arguments:
        print(__doc__.strip())
        return
    places = [word for word in arguments if not word.startswith("--")]
    given = flags.parse_own([word for word in arguments if word.startswith("--")], {"distributed": None})
    if len(places) != 1:
        raise Refusal("usage: python scripts/doctor.py TICKET|RUN|CHAIN [--distributed=auto] (see --help)")
    jax.config.update("jax_platforms", "cpu")  # what is training nearby keeps its devices
    where = flags.placement_of(given)
    processes.connect(where.distributed, where.joined_within, where.lost_after)
    if not examination.report(places[0]):
        raise SystemExit(1)


if __name__ == "__main__":
    command.guarded(main)
