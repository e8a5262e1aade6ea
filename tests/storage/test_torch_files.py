"""PyTorch's files without PyTorch: what it wrote is read, what is written it reads, and nothing is run."""

import io
import pickle
import struct
import zipfile

import numpy as np
import pytest
from fakes import REPOSITORY

from giung2_ext.core.errors import Refusal
from giung2_ext.storage import torch_files

GOLDEN = REPOSITORY / "tests/golden"


def arrays():
    draw = np.random.default_rng(0)
    found = {
        f"{t}{n}": (10 * draw.normal(size=n)).astype(t) for t in ("f4", "f8", "i8", "i4") for n in (3, 0)
    }
    found["half"] = draw.normal(size=(2, 3, 4)).astype(np.float16)
    found |= {
        "bool": draw.random((5, 2)) < 0.5,
        "scalar": np.float32(3),
        "bytes": np.arange(4, dtype=np.uint8),
    }
    return {name: np.asarray(array) for name, array in found.items()}


@pytest.mark.parametrize("form", ["zip", "older"])
def test_a_checkpoint_that_pytorch_wrote_is_read(form):
    """Made by make_torch_files.py: views, transposed and shared storages, parameters, an optimizer."""
    found, _ = torch_files.read((GOLDEN / f"torch_{form}.pt").read_bytes(), "golden")
    state = found["state_dict"]
    expected = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert list(state) == ["module.a.weight", "module.a.bias", "view", "half", "flag", "count", "empty"]
    np.testing.assert_array_equal(state["module.a.weight"], expected.T)
    np.testing.assert_array_equal(state["module.a.bias"], expected[1])
    np.testing.assert_array_equal(state["view"], expected[:, 1:3])
    np.testing.assert_array_equal(state["half"].astype(np.float32), [0.5, -2])
    assert state["flag"].tolist() == [True, False]
    assert state["count"] == 7
    assert state["empty"].shape == (0, 3)
    assert found["best_acc"] == np.float32(0.75)
    assert found["cfg"] == [0.1, 0.2]
    assert found["optimizer"]["param_groups"][0]["lr"] == 0.1


def test_what_is_written_is_read_and_is_the_same_every_time():
    content = torch_files.write(arrays(), {"about.json": b"{}"})
    assert content == torch_files.write(arrays(), {"about.json": b"{}"})
    found, extra = torch_files.read(content, "x")
    assert extra == {"about.json": b"{}"}
    assert list(found) == list(arrays())
    for name, array in arrays().items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_pytorch_reads_what_is_written(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is an extra, absent here (2026-11-27)")
    (tmp_path / "x.pt").write_bytes(torch_files.write(arrays(), {"about.json": b"{}"}))
    found = torch.load(tmp_path / "x.pt", weights_only=True)
    for name, array in arrays().items():
        np.testing.assert_array_equal(found[name].numpy(), array)


class Evil:
    """A pickle of it calls a function as it is read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def zipped(pickled, **more):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in {"data.pkl": pickled, **more}.items():
            archive.writestr(f"x/{name}", content)
    return buffer.getvalue()


def older(pickled):
    parts = [torch_files.MAGIC, torch_files.PROTOCOL, {"little_endian": True}]
    return b"".join([*(pickle.dumps(part, 2) for part in parts), pickled, pickle.dumps([], 2)])


@pytest.mark.parametrize("form", [zipped, older, lambda pickled: pickled], ids=["zip", "older", "plain"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_hostile_file_runs_nothing_and_says_what_it_wanted(form, protocol, tmp_path):
    mark = tmp_path / "mark"
    for function, *arguments in (
        (exec, f"open({str(mark)!r}, 'w')"),
        (open, str(mark), "w"),
        (__import__("os").system, f"touch {mark}"),
        (getattr, "a", "b"),
        (np.fromfile, str(mark)),
    ):
        content = form(pickle.dumps({"state_dict": Evil(function, *arguments)}, protocol))
        with pytest.raises(Refusal, match=r"nothing in it was run: UnpicklingError: it asks for [\w.]+"):
            torch_files.read(content, "evil.pt")
    assert not mark.exists()


def tensor_pickle(size, stride, offset=0, count=4):
    """One tensor of a storage of `count` numbers, by hand."""
    number, numbers = torch_files._number, torch_files._numbers
    return b"".join(
        [b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((", torch_files._text("storage")]
        + [b"ctorch\nFloatStorage\n", torch_files._text("0"), torch_files._text("cpu"), number(count)]
        + [b"tQ", number(offset), numbers(size), numbers(stride), b"\x89ccollections\nOrderedDict\n)RtR."]
    )


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((5,), (1,), 0),
        ((2, 2), (3, 1), 1),
        ((2,), (1,), 3),
        ((2,), (-1,), 1),
        ((1,), (1,), -1),
        ((2, 2), (1,), 0),
    ],
)
def test_a_tensor_that_reaches_beyond_its_storage_is_refused(size, stride, offset):
    data = np.arange(4, dtype=np.float32).tobytes()
    whole = zipped(tensor_pickle((2, 2), (2, 1)), **{"data/0": data})
    assert torch_files.read(whole, "x")[0].tolist() == [[0, 1], [2, 3]]
    with pytest.raises(Refusal, match="a tensor of size"):
        torch_files.read(zipped(tensor_pickle(size, stride, offset), **{"data/0": data}), "x")


@pytest.mark.parametrize("name", ["torch_zip.pt", "torch_older.pt"])
def test_a_truncated_file_is_refused_wherever_it_is_cut(name):
    content = (GOLDEN / name).read_bytes()
    for part in (0.02, 0.3, 0.6, 0.9, 0.99):
        with pytest.raises(Refusal, match="cannot be read as a file of PyTorch"):
            torch_files.read(content[: int(part * len(content))], "x.pt")


def test_what_cannot_be_read_is_named():
    for content, message in (
        (zipped(pickle.dumps(1), **{"byteorder": b"big"}), "big-endian"),
        (zipped(pickle.dumps(1), **{"code/x.py": b""}), "TorchScript"),
        (b"", "EOFError"),
        (struct.pack("<q", 5), "cannot be read"),
    ):
        with pytest.raises(Refusal, match=message):
            torch_files.read(content, "x")
