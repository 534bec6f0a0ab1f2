"""Views: which crop of an image is shown, as a pure function of the sample's key and the view's number.

View v of a sample is the same in every run, on every rank, in every process, for every seed: that is how a
target computed once for (key, v) meets exactly the pixels that the student is shown. The canonical view
(`canonical_box`) is the largest centred square, resized: short side to S, centre crop.

Crops follow torchvision's RandomResizedCrop (area, log-uniform aspect ratio, ten tries, else centred). They are
resized by torch's bicubic filter with antialiasing on bytes, which is vectorised: a fifth of the time of Pillow's,
and the same to a grey level or two (0.004 on average). `show` goes from the encoded image to the view in one step, so
that a large JPEG need not be decoded at its full size to be shown small (on average 0.8 grey levels from what the
full size gives, as much as between one good filter and another).
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from ssmke.data.decode import EncodedImage, upright_rgb
from ssmke.errors import ConfigError

Box = tuple[int, int, int, int]
"""left, top, right, bottom in pixels of the source image."""

View = tuple[Box, bool]
"""A crop, and whether it is flipped."""

VERSION = 2
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


def view_box(key: str, view: int, config: AugmentationConfig, width: int, height: int) -> View:
    """The crop of view ``view`` of sample ``key`` and whether it is flipped."""
    log_ratio = math.log(config.ratio)
    for attempt in range(10):
        flip, share, log_r, x, y = _uniform(f"{key}\n{view}\n{attempt}")
        if attempt == 0:
            flipped = flip < config.flip
        area = width * height * (config.crop_min + share * (config.crop_max - config.crop_min))
        ratio = math.exp((2 * log_r - 1) * log_ratio)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
            return (left, top, left + w, top + h), flipped
    w = min(width, round(height * config.ratio))
    h = min(height, round(width * config.ratio))
    left, top = (width - w) // 2, (height - h) // 2
    return (left, top, left + w, top + h), flipped


def _uniform(text: str) -> tuple[float, ...]:
    """Five numbers in [0, 1) that ``text`` decides; a hash, as a random generator takes ten times longer to make."""
    words = struct.unpack("<5Q", hashlib.blake2b(text.encode(), digest_size=40).digest())
    return tuple((word >> 11) * 2.0**-53 for word in words)


def canonical_box(width: int, height: int) -> Box:
    """The largest centred square: short side to S, then centre crop, in one box."""
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return (left, top, left + side, top + side)


def canonical_view(width: int, height: int) -> View:
    """The canonical view: `canonical_box`, not flipped."""
    return canonical_box(width, height), False


def canonical_pixels(image: Image.Image, size: int, out: Tensor | None = None) -> npt.NDArray[np.uint8]:
    """The canonical view of an image of any mode, brought to upright RGB: uint8 [3, size, size].

    Args:
        image: any that PIL opened; one that is upright RGB already is taken as it is.
        size: side of the result in pixels.
        out: where to write the result, uint8 [3, size, size].

    Raises:
        BadSample: as `decode.upright_rgb`.
    """
    rgb = upright_rgb(image)
    return render(np.array(rgb), canonical_box(*rgb.size), False, size, out)


def show(
    image: EncodedImage, choose: Callable[[int, int], View], size: int, out: Tensor | None = None
) -> npt.NDArray[np.uint8]:
    """The view of an encoded image that ``choose(width, height)`` picks: uint8 [3, size, size].

    Args:
        image: JPEG, PNG or WebP; its decoded pixels are kept for further views.
        choose: gives the crop and the flip.
        size: side of the result in pixels.
        out: where to write the result, uint8 [3, size, size].

    Raises:
        BadSample: as `decode.decode_image`.
    """
    width, height = image.size
    (left, top, right, bottom), flip = choose(width, height)
    # Never less than the pixels that are shown: from there on, resizing would have to invent some.
    pixels = image.pixels(shrink=size / min(right - left, bottom - top))
    # Whole pixels of the smaller image: less than a pixel of the view away from the crop that was asked for.
    x, y = pixels.shape[1] / width, pixels.shape[0] / height
    box = (round(left * x), round(top * y), round(right * x), round(bottom * y))
    return render(pixels, box, flip, size, out)


def render(
    pixels: npt.NDArray[np.uint8], box: Box, flip: bool, size: int, out: Tensor | None = None
) -> npt.NDArray[np.uint8]:
    """The box of an RGB image [H, W, 3] resized to ``size``: uint8 [3, size, size]; written to ``out`` if given."""
    left, top, right, bottom = box
    crop = torch.from_numpy(pixels)[top:bottom, left:right].permute(
        2, 0, 1
    )  # [3, h, w], channels last in memory
    if crop.shape[1:] != (size, size):
        crop = interpolate(crop[None], (size, size), mode="bicubic", antialias=True)[0]  # [3, S, S]
    if flip:
        crop = crop.flip(2)
    shown = torch.empty(3, size, size, dtype=torch.uint8) if out is None else out
    return shown.copy_(crop).numpy()
