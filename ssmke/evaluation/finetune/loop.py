"""The loop that all finetuning suites share: AdamW, warm-up and cosine, an evaluation and a checkpoint an epoch.

One process, one device; bf16 autocast on CUDA, fp32 on the CPU. An epoch is a pure function of the weights and the
optimiser's state at its start, the seed and its number: the random generators are seeded anew when it begins, and
nothing else is carried over. That is why a resumed run gives, on the same machine, the numbers of an unbroken one.

The result is that of the last epoch. The best epoch of many, picked on the data that it is then reported for, would
flatter; the history has all of them.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ssmke.evaluation.finetune.checkpoint import load_epoch, save_epoch
from ssmke.evaluation.finetune.config import LoopConfig
from ssmke.evaluation.finetune.layer_decay import parameter_groups
from ssmke.evaluation.retrieval import EvaluationError
from ssmke.training.optimizer import OptimConfig, Schedule
from ssmke.words import duration

Scores = dict[str, Any]
"""Numbers of one evaluation, as they go into the JSON; their main one under `Task.shown`."""

SAY_SECONDS = 30.0
"""Seconds between the lines of progress inside an epoch."""


class Task(Protocol):
    """A model, its data and its loss, for `finetune`."""

    steps: int
    """Optimiser steps of an epoch."""
    shown: str
    """Key of the scores that progress lines show."""

    @property
    def model(self) -> nn.Module:
        """On its device. Has `distances`, see `layer_decay`."""
        ...

    def batches(self, epoch: int) -> Iterator[Any]:
        """Training batches of an epoch; drawn from the global generator or from the epoch's number, nothing else."""
        ...

    def loss(self, batch: Any) -> Tensor:
        """Mean loss of a batch; the model is in training mode."""
        ...

    def evaluate(self) -> Scores:
        """Scores on the evaluation data; the model is in evaluation mode, without gradients."""
        ...


def seed_of(*parts: object) -> int:
    """63 bits that ``parts`` decide."""
    text = "\n".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def permutation(length: int, *parts: object) -> Tensor:
    """An order of ``length`` things, int64, that ``parts`` decide."""
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed_of(*parts)))


def finetune(
    task: Task,
    config: LoopConfig,
    *,
    seed: int,
    folder: Path | None,
    identity: dict[str, Any],
    say: Callable[[str], None],
) -> list[Scores]:
    """Trains ``task.model`` and returns the scores after each epoch, with the mean loss as "loss".

    Args:
        task: what to train.
        config: how.
        seed: decides order, augmentation, dropout.
        folder: where the checkpoint is kept, and from where a run goes on; None: nowhere.
        identity: what the run depends on; a checkpoint of anything else is refused.
        say: prints a line.

    Raises:
        EvaluationError: the loss is not finite.
        CheckpointError: the folder's checkpoint is damaged, or of another run.
    """
    groups = parameter_groups(task.model, config.lr, config.layer_decay, config.weight_decay)
    optimizer = torch.optim.AdamW(groups, betas=config.betas, eps=config.eps, fused=True)
    # The schedule of pretraining; without a start value, as the share is all that is asked of it.
    schedule = Schedule(OptimConfig(lr=config.lr, warmup=config.warmup), task.steps * config.epochs)
    history: list[Scores] = []
    if folder is not None:
        history = load_epoch(folder, identity, task.model, optimizer)
        if history:
            say(f"{folder}: goes on after epoch {len(history)} of {config.epochs}")
    for epoch in range(len(history), config.epochs):
        started = time.perf_counter()
        loss = _train_epoch(task, config, optimizer, schedule, epoch, seed, say)
        task.model.eval()
        with torch.no_grad(), _autocast(task.model):
            scores = task.evaluate()
        history.append({"epoch": epoch + 1, "loss": loss, **scores})
        seconds = time.perf_counter() - started
        left = (config.epochs - epoch - 1) * seconds
        rest = f", {duration(left)} left" if left else ""
        say(
            f"epoch {epoch + 1}/{config.epochs}: loss {loss:.4f}, {task.shown} {scores[task.shown]:.2f}, "
            f"{duration(seconds)}{rest}"
        )
        if folder is not None:
            last = epoch + 1 == config.epochs
            save_epoch(folder, identity, task.model, None if last else optimizer, history)
    return history


def _train_epoch(
    task: Task,
    config: LoopConfig,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    epoch: int,
    seed: int,
    say: Callable[[str], None],
) -> float:
    """One pass over the training data; gives the mean loss."""
    task.model.train()
    torch.manual_seed(seed_of("epoch", seed, epoch))
    total, steps, spoke = 0.0, 0, time.perf_counter()
    for step, batch in enumerate(task.batches(epoch)):
        schedule.apply(optimizer.param_groups, epoch * task.steps + step)
        with _autocast(task.model):
            loss = task.loss(batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise EvaluationError(
                f"the loss is {value} in epoch {epoch + 1}, step {step + 1} of {task.steps}: lower --lr (now "
                f"{config.lr:g}), give a longer --warmup, or set --clip-norm 1"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.clip_norm is not None:
            nn.utils.clip_grad_norm_(task.model.parameters(), config.clip_norm)
        optimizer.step()
        total, steps = total + value, steps + 1
        if time.perf_counter() - spoke > SAY_SECONDS:
            spoke = time.perf_counter()
            say(f"epoch {epoch + 1}/{config.epochs}, step {step + 1}/{task.steps}: loss {total / steps:.4f}")
    if not steps:
        raise EvaluationError("not one training sample is usable: nothing to finetune on")
    return total / steps


def _autocast(model: nn.Module) -> torch.autocast:
    device = next(model.parameters()).device.type
    return torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda")
