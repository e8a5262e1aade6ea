"""Images in archives as their authors distribute them, read in place: tar, tar of tars, tar.gz and zip.

Records are those of the unpacked folders: same names, labels and mixed order. Only the last folder of
a path counts. Plain tars and zips are read at offsets, any image at any time. A gzipped tar cannot be:
it is unpacked once into memory (ImageNetV2: 1.3 GB, and as much again in each process it is sent to).
The kind is told by content: some plain tars are distributed under a name ending in .tar.gz.
"""

import dataclasses
import gzip
import io
import os
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
from etils import epath

from giung2_ext.core.errors import Refusal, unknown
from giung2_ext.data.classes import is_wnid
from giung2_ext.data.formats.folders import (
    NAMINGS,
    Listing,
    is_image,
    label_of,
    mixed_order,
    nothing_found,
    pack,
)
from giung2_ext.data.source import Example

GZIP_LIMIT = 4 * 2**30  # bytes, compressed
LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a file in a zip: magic, …, lengths of name and extra field
BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, gzip.BadGzipFile)


class Member(NamedTuple):
    folder: str
    file: str
    offset: int
    size: int  # as stored
    deflated: bool = False


@dataclasses.dataclass(frozen=True)
class Archive:
    """Records of the images in an archive; `content` is the archive itself if it had to be unpacked."""

    path: str
    listing: Listing
    offsets: np.ndarray
    sizes: np.ndarray
    deflated: np.ndarray | None  # None: a tar
    content: bytes | None = None

    def __len__(self) -> int:
        return len(self.listing)

    def __getitem__(self, index: int) -> Example:
        index = range(len(self))[index]
        name, label = self.listing.names[index], int(self.listing.labels[index])
        offset, size = int(self.offsets[index]), int(self.sizes[index])
        if self.content is not None:
            return Example(self.content[offset : offset + size], label, name)
        with epath.Path(self.path).open("rb") as file:  # a handle each: threads share nothing
            if self.deflated is not None:
                offset = _after_header(file, offset, self.path, name)
            file.seek(offset)
            data = file.read(size)
        if len(data) != size:
            raise Refusal(f"{self.path} ends within {name}: download it again")
        if self.deflated is not None and self.deflated[index]:
            data = zlib.decompress(data, wbits=-zlib.MAX_WBITS)
        return Example(data, label, name)


def read(path: epath.PathLike, naming: str = "wnid") -> Archive:
    """Records of an archive; looks at the header of every file in it once."""
    if naming not in NAMINGS:
        raise unknown("naming of class folders", naming, NAMINGS)
    path = os.fspath(path)
    if not epath.Path(path).is_file():
        raise Refusal(f"expected a folder or an archive (.tar, .tar.gz, .zip), found neither at {path}")
    content = None
    try:
        with epath.Path(path).open("rb") as file:
            start = file.read(4)
            file.seek(0)
            zipped = start.startswith(b"PK")
            if start.startswith(b"\x1f\x8b"):
                content = _unpack(file, path)
            members = list(_zip_members(file) if zipped else _tar_members(_opened(file, content)))
    except BROKEN as error:
        raise Refusal(f"{path} is no whole tar, tar.gz or zip ({error}): download it again") from error
    return _archive(path, members, naming, zipped, content)


def _archive(path: str, members: list[Member], naming: str, zipped: bool, content: bytes | None) -> Archive:
    images = [m for m in members if is_image(m.file) and "__MACOSX" not in m.folder]
    others = len(members) - len(images)
    if not images:
        raise nothing_found(path, naming, others)
    labelled: dict[str, int] = {}  # by class folder
    labels = []
    for folder, file, *_ in images:
        flat = naming == "wnid" and file.lower().startswith("ilsvrc2012_val_")
        key = f"{folder}/{file}" if flat else folder
        if key not in labelled:
            labelled[key] = label_of(folder, file, naming, path)
        labels.append(labelled[key])
    names = [_name(member, naming) for member in images]
    order = mixed_order(names, path)
    columns = np.array([member[2:] for member in images], np.int64)[order]
    listing = Listing(pack(names[i] for i in order), np.array(labels, np.int32)[order], others)
    deflated = columns[:, 2].astype(bool) if zipped else None
    return Archive(path, listing, columns[:, 0], columns[:, 1], deflated, content)


def _name(member: Member, naming: str) -> str:
    """As in the unpacked folders; the flat validation set has no class folder."""
    flat = naming == "wnid" and not is_wnid(member.folder)
    return member.file if flat else f"{member.folder}/{member.file}"


def _opened(file: BinaryIO, content: bytes | None) -> BinaryIO:
    return file if content is None else io.BytesIO(content)


def _unpack(file: BinaryIO, path: str) -> bytes:
    size = epath.Path(path).stat().length
    if size > GZIP_LIMIT:
        raise Refusal(f"{path} is gzipped and has {size:,} bytes, too many for memory: gunzip it first")
    content = io.BytesIO()
    with gzip.GzipFile(fileobj=file) as unzipped:
        shutil.copyfileobj(unzipped, content, 2**20)
    return content.getvalue()


def _split(path: str, default: str = "") -> tuple[str, str]:
    """The last folder and the file's name."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return (parts[-2] if len(parts) > 1 else default), (parts[-1] if parts else "")


def _tar_members(file: BinaryIO) -> Iterator[Member]:
    """Files of a tar, and of the tars right in it, which stand for folders (ILSVRC2012_img_train.tar)."""
    inner = []
    for info in _tar_infos(file):
        folder, name = _split(info.name)
        if name.endswith(".tar"):
            inner.append((name.removesuffix(".tar"), info.offset_data, info.size))
        else:
            yield Member(folder, name, info.offset_data, info.size)
    for folder, start, size in inner:
        file.seek(start)
        for info in _tar_infos(file):
            if info.offset_data + info.size > start + size:
                raise tarfile.ReadError(f"{folder}.tar in it is cut short")
            yield Member(*_split(info.name, folder), info.offset_data, info.size)


def _tar_infos(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Headers of the tar that starts where `file` stands; offsets count from the file's own start."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (info := tar.next()) is not None:
            tar.members.clear()  # it would keep every header
            if info.isfile():
                yield info


def _zip_members(file: BinaryIO) -> Iterator[Member]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise zipfile.BadZipFile(f"{info.filename} is encrypted or in an unknown compression")
            folder, name = _split(info.filename)
            deflated = info.compress_type == zipfile.ZIP_DEFLATED
            yield Member(folder, name, info.header_offset, info.compress_size, deflated)


def _after_header(file: BinaryIO, offset: int, path: str, name: str) -> int:
    file.seek(offset)
    header = file.read(LOCAL_HEADER.size)
    if len(header) != LOCAL_HEADER.size or not header.startswith(b"PK\x03\x04"):
        raise Refusal(f"{path} has changed or is damaged at {name}: download it again")
    _, name_size, extra_size = LOCAL_HEADER.unpack(header)
    return offset + LOCAL_HEADER.size + name_size + extra_size
