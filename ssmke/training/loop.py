"""The training loop: batch -> targets -> step -> decisions.

One optimiser step per batch of the stream. After each: what all ranks agreed on (stop, save), a report every
``log_every`` steps, a checkpoint at the end of an epoch or when it is due, an evaluation when asked for.
A stop, by signal, notice or ``--stop-after``, finishes the step, saves, and returns.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass

import torch

from ssmke.cost.meter import CostMeter
from ssmke.data.batch import Batch
from ssmke.data.stream import BatchStream, StreamPlan
from ssmke.models.teachers import Teacher
from ssmke.training.checkpoint import CheckpointConfig
from ssmke.training.control import Control
from ssmke.training.engine import Engine
from ssmke.training.nonfinite import SkippedSteps
from ssmke.training.progress import Progress
from ssmke.training.transfer import Transfer
from ssmke.training.watchdog import Watchdog


@dataclass(frozen=True)
class LoopConfig:
    """When to do what."""

    checkpoint: CheckpointConfig
    log_every: int
    evaluate_every: int
    stop_after: int | None
    deadline_seconds: float
    """What a preemption notice leaves; see `FaultConfig`."""


@dataclass(frozen=True)
class Outcome:
    """How the loop ended."""

    step: int
    """Steps done, over all attempts."""
    stopped: str | None
    """Why it stopped early, None when all steps are done."""
    over_budget: bool
    """It was a budget that stopped it."""
    skipped: dict[str, int]
    """Unusable samples of this rank and attempt, by reason."""
    first_step_seconds: float | None
    """From the loop's start to the end of its first step."""


def train(
    engine: Engine,
    stream: BatchStream,
    plan: StreamPlan,
    config: LoopConfig,
    *,
    start: int,
    teacher: Teacher | None,
    phase: Callable[[str], AbstractContextManager[None]],
    meter: CostMeter,
    watchdog: Watchdog,
    skipped_steps: SkippedSteps,
    progress: Progress,
    control: Control,
    say: Callable[[str], None],
    save: Callable[[int], None],
    evaluate: Callable[[int], None],
) -> Outcome:
    """Trains from step ``start`` to the end of ``plan`` or until told to stop.

    ``phase(name)``: what the time inside is spent on, for the ledger and the watchdog.
    """
    step, saved, stopped, first, over_budget = start, start, None, None, False
    begin = last_save = time.monotonic()
    meter.progress(step, step * plan.batch_size)
    skipped: Counter[str] = stream.bad.by_reason
    warned = False
    shape: torch.Size | None = None
    watchdog.vitals.step = start

    def counts() -> dict[str, int]:
        bad_steps = {"steps that were not finite": skipped_steps.count} if skipped_steps.count else {}
        return {**skipped, **bad_steps}

    # However it ends: workers that nobody stops would keep the process for as long as they outlive a SIGTERM.
    with closing(iter(stream)) as batches:
        transfer = Transfer(engine.device)
        while step < plan.steps:
            waiting = time.perf_counter()
            with phase("data_wait"):
                batch = next(batches)
            waited = time.perf_counter() - waiting
            if batch.images.shape != shape:  # a curriculum's next size
                shape = batch.images.shape
                watchdog.vitals.may_compile()
            with phase("train"):
                losses, rate = engine.step(with_targets(transfer(batch), teacher), step)
            step += 1
            watchdog.vitals.at(step)
            first = time.monotonic() - begin if first is None else first
            meter.progress(step, step * plan.batch_size)
            due = (
                config.checkpoint.minutes > 0
                and time.monotonic() - last_save > 60 * config.checkpoint.minutes
            )
            with phase("train"):
                progress.add(step, batch, losses, rate, waited)
                skipped_steps.add(step, batch, losses, applied=engine.applied)
                decision = control.agree(save=due)
            last = step == plan.steps
            epoch_ends = step % plan.steps_per_epoch == 0
            limit = config.stop_after is not None and step - start >= config.stop_after
            stopping = (decision.stop or limit) and not last
            # A wish is answered one step later, when the next one is already on its way: it must not save again.
            wished = decision.save and step - saved > 1
            saving = wished or stopping or last or (epoch_ends and config.checkpoint.every_epoch)
            evaluating = not stopping and _evaluates(config.evaluate_every, step, plan)
            if saving or evaluating or step % config.log_every == 0:
                with phase("train"):
                    progress.report(step, counts())
            if saving:
                saving_at = time.monotonic()
                with phase("checkpoint"):
                    save(step)
                meter.saved(step)
                saved, last_save = step, time.monotonic()
                # The step that runs when the notice comes, the one that the decision takes, and the checkpoint.
                needed = 2 * plan.batch_size / progress.pairs_per_second + last_save - saving_at
                if needed > config.deadline_seconds and not warned:
                    warned = True
                    say(
                        f"two steps and a checkpoint take {needed:.0f} s, more than a preemption notice of "
                        f"{config.deadline_seconds:g} s (--faults.deadline-seconds) leaves: such an end loses the "
                        "steps since the last checkpoint, see --checkpoint.minutes"
                    )
                progress.resume_clock()
            if evaluating:
                with phase("evaluation"):
                    evaluate(step)
                progress.resume_clock()
            if stopping:
                over_budget = decision.spent
                stopped = _reason(config, control, limit=limit, over_budget=over_budget)
                break
    return Outcome(step, stopped, over_budget, counts(), first)


def _reason(config: LoopConfig, control: Control, *, limit: bool, over_budget: bool) -> str:
    if over_budget:
        return "the budget"
    return f"--stop-after {config.stop_after}" if limit else (control.signal or "a signal to another rank")


def _evaluates(every: int, step: int, plan: StreamPlan) -> bool:
    """Whether an epoch that is to be followed by an evaluation ends at ``step``; the last one is not here."""
    epoch, rest = divmod(step, plan.steps_per_epoch)
    return every > 0 and rest == 0 and step < plan.steps and epoch % every == 0


@torch.no_grad()
def with_targets(batch: Batch, teacher: Teacher | None) -> Batch:
    """The batch with the online teacher's targets for the very pixels that the student sees."""
    if teacher is not None:
        batch.targets = teacher(batch.images)
    return batch
