"""The training stream where both encoders are frozen: batches are rows of caches, no image and no caption is read.

The order is that of `stream`: the same pairs in the same batches. A step costs a gather from memory-mapped files, so
that batches of tens of thousands of pairs (SAIL: 32,768) are fed by one process. A pair without a row (its image could
not be decoded, its caption is none) is replaced by the same rule as there, and counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from ssmke.data.batch import Batch
from ssmke.data.dataset import ImageTextShards
from ssmke.data.stream import REPLACEMENTS, StreamPlan, replacement_stride
from ssmke.data.waiting import places
from ssmke.errors import DataError

_REASON = "pair without cached features"


class ManyRows(Protocol):
    """A cache that is read by many numbers at once (`targets.cache.TargetCache`)."""

    def rows(self, numbers: npt.NDArray[np.int64], view: int = 0) -> npt.NDArray[np.float16]:
        """Rows of images or pairs, [len(numbers), D]; NaN where there is none."""
        ...


@dataclass
class FeatureBatches(Dataset[Batch]):
    """Map from step to this rank's batch: a pure function, whichever process evaluates it."""

    shards: ImageTextShards
    plan: StreamPlan
    images: ManyRows
    """What the image encoder gives, by image."""
    texts: ManyRows
    """What the text encoder gives, by pair."""
    targets: ManyRows | None = None
    """Teacher targets (of the canonical view), by image."""
    at: npt.NDArray[np.int64] = field(default_factory=lambda: places(0), init=False, repr=False)
    """The image that each worker is at; nothing is worked on for long here, so it stays empty."""

    def __len__(self) -> int:
        return self.plan.steps

    def __getitem__(self, step: int) -> Batch:
        """This rank's batch of ``step``. Raises `DataError` when too many pairs in a row have no features."""
        order, positions = self.plan.order.epoch(self.plan.epoch(step)), self.plan.positions(step)
        pairs = order[positions]
        images, texts, targets = self._rows(pairs)
        skipped: list[tuple[str, str]] = []
        stride = replacement_stride(self.plan, len(order))
        lacking = np.flatnonzero(_lacks(images, texts, targets))
        for attempt in range(1, REPLACEMENTS + 1):
            if not len(lacking):
                break
            skipped += [(key, _REASON) for key in self.shards.keys(self.shards.pairs_at(pairs[lacking])[0])]
            if attempt == REPLACEMENTS:
                raise DataError(
                    f"{REPLACEMENTS} pairs in a row have no cached features, the last one {skipped[-1][0]!r}: run "
                    "`ssmke data verify` on the shards"
                )
            pairs[lacking] = order[(positions[lacking] + attempt * stride) % len(order)]
            images[lacking], texts[lacking], more = self._rows(pairs[lacking])
            if targets is not None:
                targets[lacking] = more
            lacking = lacking[
                _lacks(images[lacking], texts[lacking], None if targets is None else targets[lacking])
            ]
        return Batch(
            images=torch.from_numpy(images),  # [B, N * D]
            ids=torch.from_numpy(texts),  # [B, W]
            mask=torch.ones((len(pairs), 1), dtype=torch.bool),
            image_ids=torch.from_numpy(self.shards.pairs_at(pairs)[0]),
            targets=None if targets is None else torch.from_numpy(targets),  # [B, D]
            keys=self._keys(pairs),
            skipped=tuple(skipped),
        )

    def where(self, number: int) -> str:
        """The shard that image ``number`` lies in."""
        return self.shards.place(self.shards.shard_of(number)[0])

    def _rows(
        self, pairs: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float16], npt.NDArray[np.float16] | None]:
        numbers, _ = self.shards.pairs_at(pairs)
        targets = None if self.targets is None else self.targets.rows(numbers)
        return self.images.rows(numbers), self.texts.rows(pairs), targets

    def _keys(self, pairs: npt.NDArray[np.int64]) -> tuple[str, ...]:
        images, captions = self.shards.pairs_at(pairs)
        names = self.shards.keys(images)
        return tuple(f"{name}#{caption}" for name, caption in zip(names, captions.tolist(), strict=True))


def _lacks(
    images: npt.NDArray[np.float16], texts: npt.NDArray[np.float16], targets: npt.NDArray[np.float16] | None
) -> npt.NDArray[np.bool_]:
    lacks = np.isnan(images[:, 0]) | np.isnan(texts[:, 0])
    return lacks if targets is None else lacks | np.isnan(targets[:, 0])
