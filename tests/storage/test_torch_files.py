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
    with pytest.raises(Refusal, match=r"a tensor (of size|whose place)"):
        torch_files.read(zipped(tensor_pickle(size, stride, offset), **{"data/0": data}), "x")


def built(make, state):
    """A pickle that makes something and then sets its state."""
    return b"\x80\x02" + make + pickle.dumps(state, 2)[2:-1] + b"b."


OBJECTS = b"cnumpy\ndtype\n(X\x02\x00\x00\x00f8I0\nI1\ntR"


@pytest.mark.parametrize("form", [zipped, older, lambda pickled: pickled], ids=["zip", "older", "plain"])
@pytest.mark.parametrize(
    "pickled",
    [
        pickle.dumps(np.array([{}], object), 2),
        pickle.dumps(np.zeros(2, [("a", "O")]), 2),
        built(OBJECTS, (3, "|", None, ("a",), {"a": 1}, 8, 8, 0)),  # a type that gets fields later
        built(OBJECTS, (3, "|", (object, 3), None, None, 8, 8, 0)),
        built(b"ctorch._utils\n_rebuild_tensor_v2\n", {"array": 1}),  # the reader itself
        built(b"ccollections\nOrderedDict\n", {"items": 1}),
        b"\x80\x02]r\x00\x87\x93\x03.",  # a memo of 60 million places
    ],
)
def test_a_pickle_cannot_change_what_it_is_read_with_or_make_pointers(form, pickled):
    with pytest.raises(Refusal, match="nothing in it was run: UnpicklingError"):
        torch_files.read(form(pickled), "evil.pt")
    assert torch_files.read((GOLDEN / "torch_zip.pt").read_bytes(), "good")[0]["cfg"] == [0.1, 0.2]


def test_an_array_has_as_many_numbers_as_its_shape_and_takes_them_once():
    whole = pickle.dumps(np.arange(6, dtype=np.float32).reshape(2, 3), 2)
    found, _ = torch_files.read(whole, "x")
    assert np.asarray(found).tolist() == [[0, 1, 2], [3, 4, 5]]
    short = whole.replace(b"K\x02K\x03", b"K\x7fK\x03")
    assert short != whole
    with pytest.raises(Refusal, match="not as many numbers as its shape"):
        torch_files.read(short, "x")


def test_an_archive_that_is_packed_is_refused():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", pickle.dumps({"a": 1}))
        archive.writestr("x/extra/bomb", bytes(10_000_000))
    with pytest.raises(Refusal, match="an archive that is packed"):
        torch_files.read(buffer.getvalue(), "x")


def test_a_storage_that_the_older_form_does_not_list_is_refused():
    content = (GOLDEN / "torch_older.pt").read_bytes()
    keys = content.rindex(b"]")  # the list of keys is the last pickle
    end = content.index(b".", keys)
    with pytest.raises(Refusal, match="not those that it lists"):
        torch_files.read(content[:keys] + b"]" + content[end:], "x")


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
        (b"", "pickle exhausted"),
        (struct.pack("<q", 5), "cannot be read"),
    ):
        with pytest.raises(Refusal, match=message):
            torch_files.read(content, "x")
