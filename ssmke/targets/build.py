"""Builds a cache: the shards that are missing are dealt to all ranks in turn; resumable by shard.

What the rows are is a `RowSource`'s business: a teacher's targets or a frozen encoder's tokens of images
(`image_rows`), a frozen encoder's features of captions (`caption_rows`). A shard's rows are written whole, then its
record; a kill costs the shard in work. What cannot be read gets NaN rows and is listed: the training stream skips it
for the same reason.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from ssmke.data.atomic import TEMPORARY_SUFFIX, atomic_writer, make_folder, write_error, write_json
from ssmke.data.dataset import ImageTextShards
from ssmke.data.manifest import ShardInfo
from ssmke.data.shards import ShardIndex
from ssmke.errors import SSMKEError, TargetCacheError
from ssmke.objectives.gather import rank, world_size
from ssmke.targets.cache import (
    CacheIdentity,
    ShardTargets,
    TargetsConfig,
    check_identity,
    load_record,
    record_path,
    rows_path,
    save_identity,
    shard_folders,
)


class RowSource(Protocol):
    """Computes what is cached of a data shard (`ImageRows`, `CaptionRows`)."""

    @property
    def identity(self) -> CacheIdentity:
        """What its rows depend on."""
        ...

    def row(self, index: ShardIndex, number: int) -> torch.Tensor:
        """A single row of the shard, [V, D]; `BadSample` where there is none."""
        ...

    def batches(
        self, index: ShardIndex, bad: dict[str, str]
    ) -> Iterator[tuple[list[int], torch.Tensor, int]]:
        """(numbers of rows in the shard, these rows [B, V, D], images done); what has none goes to ``bad``."""
        ...


@dataclass(frozen=True)
class BuildReport:
    """What a build did, over all ranks."""

    images: int
    """Images whose rows, or whose captions' rows, were computed now, on all disks."""
    reused: int
    """Images whose rows were there already."""
    bad: int
    """Images that could not be decoded, or captions that are none."""
    seconds: float
    """Device-seconds spent now."""
    disks: int = 1
    """Folders that were filled, each for the ranks that see it: more than one where nodes do not share it."""


def build_targets(
    shards: ImageTextShards,
    source: RowSource,
    config: TargetsConfig,
    progress: Callable[[int], None] = lambda images: None,
) -> BuildReport:
    """Computes the rows that are missing; collective over ranks; ``progress`` gets images as they are done here.

    Ranks that see the same folder share its work. Where every node has a disk of its own, each fills its own.

    Raises on every rank when any rank failed (`TargetCacheError`: other teacher, changed shards, full disk).
    """
    identity = source.identity
    work = list(shard_folders(shards, identity, config))
    surveys = _all_or_error(lambda: _survey(work, identity))
    _, reused, known_bad = surveys[0]
    mine, disks = _deal(work, [missing for missing, *_ in surveys])
    failure: SSMKEError | None = None
    done = bad = 0
    begin = time.perf_counter()
    try:
        for place, number in enumerate(mine):
            _, info, folder, _ = work[number]
            shards.prefetch(mine[place : place + 2])  # the next one comes while this one is worked on
            index = shards.open_shard(number)
            record = _build_shard(index, info, folder, source, progress)
            done += info.images
            bad += len(record.bad)
    except SSMKEError as error:
        failure = error
    totals = _gathered((failure, done, bad, time.perf_counter() - begin))
    _raise_together([failure for failure, *_ in totals])
    return BuildReport(
        images=sum(done for _, done, _, _ in totals),
        reused=reused,
        bad=known_bad + sum(bad for _, _, bad, _ in totals),
        seconds=sum(seconds for *_, seconds in totals),
        disks=disks,
    )


_Work = tuple[Path, ShardInfo, Path, int]


def _survey(work: Sequence[_Work], identity: CacheIdentity) -> tuple[list[int], int, int]:
    """Numbers of the shards without targets; images and undecodable images of the others. Begins new caches."""
    for folder in {folder for _, _, folder, _ in work}:
        if not check_identity(folder, identity):
            save_identity(folder, identity)
    missing, images, bad = [], 0, 0
    for number, (_, info, folder, _) in enumerate(work):
        record = load_record(folder, info, identity)
        if record is None:
            missing.append(number)
        else:
            images, bad = images + info.images, bad + len(record.bad)
    return missing, images, bad


def _deal(work: Sequence[_Work], missing: Sequence[list[int]]) -> tuple[list[int], int]:
    """Numbers of the shards that this rank is to compute, and how many disks are filled; ``missing`` is every rank's.

    What is missing on a disk is what its first rank found, dealt to all that see it.
    """
    wanted = sorted({number for numbers in missing for number in numbers})
    folders = list(dict.fromkeys(work[number][2] for number in wanted))
    if not folders:
        return [], 1
    first_ranks = _first_rank_on(folders)
    seen_by: dict[tuple[int, ...], set[Path]] = {}
    for place, folder in enumerate(folders):
        here = first_ranks[rank()][place]
        sharers = tuple(r for r, firsts in enumerate(first_ranks) if firsts[place] == here)
        seen_by.setdefault(sharers, set()).add(folder)
    mine: list[int] = []
    for sharers, seen in seen_by.items():
        numbers = [number for number in missing[sharers[0]] if work[number][2] in seen]
        mine += numbers[sharers.index(rank()) :: len(sharers)]
    disks = max(len({firsts[place] for firsts in first_ranks}) for place in range(len(folders)))
    return sorted(mine), disks


def _first_rank_on(folders: Sequence[Path]) -> list[list[int]]:
    """For every rank and folder, the first rank whose files in that folder it sees (collective)."""
    if world_size() == 1:
        return [[0] * len(folders)]
    # Found by what ranks see of each other: host names and paths say nothing about what is mounted there.
    token = _gathered(secrets.token_hex(4))[0]
    marks = [
        [folder / f".rank-{r}.{token}{TEMPORARY_SUFFIX}" for folder in folders] for r in range(world_size())
    ]
    try:
        _all_or_error(lambda: _mark(marks[rank()]))
        seen = [
            next(r for r in range(world_size()) if marks[r][place].exists()) for place in range(len(folders))
        ]
        return _gathered(seen)
    finally:
        for path in marks[rank()]:
            path.unlink(missing_ok=True)


def _mark(paths: Sequence[Path]) -> None:
    for path in paths:
        make_folder(path.parent)
        try:
            path.touch()
        except OSError as error:
            raise write_error(path, error) from error


_Found = TypeVar("_Found")


def _all_or_error(function: Callable[[], _Found]) -> list[_Found]:
    """What every rank finds before any goes on, or an error on all (collective)."""
    mine: tuple[SSMKEError | None, list[_Found]]
    try:
        mine = None, [function()]
    except SSMKEError as error:
        mine = error, []
    outcomes = _gathered(mine)
    _raise_together([failure for failure, _ in outcomes])
    return [found for _, (found,) in outcomes]


def _raise_together(failures: Sequence[SSMKEError | None]) -> None:
    """The error of this rank, else the first of another, on every rank."""
    here = failures[rank()] if rank() < len(failures) else None
    for failure in (here, *failures):
        if failure is not None:
            failure.told = rank() != 0
            raise failure


_Gathered = TypeVar("_Gathered")


def _gathered(mine: _Gathered) -> list[_Gathered]:
    """Of every rank."""
    if world_size() == 1:
        return [mine]
    all_of_them: list[_Gathered] = [mine] * world_size()
    dist.all_gather_object(all_of_them, mine)
    return all_of_them


def _build_shard(
    index: ShardIndex,
    info: ShardInfo,
    folder: Path,
    source: RowSource,
    progress: Callable[[int], None],
) -> ShardTargets:
    begin, identity = time.perf_counter(), source.identity
    if len(index.keys) != info.images:
        raise TargetCacheError(
            f"{index.path} has {len(index.keys)} images, its manifest says {info.images}: run `ssmke data verify`"
        )
    rows = np.full(identity.shape(info), np.nan, dtype=np.float16)  # [N, V, D]
    bad: dict[str, str] = {}
    for numbers, targets, images in source.batches(index, bad):
        halves = targets.half()
        if not bool(halves.isfinite().all()):
            raise TargetCacheError(
                f"{identity.teacher['name']}'s {identity.teacher['output']} for {index.path} do not fit into fp16 or "
                "are not numbers: its weights or normalisation are not what it was trained with"
            )
        rows[numbers] = halves.cpu().numpy()
        progress(images)
    make_folder(folder)
    with atomic_writer(rows_path(folder, info.file)) as file:
        np.save(file, rows, allow_pickle=False)
    record = ShardTargets(
        images=info.images,
        keys_sha256=info.keys_sha256,
        shard_sha256=info.sha256,
        sha256=file.sha256,
        seconds=time.perf_counter() - begin,
        bad=bad,
    )
    write_json(record_path(folder, info.file), asdict(record))
    return record
