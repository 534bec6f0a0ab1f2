"""What is indexed: folders of pictures and datasets of shards, as one numbered set.

A number is a pure function of what is there, so that an interrupted indexing goes on by number alone; `fingerprint`
tells whether it still is what it was. A folder's is that of the names and sizes of its pictures, a dataset's that of
the digests in its manifest: neither reads a picture. A picture that was changed but kept its name and size is
not noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ssmke.data.captions import clean_caption
from ssmke.data.dataset import ImageTextShards, locate
from ssmke.data.manifest import FILE_NAME, Manifest
from ssmke.data.remote.fetch import is_remote
from ssmke.data.remote.sources import shown
from ssmke.data.sources.image_files import ImageFiles
from ssmke.errors import BadSample, DataError

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
OTHERS = (".gif", ".bmp", ".tif", ".tiff", ".heic", ".avif")
"""Pictures too, but of kinds that are not read: they are counted as skipped rather than passed over in silence."""


@dataclass(frozen=True)
class Picture:
    """One picture as it came, with what is known of it."""

    key: str
    """Sample key, or path below the folder."""
    id: str
    """What a table shows: COCO's id where there is one, else the key."""
    member: str
    """Where it is in its source: path below the folder, or SHARD.tar/KEY."""
    image: bytes
    """The encoded picture."""
    captions: tuple[str, ...]
    """Usable captions, cleaned."""
    bad_captions: tuple[str, ...] = ()
    """Why others are not usable."""


class Source(Protocol):
    """Pictures by number."""

    place: str
    """Where it is, as it may be printed."""
    fingerprint: str
    """Changes when pictures come, go or change."""

    def __len__(self) -> int: ...

    def read(self, number: int) -> Picture:
        """The picture of that number. Raises BadSample (this one cannot be used), DataError (the source is broken)."""
        ...


class Folder:
    """Pictures in a folder and the folders below it, by path."""

    def __init__(self, root: Path, without: Path | None = None) -> None:
        self.place = str(root.resolve())
        self._files = ImageFiles({"": root})
        skipped = None if without is None else without.resolve()
        found: list[tuple[str, int, int]] = []
        for folder, below, names in os.walk(root, onerror=_unreadable):
            # An index in the folder that it is made of must not be indexed; nor hidden folders, such as thumbnails.
            below[:] = sorted(
                name
                for name in below
                if not name.startswith(".") and (skipped is None or Path(folder, name).resolve() != skipped)
            )
            for name in sorted(names):
                if name.lower().endswith(PICTURES + OTHERS) and not name.startswith("."):
                    path = Path(folder, name)
                    state = path.stat() if path.exists() else None
                    facts = (0, 0) if state is None else (state.st_size, state.st_mtime_ns)
                    found.append((str(path.relative_to(root)), *facts))
        if not found:
            raise DataError(
                f"{root} has no pictures ({', '.join(PICTURES)}), and no {FILE_NAME} either: give a folder of "
                "pictures, or the folder of a dataset."
            )
        self._names = [name for name, *_ in found]
        listed = "\n".join(f"{name}\0{size}\0{changed}" for name, size, changed in found)
        self.fingerprint = hashlib.sha256(listed.encode("utf-8", "surrogatepass")).hexdigest()

    def __len__(self) -> int:
        return len(self._names)

    def read(self, number: int) -> Picture:
        """See `Source`."""
        name = self._names[number]
        return Picture(name, name, name, self._files.read(name), ())


class Shards:
    """The samples of one split of a dataset."""

    def __init__(self, place: str, split: str) -> None:
        self._shards = ImageTextShards.open([place], split)
        self.place = f"{shown(place) if is_remote(place) else Path(place).resolve()} ({split})"
        digests = [[info.file, info.sha256, info.images] for _, info, _ in self._shards.shards]
        self.fingerprint = hashlib.sha256(json.dumps([split, digests]).encode()).hexdigest()

    def __len__(self) -> int:
        return self._shards.images

    def read(self, number: int) -> Picture:
        """See `Source`."""
        sample = self._shards.read(number)
        shard, _ = self._shards.shard_of(number)
        good: dict[str, None] = {}
        bad = []
        for caption in sample.captions:
            try:
                good[clean_caption(caption)] = None
            except BadSample as error:
                bad.append(error.reason)
        name = str(sample.extra.get("cocoid", sample.key))
        member = f"{self._shards.shards[shard][0].name}/{sample.key}"
        return Picture(sample.key, name, member, sample.image, tuple(good), tuple(bad))


class Sources:
    """Several sources as one, numbered through."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = list(sources)
        self._first = np.cumsum([0, *map(len, sources)], dtype=np.int64)  # [sources + 1]
        digest = hashlib.sha256("\n".join(source.fingerprint for source in sources).encode())
        self.fingerprint = digest.hexdigest()
        self.places = [source.place for source in sources]

    def __len__(self) -> int:
        return int(self._first[-1])

    def source_of(self, number: int) -> int:
        """Which source a number is of."""
        return int(np.searchsorted(self._first, number, side="right")) - 1

    def read(self, number: int) -> Picture:
        """See `Source`."""
        source = self.source_of(number)
        return self._sources[source].read(number - int(self._first[source]))


def open_sources(places: Sequence[str], splits: Sequence[str] = (), without: Path | None = None) -> Sources:
    """Every place: a dataset where it has a manifest or is an address, else a folder of pictures.

    ``splits``: of the datasets; by default all that have pictures. ``without``: a folder that is passed over.

    Raises:
        DataError: a place that is not there, is empty, or has none of the splits.
    """
    if not places:
        raise DataError("--images: no folder was given.")
    sources: list[Source] = []
    for place in places:
        folder = Path(place)
        if not is_remote(place) and not folder.is_dir():
            what = "is a file" if folder.exists() else "does not exist"
            raise DataError(f"--images {place} {what}: give a folder of pictures or of shards.")
        if not is_remote(place) and not (folder / FILE_NAME).exists():
            sources.append(Folder(folder, without))
            continue
        there = Manifest.load(locate(place)[0]).splits
        usable = [name for name, split in there.items() if split.images and split.captions]
        wanted = [name for name in splits or usable if name in there]
        if not wanted:
            asked = ", ".join(splits) or "any that is not empty"
            raise DataError(
                f"{shown(place)} has no split {asked}; its splits: {', '.join(sorted(there)) or 'none'}."
            )
        sources += [Shards(place, split) for split in wanted]
    return Sources(sources)


def _unreadable(error: OSError) -> None:
    raise DataError(
        f"{error.filename} cannot be read ({error.strerror}): change its permissions, or move it away."
    )
