"""Trains one network: python scripts/train.py --save=DIR [--config=FILE[:ARG,…]] [FLAGS]

The same command again continues a run that was interrupted and does nothing to one that is finished.
"""

from giung2_ext.experiments import command, single


def main(config, save):
    single.train_one(config, save)


if __name__ == "__main__":
    command.train_command(main, __doc__)
