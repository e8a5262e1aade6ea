"""What an examination has found, and what it has looked at."""

import contextlib
import os
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from etils import epath

from giung2_ext.core.errors import Refusal
from giung2_ext.storage import paths


class Finding(NamedTuple):
    severity: str  # fault | note
    where: str  # below what was asked for
    text: str  # what was expected, what is there, what to do


class Exam:
    """Findings below one folder; what is damaged is a finding, and the examination goes on."""

    def __init__(self, root: epath.Path):
        self.root = root
        self.findings: list[Finding] = []
        self.looked: Counter[str] = Counter()
        self.tickets: dict[str, Any] = {}  # by directory, as they have several names
        self.digests: dict[str, Any] = {}  # what was read where, for other hosts to compare

    def fault(self, where: str, text: str) -> None:
        self.findings.append(Finding("fault", where, text))

    def note(self, where: str, text: str) -> None:
        self.findings.append(Finding("note", where, text))

    @property
    def faults(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == "fault"]

    def place(self, path: epath.Path) -> str:
        """A path as findings name it."""
        root, full = os.fspath(self.root), os.fspath(path)
        if not paths.is_local(path):
            return full.removeprefix(root).strip("/") or path.name
        below = os.path.relpath(full, root)
        return os.path.basename(os.path.abspath(full)) if below == "." else below

    @contextlib.contextmanager
    def part(self, where: str) -> Iterator[None]:
        """What goes wrong in this part of the examination is a fault of what is examined."""
        try:
            yield
        except Refusal as error:
            self.fault(where, str(error))
        except Exception as error:  # files of any content raise of many kinds
            line = (str(error).splitlines() or [""])[0]
            frame = traceback.extract_tb(error.__traceback__)[-1]
            at = f"{os.path.basename(frame.filename)}:{frame.lineno}"
            self.fault(
                where,
                f"cannot be examined ({type(error).__name__}: {line}, {at}): something that it is made of "
                "is not what this suite writes; restore it from a copy",
            )


def listed(parts: Sequence[str], most: int = 4) -> str:
    """The first of many."""
    more = len(parts) - most
    return "; ".join(parts[:most]) + (f"; and {more} more" if more > 0 else "")


def plural(count: int, one: str) -> str:
    return f"{count:,} {one}" + ("" if count == 1 else "s")
