"""A frozen image encoder as something to cache: all its tokens, instead of a teacher's one target.

Where the student's image encoder is never trained and images are shown in their canonical view, what it says is as
fixed as what the teacher says. Cached like targets, with the same identity checks, it saves decoding and encoding every
image for each of its captions in every epoch. Rows are N x D wide: 7 x 7 cells and [CLS] of 1280 are 128 kB an image.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ssmke.models.image_encoders import ImageEncoder, ImageEncoderConfig
from ssmke.models.pixels import normalise_pixels
from ssmke.models.weights import weights_digest


class FrozenTokens(nn.Module):
    """uint8 images [B, 3, S, S] -> tokens [B, N * D] fp32 of a frozen encoder, [CLS] first."""

    def __init__(self, encoder: ImageEncoder, config: ImageEncoderConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.image_size = encoder.image_size
        self._config = config
        self._digest = weights_digest(encoder)
        rows, columns = encoder.grid
        self.dim = (rows * columns + 1) * encoder.dim

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.encoder(normalise_pixels(images, self.encoder.mean, self.encoder.std))
        return tokens.flatten(1).float()

    def describe(self) -> dict[str, Any]:
        """JSON-able identity, as a teacher's."""
        return {
            "name": self._config.name,
            "timm_kwargs": dict(self._config.timm_kwargs),
            "depth": self._config.depth,
            "digest": self._digest,
            "output": "tokens",
            "dim": self.dim,
            "image_size": self.image_size,
            "mean": list(self.encoder.mean),
            "std": list(self.encoder.std),
        }
