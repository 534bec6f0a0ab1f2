"""Checks a cache against the shards and its model: digests of all rows, and some computed again."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from ssmke.data.dataset import ImageTextShards
from ssmke.data.shards import ShardIndex, file_sha256
from ssmke.errors import BadSample, TargetCacheError
from ssmke.targets.build import RowSource
from ssmke.targets.cache import (
    TargetsConfig,
    check_identity,
    load_record,
    rows_path,
    shard_folders,
)

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
    shards: ImageTextShards, source: RowSource, config: TargetsConfig, recompute: int = 16
) -> CacheReport:
    """Reads every row file and compares its digest; computes ``recompute`` rows per shard again.

    All problems are listed; a cache of another identity is a `TargetCacheError` at once.
    """
    report, identity = CacheReport(), source.identity
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
        for row in np.linspace(0, len(rows) - 1, min(recompute, len(rows))).astype(int).tolist():
            distance = _distance(index, row, rows[row], source)
            report.recomputed += 1
            report.largest_distance = max(report.largest_distance, distance)
            if not distance <= TOLERANCE:
                what = f"row {row}" if identity.of_captions else f"target of {index.keys[row]}"
                report.problems.append(f"{rows_file}: {what} is {distance:.2%} away from the model's")
    return report


def _distance(index: ShardIndex, number: int, cached: np.ndarray, source: RowSource) -> float:
    try:
        fresh = source.row(index, number).cpu()
    except BadSample:
        return 0.0 if bool(np.isnan(cached).all()) else float("inf")
    difference = (fresh - torch.from_numpy(np.array(cached, dtype=np.float32))).norm(dim=-1)
    return float((difference / fresh.norm(dim=-1)).max())
