"""Finds lottery tickets: python scripts/imp.py --save=DIR [--config=FILE[:ARG,…]] [FLAGS]

Rewind point, dense cycle and pruned cycles, one below the other in DIR; then a page, tables and figures in
DIR/report. The same command again continues where it was stopped.
"""

from giung2_ext.experiments import command, examples, imp
from giung2_ext.experiments.flags import IMP_FLAGS
from giung2_ext.reports import report
from giung2_ext.training import processes


def main(config, save):
    folder = imp.run_chain(config, save)
    if processes.first():
        pictures = examples.pictures(config.placement.data_root)
        report.write([folder], pictures=pictures, names=examples.names)
    processes.together("the report is written")


if __name__ == "__main__":
    command.train_command(main, __doc__, IMP_FLAGS, chained=True)
