"""A recipe's student and teacher as sizes: parameters by optimiser group, activations, what the losses hold.

Everything is built on the meta device and without weights, so this costs seconds and no memory, and no network where
the architecture is known (see `ssmke.models.text_encoders.KNOWN_ARCHITECTURES`).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ssmke.data.packing import ROW
from ssmke.errors import ConfigError
from ssmke.models.pooling import pooled_width
from ssmke.models.shapes import level_widths, teacher_network, teacher_without_weights, text_without_weights
from ssmke.models.student import SSMKE
from ssmke.objectives.pretraining import LossConfig, SSMKEPretraining
from ssmke.planning.activations import Activations, Line, Text, count, fake, forward_peak
from ssmke.recipes import Recipe
from ssmke.training.compute import DTYPES, ComputeConfig, prepare_student
from ssmke.training.optimizer import OptimConfig, parameter_groups

LONGEST = 2.0
"""Longest caption of a batch over the mean one, to which ids are padded (`ssmke.data.packing`: twice and more)."""


@dataclass(frozen=True)
class Parameters:
    """Numbers of elements, as the engine sees them."""

    groups: tuple[tuple[int, ...], ...]
    """Of every trained parameter, by optimiser group and in its order."""
    frozen: tuple[int, ...]
    """Of every parameter that is not trained."""

    @property
    def trained(self) -> int:
        """All that is trained."""
        return sum(map(sum, self.groups))

    @property
    def largest(self) -> int:
        """The largest trained parameter."""
        return max((size for group in self.groups for size in group), default=0)


@dataclass(frozen=True)
class Losses:
    """What the losses compare, per level: widths of the contrast, width of the distillation, rows of the bank."""

    contrast: tuple[int, ...]
    distillation: int | None
    bank: int
    max_logits: int


@dataclass(frozen=True)
class Model:
    """A recipe's model in one number format on one kind of device."""

    dtype: str
    cuda: bool
    parameters: Parameters
    buffers: int
    """Bytes of buffers."""
    activations: Activations
    losses: Losses
    target: int | None
    """Width of a target row; None without distillation."""
    input_bytes: int
    """Bytes of one pair as it comes: pixels (or cached tokens), ids, mask, identity, target."""
    teacher_weights: int = 0
    """Bytes of an online teacher."""
    teacher_forward: Line = dataclasses.field(default_factory=lambda: Line(0, 0))
    """Peak of its forward pass, in pairs of the local batch."""

    @property
    def item(self) -> int:
        """Bytes of a number of this format."""
        return DTYPES[self.dtype].itemsize


def parameters_of(module: nn.Module, optim: OptimConfig) -> Parameters:
    """Reads the sizes off a module whose parameters are whole."""
    groups = [[p.numel() for p in group["params"]] for group in parameter_groups(module, optim)]
    frozen = tuple(p.numel() for p in module.parameters() if not p.requires_grad)
    return Parameters(tuple(tuple(group) for group in groups), frozen)


def model_of(recipe: Recipe, *, dtype: str, cuda: bool, text_tokens: float) -> Model:
    """Builds the recipe's student (and online teacher) without memory and counts.

    ``text_tokens``: mean length of a caption. Raises `ConfigError` where it cannot be, `WeightsError` where an
    architecture is not known here.
    """
    limit = recipe.model.text.max_tokens
    if not 1 <= text_tokens <= limit:
        raise ConfigError(
            f"--text-tokens {text_tokens:g}: must lie between 1 and {limit} (--model.text.max-tokens)"
        )
    mode, kind = FakeTensorMode(), DTYPES[dtype]
    width = recipe.model.prediction_dim
    distils = recipe.loss.distillation != "none"
    with torch.device("meta"):
        if distils:
            _, width = teacher_without_weights(recipe.teacher)
        config = dataclasses.replace(
            recipe.model,
            image=dataclasses.replace(recipe.model.image, weights="none"),
            text=text_without_weights(recipe.model.text),
            prediction_dim=width,
        )
        student = SSMKE(config, quiet=True)
        objective = SSMKEPretraining(student, dataclasses.replace(recipe.loss, bank="none"), "meta")
    compute = ComputeConfig(compile="off", checkpointing=recipe.compute.checkpointing)
    prepare_student(student, compute, device=torch.device("cpu"), zero_stage=2, say=lambda line: None)
    parameters = parameters_of(objective, recipe.optim)
    packed = recipe.compute.pack_text and student.text_encoder.packs
    longest = min(limit, math.ceil(LONGEST * text_tokens))
    features = pooled_width(student.text_encoder.dim, config.pool) if recipe.targets.frozen_text else None
    text = Text(text_tokens, longest, packed, min(ROW, limit) if longest <= ROW else limit, features)
    fake(student, mode, kind)
    tokens = image_numbers(student, mode, kind) if recipe.targets.frozen_tokens else None
    pixels = 3 * student.image_size**2 if tokens is None else 2 * tokens
    model = Model(
        dtype=dtype,
        cuda=cuda,
        parameters=parameters,
        buffers=sum(b.numel() * b.element_size() for b in student.buffers()),
        activations=count(student, text, dtype=kind, cuda=cuda, mode=mode, cached_tokens=tokens),
        losses=losses_of(student, recipe.loss),
        target=width if distils else None,
        input_bytes=pixels + text.input_bytes + 8 + (4 * width if distils and width else 0),
    )
    if not distils or recipe.targets.mode != "online":
        return model
    with torch.device("meta"):
        network, size = teacher_network(recipe.teacher)
    fake(network, mode, kind)
    return dataclasses.replace(
        model,
        teacher_weights=sum(
            t.numel() * t.element_size() for t in [*network.parameters(), *network.buffers()]
        ),
        teacher_forward=forward_peak(network.eval(), size, dtype=kind, cuda=cuda, mode=mode),
    )


def losses_of(student: SSMKE, config: LossConfig) -> Losses:
    """What the losses of this student compare."""
    levels = student.levels if config.contrast == "all" else student.levels[:1]
    widths = level_widths(student)
    return Losses(
        contrast=tuple(widths[level] for level in levels),
        distillation=student.config.prediction_dim if config.distillation == "contrastive" else None,
        bank=config.bank_size if config.uses_bank else 0,
        max_logits=config.max_logits,
    )


def image_numbers(student: SSMKE, mode: FakeTensorMode, dtype: torch.dtype) -> int:
    """Numbers of an image's cached tokens: N x D, or of the one vector that they are pooled to."""
    encoder, pool = student.image_encoder, student.config.pool
    if pool != "none":
        return pooled_width(encoder.dim, pool)
    with mode, torch.no_grad():
        return int(encoder(torch.empty(1, 3, encoder.image_size, encoder.image_size, dtype=dtype)).numel())
