"""Frozen encoders as something to cache: what they say of images and captions is as fixed as what a teacher says.

Where the student's image encoder is never trained and images are shown in their canonical view, its tokens are cached
like targets, with the same identity checks, which saves decoding and encoding every image for each of its captions in
every epoch. Rows are N x D wide: 7 x 7 cells and [CLS] of 1280 are 128 kB an image. With ``--model.pool`` a row is one
vector, and the captions of a frozen text encoder can be cached as well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ssmke.data.captions import CLEANING
from ssmke.data.tokens import by_length, tokenize
from ssmke.models.pooling import pooled_width
from ssmke.models.student import SSMKE
from ssmke.models.weights import weights_digest


class FrozenTokens(nn.Module):
    """uint8 images [B, 3, S, S] -> what the student's image encoder hands on, [B, N * D] or pooled [B, W], fp32."""

    def __init__(self, student: SSMKE) -> None:
        super().__init__()
        self.student = student
        self.image_size = student.image_size
        encoder, pool = student.image_encoder, student.config.pool
        self._digest = weights_digest(encoder)
        rows, columns = encoder.grid
        tokens = rows * columns + 1 if pool == "none" else 1
        self.dim = tokens * pooled_width(encoder.dim, pool)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.student.image_tokens(images).flatten(1).float()

    def describe(self) -> dict[str, Any]:
        """JSON-able identity, as a teacher's."""
        config, encoder = self.student.config.image, self.student.image_encoder
        return {
            "name": config.name,
            "timm_kwargs": dict(config.timm_kwargs),
            "depth": config.depth,
            "digest": self._digest,
            "output": "tokens" if self.student.config.pool == "none" else self.student.config.pool,
            "dim": self.dim,
            "image_size": self.image_size,
            "mean": list(encoder.mean),
            "std": list(encoder.std),
        }


class FrozenText(nn.Module):
    """Captions -> pooled features [B, W] fp32 of the student's text encoder."""

    def __init__(self, student: SSMKE) -> None:
        super().__init__()
        self.student = student
        self._tokenizer = student.tokenizer()
        self._digest = weights_digest(student.text_encoder)
        words = json.loads(self._tokenizer.backend_tokenizer.to_str())
        # These two are set by whoever used the tokenizer last.
        words = {name: value for name, value in words.items() if name not in ("truncation", "padding")}
        self._words = _digest(words)
        # Heads, epsilons and activations leave no trace in the weights.
        self._architecture = _digest(student.text_encoder.architecture())
        self.dim = pooled_width(student.text_encoder.dim, student.config.pool)

    @torch.no_grad()
    def forward(self, captions: Sequence[str], batch_size: int) -> Tensor:
        ids, mask = tokenize(self._tokenizer, captions, self.student.config.text.max_tokens)  # [B, L]
        device = self.student.device
        found = torch.empty(len(captions), self.dim, device=device)
        for rows, longest in by_length(mask, batch_size):
            part = ids[rows, :longest].to(device), mask[rows, :longest].to(device)
            found[rows.to(device)] = self.student.text_tokens(*part)[:, 0].float()
        return found

    def describe(self) -> dict[str, Any]:
        """JSON-able identity, as a teacher's."""
        config = self.student.config.text
        return {
            "name": config.name,
            "rows": "captions",
            "depth": config.depth,
            "digest": self._digest,
            "architecture": self._architecture,
            "tokenizer": self._words,
            "captions": CLEANING,
            "max_tokens": config.max_tokens,
            "output": f"text-{self.student.config.pool}",
            "dim": self.dim,
        }


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
