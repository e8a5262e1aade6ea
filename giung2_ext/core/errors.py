"""What a user is meant to see: what was expected, what came, what to do."""

import difflib
from collections.abc import Iterable


class Refusal(Exception):
    """Bad input or a bad environment. Scripts print its message alone and exit with its status."""

    status = 2
    agreed = False
    """Whether every process of the job raises it: then the first one says it, and all leave together"""


class Failure(Refusal):
    """Something went wrong while running: a loss that is not finite, a full disk."""

    status = 1


class Stopped(KeyboardInterrupt):
    """A signal asked to stop: the same command goes on. `except Exception` lets it pass."""

    status = 75  # EX_TEMPFAIL: try again
    agreed = False


def did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def unknown(kind: str, name: str, known: Iterable[str]) -> Refusal:
    known = sorted(known)
    listed = ", ".join(known)
    return Refusal(f"unknown {kind} {name!r}; known: {listed}{did_you_mean(name, known)}")
