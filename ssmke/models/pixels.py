"""From uint8 pixels to what an encoder expects, on the device.

Images travel as uint8 (a quarter of fp32's bytes from worker to device); student and teacher may want other
means and deviations of the same crop.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def normalise_pixels(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 [B,3,H,W] to fp32 with the given channel means and deviations (of pixels scaled to 0..1)."""
    channels = [(images[:, c].float() / 255 - mean[c]) / std[c] for c in range(3)]
    return torch.stack(channels, dim=1)
