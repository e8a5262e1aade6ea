"""A TFDS directory of ArrayRecord shards, written so that a file is there whole or not at all.

A file gets a unique name beside its place until it is whole, so a kill leaves nothing that would be
read, and two processes that write the same directory only do the same work twice. Writing needs no
TensorFlow. On an object store files are made locally and copied whole.
"""

import contextlib
import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from etils import epath

from giung2_ext.core.errors import Failure
from giung2_ext.data import classes

INFO = "dataset_info.json"
UNFINISHED = ".unfinished-"


def place(folder: epath.Path, dataset: str, split: str, index: int, count: int) -> epath.Path:
    """Where TFDS expects a shard."""
    return folder / f"{dataset}-{split}.array_record-{index:05d}-of-{count:05d}"


def is_whole(path: epath.Path, size: int) -> bool:
    return path.exists() and (is_remote(path) or count(path) == size)


def is_remote(path: epath.Path) -> bool:
    return "://" in os.fspath(path)


def count(path: epath.Path) -> int:
    """Records in a local shard; 0 if it is damaged."""
    from array_record.python import array_record_module

    try:
        reader = array_record_module.ArrayRecordReader(os.fspath(path))
        size = reader.num_records()
        reader.close()  # speaks up if the file is damaged
    except (RuntimeError, ValueError):
        return 0
    return size


def write(path: epath.Path, size: int, examples: Iterable[bytes]) -> None:
    """A shard of `size` serialized examples, each one readable by itself."""
    from array_record.python import array_record_module

    with publishing(path) as temporary:
        writer = array_record_module.ArrayRecordWriter(os.fspath(temporary), "group_size:1")
        try:
            for example in examples:
                writer.write(example)
        finally:
            writer.close()
        if count(temporary) != size and not is_whole(path, size):
            raise Failure(f"{path} could not be written whole: is the disk full? Start the command again")


@contextlib.contextmanager
def publishing(path: epath.Path) -> Iterator[epath.Path]:
    """A file to write that appears at `path` when it is whole, or never."""
    remote = is_remote(path)
    with tempfile.TemporaryDirectory() if remote else contextlib.nullcontext(path.parent) as where:
        temporary = epath.Path(where) / f"{UNFINISHED}{uuid.uuid4().hex}"
        try:
            yield temporary
            _publish(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _publish(temporary: epath.Path, path: epath.Path) -> None:
    if is_remote(path):
        import fsspec

        store, name = fsspec.url_to_fs(os.fspath(path))
        store.put_file(os.fspath(temporary), name)  # unlike a copy that is interrupted, whole or not there
        return
    try:
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except FileNotFoundError:  # another process finished the same directory and cleaned up
        if not path.exists():
            raise


def finish(
    folder: epath.Path, dataset: str, variant: str | None, sizes: Mapping[str, list[int]], description: str
) -> None:
    """Writes TFDS's metadata, dataset_info.json last, and removes what killed processes left.

    `sizes` are the numbers of examples of each split's shards.
    """
    with tempfile.TemporaryDirectory() as written:
        _make_info(folder, dataset, variant, sizes, description).write_to_directory(written)
        for file in sorted(epath.Path(written).iterdir(), key=lambda path: path.name == INFO):
            with publishing(folder / file.name) as temporary:
                temporary.write_bytes(file.read_bytes())
    for path in folder.iterdir():
        if path.name.startswith(UNFINISHED):
            path.unlink(missing_ok=True)


def _make_info(
    folder: epath.Path, dataset: str, variant: str | None, sizes: Mapping[str, list[int]], description: str
) -> Any:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.dataset_info import DatasetIdentity

    identity = DatasetIdentity(
        name=dataset,
        config_name=variant,
        version=tfds.core.Version(folder.name),
        data_dir=os.fspath(folder),
        module_name="",
    )
    features = {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(names=classes.WNIDS),
        "file_name": tfds.features.Text(),
    }
    info = tfds.core.DatasetInfo(
        builder=identity,
        features=tfds.features.FeaturesDict(features),
        supervised_keys=("image", "label"),
        description=description,
    )
    info.set_file_format("array_record")
    splits = []
    for split, lengths in sizes.items():
        paths = [place(folder, dataset, split, k, len(lengths)) for k in range(len(lengths))]
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=dataset, split=split, filetype_suffix="array_record"
        )
        total = sum(path.stat().length for path in paths)
        splits.append(
            tfds.core.SplitInfo(
                name=split, shard_lengths=lengths, num_bytes=total, filename_template=template
            )
        )
    info.set_splits(tfds.core.splits.SplitDict(splits))
    return info
