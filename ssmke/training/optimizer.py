"""Parameter groups, AdamW and the learning-rate schedule of the recipe.

Spec: AdamW b (0.9, 0.98), eps 1e-6, weight decay 0.01 but none on biases, norms, embeddings and temperatures;
peak lr 1e-4 per 256 pairs; 10 % linear warm-up, then cosine to zero.

The temperatures are clamped after every step by a hook on the optimiser's own tensors. Under ZeRO those are the
fp32 master partitions, from which DeepSpeed refreshes the model: clamping the model's copy would be undone.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ssmke.errors import ConfigError
from ssmke.objectives.pretraining import LOG_SCALE_RANGE

TEMPERATURES = "temperatures"


@dataclass
class OptimConfig:
    """Batch, length and optimiser."""

    batch_size: int = 512
    """Pairs per step over all ranks (negatives are gathered over all of them)."""
    epochs: int = 7
    """Passes over all pairs."""
    lr: float = 2e-4
    """Peak learning rate (spec: 1e-4 x batch size / 256)."""
    encoder_lr: float | None = None
    """Peak learning rate of the pretrained encoders; None: the same."""
    min_lr: float = 0.0
    """Learning rate at the end of the cosine."""
    warmup: float = 0.1
    """Share of all steps with linearly rising learning rate."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """What follows the warm-up."""
    weight_decay: float = 0.01
    """AdamW's decoupled decay of matrices."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's averaging factors."""
    eps: float = 1e-6
    """AdamW's denominator offset."""

    def __post_init__(self) -> None:
        for flag, value, low in (("batch-size", self.batch_size, 1), ("epochs", self.epochs, 1)):
            if value < low:
                raise ConfigError(f"--optim.{flag} {value}: must be at least {low}")
        rates = {"lr": self.lr, "min-lr": self.min_lr, "weight-decay": self.weight_decay}
        for flag, rate in (
            rates | {"encoder-lr": self.lr if self.encoder_lr is None else self.encoder_lr}
        ).items():
            if not (rate >= 0 and math.isfinite(rate)):
                raise ConfigError(f"--optim.{flag} {rate}: must be a number of at least 0")
        if not 0 <= self.warmup <= 1:
            raise ConfigError(f"--optim.warmup {self.warmup}: must lie in 0..1")
        if self.schedule not in ("cosine", "constant"):
            raise ConfigError(f"--optim.schedule {self.schedule!r}: must be cosine or constant")


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: matrices, but no embedding tables, positions, biases, norms, scales."""
    return parameter.ndim >= 2 and not any(
        part in name
        for part in ("embeddings", "pos_embed", "cls_token", "extra_token", "rel_pos", "relative_position")
    )


def parameter_groups(module: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Groups of trained parameters: decayed or not, encoders apart where they have their own rate."""
    encoder_lr = config.lr if config.encoder_lr is None else config.encoder_lr
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith("log_scale_"):
            group, decay, peak = TEMPERATURES, 0.0, config.lr
        else:
            encoder = ".image_encoder." in f".{name}" or ".text_encoder." in f".{name}"
            decay = config.weight_decay if decays(name, parameter) else 0.0
            peak = encoder_lr if encoder else config.lr
            group = ("encoder" if encoder else "new") + ("" if decay else "_no_decay")
        entry = groups.setdefault(
            group, {"name": group, "params": [], "weight_decay": decay, "lr": peak, "peak_lr": peak}
        )
        entry["params"].append(parameter)
    return list(groups.values())


def build_optimizer(
    groups: list[dict[str, Any]], config: OptimConfig, *, cuda: bool, offload: bool
) -> torch.optim.Optimizer:
    """AdamW in its fastest form for where the states live, with the temperature clamp attached.

    Host memory: DeepSpeed's CPUAdam. CUDA: DeepSpeed's FusedAdam, or torch's fused AdamW where no CUDA compiler
    is found (said in one line). CPU training: torch's fused AdamW.
    """
    common: dict[str, Any] = {"betas": config.betas, "eps": config.eps}
    optimizer: torch.optim.Optimizer
    if offload:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        optimizer = DeepSpeedCPUAdam(groups, adamw_mode=True, **common)
    elif cuda and _has_cuda_compiler():
        from deepspeed.ops.adam import FusedAdam

        optimizer = FusedAdam(groups, adam_w_mode=True, **common)
    else:
        if cuda:
            warnings.warn("no CUDA compiler found: torch's fused AdamW instead of DeepSpeed's FusedAdam")
        optimizer = torch.optim.AdamW(groups, fused=True, **common)
    optimizer.register_step_post_hook(clamp_temperatures)
    return optimizer


def _has_cuda_compiler() -> bool:
    from torch.utils.cpp_extension import CUDA_HOME

    return CUDA_HOME is not None


@torch.no_grad()
def clamp_temperatures(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Keeps the log scales in [0, ln 100]; works on whatever tensors the optimiser steps (ZeRO partitions)."""
    for group in optimizer.param_groups:
        if group.get("name") == TEMPERATURES:
            for tensor in group["params"]:
                tensor.clamp_(*LOG_SCALE_RANGE)


@dataclass(frozen=True)
class Schedule:
    """Learning rate as a pure function of the step: nothing to save, nothing to restore."""

    config: OptimConfig
    steps: int

    def factor(self, step: int) -> float:
        """Share of the peak at ``step`` (0-based)."""
        warmup = round(self.config.warmup * self.steps)
        if step < warmup:
            return (step + 1) / warmup
        if self.config.schedule == "constant":
            return 1.0
        floor = self.config.min_lr / self.config.lr if self.config.lr else 0.0
        progress = (step - warmup) / max(1, self.steps - warmup)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def apply(self, groups: list[dict[str, Any]], step: int) -> float:
        """Sets the rates of ``groups`` for ``step``; returns that of the new parts."""
        factor = self.factor(step)
        for group in groups:
            group["lr"] = group["peak_lr"] * factor
        return self.config.lr * factor
