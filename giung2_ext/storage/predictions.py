"""Predictions of a ticket, kept in its run: `predictions/<digest>/DATASET.PIPELINE.{npz,json}`.

The arrays say of every example its id, label and what `core.predictions` keeps of the answer; the scores
beside them what was judged, how, and how well.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from giung2_ext.core.errors import Refusal
from giung2_ext.storage import paths

FOLDER = paths.PREDICTIONS


def folder_of(ticket: epath.Path, digest: str) -> epath.Path:
    """For a ticket's directory or a name of it, in a run or anywhere else, or a ticket that is a file."""
    if paths.is_single(ticket):
        return folder_in(ticket.parent, digest)
    directory = paths.resolve(ticket)
    inside = directory.parent.name == paths.TICKETS
    return folder_in(directory.parent.parent if inside else directory.parent, digest)


def folder_in(run: epath.Path, digest: str) -> epath.Path:
    return run / FOLDER / digest[:16]


def _name(dataset: str, pipeline: str) -> str:
    return f"{dataset.replace('/', '.').replace(':', '.')}.{pipeline}"


def write(folder: epath.Path, scores: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> epath.Path:
    """Scores, which name dataset and pipeline, last: where they are, the arrays are whole."""
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    path = folder / f"{_name(scores['dataset'], scores['pipeline'])}.npz"
    path.with_suffix(".json").unlink(missing_ok=True)  # of older arrays
    paths.write_bytes(path, buffer.getvalue())
    paths.write_bytes(path.with_suffix(".json"), json.dumps(scores, indent=1).encode())
    return path


def write_flips(path: epath.Path, rows: Sequence[Sequence[Any]]) -> None:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    paths.write_bytes(path, out.getvalue().encode())


def read_arrays(folder: epath.Path, dataset: str, pipeline: str) -> dict[str, np.ndarray]:
    path = folder / f"{_name(dataset, pipeline)}.npz"
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except Exception as error:  # a damaged zip raises a dozen kinds
        raise Refusal(f"{path} is damaged ({error}); remove it and evaluate again") from error


def usual(found: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Scores by dataset: of several pipelines not `tf`, that of training."""
    ordered = sorted(found, key=lambda scores: scores["pipeline"] != "tf")
    return {scores["dataset"]: scores for scores in ordered}


def all_scores(folder: epath.Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
