"""The frozen image teacher whose outputs the student learns to predict.

Two kinds of output:

- ``features``: what self-supervised teachers give. Of a ViT, the [CLS] of the last block WITHOUT the final
  norm (S-SMKE regresses that vector; data2vec 2.0 has no other); of any other timm model, the pooled features
  before its head.
- ``logits``: the class scores of a supervised teacher, for the KL loss.

A teacher is data, not a model to be trained: it is always in evaluation mode, has no gradients, and carries
the sha256 of its weights, taken at load time, so that a cache of its outputs can tell whether it is still the
same teacher. It takes uint8 pixels and normalises on the device in fp32, so student and teacher may want
different means.

Cost: 35 GFLOP an image for a ViT-B/16 at 224 pixels, which is why the outputs are cached.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ssmke.errors import ConfigError
from ssmke.models import official
from ssmke.models.image_encoders import (
    Channels,
    ImageEncoderConfig,
    PlainViT,
    build_image_encoder,
    checked_channels,
    create_backbone,
    cuts_into_blocks,
    load_backbone,
    native_image_size,
    set_image_size,
)
from ssmke.models.pixels import normalise_pixels
from ssmke.models.weights import LoadReport, weights_digest

FLAG = "--teacher"
"""Where `TeacherConfig` hangs in the recipe, for messages."""


@dataclass
class TeacherConfig:
    """Which frozen image model is the teacher, and which of its outputs is the target."""

    name: str = "beitv2_base_patch16_224"
    """A timm model name, with or without tag, or "data2vec2_base"."""
    weights: str = "hub"
    """"hub" (downloaded once; BEiTv2 without tag and data2vec2 mean the official self-supervised files), a
    path, "package:<file>" that ships with ssmke, or "none" for random weights."""
    output: Literal["features", "logits"] = "features"
    """features: [CLS] or pooled features, for regression and contrast. logits: class scores, for KL."""
    image_size: int | None = None
    """Side of the square input in pixels. None: the model's own."""
    timm_kwargs: dict[str, int | float | bool | str] = field(default_factory=dict)
    """Extra arguments of the architecture, e.g. pad_type same."""
    mean: Channels | None = None
    """Channel means of pixels in 0..1. None: the model's own."""
    std: Channels | None = None
    """Channel deviations of pixels in 0..1. None: the model's own."""

    def __post_init__(self) -> None:
        if self.output not in ("features", "logits"):
            raise ConfigError(f"{FLAG}.output must be features or logits, got {self.output!r}")
        if self.image_size is not None and self.image_size < 1:
            raise ConfigError(f"{FLAG}.image-size must be positive, got {self.image_size}")
        self.mean, self.std = checked_channels(self.mean, self.std, FLAG)


class Teacher(nn.Module):
    """uint8 images [B, 3, S, S] -> targets [B, dim] fp32, without gradient."""

    def __init__(
        self,
        network: nn.Module,
        config: TeacherConfig,
        *,
        dim: int,
        image_size: int,
        mean: Channels,
        std: Channels,
        load_report: LoadReport,
    ) -> None:
        super().__init__()
        self.network = network
        self.name = config.name
        self.output = config.output
        self.dim = dim
        """Width of a target."""
        self.image_size = image_size
        """Side of the square input in pixels."""
        self.mean = mean
        self.std = std
        self.load_report = load_report
        self.digest = weights_digest(network)
        """sha256 of the weights as they were loaded; moving or casting the teacher does not change it."""
        self._timm_kwargs = dict(config.timm_kwargs)
        self.requires_grad_(False)
        self.to(memory_format=torch.channels_last)
        self.train()

    def train(self, mode: bool = True) -> Teacher:
        """Always evaluation mode, whatever ``mode`` says."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.shape[1:] != (3, self.image_size, self.image_size):
            raise ConfigError(
                f"the teacher {self.name} takes uint8 images of 3 x {self.image_size} x {self.image_size}, "
                f"got {images.dtype} {tuple(images.shape[1:])}: set {FLAG}.image-size to that of the views"
            )
        pixels = normalise_pixels(images, self.mean, self.std).to(next(self.parameters()).dtype)
        out: Tensor = self.network(pixels.contiguous(memory_format=torch.channels_last))
        if out.ndim == 3:
            out = out[:, 0]  # [CLS] of [B, N, D]
        return out.float()

    def describe(self) -> dict[str, Any]:
        """JSON-able identity: teachers that describe themselves alike give an image the same target."""
        return {
            "name": self.name,
            "timm_kwargs": self._timm_kwargs,
            "digest": self.digest,
            "output": self.output,
            "dim": self.dim,
            "image_size": self.image_size,
            "mean": list(self.mean),
            "std": list(self.std),
        }


def build_teacher(config: TeacherConfig, *, quiet: bool = False) -> Teacher:
    """Build the teacher and load its weights.

    Args:
        config: what to build.
        quiet: do not warn about random weights.

    Raises:
        ConfigError: no such model, or it has no such output.
        WeightsError: the weights are missing or do not fit, tensor for tensor.
    """
    settings = ImageEncoderConfig(
        name=config.name,
        depth=None,
        weights=config.weights,
        frozen=True,
        image_size=config.image_size,
        timm_kwargs=config.timm_kwargs,
        mean=config.mean,
        std=config.std,
    )
    if config.output == "features" and cuts_into_blocks(settings, FLAG):
        encoder = build_image_encoder(settings, quiet=quiet, flag=FLAG)
        return Teacher(
            encoder,
            config,
            dim=encoder.dim,
            image_size=encoder.image_size,
            mean=encoder.mean,
            std=encoder.std,
            load_report=encoder.load_report,
        )
    model, mean, std = create_backbone(settings, "classes" if config.output == "logits" else "pooled", FLAG)
    if config.output == "logits" and _has_no_classes(model, config):
        raise ConfigError(
            f"{config.name} is self-supervised and has no classes; for {FLAG}.output logits name a finetuned "
            "model, e.g. beitv2_base_patch16_224.in1k_ft_in1k"
        )
    report = load_backbone(model, settings, quiet, FLAG)
    if isinstance(model, PlainViT):
        size, _ = set_image_size(model, settings, FLAG)
    else:
        size = config.image_size or native_image_size(model)
    return Teacher(
        model,
        config,
        dim=_probe_width(model, size, config),
        image_size=size,
        mean=config.mean or mean,
        std=config.std or std,
        load_report=report,
    )


def _has_no_classes(model: nn.Module, config: TeacherConfig) -> bool:
    official_file = config.weights == "hub" and config.name in official.URLS
    return official_file or getattr(model, "num_classes", 0) == 0


def _probe_width(model: nn.Module, size: int, config: TeacherConfig) -> int:
    model.eval()
    with torch.no_grad():
        probe = model(torch.zeros(1, 3, size, size))
    if not isinstance(probe, Tensor) or probe.ndim != 2 or probe.shape[1] == 0:
        shape = tuple(probe.shape) if isinstance(probe, Tensor) else type(probe).__name__
        raise ConfigError(f"{config.name} gives {shape} instead of one vector per image; use another teacher")
    return int(probe.shape[1])
