"""Directories of shards as one numbered set of images and image-caption pairs.

Images are numbered through all shards of all directories in the order of their manifests, pairs through all
captions of all images: ``pair p -> (image, caption of that image)``. A number is a pure function of the
manifests, so a stream can order, split and resume by number alone. Opening reads one small array a shard and
compares sizes with the manifest: 1,000 shards (a million images) take a fraction of a second; no tar is
touched, and a missing or cut shard is an error before the first step. Where samples lie is read per shard
when first used.

Memory: 12 bytes an image, and 44 more for each image of the shards in use. Pairs cost nothing until
`pair_image` or `pair_caption` is asked for (12 bytes a pair).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssmke.data.manifest import Manifest, ShardInfo
from ssmke.data.shards import OpenFiles, Sample, ShardIndex, load_caption_counts
from ssmke.errors import DataError


class ImageTextShards:
    """All shards of one split in several directories; open with `open`.

    May be pickled and forked: file descriptors are opened when used, in each process.
    """

    def __init__(self, shards: Sequence[tuple[Path, ShardInfo]], captions: NDArray[np.int32]) -> None:
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
        self._files = OpenFiles()

    @classmethod
    def open(cls, directories: Sequence[str | Path], split: str) -> ImageTextShards:
        """Open ``split`` of every directory.

        Raises:
            DataError: no directories, no manifest, no such split, an empty split, or a shard that is missing
            or not
                of the size that the manifest states.
        """
        if not directories:
            raise DataError("no dataset directories were given.")
        shards: list[tuple[Path, ShardInfo]] = []
        counts: list[NDArray[np.int32]] = []
        for directory in map(Path, directories):
            for info in _shards_of(directory, split):
                path = directory / info.file
                counts.append(_counts(path, info))
                shards.append((path, info))
        return cls(shards, np.concatenate(counts))

    @property
    def images(self) -> int:
        """Number of images."""
        return int(self._first_image[-1])

    @property
    def pairs(self) -> int:
        """Number of image-caption pairs."""
        return int(self._first_pair[-1])

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
            DataError: its shard was cut or replaced since it was opened.
        """
        shard, position = self.shard_of(image)
        return self._index(shard).read(position)

    def key(self, image: int) -> str:
        """The key of an image, without reading the image."""
        shard, position = self.shard_of(image)
        return str(self._index(shard).keys[position])

    def __len__(self) -> int:
        return self.images

    def __getstate__(self) -> tuple[list[tuple[Path, ShardInfo]], NDArray[np.int32]]:
        return [(path, info) for path, info, _ in self.shards], self.captions

    def __setstate__(self, state: tuple[list[tuple[Path, ShardInfo]], NDArray[np.int32]]) -> None:
        ImageTextShards.__init__(self, *state)

    def _index(self, shard: int) -> ShardIndex:
        index = self._indexes[shard]
        if index is None:
            path, info, _ = self.shards[shard]
            index = ShardIndex.load(path, self._files)
            if len(index) != info.images:
                raise DataError(_changed(path, "images", len(index), info.images))
            self._indexes[shard] = index
        return index


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
