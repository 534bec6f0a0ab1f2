"""Views: which crop of an image is shown, as a pure function of the sample's key and the view's number.

View v of a sample is the same in every run, on every rank, in every process, for every seed: that is how a
target computed once for (key, v) meets exactly the pixels that the student is shown. The canonical view
(`canonical_box`) is the largest centred square, resized: short side to S, centre crop.

Crops follow torchvision's RandomResizedCrop (area, log-uniform aspect ratio, ten tries, else centred); pixels
are resized from the box by Pillow's bicubic filter with antialiasing, in one pass.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from ssmke.errors import ConfigError

Box = tuple[float, float, float, float]
"""left, top, right, bottom in pixels of the source image."""

VERSION = 1
"""Increased whenever the same (key, view) would give other pixels; part of the cache's identity."""


@dataclass
class AugmentationConfig:
    """Training augmentation (spec: flip 0.5, crops 0.9-1.0 for pretraining: small crops break the caption)."""

    flip: float = 0.5
    """Probability of a horizontal flip."""
    crop_min: float = 0.9
    """Smallest share of the image's area in a crop."""
    crop_max: float = 1.0
    """Largest share of the image's area in a crop."""
    ratio: float = 4 / 3
    """Aspect ratios of crops lie between 1/ratio and ratio."""

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1:
            raise ConfigError(f"--data.augmentation.flip {self.flip}: must lie in 0..1")
        if not 0 < self.crop_min <= self.crop_max <= 1:
            raise ConfigError(
                f"--data.augmentation.crop-min {self.crop_min} and crop-max {self.crop_max}: "
                "must be 0 < crop-min <= crop-max <= 1"
            )
        if self.ratio < 1:
            raise ConfigError(f"--data.augmentation.ratio {self.ratio}: must be at least 1")

    def identity(self) -> dict[str, float]:
        """What a cached target depends on."""
        return {**asdict(self), "version": VERSION}


def view_box(key: str, view: int, width: int, height: int, config: AugmentationConfig) -> tuple[Box, bool]:
    """The crop of view ``view`` of sample ``key`` and whether it is flipped."""
    digest = hashlib.blake2b(f"{key}\n{view}".encode(), digest_size=16).digest()
    rng = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
    flip = bool(rng.random() < config.flip)
    log_ratio = math.log(config.ratio)
    for _ in range(10):
        area = width * height * rng.uniform(config.crop_min, config.crop_max)
        ratio = math.exp(rng.uniform(-log_ratio, log_ratio))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return (left, top, left + w, top + h), flip
    w = min(width, round(height * config.ratio))
    h = min(height, round(width * config.ratio))
    left, top = (width - w) // 2, (height - h) // 2
    return (left, top, left + w, top + h), flip


def canonical_box(width: int, height: int) -> Box:
    """The largest centred square: short side to S, then centre crop, in one box."""
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return (left, top, left + side, top + side)


def render(image: Image.Image, box: Box, flip: bool, size: int) -> npt.NDArray[np.uint8]:
    """The box of an RGB image resized to ``size``: uint8 [3, size, size], contiguous."""
    if (image.size == (size, size)) and box == (0, 0, size, size):
        crop = image
    else:
        crop = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    pixels = np.asarray(crop)  # [S, S, 3]
    if flip:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
