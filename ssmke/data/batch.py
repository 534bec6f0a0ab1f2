"""One training batch of one rank: what the stream gives and the student takes.

Where there are images or texts alone, the tensors of the other have no columns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

if TYPE_CHECKING:
    from ssmke.data.stream import StreamPlan


@dataclass
class Batch:
    """B image-caption pairs; captions are padded to the longest of the batch."""

    images: Tensor
    """Pixels, uint8 [B, 3, S, S], or cached tokens of a frozen image encoder, fp16 [B, N * D]."""
    ids: Tensor
    """Token ids, int64 [B, L], or cached features of a frozen text encoder, fp16 [B, W]."""
    mask: Tensor
    """True at real tokens, bool [B, L]; [B, 1] beside features."""
    image_ids: Tensor
    """Index of each pair's image in the dataset, int64 [B]: equal for captions of one image."""
    targets: Tensor | None = None
    """Teacher targets [B, D]; None without distillation, or until an online teacher fills them in."""
    keys: tuple[str, ...] = ()
    """Sample key and caption number of each pair, "<key>#<caption>"."""
    skipped: tuple[tuple[str, str], ...] = field(default=())
    """(key, reason) of samples that could not be used and were replaced."""
    real_tokens: int = 0
    """Text tokens without padding, counted on the host where the batch is made."""
    packing: tuple[Tensor, ...] = ()
    """For each micro-batch its captions in packed rows, int64 [R, W] (`packing.pack`); empty: they stay padded."""
    kept: Tensor | None = None
    """Patches of each image that the student sees, int64 [B, K]; None: all."""
    labels: Tensor | None = None
    """Token ids that were masked out of `ids`, int64 [B, L], -100 elsewhere; None without masking."""
    keys_sum: int = -1
    """Sum of the keys' 64-bit hashes, as an int64: that of a global batch is the same however ranks share it. Taken
    where the batch is made, which is in a data worker: 32,768 keys take 26 ms. -1: not taken yet."""

    def __post_init__(self) -> None:
        if self.keys_sum == -1:
            self.keys_sum = _keys_sum(self.keys)

    @property
    def computed_tokens(self) -> int:
        """Places that the text encoder computes, padding and empty ones included."""
        if self.ids.is_floating_point():
            return 0
        return sum(rows.numel() for rows in self.packing) if self.packing else self.ids.numel()

    def __len__(self) -> int:
        return self.images.shape[0]

    def tensors(self) -> list[Tensor]:
        """All tensors of the batch."""
        optional = [tensor for tensor in (self.targets, self.kept, self.labels) if tensor is not None]
        return [self.images, self.ids, self.mask, self.image_ids, *optional, *self.packing]

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on ``device``; pinned host memory is copied without waiting."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory (called by the DataLoader)."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            images=change(self.images),
            ids=change(self.ids),
            mask=change(self.mask),
            image_ids=change(self.image_ids),
            targets=None if self.targets is None else change(self.targets),
            packing=tuple(change(rows) for rows in self.packing),
            kept=None if self.kept is None else change(self.kept),
            labels=None if self.labels is None else change(self.labels),
        )

    def split(self, parts: int) -> list[Batch]:
        """``parts`` equal micro-batches, in order; a batch that is packed was packed for them."""
        size = len(self) // parts
        assert not self.packing or len(self.packing) == parts
        return [
            Batch(
                self.images[start : start + size],
                self.ids[start : start + size],
                self.mask[start : start + size],
                self.image_ids[start : start + size],
                None if self.targets is None else self.targets[start : start + size],
                packing=self.packing[number : number + 1],
                kept=None if self.kept is None else self.kept[start : start + size],
                labels=None if self.labels is None else self.labels[start : start + size],
            )
            for number, start in enumerate(range(0, size * parts, size))
        ]


def _keys_sum(keys: Iterable[str]) -> int:
    hashes = (hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
    total = sum(int.from_bytes(value, "big") for value in hashes) % 2**64
    return total - 2**64 if total >= 2**63 else total


class Batches(Protocol):
    """A run's batches of one rank, by step (`PairBatches`, and those of `training.unimodal`)."""

    plan: StreamPlan
    at: npt.NDArray[np.int64]
    """The image, or other number, that each worker is at; see `waiting`."""

    def __len__(self) -> int:
        """Steps."""
        ...

    def __getitem__(self, step: int) -> Batch:
        """The batch of ``step``: a pure function."""
        ...

    def where(self, number: int) -> str:
        """Where ``number`` lies, as words."""
        ...
