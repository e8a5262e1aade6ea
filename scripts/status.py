"""Where every run and chain below a folder stands, and the command that goes on with it.

    python scripts/status.py DIR … [--json]

A line each: finished, running, stopped, failed, waiting (of a sweep, not begun) or damaged; the cycle and
the step, the best score so far on the split that tickets are chosen on, the density of that ticket, when
something was last written, and who works on it now. Reads only.
"""

import json
import os
import signal
import sys
import time

from etils import epath

from giung2_ext.core.errors import Refusal
from giung2_ext.reports import status


def main():
    words = sys.argv[1:]
    if "--help" in words:
        print(__doc__.strip())
        return
    places = [word for word in words if word != "--json"]
    if not places or any(place.startswith("--") for place in places):
        raise Refusal("usage: python scripts/status.py DIR … [--json]")
    standings = [one for place in places for one in status.survey(epath.Path(place))]
    if "--json" in words:
        print(json.dumps([status.as_json(one) for one in standings], indent=1))
    else:
        print(status.text(standings, time.time()))


if __name__ == "__main__":
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # `| head`: nobody reads on, and Python is not to say so as it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise SystemExit(128 + signal.SIGPIPE) from None
    except Refusal as error:  # command.guarded does more, and takes seconds to import
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.status) from None
