"""Does it fit, and how long will it take? Compiles a run's programs for devices that need not be there.

    python scripts/preflight.py [--config=FILE[:ARG,…]] [--topology=v3:2x2] [FLAGS]

  --topology=NAME:SHAPE  a TPU slice: v2, v3, v4, v5e, v5p, v6e or tpu7x, with its shape in chips, such as
                         v4:2x2x1 or v5e:16x16; needs the [tpu] extra and no TPU. Without: this machine
  --effort=low           of XLA, for TPUs: low takes a minute, full several; they differ by some percent
  --json=true            one JSON object: fits, peak_bytes, bytes_per_step, flops_per_step,
                         estimated_seconds, collectives, mask_overhead, all of one device, and more

Any flag of train.py may be given, and --save and --dry_run of a command are taken and left alone. Nothing
is trained or written; streamed images need not be there. It is one run on all devices: of a chain with
resident images imp.py trains trials and arms side by side, each on a device of its own. Exit status 1 if it
does not fit.
"""

import sys

import jax

from giung2_ext.core.errors import unknown
from giung2_ext.experiments import command, flags, preflight

OWN = {"topology": None, "effort": "low", "json": "false", "save": None, "dry_run": "false"}


def main():
    arguments = sys.argv[1:]
    if "--help" in arguments:
        print(__doc__.strip())
        return
    config, given = flags.parse(arguments, OWN, command.default_of(main))
    as_json = flags.convert(given["json"], bool, False, "json")
    if given["effort"] not in preflight.EFFORTS:
        raise unknown("--effort", given["effort"], preflight.EFFORTS)
    if given["topology"]:
        jax.config.update("jax_platforms", "cpu")  # what is there is left alone
        jax.config.update("jax_exec_time_optimization_effort", preflight.EFFORTS[given["effort"]])
        jax.config.update("jax_enable_compilation_cache", False)  # of no use for what is not there
    if not preflight.run(config, given["topology"], given["effort"], as_json):
        raise SystemExit(1)


if __name__ == "__main__":
    command.guarded(main)
