"""Directories of shards as one numbered set of images and image-caption pairs.

Images are numbered through all shards of all directories in the order of their manifests, pairs through all
captions of all images: ``pair p -> (image, caption of that image)``. A number is a pure function of the
manifests, so a stream can order, split and resume by number alone. Opening reads one small array a shard and
compares sizes with the manifest: 1,000 shards (a million images) take a fraction of a second; no tar is
touched, and a missing or cut shard is an error before the first step. Where samples lie is read per shard
when first used.

A directory may be an address (s3://, gs://, hf://, https://): then `remote.mirror` keeps a bounded local copy, a
shard is fetched when one of its samples is first read, and fetched again if it had to make room meanwhile.

Memory: 12 bytes an image, and 44 more for each image of the shards in use. Pairs cost nothing until
`pair_image` or `pair_caption` is asked for (12 bytes a pair).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ssmke.data.manifest import Manifest, ShardInfo
from ssmke.data.remote.fetch import RemoteConfig, is_remote
from ssmke.data.remote.mirror import Mirror, gave_way
from ssmke.data.remote.sources import shown
from ssmke.data.shards import OpenFiles, Sample, ShardIndex, load_caption_counts
from ssmke.errors import DataError

Taken = TypeVar("Taken")

MAKING_ROOM = 20
"""How often a remote shard is fetched for one sample, if it has to make room each time before it can be read."""

FRESH_SECONDS = 1.0
"""How often the mirror is told that a remote shard is in use: telling takes longer than reading a sample."""


class ImageTextShards:
    """All shards of one split in several directories; open with `open`.

    May be pickled and forked: file descriptors are opened when used, in each process.
    """

    def __init__(
        self,
        shards: Sequence[tuple[Path, ShardInfo]],
        captions: NDArray[np.int32],
        mirrors: Mapping[Path, Mirror] | None = None,
    ) -> None:
        first_image = np.cumsum([0, *(info.images for _, info in shards)], dtype=np.int64)
        self.shards: list[tuple[Path, ShardInfo, int]] = [
            (path, info, int(first)) for (path, info), first in zip(shards, first_image, strict=False)
        ]
        """Path of each tar, its facts, and the number of its first image."""
        self.captions = captions
        """Captions of each image ``[images]``."""
        self._first_image = first_image  # [shards + 1]
        self._first_pair = np.concatenate([[0], np.cumsum(captions, dtype=np.int64)])  # [images + 1]
        self._indexes: list[ShardIndex | None] = [None] * len(shards)
        self._mirrors = dict(mirrors or {})  # by local folder
        self._asked: dict[int, float] = {}  # when the mirror was last told that a shard is in use
        self._files = OpenFiles()
        # A tar that made room stays on the disk while it is open, so few are kept open where that can happen.
        self._passing_files = OpenFiles(16)

    @classmethod
    def open(
        cls,
        directories: Sequence[str | Path],
        split: str,
        remote: RemoteConfig | None = None,
        *,
        where_present: bool = False,
    ) -> ImageTextShards:
        """Open ``split`` of every directory.

        Args:
            directories: folders or addresses of datasets.
            split: name of the split.
            remote: how addresses are read.
            where_present: leave out directories that have no such split, as long as one has it.

        Raises:
            DataError: no directories, no manifest, no such split, an empty split, an address that cannot be read, or
                a shard that is missing or not of the size that the manifest states.
        """
        if not directories:
            raise DataError("no dataset directories were given.")
        mirrors: dict[Path, Mirror] = {}
        folders: list[Path] = []
        for place in directories:
            folder, mirror = locate(place, remote)
            folders.append(folder)
            if mirror is not None:
                mirrors[folder] = mirror
        if where_present:
            having = [folder for folder in folders if split in Manifest.load(folder).splits]
            folders = having or folders
        shards: list[tuple[Path, ShardInfo]] = []
        counts: list[NDArray[np.int32]] = []
        for folder in folders:
            infos = _shards_of(folder, split)
            paths = [folder / info.file for info in infos]
            shards += zip(paths, infos, strict=True)
            if folder in mirrors:
                counts += mirrors[folder].indexes(infos)
            else:
                counts += [_counts(path, info) for path, info in zip(paths, infos, strict=True)]
        return cls(shards, np.concatenate(counts), mirrors)

    @property
    def images(self) -> int:
        """Number of images."""
        return int(self._first_image[-1])

    @property
    def pairs(self) -> int:
        """Number of image-caption pairs."""
        return int(self._first_pair[-1])

    @property
    def remote(self) -> bool:
        """True if some of the shards have to be fetched."""
        return bool(self._mirrors)

    @property
    def pairs_by_directory(self) -> list[int]:
        """Pairs of every directory, in order."""
        pairs: dict[Path, int] = {}
        for path, info, _ in self.shards:
            pairs[path.parent] = pairs.get(path.parent, 0) + info.captions
        return list(pairs.values())

    @property
    def first_pairs(self) -> NDArray[np.int64]:
        """Number of the first pair of every shard, and of all pairs, ``[shards + 1]``."""
        return self._first_pair[self._first_image]

    @property
    def remote_sizes(self) -> dict[str, list[int]]:
        """Bytes of the shards of every remote directory, by its address."""
        return {
            mirror.url: [info.bytes for path, info, _ in self.shards if path.parent == folder]
            for folder, mirror in self._mirrors.items()
        }

    def fetch(self, shard: int) -> Path:
        """The tar of shard number ``shard``, fetched first if it is remote.

        Raises:
            DataError: it cannot be fetched.
        """
        path, info, _ = self.shards[shard]
        mirror = self._mirrors.get(path.parent)
        return path if mirror is None else mirror.ensure(info)

    def place(self, shard: int) -> str:
        """Where shard number ``shard`` lies, as it may be printed: its file, or its address."""
        path, info, _ = self.shards[shard]
        mirror = self._mirrors.get(path.parent)
        return str(path) if mirror is None else f"{shown(mirror.url).rstrip('/')}/{info.file}"

    def prefetch(self, shards: Sequence[int]) -> None:
        """Begin to fetch these shards, in this order, as far as they are remote."""
        for folder, mirror in self._mirrors.items():
            infos = [self.shards[shard][1] for shard in shards if self.shards[shard][0].parent == folder]
            if infos:
                mirror.prefetch(infos)

    @functools.cached_property
    def pair_image(self) -> NDArray[np.int64]:
        """The image of every pair ``[pairs]``."""
        return np.repeat(np.arange(self.images, dtype=np.int64), self.captions)

    @functools.cached_property
    def pair_caption(self) -> NDArray[np.int32]:
        """Which of its image's captions every pair is ``[pairs]``."""
        first = np.repeat(self._first_pair[:-1], self.captions)
        return (np.arange(self.pairs, dtype=np.int64) - first).astype(np.int32)

    def pair(self, p: int) -> tuple[int, int]:
        """``(image, caption)`` of the pair ``p``; with an array of pairs, use `pairs_at`."""
        if not 0 <= p < self.pairs:
            raise IndexError(f"pair {p} of {self.pairs}")
        image, caption = self.pairs_at(np.array([p]))
        return int(image[0]), int(caption[0])

    def pairs_at(self, pairs: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """``(images, captions)`` of the given pairs, each ``[n]``, by binary search: no per-pair memory."""
        # Images without captions own no pair: searching from the right steps over them.
        image = np.searchsorted(self._first_pair, pairs, side="right") - 1
        return image, pairs - self._first_pair[image]

    def shard_of(self, image: int) -> tuple[int, int]:
        """``(shard, position in the shard)`` of an image: the address of its row in a target cache."""
        if not 0 <= image < self.images:
            raise IndexError(f"image {image} of {self.images}")
        shard = int(np.searchsorted(self._first_image, image, side="right")) - 1
        return shard, image - int(self._first_image[shard])

    def read(self, image: int) -> Sample:
        """The sample of an image.

        Raises:
            BadSample: its JSON is broken.
            DataError: its shard was cut or replaced since it was opened, or cannot be fetched.
        """
        shard, position = self.shard_of(image)
        return self._fetched(shard, lambda: self._index(shard).read(position))

    def key(self, image: int) -> str:
        """The key of an image, without reading the image."""
        shard, position = self.shard_of(image)
        return self._fetched(shard, lambda: str(self._index(shard).keys[position]))

    def keys(self, images: NDArray[np.integer]) -> list[str]:
        """Keys of many images, by shard; of a shard that would have to be fetched for it, "<shard>:<position>"."""
        shards = np.searchsorted(self._first_image, images, side="right") - 1
        found = np.empty(len(images), dtype=object)
        for shard in np.unique(shards).tolist():
            here = np.flatnonzero(shards == shard)
            places = images[here] - self._first_image[shard]
            path, _, _ = self.shards[shard]
            if path.parent in self._mirrors:
                found[here] = [f"{path.stem}:{place}" for place in places.tolist()]
            else:
                found[here] = self._index(shard).keys[places]
        return list(map(str, found))

    def open_shard(self, shard: int) -> ShardIndex:
        """A shard by itself, for reading all of it; fetched first, and kept open if it makes room meanwhile.

        Raises:
            DataError: it cannot be fetched or read.
        """

        def opened() -> ShardIndex:
            index = ShardIndex.load(self.shards[shard][0])
            index.read_bytes(0)
            return index

        return self._fetched(shard, opened)

    def _fetched(self, shard: int, take: Callable[[], Taken]) -> Taken:
        """What ``take`` reads of a shard, which is fetched first, and again if it made room meanwhile."""
        if self.shards[shard][0].parent not in self._mirrors:
            return take()
        for _ in range(MAKING_ROOM):
            if time.monotonic() - self._asked.get(shard, -FRESH_SECONDS) >= FRESH_SECONDS:
                self.fetch(shard)
                self._asked[shard] = time.monotonic()
            try:
                return take()
            except DataError as error:
                if not gave_way(error):
                    raise
                self._asked.pop(shard, None)
        raise DataError(
            f"{self.shards[shard][0]} is removed again and again before it can be read: the local copies of remote "
            "shards have too little room for all that read them; raise --data.remote.cache-gigabytes"
        )

    def __len__(self) -> int:
        return self.images

    def __getstate__(self) -> tuple[Any, ...]:
        return [(path, info) for path, info, _ in self.shards], self.captions, self._mirrors

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        ImageTextShards.__init__(self, *state)

    def _index(self, shard: int) -> ShardIndex:
        index = self._indexes[shard]
        if index is None:
            path, info, _ = self.shards[shard]
            files = self._passing_files if path.parent in self._mirrors else self._files
            index = ShardIndex.load(path, files)
            if len(index) != info.images:
                raise DataError(_changed(path, "images", len(index), info.images))
            self._indexes[shard] = index
        return index


def locate(place: str | Path, remote: RemoteConfig | None = None) -> tuple[Path, Mirror | None]:
    """The folder of a dataset that is named by folder or address; of an address, that of its local copy.

    Raises:
        DataError: an address that cannot be read.
    """
    if not is_remote(place):
        return Path(place), None
    mirror = Mirror.open(str(place), remote or RemoteConfig())
    return mirror.folder, mirror


def _shards_of(directory: Path, split: str) -> tuple[ShardInfo, ...]:
    splits = Manifest.load(directory).splits
    if split not in splits:
        there = ", ".join(sorted(splits)) or "none"
        raise DataError(f"{directory} has no split {split!r}; its splits: {there}.")
    if not splits[split].images or not splits[split].captions:
        raise DataError(f"the split {split!r} of {directory} is empty: make the dataset again.")
    return splits[split].shards


def _counts(path: Path, info: ShardInfo) -> NDArray[np.int32]:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(
            f"the shard {path} of the manifest cannot be read ({error.strerror or error}): copy it again "
            f"from its source, or run the command that made the dataset again."
        ) from None
    if size != info.bytes:
        how = "cut short" if size < info.bytes else "replaced"
        raise DataError(_changed(path, "bytes", size, info.bytes, how))
    counts = load_caption_counts(path)
    if len(counts) != info.images:
        raise DataError(_changed(path, "images", len(counts), info.images))
    if int(counts.sum()) != info.captions:
        raise DataError(_changed(path, "captions", int(counts.sum()), info.captions))
    return counts


def _changed(path: Path, what: str, found: int, stated: int, how: str = "replaced") -> str:
    return (
        f"the shard {path} was {how}: it has {found:,} {what}, the manifest says {stated:,}. Copy it again "
        f"from its source, or delete it and run the command that made the dataset again."
    )
