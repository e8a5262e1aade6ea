"""Table and figures of a chain: python scripts/report.py DIR"""

import sys

from giung2_ext.core.errors import Refusal
from giung2_ext.experiments import command
from giung2_ext.reports import chain


def main():
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        raise Refusal("usage: python scripts/report.py DIR, a folder that imp.py has written")
    chain.write_report(sys.argv[1])


if __name__ == "__main__":
    command.guarded(main)
