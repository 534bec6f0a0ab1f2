"""A unimodal distillation: engine -> loop -> encoder, scores, cost, in a `Session`.

What differs between images and texts comes prepared (`Distillation`, made by `images` and `texts`). Held-out data is
measured before the first step, so that the result says what the distillation added to the layers that were kept.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from ssmke.data.atomic import write_json
from ssmke.data.batch import Batches
from ssmke.data.stream import BatchStream, StreamConfig
from ssmke.errors import WeightsError
from ssmke.objectives.gather import rank
from ssmke.objectives.objective import Objective
from ssmke.tracking.standing import ui_command
from ssmke.training.engine import Engine
from ssmke.training.loop import Outcome
from ssmke.training.optimizer import Schedule
from ssmke.training.progress import Progress
from ssmke.training.ranks import barrier, on_rank_zero
from ssmke.training.session import Session
from ssmke.training.spending import Spending
from ssmke.training.unimodal.recipes import UnimodalRecipe

Scores = dict[str, float]


@dataclass(frozen=True)
class Distillation:
    """What is distilled, ready to begin."""

    module: Objective
    batches: Batches
    stream: StreamConfig
    data: str
    """Digest of what is trained on."""
    measure: Callable[[Any], Scores]
    """Scores of the (whole) module on held-out data, the same on all ranks (collective)."""
    save: Callable[[Path, dict[str, Tensor]], None]
    """Writes the student's weights as a folder."""
    flag: str
    """The flag of pretraining that takes the folder."""


def distil(recipe: UnimodalRecipe, session: Session, made: Distillation) -> Outcome:
    """Trains, saves the encoder into RUN/model and writes results.json; or stops with a checkpoint."""
    run, meter, tracker, say = session.run, session.meter, session.tracker, session.say
    plan, began_at = made.batches.plan, run.path / "began.json"
    with session.phase("setup"):
        engine = Engine(made.module, session.engine_config, recipe.optim, Schedule(recipe.optim, plan.steps))
        start = session.resume(engine, made.data)
        stream = BatchStream(made.batches, made.stream, start, pin=session.device.type == "cuda")
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.student.parameters())
    meter.note(parameters=parameters, pairs_per_epoch=plan.pairs)
    spending = Spending(
        meter,
        session.budget,
        plan.steps,
        shapes=None,
        dtype=session.engine_config.dtype,
        devices=session.devices,
    )
    progress = Progress(run.metrics, plan, meter, spending, tracker, say)

    def score(step: int) -> Scores:
        with engine.whole_weights() as module:
            found = made.measure(module)
        tracker.metrics({f"held_out/{name}": value for name, value in found.items()}, step)
        say(f"step {step}  held out  " + "  ".join(f"{name} {value:.4f}" for name, value in found.items()))
        return found

    if start == 0:
        with session.phase("evaluation"):
            first = score(0)
            on_rank_zero(lambda: write_json(began_at, first))

    def evaluate(step: int) -> None:
        score(step)

    outcome = session.train(engine, stream, plan, start, data=made.data, progress=progress, evaluate=evaluate)
    if outcome.stopped is not None:
        return outcome
    with session.phase("evaluation"):
        found = score(outcome.step)
        state = engine.student_state()
        if state is not None:
            _save(run.model, lambda folder: made.save(folder, state))
        if rank() == 0:
            _conclude(recipe, session, made, outcome, progress, found, began_at)
        barrier()
    return outcome


def _save(target: Path, write: Callable[[Path], None]) -> None:
    """Whole or not at all (rank 0)."""
    folder = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        write(folder)
        if target.exists():
            shutil.rmtree(target)
        folder.replace(target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise WeightsError(
            f"the encoder cannot be written to {target} ({error}): free space, or choose another"
        ) from error


def _conclude(
    recipe: UnimodalRecipe,
    session: Session,
    made: Distillation,
    outcome: Outcome,
    progress: Progress,
    found: Scores,
    began_at: Path,
) -> None:
    run, plan, tracker, totals = session.run, made.batches.plan, session.tracker, session.meter.totals()
    began: Scores = {}
    with suppress(OSError, ValueError):
        began = json.loads(began_at.read_text(encoding="utf-8"))
    rate = progress.trained_pairs / progress.train_seconds if progress.train_seconds else 0.0
    session.meter.note(held_out=found)
    results = {
        "recipe": recipe.name,
        "steps": outcome.step,
        "unit": plan.unit,
        "samples": outcome.step * plan.batch_size,
        "samples_per_second": rate,
        "held_out": found,
        "held_out_at_start": began,
        "device_hours": totals.device_hours,
        "usd": totals.usd,
        "usd_wasted": totals.wasted_usd,
        "energy_kwh": totals.energy_kwh,
        "price": totals.price,
        "skipped": outcome.skipped,
    }
    tracker.metrics({"cost/usd_total": totals.usd, "cost/device_hours": totals.device_hours}, outcome.step)
    for name in ("recipe.json", "deepspeed.json", "metrics.jsonl"):
        tracker.artifact(run.path / name)
    write_json(run.path / "results.json", results)
    usd = "unknown" if totals.usd is None else f"${totals.usd:.4f}"
    lines = {
        "held out": ", ".join(
            f"{name} {value:.4f} (at the start {began[name]:.4f})" if name in began else f"{name} {value:.4f}"
            for name, value in found.items()
        ),
        f"{plan.unit}/s": f"{rate:,.0f}",
        "device-hours": f"{totals.device_hours:.4f}",
        "dollars": f"{usd} ({totals.price})",
        "run": str(run.path),
        "encoder": str(run.model),
        "MLflow": ui_command(tracker.uri) if tracker.uri is not None else "off",
        "next": f"pretraining with {made.flag} {run.model}",
    }
    for name, value in lines.items():
        session.say(f"{name:<13} {value}")
