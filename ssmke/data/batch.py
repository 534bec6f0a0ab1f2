"""One training batch of one rank: what the stream gives and the student takes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass
class Batch:
    """B image-caption pairs; captions are padded to the longest of the batch."""

    images: Tensor
    """Pixels, uint8 [B, 3, S, S], or cached tokens of a frozen image encoder, fp16 [B, N * D]."""
    ids: Tensor
    """Token ids, int64 [B, L]."""
    mask: Tensor
    """True at real tokens, bool [B, L]."""
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

    def __len__(self) -> int:
        return self.images.shape[0]

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on ``device``; pinned host memory is copied without waiting."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return replace(
            self,
            images=move(self.images),
            ids=move(self.ids),
            mask=move(self.mask),
            image_ids=move(self.image_ids),
            targets=None if self.targets is None else move(self.targets),
        )

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory (called by the DataLoader)."""
        return replace(
            self,
            images=self.images.pin_memory(),
            ids=self.ids.pin_memory(),
            mask=self.mask.pin_memory(),
            image_ids=self.image_ids.pin_memory(),
            targets=None if self.targets is None else self.targets.pin_memory(),
        )

    def split(self, parts: int) -> list[Batch]:
        """``parts`` equal micro-batches, in order."""
        size = len(self) // parts
        return [
            Batch(
                self.images[start : start + size],
                self.ids[start : start + size],
                self.mask[start : start + size],
                self.image_ids[start : start + size],
                None if self.targets is None else self.targets[start : start + size],
            )
            for start in range(0, size * parts, size)
        ]
