"""What is written of metrics for others to draw: TensorBoard's event files, runs of Weights & Biases."""

import importlib.util
import os
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from giung2_ext.core.errors import Refusal
from giung2_ext.storage import paths

Rows = Sequence[Mapping[str, Any]]
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}  # by the field that asks for them
DRAWN = ("accuracy", "loss", "kept", "skipped_steps")  # of a row, where it has them


class Sink(NamedTuple):
    write: Callable[[Rows], None]
    close: Callable[[], None]


def _series(row: Mapping[str, Any]) -> dict[str, float]:
    return {f"{row['split']}/{name}": row[name] for name in DRAWN if name in row}


def check(names: Sequence[str]) -> None:
    """Refuses what needs a package that is not there."""
    for name in names:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise Refusal(f"config.placement.{name} needs {PACKAGES[name]}: pip install -e '.[{name}]'")


def tensorboard(folder: epath.Path, step: int) -> Sink:
    """Event files in the run's folder; what an earlier process wrote of later steps is not drawn."""
    from tensorboardX import SummaryWriter

    events = SummaryWriter(os.fspath(folder / "tensorboard"), purge_step=step + 1)

    def write(rows: Rows) -> None:
        for row in rows:
            for name, value in _series(row).items():
                events.add_scalar(name, value, row["step"])
        events.flush()

    return Sink(write, events.close)


def wandb(folder: epath.Path, project: str, recipe: Mapping[str, Any]) -> Sink:
    """One run of the project, which a process that continues it continues; files in the run's folder.

    WANDB_MODE=offline needs no network: `wandb sync` sends the files later. What was sent after the state
    that a killed run goes on from is sent twice, the same. Once it has begun it never ends a training.
    """
    import wandb as client

    place = folder / "wandb"
    mark = place / "id"
    if not mark.exists():
        place.mkdir(parents=True, exist_ok=True)
        paths.write_bytes(mark, uuid.uuid4().hex[:12].encode())
    try:
        run = client.init(
            project=project,
            dir=os.fspath(folder),
            name="/".join(folder.parts[-3:]),
            id=mark.read_text(),
            resume="allow",
            reinit="create_new",  # members of a chain train side by side
            config=dict(recipe),
            settings=client.Settings(silent=True, console="off"),
        )
    except client.Error as error:
        raise Refusal(
            f"config.placement.wandb={project}: {error}; `wandb login`, or WANDB_MODE=offline, may help"
        ) from error
    run.define_metric("*", step_metric="step")

    def write(rows: Rows) -> None:
        for row in rows:
            run.log({"step": row["step"], **_series(row)})

    said = []

    def harmless(call: Callable[..., Any]) -> Callable[..., None]:
        def guarded(*words: Any) -> None:
            try:
                call(*words)
            except Exception as error:  # of any kind, by what is wrong there
                if not said:
                    print(
                        f"warning: Weights & Biases of {folder}: {error}; training goes on", file=sys.stderr
                    )
                said.append(error)

        return guarded

    return Sink(harmless(write), harmless(run.finish))
