"""The pieces that an index grows by: a run of pictures, embedded, with what is shown of them.

A part is five files: ``NNNNN.items.jsonl`` (one line a picture), ``NNNNN.thumbs`` (JPEGs one after the other),
``NNNNN.images.npy`` and ``NNNNN.captions.npy`` (embeddings, until FAISS has them), and at last ``NNNNN.json``, its
record. Without its record a part is not there, so a crash costs the part in work; the next run goes on after the last
record. Lines are JSON and arrays are plain: nothing is ever unpickled.
About 0.5 kB a picture with five captions, and 15 kB its thumbnail.
"""

from __future__ import annotations

import io
import json
import mmap
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ssmke import foreign_json
from ssmke.data.atomic import atomic_writer, write_json
from ssmke.errors import DataError

Vectors = npt.NDArray[np.float32]

FOLDER = "parts"


@dataclass(frozen=True)
class Item:
    """What is known of one indexed picture."""

    key: str
    """Sample key, or path below its folder."""
    id: str
    """What a table shows: COCO's id where there is one, else the key."""
    source: int
    """Number of its place in the manifest."""
    member: str
    """Where it is in that place."""
    width: int
    """Of the thumbnail, in pixels."""
    height: int
    """Of the thumbnail, in pixels."""
    thumb: int
    """Where the thumbnail begins in the part's file, in bytes."""
    thumb_bytes: int
    """Its length."""
    captions: list = field(default_factory=list)  # of str; checked by `_item`
    """Its captions, cleaned."""


@dataclass(frozen=True)
class Part:
    """Record of a finished part."""

    number: int
    """Place in the order of parts."""
    start: int
    """First number of the sources that it covers."""
    stop: int
    """One after the last."""
    items: int
    """Pictures in it: those that could be used."""
    captions: int
    """Captions in it."""
    items_bytes: int
    """Size of its items file."""
    thumbs_bytes: int
    """Size of its thumbnails file."""
    skipped: dict[str, int] = field(default_factory=dict)
    """What could not be used, by reason."""


@dataclass
class Batch:
    """Pictures that were embedded together."""

    stop: int
    """One after the last number of the sources that it covers."""
    images: Vectors
    """Embeddings [n, D] of the pictures that could be used."""
    captions: Vectors
    """Embeddings [t, D] of their captions, picture by picture."""
    items: list[dict[str, Any]]
    """Of each picture the fields of `Item`, but for the place of its thumbnail."""
    thumbnails: list[bytes]
    """JPEG of each picture."""
    skipped: Counter[str]
    """What could not be used, by reason."""


class PartWriter:
    """Collects batches, then writes them as a part; a batch is in it whole or not at all, however it is interrupted."""

    def __init__(self, folder: Path, number: int, start: int) -> None:
        self._folder = folder
        self._number = number
        self._start = start
        self._batches: list[Batch] = []

    @property
    def covered(self) -> int:
        """Numbers of the sources that it covers by now."""
        return self._batches[-1].stop - self._start if self._batches else 0

    def add(self, batch: Batch) -> None:
        """Takes the next batch."""
        self._batches.append(batch)

    def commit(self) -> Part:
        """Writes the files, then the record; from then on the part is there. Doing it again does no harm."""
        images = np.concatenate([batch.images for batch in self._batches])
        captions = np.concatenate([batch.captions for batch in self._batches])
        lines, thumbs = io.BytesIO(), io.BytesIO()
        for batch in self._batches:
            for item, thumbnail in zip(batch.items, batch.thumbnails, strict=True):
                place = {"thumb": thumbs.tell(), "thumb_bytes": len(thumbnail)}
                # ASCII, because names of files may hold bytes that are no text.
                lines.write(json.dumps(item | place).encode() + b"\n")
                thumbs.write(thumbnail)
        for name, content in (("items.jsonl", lines), ("thumbs", thumbs)):
            with atomic_writer(part_file(self._folder, self._number, name)) as file:
                file.write(content.getvalue())
        for name, vectors in (("images.npy", images), ("captions.npy", captions)):
            with atomic_writer(part_file(self._folder, self._number, name)) as file:
                np.save(file, vectors, allow_pickle=False)
        part = Part(
            number=self._number,
            start=self._start,
            stop=self._batches[-1].stop,
            items=len(images),
            captions=len(captions),
            items_bytes=lines.tell(),
            thumbs_bytes=thumbs.tell(),
            skipped=dict(sum((batch.skipped for batch in self._batches), Counter[str]())),
        )
        write_json(part_file(self._folder, self._number, "json"), asdict(part))
        return part


def part_file(folder: Path, number: int, name: str) -> Path:
    """A file of part ``number`` of the index ``folder``."""
    return folder / FOLDER / f"{number:05d}.{name}"


def finished_parts(folder: Path) -> list[Part]:
    """Records of the parts that are there, in order, up to the first that is not.

    Raises:
        DataError: a record that is damaged, or does not follow the one before it.
    """
    parts: list[Part] = []
    while (path := part_file(folder, len(parts), "json")).exists():
        try:
            part = foreign_json.record(Part, foreign_json.loads(path.read_bytes()))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is damaged ({error}): remove it, and index again.") from None
        after = parts[-1].stop if parts else 0
        if part.number != len(parts) or part.start != after or part.stop <= part.start:
            raise DataError(f"{path} does not follow the part before it: remove {folder}, and index again.")
        parts.append(part)
    return parts


def part_vectors(folder: Path, part: Part, what: str, dim: int) -> Vectors:
    """Embeddings of a part, mapped [n, dim]; ``what`` is "images" or "captions".

    Raises:
        DataError: missing, cut short or of another shape.
    """
    path = part_file(folder, part.number, f"{what}.npy")
    expected = (part.items if what == "images" else part.captions, dim)
    try:
        # An array of no rows cannot be mapped.
        vectors: Vectors = np.load(path, mmap_mode="r" if expected[0] else None, allow_pickle=False)
        shape, kind = vectors.shape, vectors.dtype
    except (
        Exception
    ) as error:  # beside what is wrong with a file, numpy lets pass what reading its header raises
        raise DataError(f"{path} cannot be read ({error}): {_again(folder, part)}") from None
    if shape != expected or kind != np.float32:
        raise DataError(f"{path} has {shape} {kind}, its record says {expected}: {_again(folder, part)}")
    return vectors


class PartReader:
    """Items and thumbnails of a part; its files are mapped when first used, and stay so."""

    def __init__(self, folder: Path, part: Part) -> None:
        self._folder = folder
        self._part = part
        self._items: mmap.mmap | bytes | None = None
        self._thumbs: mmap.mmap | bytes | None = None
        self._ends: npt.NDArray[np.int64] | None = None

    def check(self) -> None:
        """DataError where a file is missing or not of the size that the record says."""
        for name, size in (("items.jsonl", self._part.items_bytes), ("thumbs", self._part.thumbs_bytes)):
            path = part_file(self._folder, self._part.number, name)
            try:
                found = path.stat().st_size
            except OSError as error:
                raise DataError(f"{path} cannot be read ({error.strerror}): index again.") from None
            if found != size:
                raise DataError(
                    f"{path} has {found:,} bytes, its record says {size:,}: restore it, or index again."
                )

    def item(self, row: int) -> Item:
        """The item ``row`` of the part. Raises DataError where its line is damaged."""
        if self._items is None or self._ends is None:
            self._items = self._mapped("items.jsonl")
            self._ends = np.flatnonzero(np.frombuffer(self._items, np.uint8) == ord("\n")).astype(np.int64)
        path = part_file(self._folder, self._part.number, "items.jsonl")
        if len(self._ends) != self._part.items:
            raise DataError(
                f"{path} has {len(self._ends)} lines, its record says {self._part.items}: index again."
            )
        begin = int(self._ends[row - 1]) + 1 if row else 0
        try:
            return _item(foreign_json.loads(self._items[begin : int(self._ends[row])]))
        except ValueError as error:
            raise DataError(f"line {row + 1} of {path} is damaged ({error}): index again.") from None

    def thumbnail(self, item: Item) -> bytes:
        """JPEG of an item of this part. Raises DataError where its place is not in the file."""
        if self._thumbs is None:
            self._thumbs = self._mapped("thumbs")
        if item.thumb + item.thumb_bytes > len(self._thumbs):
            path = part_file(self._folder, self._part.number, "thumbs")
            raise DataError(f"the thumbnail of {item.key!r} lies outside of {path}: index again.")
        return self._thumbs[item.thumb : item.thumb + item.thumb_bytes]

    def _mapped(self, name: str) -> mmap.mmap | bytes:
        path = part_file(self._folder, self._part.number, name)
        try:
            with path.open("rb") as file:
                # Nothing can be mapped of a file of no bytes.
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror or error}): index again.") from None


def _item(values: Any) -> Item:
    item = foreign_json.record(Item, values)
    if not all(type(caption) is str for caption in item.captions):
        raise ValueError("a caption is no text")
    return item


def _again(folder: Path, part: Part) -> str:
    return f"remove {part_file(folder, part.number, 'json')} and what comes after it, and index again"
