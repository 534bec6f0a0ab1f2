"""Distilling the blocks of an image encoder: the mean squared error between block outputs.

The student has k of the teacher's n blocks. Block i of the student (from 1) is to give what the teacher's block
i * n / k gives, for every token: with 6 of 12, the student's six blocks learn the outputs of every second one, the last
that of the last. The loss is the mean over blocks of the mean squared error, in fp32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmke.data.batch import Batch
from ssmke.errors import ConfigError
from ssmke.models.image_encoders import ImageEncoder, ImageEncoderConfig, PlainViT, build_image_encoder
from ssmke.models.pixels import normalise_pixels
from ssmke.objectives.objective import Objective
from ssmke.objectives.pretraining import Losses
from ssmke.training.unimodal.layers import chosen_layers, matched_layers, with_layers
from ssmke.training.unimodal.recipes import BlockConfig

FLAG = "--model.image"


def build_pair(image: ImageEncoderConfig, distil: BlockConfig) -> tuple[ImageEncoder, ImageEncoder]:
    """The student, initialised from the teacher, and the teacher, which is the whole model, frozen.

    Raises:
        ConfigError: the model is no plain ViT, or has not more blocks than the student.
        WeightsError: its weights are missing or do not fit.
    """
    whole = dataclasses.replace(image, depth=None, frozen=True, freeze_blocks=0)
    teacher = build_image_encoder(whole)
    if not isinstance(teacher.backbone, PlainViT):
        raise ConfigError(
            f"{FLAG}.name {image.name}: only the blocks of a plain ViT or BEiT can be distilled"
        )
    blocks, depth = len(teacher.backbone.blocks), image.depth
    assert depth is not None
    if depth >= blocks:
        raise ConfigError(f"{FLAG}.depth {depth}: the teacher has {blocks} blocks, the student needs fewer")
    student = build_image_encoder(dataclasses.replace(image, weights="none"), quiet=True)
    taken = chosen_layers(blocks, depth, distil.init)
    state = with_layers(teacher.backbone.state_dict(), r"blocks\.(\d+)\.", taken)
    student.backbone.load_state_dict(state)
    return student, teacher


class BlockDistillation(Objective):
    """``forward(batch)`` gives "loss" and, for every matched block of the student, "mse.N" (N from 1)."""

    student: ImageEncoder

    def __init__(self, student: ImageEncoder, teacher: ImageEncoder, config: BlockConfig) -> None:
        super().__init__()
        self.student = student
        self._teacher = (teacher,)  # in a tuple: it is no submodule
        k = len(_blocks(student))
        pairs = list(zip(range(k), matched_layers(len(_blocks(teacher)), k), strict=True))
        self.pairs = pairs if config.match == "all" else pairs[-1:]
        """Blocks that are matched: (student's, teacher's), from 0."""

    def forward(self, batch: Batch) -> Losses:
        own, theirs = self.outputs(batch.images)
        losses: Losses = {
            f"mse.{block + 1}": F.mse_loss(given.float(), wanted.float())
            for (block, _), given, wanted in zip(self.pairs, own, theirs, strict=True)
        }
        return {"loss": torch.stack(list(losses.values())).mean(), **losses}

    def outputs(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Tokens [B, N, D] after each matched block, of student and teacher, of uint8 images [B, 3, S, S]."""
        (teacher,) = self._teacher
        pixels = normalise_pixels(images, teacher.mean, teacher.std)
        with torch.no_grad():
            theirs = block_outputs(teacher, pixels, [there for _, there in self.pairs])
        return block_outputs(self.student, pixels, [here for here, _ in self.pairs]), theirs


def block_outputs(encoder: ImageEncoder, pixels: Tensor, chosen: Sequence[int]) -> list[Tensor]:
    """Tokens after the ``chosen`` blocks, from one forward pass of the whole (ZeRO-3 gathers around that)."""
    found: dict[int, Tensor] = {}
    blocks = _blocks(encoder)

    def keep(number: int) -> Any:
        return lambda module, given, output: found.__setitem__(number, output)

    hooks = [blocks[number].register_forward_hook(keep(number)) for number in chosen]
    try:
        encoder(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    return [found[number] for number in chosen]


def _blocks(encoder: ImageEncoder) -> list[nn.Module]:
    assert isinstance(encoder.backbone, PlainViT)
    return list(encoder.backbone.blocks)
