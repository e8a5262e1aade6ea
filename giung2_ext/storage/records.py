"""What a run says of itself: its recipe, every command that ran it, metrics and the final result."""

import datetime
import functools
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

from etils import epath

from giung2_ext.core.errors import Failure, Refusal
from giung2_ext.storage import buckets, paths
from giung2_ext.storage.events import Sink

CONFIG, METRICS, MOVES, RESULT = "config.json", "metrics.jsonl", "masks.jsonl", "result.json"
SWEEP = "sweep.json"  # in the folder above the runs of a sweep
SEED = "__seed="  # before the seed, at the end of the names of its runs
PACKAGES = ("giung2_ext", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def read_json(path: epath.Path) -> Any | None:
    """The file's content, or None where there is no file."""
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise Refusal(f"{path} is damaged: {error}") from error


def _git(*words: str) -> str:
    command = ["git", "-C", os.path.dirname(os.path.abspath(__file__)), *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _git_commit() -> str | None:
    """The commit of this code; None where it is not tracked, as when installed into a venv."""
    tracked = _git("ls-files", os.path.basename(__file__))
    return _git("describe", "--always", "--dirty", "--abbrev=40") if tracked else None


@functools.cache
def environment() -> dict[str, Any]:
    """Versions, commit and machine: facts of the place, never part of the recipe."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "packages": versions,
        "commit": _git_commit(),
        "platform": platform.platform(),
        "command": sys.argv,
        "directory": os.getcwd(),
        "executable": sys.executable,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else key)
    return flat


def difference(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Readable lines `field: old -> new`, for JSON trees."""
    a, b = ({key: repr(v) for key, v in flatten(tree).items()} for tree in (old, new))
    absent = "(absent)"
    return [
        f"{key}: {a.get(key, absent)} -> {b.get(key, absent)}"
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    ]


def recorded_recipe(folder: epath.Path) -> dict[str, Any] | None:
    stored = read_json(folder / CONFIG)
    if stored is None:
        return None
    if not isinstance(stored, dict) or not isinstance(stored.get("recipe"), dict):
        raise Refusal(f"{folder / CONFIG} is damaged: it holds no recipe")
    return stored["recipe"]


def holds_work(folder: epath.Path) -> bool:
    """Whether a run got as far as a ticket or a state; one that did not is nobody's loss."""
    return any(folder.glob("*.ckpt")) or (folder / paths.STATES).exists()


def check_recipe(folder: epath.Path, recorded: dict[str, Any], recipe: dict[str, Any]) -> None:
    """Refuses a folder that holds work of another recipe, with the difference."""
    lines = difference(recorded, recipe)
    if lines and holds_work(folder):
        raise Refusal(
            f"{folder} holds a run with another recipe (recorded -> asked for): {'; '.join(lines)}. "
            "Choose another --save, or the recorded values"
        )


def check_images(folder: epath.Path, images: dict[str, str]) -> None:
    """Refuses to go on with other images than those that the folder's run began with."""
    before = (read_json(folder / CONFIG) or {}).get("images", images)
    other = [split for split in before if images.get(split, before[split]) != before[split]]
    if other:
        counts = ", ".join(
            f"{split}: {before[split].partition(':')[0]} then, {images[split].partition(':')[0]} now"
            for split in other
        )
        raise Refusal(
            f"{folder} was begun on other images ({counts} images; their order or pixels differ). Give the "
            "same --data_root to go on, or choose another --save"
        )


def record_session(
    folder: epath.Path,
    recipe: dict[str, Any],
    session: dict[str, Any],
    images: dict[str, str] | None = None,
) -> None:
    """Writes recipe and images, and adds this session's placement and environment to the history."""
    stored = read_json(folder / CONFIG) or {"sessions": []}
    stored["recipe"] = recipe  # the one that is there, or one that takes the place of no work
    stored["images"] = images or {}
    stored["sessions"].append(session)
    paths.write_bytes(folder / CONFIG, _json(stored))


def record_end(folder: epath.Path, how: str, why: str) -> None:
    """Adds to the history how its last session came to an end without a result: stopped or failed."""
    stored = read_json(folder / CONFIG)
    if stored and stored.get("sessions"):
        when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        stored["sessions"][-1]["ended"] = {"how": how, "why": why, "when": when}
        paths.write_bytes(folder / CONFIG, _json(stored))


class MetricsLog:
    """metrics.jsonl: appended line by line, cut back to the step that a resumed run starts from.

    So is masks.jsonl, a line for every update of the mask. `sinks` are told of the metrics too.
    """

    def __init__(self, folder: epath.Path, step: int, sinks: Sequence[Sink] = ()):
        self.sinks = sinks
        self.moves = Lines(folder / MOVES, step)
        self.lines = Lines(folder / METRICS, step)

    def write(self, rows: list[dict[str, Any]]) -> None:
        self.lines.write(rows)
        for sink in self.sinks:
            sink.write(rows)

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()


class Lines:
    """A file of JSON lines, without those of later steps than `step`; it begins with its first row.

    An object cannot be appended to: there the whole text is written at every evaluation, and refused where
    somebody else has written since.
    """

    def __init__(self, path: epath.Path, step: int):
        self.path = path
        kept = [row for row in read_lines(path) if row["step"] <= step] if step else []
        self.text = "".join(json.dumps(row) + "\n" for row in kept)
        if not paths.is_local(path):
            self.generation = buckets.read(path)[1]
        if path.exists() or kept:
            self._replace(self.text)

    def write(self, rows: list[dict[str, Any]]) -> None:
        new = "".join(json.dumps(row) + "\n" for row in rows)
        if paths.is_local(self.path):
            with self.path.open("a") as file:
                file.write(new)
        else:
            self._replace(self.text + new)

    def _replace(self, text: str) -> None:
        self.text, content = text, text.encode()
        if paths.is_local(self.path):
            paths.write_bytes(self.path, content)
            return
        made = buckets.write(self.path, content, only_if=self.generation)
        if made is None:  # or a first try that went through
            found, made = buckets.read(self.path)
            if found != content:
                raise Failure(
                    f"{self.path} was written by another process since this one has its lock: see what "
                    "else writes to this folder, then run the same command again"
                )
        self.generation = made


def read_metrics(folder: epath.Path) -> list[dict[str, Any]]:
    return read_lines(folder / METRICS)


def read_moves(folder: epath.Path) -> list[dict[str, Any]]:
    """{step, layers: {leaf: [kept, grown, dropped, ever kept]}} of every update of the mask."""
    return read_lines(folder / MOVES)


def read_lines(path: epath.Path) -> list[dict[str, Any]]:
    """All whole lines; the last one may have been cut by a kill."""
    return [row for row in parsed_lines(path) if row is not None]


def parsed_lines(path: epath.Path) -> list[dict[str, Any] | None]:
    """None of those that are damaged."""

    def row(line: str) -> dict[str, Any] | None:
        try:
            return json.loads(line)
        except ValueError:
            return None

    return [row(line) for line in path.read_text().splitlines()] if path.exists() else []


def write_result(folder: epath.Path, result: dict[str, Any]) -> None:
    """The last thing that a run writes: a folder with a result is finished."""
    paths.write_bytes(folder / RESULT, _json(result))


def miscounted(scores: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(best, split, scores) where an accuracy is not what the counts beside it are."""
    for which, splits in scores.items():
        for split, own in splits.items():
            told = {"accuracy", "correct", "seen"} <= own.keys() and own["seen"]
            if told and abs(own["accuracy"] - own["correct"] / own["seen"]) > 1e-6:
                yield which, split, own


def read_result(folder: epath.Path) -> dict[str, Any] | None:
    """None of an unfinished run. Selection was by accuracy before there was a choice."""
    try:
        result = read_json(folder / RESULT)
    except Refusal as error:
        raise Refusal(f"{error}. Remove it, and the same command trains this run again") from error
    return None if result is None else {"selected_by": "accuracy"} | result
