"""Builds the target cache: every rank takes every world-size-th shard, shard by shard, resumable.

Images are decoded by a thread pool (Pillow releases the interpreter lock) one batch ahead of the teacher, so
that the slower of decode and forward sets the pace. A shard's rows are written whole, then its record; a kill
costs the shard in work. An image that cannot be decoded gets NaN rows and is listed: the training stream skips
it for the same reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from ssmke.data.atomic import atomic_writer, make_folder, write_json
from ssmke.data.augmentation import AugmentationConfig, canonical_box, render, view_box
from ssmke.data.dataset import ImageTextShards
from ssmke.data.decode import decode_image
from ssmke.data.manifest import ShardInfo
from ssmke.data.shards import ShardIndex
from ssmke.errors import BadSample, SSMKEError, TargetCacheError
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

Pixels = npt.NDArray[np.uint8]


class TargetModel(Protocol):
    """What is cached: a `Teacher`, or a frozen encoder (`FrozenTokens`)."""

    dim: int

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [B, 3, S, S] -> targets [B, dim]."""
        ...

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Its weights, for their device."""
        ...


@dataclass(frozen=True)
class BuildReport:
    """What a build did, over all ranks."""

    images: int
    """Images whose targets were computed now."""
    reused: int
    """Images whose targets were there already."""
    bad: int
    """Images that could not be decoded."""
    seconds: float
    """Device-seconds spent now."""


def build_targets(
    shards: ImageTextShards,
    teacher: TargetModel,
    identity: CacheIdentity,
    augmentation: AugmentationConfig,
    config: TargetsConfig,
    progress: Callable[[int], None] = lambda images: None,
) -> BuildReport:
    """Computes the targets that are missing; collective over ranks; ``progress`` gets images as they are done here.

    Raises on every rank when any rank failed (`TargetCacheError`: other teacher, changed shards, full disk).
    """
    work = list(shard_folders(shards, identity, config))
    failure: SSMKEError | None = None
    done = reused = bad = 0
    begin = time.perf_counter()
    try:
        for folder in {folder for _, _, folder, _ in work}:
            if not check_identity(folder, identity) and rank() == 0:
                save_identity(folder, identity)
        for path, info, folder, _ in work[rank() :: world_size()]:
            record = load_record(folder, info, identity)
            if record is None:
                record = _build_shard(path, info, folder, teacher, identity, augmentation, config, progress)
                done += info.images
            else:
                reused += info.images
            bad += len(record.bad)
    except SSMKEError as error:
        failure = error
    totals = _gathered((failure, done, reused, bad, time.perf_counter() - begin))
    failures = [f for f, *_ in totals if f is not None]
    if failures:
        first = failure or failures[0]
        first.told = rank() != 0
        raise first
    return BuildReport(
        images=sum(t[1] for t in totals),
        reused=sum(t[2] for t in totals),
        bad=sum(t[3] for t in totals),
        seconds=sum(t[4] for t in totals),
    )


_Total = tuple[SSMKEError | None, int, int, int, float]


def _gathered(total: _Total) -> list[_Total]:
    if world_size() == 1:
        return [total]
    totals: list[_Total] = [total] * world_size()
    dist.all_gather_object(totals, total)
    return totals


def _build_shard(
    path: Path,
    info: ShardInfo,
    folder: Path,
    teacher: TargetModel,
    identity: CacheIdentity,
    augmentation: AugmentationConfig,
    config: TargetsConfig,
    progress: Callable[[int], None],
) -> ShardTargets:
    begin = time.perf_counter()
    index = ShardIndex.load(path)
    if len(index.keys) != info.images:
        raise TargetCacheError(
            f"{path} has {len(index.keys)} images, its manifest says {info.images}: run `ssmke data verify`"
        )
    rows = np.full((info.images, identity.views, teacher.dim), np.nan, dtype=np.float16)  # [N, V, D]
    bad: dict[str, str] = {}
    for images, crops in _crops(index, identity, augmentation, config.batch_size, bad):
        pixels = torch.from_numpy(np.concatenate(crops))  # [B * V, 3, S, S]
        targets = torch.cat([_forward(teacher, part) for part in pixels.split(config.batch_size)])
        halves = targets.reshape(len(images), identity.views, -1).half()
        if not bool(halves.isfinite().all()):
            raise TargetCacheError(
                f"the teacher's targets for {path} do not fit into fp16 or are not numbers: its weights or "
                "normalisation are not what it was trained with"
            )
        rows[images] = halves.cpu().numpy()
        progress(len(images))
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


def _forward(teacher: TargetModel, pixels: torch.Tensor) -> torch.Tensor:
    device = next((p.device for p in teacher.parameters()), torch.device("cpu"))
    targets: torch.Tensor = teacher(pixels.to(device, non_blocking=True))
    return targets


def _crops(
    index: ShardIndex,
    identity: CacheIdentity,
    augmentation: AugmentationConfig,
    batch_size: int,
    bad: dict[str, str],
) -> Iterator[tuple[list[int], list[Pixels]]]:
    """Batches of (image numbers, their views [V, 3, S, S]), decoded one batch ahead."""

    def decode(image: int) -> Pixels | BadSample:
        try:
            return views_of(index, image, identity, augmentation)
        except BadSample as error:
            return error

    starts = range(0, len(index.keys), batch_size)
    with ThreadPoolExecutor(max_workers=max(1, torch.get_num_threads())) as pool:

        def submit(start: int) -> list[Future[Pixels | BadSample]]:
            return [pool.submit(decode, i) for i in range(start, min(start + batch_size, len(index.keys)))]

        ahead = submit(0)
        for start in starts:
            decoded, ahead = ahead, submit(start + batch_size)
            images, crops = [], []
            for image, future in enumerate(decoded, start):
                result = future.result()
                if isinstance(result, BadSample):
                    bad[str(index.keys[image])] = result.reason
                else:
                    images.append(image)
                    crops.append(result)
            if images:
                yield images, crops


def views_of(
    index: ShardIndex, image: int, identity: CacheIdentity, augmentation: AugmentationConfig
) -> Pixels:
    """All cached views of one image, uint8 [V, 3, S, S]; raises `BadSample`."""
    sample = index.read(image)
    picture = decode_image(sample.image)
    if identity.views == 1:
        boxes = [(canonical_box(*picture.size), False)]
    else:
        boxes = [view_box(sample.key, v, *picture.size, augmentation) for v in range(identity.views)]
    return np.stack([render(picture, box, flip, identity.image_size) for box, flip in boxes])
