"""open_clip's training step for a ViT-B-16 image-text pair, as its `train_one_epoch` does it, to time beside ours.

Its own model, its own `ClipLoss`, AdamW (fused, as for ours), its clamp of the logit scale; images arrive normalised.
In bf16 it runs as its ``--precision amp_bf16``: autocast over fp32 weights.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import open_clip
import torch
from open_clip.loss import ClipLoss
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

MODEL = "ViT-B-16"


class OpenClipStep:
    """Model and optimiser; call it for one step."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.model: Any = open_clip.create_model(MODEL, device=device, output_dict=True).train()
        self.loss: Any = ClipLoss()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), 1e-4, betas=(0.9, 0.98), eps=1e-6, fused=True
        )

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Images [B, 3, 224, 224], normalised, and token ids [B, 77]."""
        generator = torch.Generator().manual_seed(0)
        texts = torch.randint(1, 49_000, (size, self.model.context_length), generator=generator)
        return torch.randn(size, 3, 224, 224, generator=generator).to(self.device), texts.to(self.device)

    def __call__(self, images: Tensor, texts: Tensor, dtype: str) -> None:
        self.optimizer.zero_grad()
        with self._autocast(dtype):
            total = sum(self.loss(**self.model(images, texts), output_dict=True).values())
        assert isinstance(total, Tensor)
        total.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(100))

    def flops_per_pair(self) -> float:
        """Operations of a pair, forward and backward, by torch's counter (losses left out: they are batch x batch)."""
        images, texts = self.batch(1)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            out = self.model(images, texts)
            (out["image_features"].sum() + out["text_features"].sum()).backward()
        self.optimizer.zero_grad()
        return float(counter.get_total_flops())

    def _autocast(self, dtype: str) -> contextlib.AbstractContextManager[Any]:
        if dtype == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)
