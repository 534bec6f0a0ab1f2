"""Evaluation images among training images: copies of the same bytes, changed copies, mirrored ones.

A model that trained on an image of its test set is praised for its memory. Datasets overlap more than their
names tell: crawls hold COCO and Flickr photos, resized, re-encoded and cropped. Three steps:

1. Fingerprints of both sides (`ssmke.data.quality.fingerprints`): nearly all of the time.
2. Candidates: the same SHA-256, or perceptual hashes that differ in at most ``max_distance`` bits, found without
   comparing all pairs (`ssmke.data.quality.hamming`): 3 million images against 31,000, mirrored too, take
   7 s of one core and 0.3 GB.
3. Candidates by hash are read again and kept if 16 x 16 grey thumbnails correlate by ``min_correlation``.

The bounds are measured, on 17,000 distinct photos (144.5 million pairs, and as many against mirrored ones)
and on 400 photos changed in 17 ways. Up to 11 bits there are 142 false candidates, of which none correlates
by 0.85; beyond 11 bits, the first above 0.9 are two shots of one scene. Of changed copies, all that were
re-encoded, rescaled, squashed, mirrored, turned grey, 20 % brighter or darker, or lost 2 % at every edge are
found (the least by 0.93). It is made for those: of copies with 5 % cut off every edge, with a frame around
them or a caption bar on them, it finds three in ten.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ssmke.data.atomic import atomic_writer, encode_json
from ssmke.data.parallel import Progress, run_jobs
from ssmke.data.quality.fingerprints import MIRROR, SIDE, Fingerprints, fingerprint, halved, thumbnail
from ssmke.data.quality.hamming import near_pairs
from ssmke.data.quality.inputs import InputShard, input_shards
from ssmke.errors import ConfigError, DataError

Kind = Literal["exact", "near", "mirrored"]
KINDS: tuple[Kind, ...] = ("exact", "near", "mirrored")


@dataclasses.dataclass(frozen=True)
class LeakConfig:
    """What counts as a copy."""

    max_distance: int = 11
    """Bits (of 64) in which the perceptual hashes of a copy may differ."""
    min_correlation: float = 0.9
    """Correlation that the grey thumbnails of a copy must have."""
    mirrored: bool = True
    """Look for mirrored copies too."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_distance <= 15:
            raise ConfigError(f"--max-distance {self.max_distance}: must be 0 to 15 (of 64 bits)")
        if not 0 < self.min_correlation <= 1:
            raise ConfigError(f"--min-correlation {self.min_correlation}: must be above 0 and at most 1")


@dataclasses.dataclass(frozen=True)
class Place:
    """Where an image is."""

    dir: str
    """Folder of the dataset."""
    split: str
    key: str


@dataclasses.dataclass(frozen=True)
class Leak:
    """A training image that is an evaluation image."""

    kind: Kind
    """"exact": the same bytes; "near": the same picture changed; "mirrored"."""
    distance: int
    """Bits in which the perceptual hashes differ."""
    correlation: float
    """Of the grey thumbnails."""
    train: Place
    against: Place


@dataclasses.dataclass(frozen=True)
class LeakReport:
    """What `find_leaks` found."""

    leaks: tuple[Leak, ...]
    """By training image, in the order of the shards."""
    train_images: int
    against_images: int
    candidates: int
    """Pairs that were compared by thumbnails."""
    unreadable: Mapping[str, int]
    """Images of either side that could not be decoded and are only known by their bytes, by reason."""
    seconds: float

    @property
    def images(self) -> int:
        """Training images to be removed: one may leak several evaluation images."""
        return len({leak.train for leak in self.leaks})


def find_leaks(
    train: Sequence[Path],
    against: Sequence[Path],
    config: LeakConfig,
    split: str = "train",
    against_splits: Sequence[str] = ("val", "test"),
    workers: int = 1,
    on_total: Callable[[int], None] = lambda images: None,
    on_items: Progress = lambda images: None,
) -> LeakReport:
    """Find images of ``split`` of ``train`` that are also in ``against_splits`` of ``against``.

    A folder may be on both sides: its own train split is checked against its own val and test.

    Raises:
        DataError: no manifest, none of the splits, or shards that are missing or replaced.
        ConfigError: a split would be compared with itself.
    """
    begin = time.monotonic()
    train, against = _resolved(train), _resolved(against)
    if split in against_splits and set(train) & set(against):
        both = min(set(train) & set(against))
        raise ConfigError(
            f"--against-splits: {both} would be compared with itself; leave {split!r} out of it"
        )
    ours, theirs = input_shards(train, [split]), input_shards(against, against_splits)
    sizes = [sum(shard.info.images for shard in side) for side in (ours, theirs)]
    on_total(sum(sizes))
    prints = fingerprint([*ours, *theirs], workers, on_items)
    boundary = sizes[0]
    exact = _same_bytes(prints, boundary)
    near = _candidates(prints, boundary, config)
    correlations, keys = _look(prints, exact, near, workers)
    leaks: dict[tuple[int, int], Leak] = {}
    for kind, pairs in (("exact", exact), *near.items()):
        for (a, b, distance), correlation in zip(pairs.tolist(), correlations[kind], strict=True):
            if kind != "exact" and correlation < config.min_correlation:
                continue
            # The most certain kind comes first, and a picture that is its own mirror image is not two leaks.
            leak = Leak(kind, distance, round(correlation, 4), keys[a], keys[b])
            leaks.setdefault((a, b), leak)
    return LeakReport(
        leaks=tuple(leak for _, leak in sorted(leaks.items())),
        train_images=sizes[0],
        against_images=sizes[1],
        candidates=sum(map(len, near.values())),
        unreadable=prints.unreadable,
        seconds=time.monotonic() - begin,
    )


def write_leaks(path: Path, leaks: Iterable[Leak]) -> None:
    """One JSON object a line; no leaks, an empty file."""
    with atomic_writer(path) as file:
        for leak in leaks:
            file.write(encode_json(dataclasses.asdict(leak)))


def read_leaks(path: Path) -> list[Leak]:
    """What `write_leaks` wrote.

    Raises:
        DataError: it cannot be read, or is something else.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(
            f"cannot read --drop {path}: {error.strerror or error}. Give a file that `ssmke data leaks --out` wrote."
        ) from error
    leaks = []
    for number, line in enumerate(lines, 1):
        try:
            leaks.append(_parse(json.loads(line)))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            raise DataError(
                f"--drop: line {number} of {path} is not a leak; give a file that `ssmke data leaks --out` wrote."
            ) from None
    return leaks


def _parse(record: Any) -> Leak:
    places = [
        Place(**{name: str(record[side][name]) for name in ("dir", "split", "key")})
        for side in ("train", "against")
    ]
    if record["kind"] not in KINDS:
        raise ValueError(record["kind"])
    return Leak(record["kind"], int(record["distance"]), float(record["correlation"]), *places)


def _resolved(directories: Sequence[Path]) -> list[Path]:
    # Once each: a folder named twice would give every leak twice.
    return list(dict.fromkeys(directory.resolve() for directory in directories))


def _same_bytes(prints: Fingerprints, boundary: int) -> NDArray[np.int64]:
    """Pairs ``[n, 3]`` of images before and after ``boundary`` with the same SHA-256; the third is 0."""
    digests = prints.digests
    order = boundary + np.argsort(digests[boundary:, 0], kind="stable")
    known = digests[order, 0]
    begin = np.searchsorted(known, digests[:boundary, 0], side="left")
    count = np.searchsorted(known, digests[:boundary, 0], side="right") - begin
    a = np.repeat(np.arange(boundary), count)
    b = order[np.repeat(begin - np.cumsum(count) + count, count) + np.arange(len(a))]
    same = (digests[a] == digests[b]).all(1)
    return np.stack([a[same], b[same], np.zeros(int(same.sum()), np.int64)], axis=1)


def _candidates(prints: Fingerprints, boundary: int, config: LeakConfig) -> dict[Kind, NDArray[np.int64]]:
    """Pairs ``[n, 3]`` of images before and after ``boundary``, and how many bits of their hashes differ."""
    a = np.flatnonzero(prints.comparable[:boundary])
    b = boundary + np.flatnonzero(prints.comparable[boundary:])
    masks: dict[Kind, np.uint64] = {"near": np.uint64(0)}
    if config.mirrored:
        masks["mirrored"] = MIRROR
    pairs: dict[Kind, NDArray[np.int64]] = {}
    for kind, mask in masks.items():
        rows, columns, distances = near_pairs(prints.hashes[a], prints.hashes[b] ^ mask, config.max_distance)
        rows, columns = a[rows], b[columns]
        new = (prints.digests[rows] != prints.digests[columns]).any(1)
        pairs[kind] = np.stack([rows[new], columns[new], distances[new].astype(np.int64)], axis=1)
    return pairs


def _look(
    prints: Fingerprints, exact: NDArray[np.int64], near: Mapping[Kind, NDArray[np.int64]], workers: int
) -> tuple[dict[Kind, list[float]], dict[int, Place]]:
    """Read the images of all pairs again: the correlations of each kind's pairs, and where each image is."""
    compared = np.unique(np.concatenate([pairs[:, :2].ravel() for pairs in near.values()]))
    named = np.union1d(compared, exact[:, :2])
    jobs: list[tuple[InputShard, NDArray[np.int64], NDArray[np.bool_]]] = []
    for number, shard in enumerate(prints.shards):
        begin, end = prints.first[number : number + 2]
        here = named[np.searchsorted(named, begin) : np.searchsorted(named, end)]
        if len(here):
            jobs.append((shard, here - begin, np.isin(here, compared)))
    # A few images cost less than starting processes does.
    looked = run_jobs(_look_into_shard, jobs, workers if len(compared) > 2000 else 1)
    places = dict(zip(named.tolist(), (place for part, _ in looked for place in part), strict=True))
    thumbnails = np.concatenate([np.zeros((0, 16, 16), np.float32), *(part for _, part in looked)])
    correlations: dict[Kind, list[float]] = {"exact": [1.0] * len(exact)}
    for kind, pairs in near.items():
        correlations[kind] = []
        for begin in range(0, len(pairs), 4096):  # thumbnails are repeated for each pair that they are in
            ours, theirs = thumbnails[np.searchsorted(compared, pairs[begin : begin + 4096, :2].T)]
            theirs = theirs[..., ::-1] if kind == "mirrored" else theirs
            correlations[kind] += _correlation(ours, theirs).tolist()
    return correlations, places


def _look_into_shard(
    job: tuple[InputShard, NDArray[np.int64], NDArray[np.bool_]],
) -> tuple[list[Place], NDArray[np.float32]]:
    """Places of the given images of a shard, and thumbnails of those that are to be compared."""
    shard, positions, compared = job
    index = shard.open()
    places = [Place(str(shard.directory), shard.split, str(index.keys[i])) for i in positions.tolist()]
    small = [halved(thumbnail(index.read_bytes(i)[0])) for i in positions[compared].tolist()]
    return places, np.array(small, np.float32).reshape(-1, SIDE // 2, SIDE // 2)


def _correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Pearson correlation of each pair of images ``[n]``; they are not flat (see `Fingerprints.comparable`)."""
    flat = [x.reshape(len(x), -1).astype(np.float64) for x in (a, b)]
    flat = [x - x.mean(1, keepdims=True) for x in flat]
    products: NDArray[np.float64] = (flat[0] * flat[1]).sum(1)
    return products / np.sqrt((flat[0] ** 2).sum(1) * (flat[1] ** 2).sum(1))
