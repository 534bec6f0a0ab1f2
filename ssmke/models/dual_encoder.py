"""What search and the evaluation suites need of a model: one embedding space for images and texts.

Ours and its peers (open_clip, transformers) look the same through it, so that one suite compares like with like.
Each model keeps its own preprocessing: how a picture is cut and scaled is part of what a model is.

    encoder = load_dual_encoder("runs/.../model", device)              # ours
    encoder = load_dual_encoder("open_clip:ViT-B-32/openai", device)    # PRETRAINED: a tag, or a local file
    encoder = load_dual_encoder("transformers:openai/clip-vit-base-patch32", device)  # hub name or local folder
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ssmke.data.augmentation import canonical_pixels
from ssmke.models.student import SSMKE

if TYPE_CHECKING:
    from PIL.Image import Image

PEERS = ("open_clip", "transformers")


class ImageFeatures(Protocol):
    """The image half alone: all that a probe needs."""

    dim: int
    """Width of the features."""

    def preprocess(self, image: Image) -> npt.NDArray[np.generic]:
        """One RGB image as the model takes it, [3, S, S]; thread-safe, so that threads can prepare batches."""
        ...

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Features [B, D] of prepared images [B, 3, S, S]: fp32, on the CPU."""
        ...


class DualEncoder(ImageFeatures, Protocol):
    """An image encoder and a text encoder into one space; its image features are embeddings, L2-normalised."""

    name: str
    """What the user called it."""
    digest: str
    """SHA-256 of the weights: indexes and results say by which model they were made."""

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [T, D] of texts, at most a batch of them: L2-normalised, fp32, on the CPU."""
        ...


class Student:
    """`SSMKE` as a `DualEncoder`."""

    def __init__(self, model: SSMKE, name: str) -> None:
        from ssmke.models.weights import weights_digest

        self.model = model.eval()
        self.name = name
        self.dim = model.dim
        self.digest = weights_digest(model)

    def preprocess(self, image: Image) -> npt.NDArray[np.uint8]:
        """The canonical view, uint8 [3, S, S]."""
        return canonical_pixels(image, self.model.image_size)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """See `DualEncoder`."""
        return self.model.encode_image(pixels).cpu()

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """See `DualEncoder`."""
        return self.model.encode_text(texts).cpu()


def load_dual_encoder(name: str, device: torch.device) -> DualEncoder:
    """The model that ``name`` means: `open_clip:ARCH[/PRETRAINED]`, `transformers:NAME`, else ours (folder, hub name).

    Raises:
        WeightsError: it cannot be had; the message says what was looked for and where.
        ConfigError: the library that it needs is not installed.
    """
    library, colon, rest = name.partition(":")
    if colon and library in PEERS:
        from ssmke.models import peers

        return peers.load(library, rest, device)
    return Student(SSMKE.from_pretrained(name).to(device), name)
