"""Checks a target cache against the shards and the teacher: digests of all rows, and some computed again."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from ssmke.data.augmentation import AugmentationConfig
from ssmke.data.dataset import ImageTextShards
from ssmke.data.shards import ShardIndex, file_sha256
from ssmke.errors import BadSample, TargetCacheError
from ssmke.models.teachers import Teacher
from ssmke.targets.cache import (
    CacheIdentity,
    TargetsConfig,
    check_identity,
    load_record,
    rows_path,
    shard_folders,
)
from ssmke.targets.image_rows import views_of

TOLERANCE = 2e-3
"""Largest accepted distance, relative to the target's length: fp16 rounding and another machine's kernels."""


@dataclass
class CacheReport:
    """What a verification found."""

    shards: int = 0
    images: int = 0
    recomputed: int = 0
    largest_distance: float = 0.0
    """Largest relative distance of a recomputed target."""
    problems: list[str] = field(default_factory=list)


def verify_targets(
    shards: ImageTextShards,
    teacher: Teacher,
    identity: CacheIdentity,
    augmentation: AugmentationConfig,
    config: TargetsConfig,
    recompute: int = 16,
) -> CacheReport:
    """Reads every row file and compares its digest; computes ``recompute`` images per shard again.

    All problems are listed; a cache of another identity is a `TargetCacheError` at once.
    """
    report = CacheReport()
    for number, (_, info, folder, _) in enumerate(shard_folders(shards, identity, config)):
        report.shards += 1
        report.images += info.images
        rows_file = rows_path(folder, info.file)
        if not check_identity(folder, identity):
            raise TargetCacheError(f"there is no target cache in {folder}: run `ssmke targets build`")
        try:
            record = load_record(folder, info, identity)
        except TargetCacheError as error:
            report.problems.append(str(error))
            continue
        if record is None:
            report.problems.append(f"{rows_file}: not built yet")
            continue
        if file_sha256(rows_file) != record.sha256:
            report.problems.append(f"{rows_file}: its bytes changed since it was built")
            continue
        rows = np.load(rows_file, mmap_mode="r", allow_pickle=False)
        index = shards.open_shard(number)
        for image in np.linspace(0, info.images - 1, min(recompute, info.images)).astype(int):
            distance = _distance(index, int(image), rows[image], teacher, identity, augmentation)
            report.recomputed += 1
            report.largest_distance = max(report.largest_distance, distance)
            if not distance <= TOLERANCE:
                report.problems.append(
                    f"{rows_file}: target of {index.keys[image]} is {distance:.2%} away from the teacher's"
                )
    return report


def _distance(
    index: ShardIndex,
    image: int,
    cached: np.ndarray,
    teacher: Teacher,
    identity: CacheIdentity,
    augmentation: AugmentationConfig,
) -> float:
    try:
        pixels = torch.from_numpy(views_of(index, image, identity, augmentation))
    except BadSample:
        return 0.0 if bool(np.isnan(cached).all()) else float("inf")
    device = next((p.device for p in teacher.parameters()), torch.device("cpu"))
    fresh = teacher(pixels.to(device)).cpu()
    difference = (fresh - torch.from_numpy(np.array(cached, dtype=np.float32))).norm(dim=-1)
    return float((difference / fresh.norm(dim=-1)).max())
