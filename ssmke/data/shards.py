"""Shards: plain tars in webdataset's layout, written byte for byte reproducibly, read at random.

A shard holds, for each sample, ``<key>.jpg`` (the image as it came; ``.png`` or ``.webp`` where it is that)
and then ``<key>.json`` with its captions and where it came from. Any webdataset reader can stream it. Beside
it lies ``<shard>.index.npz``: where each image and JSON starts, how many captions it has, and a checksum of
the JSON. The index is derived (it is rebuilt from the tar when missing or stale) and makes a sample one
``pread``: no seek, no shared file position, so threads and forked workers may share a shard, and starting in
the middle of an epoch costs nothing. A read of a 16 KB sample takes about 25 microseconds.

Written with `tarfile` rather than `webdataset.TarWriter`, which sorts members by extension (``json`` before
``png``) and gives no offsets. Same samples, same bytes: times, owners and modes are fixed. Tars are never
extracted; members other than plain files with plain names are refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import logging
import os
import re
import struct
import sys
import tarfile
import threading
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ssmke.data.atomic import atomic_writer, encode_json
from ssmke.data.decode import image_extension
from ssmke.data.manifest import ShardInfo
from ssmke.data.shard_scan import ShardTable, cut_short, parse_record, scan, tar_size
from ssmke.errors import BadSample, DataError

logger = logging.getLogger(__name__)

MAX_KEY = 90  # with its extension a key fits a tar header's name field, so members need no extended headers
_BLOCK = tarfile.BLOCKSIZE
_KEY = re.compile(r"[A-Za-z0-9_-]+")
_RESERVED = frozenset({"key", "captions", "source", "split"})
COLUMNS = ("image_offset", "image_size", "json_offset", "json_size", "json_crc32")


@dataclasses.dataclass(frozen=True)
class Sample:
    """One image with its captions."""

    key: str
    """Unique within a dataset; letters, digits, ``_`` and ``-`` (see `make_key`)."""
    image: bytes
    """Encoded JPEG, PNG or WebP."""
    captions: tuple[str, ...]
    """At least one. As read from a shard they are raw: see `ssmke.data.captions.clean_caption`."""
    source: str = ""
    """Name of the dataset that it came from."""
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Further JSON fields, such as the ids of the source."""


def make_key(name: str) -> str:
    """A valid key for any ``name``: itself where possible, else cleaned, with a digest to stay unique.

    webdataset ends a key at its first dot, and a tar's readers trip over slashes and odd characters.
    """
    if len(name) <= MAX_KEY and _KEY.fullmatch(name):
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    cleaned = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_")
    return f"{cleaned[: MAX_KEY - 9]}-{digest}"


def keys_digest(keys: Iterable[str]) -> str:
    """SHA-256 of the keys joined by newlines: `ShardInfo.keys_sha256`, and what target caches bind to."""
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    return file_digest(path, "sha256")


def file_digest(path: Path, algorithm: str) -> str:
    """Digest of a file's content, hexadecimal, by an algorithm of `hashlib`."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def index_path(tar_path: str | Path) -> Path:
    """``train-00000.tar`` -> ``train-00000.index.npz``."""
    return Path(tar_path).with_suffix(".index.npz")


def write_shard(path: str | Path, samples: Iterable[Sample], split: str) -> ShardInfo:
    """Write ``samples`` as the shard ``path``, then its index; each appears whole or not at all.

    Samples are consumed one at a time, so memory is that of one sample.

    Raises:
        DataError: no samples, a key that is invalid or comes twice, a sample without captions or with bytes
            that are no image, or a file system that refuses.
    """
    path = Path(path)
    table = ShardTable()
    with atomic_writer(path) as file:
        # The writer is not seekable; tarfile needs only write() and tell() of it.
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:  # type: ignore[call-overload]
            for sample in samples:
                try:
                    extension = image_extension(sample.image)
                except BadSample as error:
                    raise DataError(f"cannot write {path}: sample {sample.key!r}: {error}.") from None
                _check(path, sample, table)
                record = dict(sample.extra) | {
                    "key": sample.key,
                    "captions": list(sample.captions),
                    "source": sample.source,
                    "split": split,
                }
                text = encode_json(record)
                image_offset = _add(tar, f"{sample.key}.{extension}", sample.image)
                json_offset = _add(tar, f"{sample.key}.json", text)
                row = (image_offset, len(sample.image), json_offset, len(text), zlib.crc32(text))
                table.add(sample.key, extension, row, len(sample.captions))
        if not table.keys:
            raise DataError(f"cannot write {path}: there are no samples for it.")
        # If we die between the two files, the new tar must not lie beside the index of an old one.
        index_path(path).unlink(missing_ok=True)
    _save_index(path, table, file.bytes)
    return ShardInfo(
        file=path.name,
        images=len(table.keys),
        captions=sum(table.captions),
        bytes=file.bytes,
        sha256=file.sha256,
        keys_sha256=keys_digest(table.keys),
    )


class OpenFiles:
    """Read-only descriptors by path, the most recently used ``limit`` of them kept open.

    A dataset may have more shards than a process may have open files. A descriptor is closed when its last
    user lets go of it, never while another thread is reading from it. Copies (pickle, and so spawned workers)
    start empty; forked workers inherit the descriptors, which is safe since ``pread`` moves no position.
    """

    def __init__(self, limit: int = 128) -> None:
        self._limit = limit
        self._open: dict[str, _Descriptor] = {}

    def get(self, path: Path) -> _Descriptor:
        name = str(path)
        # Single dict operations instead of a lock: a lock held during a fork would never open in the child.
        descriptor = self._open.pop(name, None) or _Descriptor(path)
        self._open[name] = descriptor
        while len(self._open) > self._limit:
            with suppress(KeyError, StopIteration, RuntimeError):
                del self._open[next(iter(self._open))]
        return descriptor

    def __getstate__(self) -> int:
        return self._limit

    def __setstate__(self, limit: int) -> None:
        self._limit, self._open = limit, {}


class ShardIndex:
    """Random access to one shard. Open it with `load`."""

    def __init__(
        self,
        path: Path,
        captions: NDArray[np.int32],
        rows: NDArray[np.int64],
        keys: NDArray[np.str_] | None,
        files: OpenFiles | None = None,
    ) -> None:
        self.path = path
        self.captions = captions  # [images]
        self.rows = rows  # [images, 5]: image offset and size, JSON offset, size and CRC-32
        self._keys = keys  # read from the index file at first use: most readers never need them
        self._files = files or OpenFiles(limit=1)

    @classmethod
    def load(cls, tar_path: str | Path, files: OpenFiles | None = None) -> ShardIndex:
        """The index of ``tar_path``; built (and written, where the folder allows) if missing or stale.

        Raises:
            DataError: the tar is missing, cut short, empty, or not a shard.
        """
        path = Path(tar_path)
        stored = cls.load_stored(path, files)
        if stored is not None:
            return stored
        table = scan(path)
        try:
            _save_index(path, table, tar_size(path))
        except DataError as error:
            logger.warning("the index of %s is rebuilt at every start, because: %s", path, error)
        return cls.of(path, table, files)

    @classmethod
    def load_stored(cls, path: Path, files: OpenFiles | None = None) -> ShardIndex | None:
        """The index on disk; None if it is missing or stale. Raises `DataError` where the tar is missing."""
        arrays = index_arrays(index_path(path), ("captions", *COLUMNS), tar_size(path))
        if arrays is None:
            return None
        captions, *columns = arrays
        rows = np.stack(columns, axis=1)
        if not _within(rows, tar_size(path)):
            return None
        return cls(path, captions, rows, None, files)

    @classmethod
    def of(cls, path: Path, table: ShardTable, files: OpenFiles | None = None) -> ShardIndex:
        """The index of a tar whose structure is known."""
        return cls(path, table.captions_array(), table.rows_array(), np.array(table.keys), files)

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def keys(self) -> NDArray[np.str_]:
        """Keys of the samples, in order: a unicode array ``[images]``."""
        if self._keys is None:
            arrays = index_arrays(index_path(self.path), ("keys",), tar_size(self.path))
            self._keys = np.array(scan(self.path).keys) if arrays is None else arrays[0]
        return self._keys

    def read(self, i: int) -> Sample:
        """The sample ``i``; captions are as stored, not cleaned.

        Raises:
            IndexError: ``i`` is not in ``0..len-1``.
            BadSample: "broken JSON", or "not as indexed": JSON or image are not the ones that were there when the
                index was made, so one of them is damaged, or the tar was replaced under a stale index.
            DataError: the tar was cut since it was opened, or cannot be read.
        """
        header, image, text = self._read(i)
        if zlib.crc32(text) != self.rows[i, 4]:
            raise BadSample("not as indexed", f"sample {i} of {self.path}: delete {index_path(self.path)}")
        record = parse_record(text)
        if not _heads(header, record["key"], len(image)):
            raise BadSample("not as indexed", f"the image of {record['key']}: delete {index_path(self.path)}")
        return Sample(
            key=record["key"],
            image=image,
            captions=tuple(record["captions"]),
            source=str(record.get("source", "")),
            extra={name: value for name, value in record.items() if name not in _RESERVED},
        )

    def read_bytes(self, i: int) -> tuple[bytes, bytes]:
        """Image and JSON of the sample ``i`` as stored, in one ``pread``.

        Raises:
            IndexError: ``i`` is not in ``0..len-1``.
            DataError: the tar was cut since it was opened, or cannot be read.
        """
        _, image, text = self._read(i)
        return image, text

    def _read(self, i: int) -> tuple[bytes, bytes, bytes]:
        """The tar's header of the image, the image, and the JSON."""
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)} in {self.path}")
        image_offset, image_size, json_offset, json_size, _ = self.rows[i].tolist()
        start = max(min(image_offset - _BLOCK, json_offset), 0)
        end = max(image_offset + image_size, json_offset + json_size)
        try:
            descriptor = self._files.get(self.path)
            data = os.pread(descriptor.number, end - start, start)
        except OSError as error:
            raise DataError(f"cannot read {self.path}: {error.strerror or error}.") from error
        if len(data) < end - start:
            raise DataError(cut_short(self.path, f"sample {i} ends at byte {end}"))
        image, text = image_offset - start, json_offset - start
        return (
            data[max(image - _BLOCK, 0) : image],
            data[image : image + image_size],
            data[text : text + json_size],
        )


def _heads(header: bytes, key: str, size: int) -> bool:
    """Whether a tar header is of the member ``<key>.<extension>`` of ``size`` bytes, as `write_shard` makes it."""
    name, _, rest = header.partition(b".")
    try:
        return name == key.encode() and bool(rest) and int(header[124:135], 8) == size
    except ValueError:
        return False


def load_caption_counts(tar_path: str | Path) -> NDArray[np.int32]:
    """Captions per image ``[images]``: all that opening a dataset needs; everything else is read when used.

    Raises:
        DataError: as `ShardIndex.load`.
    """
    path = Path(tar_path)
    arrays = index_arrays(index_path(path), ("captions",), tar_size(path))
    return ShardIndex.load(path).captions if arrays is None else arrays[0]


class _Descriptor:
    def __init__(self, path: Path) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


def _check(path: Path, sample: Sample, table: ShardTable) -> None:
    if len(sample.key) > MAX_KEY or not _KEY.fullmatch(sample.key):
        raise DataError(f"cannot write {path}: {sample.key!r} is not a valid key; make_key() gives one.")
    if sample.key in table.seen:
        raise DataError(f"cannot write {path}: the key {sample.key!r} comes twice.")
    if not sample.captions:
        raise DataError(f"cannot write {path}: sample {sample.key!r} has no captions.")
    taken = _RESERVED & sample.extra.keys()
    if taken:
        raise DataError(f"cannot write {path}: sample {sample.key!r}: extra may not hold {sorted(taken)}.")


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a member; gives the offset of its data."""
    member = tarfile.TarInfo(name)  # a fresh TarInfo has mtime, uid and gid 0 and mode 0644
    member.size = len(data)
    offset = tar.offset + _BLOCK
    tar.addfile(member, io.BytesIO(data))
    return offset


def _save_index(tar_path: Path, table: ShardTable, tar_bytes: int) -> None:
    columns = dict(zip(COLUMNS, table.rows_array().T, strict=True))
    buffer = io.BytesIO()
    np.savez(
        buffer,
        keys=np.array(table.keys),
        captions=table.captions_array(),
        tar_bytes=np.array(tar_bytes, np.int64),
        **columns,
    )
    with atomic_writer(index_path(tar_path)) as file:
        file.write(buffer.getvalue())


def _within(rows: NDArray[np.int64], tar_bytes: int) -> bool:
    """Whether all images and JSONs lie in the tar: a damaged index may name places of any size."""
    starts, sizes = rows[:, 0:4:2], rows[:, 1:4:2]
    return bool(((starts >= 0) & (sizes >= 0) & (sizes <= tar_bytes) & (starts <= tar_bytes - sizes)).all())


_ONE_AT_A_TIME = threading.Lock()
"""numpy reads headers with Python's parser, which fails at random (SystemError: "AST constructor recursion depth
mismatch") when several threads are in it before Python 3.11.8 and 3.12.2."""


def index_arrays(
    source: Path | BinaryIO, names: tuple[str, ...], tar_bytes: int
) -> list[NDArray[Any]] | None:
    """Arrays of an index file; None if it is missing, damaged, or of a tar of another size.

    Nothing in it is larger than the file: it must be stored uncompressed, as it is written.
    """
    try:
        with _ONE_AT_A_TIME, np.load(source, allow_pickle=False) as index:
            if any(member.compress_type != zipfile.ZIP_STORED for member in index.zip.infolist()):
                return None
            if int(index["tar_bytes"]) != tar_bytes:
                return None
            arrays = [index[name] for name in names]
        if any(array.ndim != 1 for array in arrays) or len({len(array) for array in arrays}) > 1:
            return None
        return [_column(name, array) for name, array in zip(names, arrays, strict=True)]
    # numpy reads a header of its own with Python's tokenizer, and gives bytes for what has no such header.
    except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, MemoryError, RuntimeError,
            SyntaxError, OverflowError, struct.error, tokenize.TokenError, zipfile.BadZipFile):  # fmt: skip
        return None


def _column(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """The array as it was written; ValueError or TypeError if it is of another kind."""
    if name == "keys":
        if array.dtype.kind != "U" or array.dtype.itemsize == 0:
            raise TypeError(name)
        if np.ascontiguousarray(array).view(np.uint32).max(initial=0) > sys.maxunicode:
            raise ValueError(name)
        return array
    whole = array.astype(np.int32 if name == "captions" else np.int64, casting="same_kind")
    if not np.array_equal(whole, array) or whole.min(initial=0) < 0:
        raise ValueError(name)
    return whole
