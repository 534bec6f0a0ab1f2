"""Which images of several datasets go into which new shards, decided before anything is written.

A survey reads the index of every input shard, and its samples only where the options ask for what is inside
(exact duplicates: SHA-256 of the bytes; sources: the JSON). What it brings back is small arrays, 21 bytes an
image, 53 with digests, so millions fit. From these, in order: other sources are left out, then leaks, then
exact duplicates (3 million images take 12 s); keys that an earlier image has are marked; what remains is dealt
to shards in the order of the inputs, by count and size. All of it is a pure function of the inputs and options,
so a stopped run can go on.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssmke.data.dealing import deal
from ssmke.data.import_state import Skip
from ssmke.data.parallel import Progress, run_jobs, tick
from ssmke.data.quality.fingerprints import image_digest
from ssmke.data.quality.leaks import Leak
from ssmke.data.reshard_samples import Origin
from ssmke.data.shard_scan import parse_record
from ssmke.errors import BadSample, DataError

OTHER_SOURCE, LEAK, DUPLICATE = "other source", "leak", "duplicate image"
_KEPT, _OTHER_SOURCE, _LEAK, _DUPLICATE = range(4)


@dataclasses.dataclass(frozen=True)
class Selection:
    """What is left out as a whole."""

    sources: tuple[str, ...] = ()
    """Keep only images of these sources; empty: of all."""
    leaks: tuple[Leak, ...] = ()
    """Leave out the training images of these."""
    duplicates: bool = False
    """Leave out exact duplicates, joining their captions onto the image that is kept..."""
    duplicate_splits: tuple[str, ...] = ("train",)
    """...in these splits."""


@dataclasses.dataclass(frozen=True)
class NewShard:
    """Images of one shard to be, by their numbers in the survey."""

    split: str
    number: int
    images: NDArray[np.int64]


class Survey:
    """All images of the input shards, numbered in their order; made by `survey`."""

    def __init__(self, origins: Sequence[Origin], parts: Sequence[_Part], selection: Selection) -> None:
        self.origins = origins
        self.first = np.cumsum([0, *(len(part.sizes) for part in parts)], dtype=np.int64)
        self.sizes = np.concatenate([part.sizes for part in parts])
        self.captions = np.concatenate([part.captions for part in parts])
        self._keys = np.concatenate([part.keys for part in parts])
        wanted = np.concatenate([part.wanted for part in parts])
        self._fate = np.where(wanted, _KEPT, _OTHER_SOURCE).astype(np.int8)
        self._leaks = self._find_leaks(selection.leaks)
        self.duplicates = np.zeros((0, 2), np.int64)
        """Number of each duplicate and of the image that is kept for it ``[duplicates, 2]``, by the latter."""
        if selection.duplicates:
            digests = np.concatenate([part.digests for part in parts])
            self._find_duplicates(digests, selection.duplicate_splits)
        self.renamed = self._taken_keys()
        """Whether an image's key is that of an earlier one ``[images]``."""

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def kept(self) -> int:
        """Images that are not left out as a whole."""
        return int((self._fate == _KEPT).sum())

    @property
    def of_other_sources(self) -> int:
        """Images that are left out for their source."""
        return int((self._fate == _OTHER_SOURCE).sum())

    def place(self, images: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """``(shard, position in it)`` of the given images."""
        shard = np.searchsorted(self.first, images, side="right") - 1
        return shard, images - self.first[shard]

    def keys(self, images: NDArray[np.int64]) -> list[str]:
        """The keys of the given images."""
        shards, positions = self.place(images)
        keys = np.empty(len(images), object)
        for shard in np.unique(shards):
            here = shards == shard
            keys[here] = self.origins[shard].shard.open().keys[positions[here]]
        return [str(key) for key in keys]

    def deal(self, most_images: int, most_bytes: int, largest: int | None) -> Iterator[NewShard]:
        """Deal the images that are kept; ``largest`` bounds the bytes of an image that will be shrunk."""
        sizes = self.sizes if largest is None else np.minimum(self.sizes, largest)
        for split, numbers in self._by_split().items():
            images = numbers[self._fate[numbers] == _KEPT]
            for number, shard in enumerate(deal(sizes[images], most_images, most_bytes)):
                yield NewShard(split, number, images[shard])

    def duplicates_of(self, images: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of ``duplicates`` whose kept image is one of the given ones, which are in order."""
        begin, end = np.searchsorted(self.duplicates[:, 1], [images[0], images[-1] + 1])
        near = self.duplicates[begin:end]
        rows: NDArray[np.int64] = near[np.isin(near[:, 1], images)]
        return rows

    def skips(self) -> list[Skip]:
        """The leaks and duplicates that are left out, one by one.

        Not those of other sources: a small part may be wanted of a large dataset, and they are no loss.
        """
        left_out = np.flatnonzero(self._fate >= _LEAK)
        details = {image: f"of {leak.against.key}" for image, leak in self._leaks.items()}
        kept = self.keys(self.duplicates[:, 1])
        details |= {
            image: f"of {key}" for image, key in zip(self.duplicates[:, 0].tolist(), kept, strict=True)
        }
        reasons = {_LEAK: LEAK, _DUPLICATE: DUPLICATE}
        shards, _ = self.place(left_out)
        skips = []
        for image, shard, key in zip(left_out.tolist(), shards.tolist(), self.keys(left_out), strict=True):
            origin, reason = self.origins[shard], reasons[int(self._fate[image])]
            skips.append(Skip(image, origin.place(key), origin.shard.split, reason, details[image]))
        return skips

    def _by_split(self) -> dict[str, NDArray[np.int64]]:
        ranges: dict[str, list[NDArray[np.int64]]] = {}
        for number, origin in enumerate(self.origins):
            ranges.setdefault(origin.shard.split, []).append(
                np.arange(self.first[number], self.first[number + 1])
            )
        return {split: np.concatenate(parts) for split, parts in ranges.items()}

    def _find_leaks(self, leaks: Sequence[Leak]) -> dict[int, Leak]:
        """Mark the training images of ``leaks``; gives them by number."""
        by_place: dict[tuple[Path, str], dict[int, Leak]] = {}
        for leak in leaks:
            keys = by_place.setdefault((Path(leak.train.dir), leak.train.split), {})
            keys.setdefault(_key_number(leak.train.key), leak)
        found: dict[int, Leak] = {}
        directories = [origin.shard.directory.resolve() for origin in self.origins]
        for number, (origin, directory) in enumerate(zip(self.origins, directories, strict=True)):
            keys = by_place.get((directory, origin.shard.split), {})
            if keys:
                begin, end = self.first[number : number + 2]
                here = begin + np.flatnonzero(np.isin(self._keys[begin:end], np.array(list(keys), np.uint64)))
                found |= {image: keys[int(self._keys[image])] for image in here.tolist()}
        there = {(leak.train.dir, leak.train.split, leak.train.key) for leak in found.values()}
        missing = [
            leak
            for (directory, _), keys in by_place.items()
            for leak in keys.values()
            if directory in directories and (leak.train.dir, leak.train.split, leak.train.key) not in there
        ]
        if missing:
            place = missing[0].train
            raise DataError(
                f"--drop names {len(missing):,} images that are not there, such as {place.key!r} of the split "
                f"{place.split!r} of {place.dir}: it is about another version of the dataset; run `ssmke data "
                f"leaks` again."
            )
        images = np.array(list(found), np.int64)
        self._fate[images[self._fate[images] == _KEPT]] = _LEAK
        return found

    def _find_duplicates(self, digests: NDArray[np.uint64], splits: Sequence[str]) -> None:
        pairs = []
        for split, numbers in self._by_split().items():
            if split not in splits:
                continue
            # Those without captions have a broken JSON: nothing can be kept for them, nor taken from them.
            images = numbers[(self._fate[numbers] == _KEPT) & (self.captions[numbers] > 0)]
            images = images[np.lexsort(digests[images].T)]  # stable: the first of equal ones stays first
            same = np.concatenate([[False], (digests[images[1:]] == digests[images[:-1]]).all(1)])[
                : len(images)
            ]
            leader = np.maximum.accumulate(np.where(same, 0, np.arange(len(images))))
            pairs.append(np.stack([images[same], images[leader[same]]], axis=1))
        if pairs:
            found = np.concatenate(pairs)
            self.duplicates = found[np.lexsort((found[:, 0], found[:, 1]))]
            self._fate[self.duplicates[:, 0]] = _DUPLICATE

    def _taken_keys(self) -> NDArray[np.bool_]:
        kept = np.flatnonzero(self._fate == _KEPT)
        kept = kept[np.argsort(self._keys[kept], kind="stable")]
        same = np.concatenate([[False], self._keys[kept[1:]] == self._keys[kept[:-1]]])[: len(kept)]
        taken = np.zeros(len(self), np.bool_)
        taken[kept[same]] = True
        return taken


def survey(
    origins: Sequence[Origin],
    selection: Selection,
    workers: int = 1,
    on_items: Progress = lambda images: None,
) -> Survey:
    """Look at all input shards; samples are read, and ``on_items`` called, only if `reads_samples`.

    Raises:
        DataError: a shard is missing or replaced, or a leak is of an image that is not there.
    """
    jobs = [_SurveyJob(origin, selection.sources, selection.duplicates) for origin in origins]
    parts = run_jobs(_survey_shard, jobs, workers if reads_samples(selection) else 1, on_items)
    return Survey(origins, parts, selection)


def reads_samples(selection: Selection) -> bool:
    """Whether a survey has to read the samples, not just the indexes."""
    return bool(selection.sources) or selection.duplicates


@dataclasses.dataclass(frozen=True)
class _SurveyJob:
    origin: Origin
    sources: tuple[str, ...]
    digests: bool


@dataclasses.dataclass(frozen=True)
class _Part:
    """What the survey brings back of a shard; arrays ``[images]``."""

    sizes: NDArray[np.int64]
    captions: NDArray[np.int32]
    keys: NDArray[np.uint64]
    """Numbers that stand for the keys."""
    wanted: NDArray[np.bool_]
    digests: NDArray[np.uint64]
    """``[images, 4]``; no rows if not asked for."""


def _survey_shard(job: _SurveyJob) -> _Part:
    index = job.origin.shard.open()
    wanted = np.ones(len(index), np.bool_)
    digests = np.zeros((len(index) if job.digests else 0, 4), np.uint64)
    if job.sources or job.digests:
        for i in range(len(index)):
            image, text = index.read_bytes(i)
            if job.digests:
                digests[i] = image_digest(image)
            if job.sources:
                wanted[i] = _source(text, job.origin.name) in job.sources
            tick()
    return _Part(
        sizes=index.rows[:, 1] + index.rows[:, 3],
        captions=index.captions,
        keys=np.array([_key_number(key) for key in index.keys.tolist()], np.uint64),
        wanted=wanted,
        digests=digests,
    )


def _source(text: bytes, default: str) -> str:
    try:
        return str(parse_record(text).get("source") or default)
    except BadSample:
        return default


def _key_number(key: str) -> int:
    """64 bits that stand for a key: a million keys as text would take a hundred megabytes."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
