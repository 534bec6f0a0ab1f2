"""The features that a probe takes: the embedding, or what our image encoder says before the shared block.

The second is the one to compare with the unimodal models that the encoder was cut from: its [CLS] as it is, not
normalised. Peers offer their embedding only, as the layers below have no common meaning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ssmke.errors import ConfigError
from ssmke.models.dual_encoder import DualEncoder, ImageFeatures, Student
from ssmke.models.pixels import normalise_pixels

if TYPE_CHECKING:
    from PIL.Image import Image


class EncoderCLS:
    """[CLS] of a student's image encoder, as `ImageFeatures`."""

    def __init__(self, student: Student) -> None:
        self._student = student
        self._encoder = student.model.image_encoder
        self.dim: int = self._encoder.dim

    def preprocess(self, image: Image) -> npt.NDArray[np.uint8]:
        """As the student's."""
        return self._student.preprocess(image)

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> Tensor:
        """[B, D] fp32, on the CPU, of uint8 pixels [B, 3, S, S]."""
        first = next(self._encoder.parameters())
        images = normalise_pixels(pixels.to(first.device), self._encoder.mean, self._encoder.std)
        tokens: Tensor = self._encoder(images.to(first.dtype), None)  # [B, N, D]
        return tokens[:, 0].float().cpu()


def image_features(encoder: DualEncoder, which: str) -> ImageFeatures:
    """What of ``encoder`` a probe is given: ``embedding`` or ``encoder``.

    Raises:
        ConfigError: the encoder's own features of a peer.
    """
    if which == "embedding":
        return encoder
    if not isinstance(encoder, Student):
        raise ConfigError(
            f"--features encoder: {encoder.name} is not ours; peers are probed by their embedding"
        )
    return EncoderCLS(encoder)
