"""What others are told of metrics, read back by their own means."""

import json
import os
import subprocess
import sys

import pytest
from etils import epath
from fakes import tensorboard_events

from giung2_ext.storage import events, records

ROWS = [
    {"step": s, "split": n, "accuracy": s / 40, "loss": 1.5 - s / 40, "batches": 3}
    for s in (0, 10, 20)
    for n in ("train", "test")
]
WANTED = {
    (f"{row['split']}/{name}", row["step"]): row[name] for row in ROWS for name in ("accuracy", "loss")
}


# A process that draws one part of a run: the client does not tell runs of one id in one process apart.
PROCESS = """
import json, sys
from etils import epath
from giung2_ext.storage import events
sink = events.wandb(epath.Path(sys.argv[1]), "tickets", {"optim": {"lr": 0.1}})
sink.write(json.loads(sys.argv[2]))
sink.close()
"""


@pytest.fixture
def folder(tmp_path):
    return epath.Path(tmp_path) / "save/run"


def logged(content):
    """The records of LevelDB's log format after a header of 7 bytes, of a file of one block."""
    assert len(content) < 2**15
    content = content[7:]
    while len(content) > 7:
        size = int.from_bytes(content[4:6], "little")
        yield content[7 : 7 + size]
        content = content[7 + size :]


def test_every_number_is_in_tensorboards_files(folder):
    pytest.importorskip("tensorboardX", reason="the [tensorboard] extra is absent here (2026-11-27)")

    folder.mkdir(parents=True)
    log = records.MetricsLog(folder, 0, [events.tensorboard(folder, 0)])
    log.write(ROWS)
    log.close()
    assert tensorboard_events(folder) == pytest.approx(WANTED)


def test_a_run_that_goes_on_is_the_same_run_of_weights_and_biases(folder):
    pytest.importorskip("wandb", reason="the [wandb] extra is absent here (2026-11-27)")
    from wandb.proto.wandb_internal_pb2 import Record

    name = "/".join(folder.parts[-3:])
    for part in (ROWS[:4], ROWS[4:]):
        argv = [sys.executable, "-c", PROCESS, os.fspath(folder), json.dumps(part)]
        done = subprocess.run(
            argv, env=os.environ | {"WANDB_MODE": "offline"}, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")
    found, ids = {}, set()
    for file in folder.glob("wandb/offline-run-*/*.wandb"):
        for record in map(Record.FromString, logged(file.read_bytes())):
            if record.run.run_id:
                ids.add((record.run.project, record.run.run_id, record.run.display_name))
            items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            step = items.pop("step", None)
            found |= {(k, int(step)): float(v) for k, v in items.items() if not k.startswith("_")}
    assert found == pytest.approx(WANTED)
    assert ids == {("tickets", (folder / "wandb/id").read_text(), name)}
