"""Many runs from one command, on SLURM or in processes of this machine.

    python scripts/sweep.py --save=DIR --config=FILE[:ARG,…] [--config=FILE …] [--seeds=0..4]
        [--over=FLAG=V1,V2,… …] [--script=train|imp] [--jobs=N] [--gpus=N] [--dry_run]
        [--cluster=local|slurm --slurm.time=MINUTES --slurm.partition=… …] [any flag of that script]

Runs every config with every value of every --over and every seed, each in a folder of its own below DIR,
such as imp.digits.smoke__optim.lr=0.1__seed=0. All flags are checked first. The same command again skips
what is finished and goes on with the rest: a sweep may be killed, and so may any run. --dry_run prints the
commands. --jobs is how many run at a time (local: 1), --gpus how many devices each has for itself. Output
goes to DIR/logs. On SLURM a run that is out of time is put into the queue again by itself, and Ctrl-C
leaves the jobs to it; --slurm.NAME are submitit's names of sbatch's options. Several tasks are one run.
"""

import pathlib
import sys

import jax

from giung2_ext.experiments import command, sweeping


def main():
    if "--help" in sys.argv:
        print(__doc__.strip())
        return
    jax.config.update("jax_platforms", "cpu")  # the devices are for the runs
    here = pathlib.Path(__file__).resolve().parent
    sweeping.Sweep(sys.argv[1:], here, str(here.parent / "configs/imagenet2012.py")).run()


if __name__ == "__main__":
    command.guarded(main)
