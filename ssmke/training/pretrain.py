"""A pretraining run, assembled: data -> targets -> student -> engine -> loop -> weights, scores, cost.

Reads top to bottom as what happens. Each stage is another module's; here they are only put in order, with the
phases that the cost ledger distinguishes and with the clean end that every way out needs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ssmke.cost.budget import Budget, BudgetSpent
from ssmke.cost.meter import CostMeter
from ssmke.data.atomic import write_json
from ssmke.data.curriculum import Curriculum
from ssmke.data.dataset import ImageTextShards
from ssmke.data.manifest import Manifest
from ssmke.data.shards import keys_digest
from ssmke.data.stream import BatchStream, PairBatches, StreamPlan
from ssmke.errors import CheckpointError, SSMKEError
from ssmke.evaluation.embed import embed_split
from ssmke.evaluation.retrieval import RetrievalMetrics, retrieval_metrics
from ssmke.evaluation.sheet import retrieval_sheet
from ssmke.objectives.gather import rank, world_size
from ssmke.recipes import Recipe
from ssmke.tracking import Tracker
from ssmke.training import checkpoint, ds_config
from ssmke.training.compute import prepare_online_teacher, prepare_student
from ssmke.training.control import Control
from ssmke.training.engine import Engine
from ssmke.training.loop import LoopConfig, Outcome, train
from ssmke.training.memory_errors import clear_memory_errors
from ssmke.training.nonfinite import SkippedSteps
from ssmke.training.optimizer import Schedule
from ssmke.training.preemption import Preemption
from ssmke.training.prepare import (
    Say,
    build_module,
    epoch_order,
    fill_bank,
    load_teacher,
    open_evaluation,
    open_shards,
    prepare_targets,
    prepare_tokens,
)
from ssmke.training.progress import Progress
from ssmke.training.ranks import Placement, barrier, on_rank_zero
from ssmke.training.results import closing_table, leave_dashboard, print_line
from ssmke.training.run_folder import RunFolder, keep_identity, open_run, truncate_metrics
from ssmke.training.spending import Spending, count_work
from ssmke.training.watchdog import Watchdog

if TYPE_CHECKING:
    from PIL.Image import Image


def pretrain(recipe: Recipe, deepspeed_config: str, placement: Placement) -> Outcome:
    """Runs ``recipe`` on all ranks (the process group must exist); prints its story on rank 0.

    Returns when the run is done or was stopped with a checkpoint (by a signal, a budget or ``--stop-after``);
    every foreseen failure is an `SSMKEError` raised before anything that was earned is lost.
    """
    began = time.monotonic()
    say: Say = print_line if rank() == 0 else (lambda line: None)
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", placement.local_rank) if cuda else torch.device("cpu")
    engine_config = ds_config.resolve(
        ds_config.load(deepspeed_config),
        deepspeed_config,
        batch_size=recipe.optim.batch_size,
        world_size=world_size(),
        cuda=cuda,
    )
    run = open_run(recipe.resolved())
    say(f"run {run.path}{' (resumed)' if run.resumed else ''}")
    on_rank_zero(lambda: write_json(run.path / "deepspeed.json", engine_config.json))
    meter = _meter(recipe, run, placement, cuda)
    meter.start()
    with meter.phase("setup"):
        tracker = Tracker.start(
            recipe.tracking,
            run_dir=run.path,
            run_name=f"{recipe.name}/{run.path.name}",
            workspace=Path(recipe.runs_dir),
            rank=rank(),
            lineage=run.lineage,
            environment=placement.environment,
        )
    budget = Budget(recipe.cost)
    watchdog = Watchdog(recipe.faults, run.path, run.attempt)
    control = Control(lambda: budget.spent(meter.totals()) if budget.limited else None, watchdog.vitals.beat)
    source = recipe.faults.preemption if placement.local_rank == 0 else "off"
    preemption = Preemption(source, control.request, say)
    devices = world_size() if cuda else placement.nodes  # as the meter counts them: on CPU a node is one
    reason, status, left = "failed", "FAILED", "an error of its own"
    try:
        control.listen()
        watchdog.start(lambda: meter.close("failed"))
        preemption.start()
        on_rank_zero(
            lambda: budget.check_before(meter.totals(), measures_energy=any(d.energy for d in meter.devices))
        )
        outcome = _run(
            recipe, engine_config, run, meter, watchdog, tracker, control, budget, say, device, devices, began
        )
        left = ""
        reason, status = ("finished", "FINISHED") if outcome.stopped is None else ("preempted", "KILLED")
        reason = "budget" if outcome.over_budget else reason
    except BudgetSpent:
        reason, status = "budget", "KILLED"
        raise
    except SSMKEError as error:
        left = str(error)
        if control.signal is not None:
            reason, status = "preempted", "KILLED"
        raise
    except KeyboardInterrupt:
        reason, status, left = "interrupted", "KILLED", "interrupted"
        raise
    except Exception as error:
        left = f"{type(error).__name__}: {error}"
        lost = watchdog.explain(error)
        if lost is not None:
            raise lost from error
        raise
    finally:
        preemption.close()
        watchdog.stop(left)
        meter.close(reason)
        leave_dashboard(run, tracker)
        tracker.finish(status)
        # Last: a launcher that ends all ranks after the first must not cut this short.
        control.close()
    if outcome.over_budget:
        barrier()  # the launcher ends all ranks when the first leaves with a code: rank 0 must be done by then
    return outcome


def _meter(recipe: Recipe, run: RunFolder, placement: Placement, cuda: bool) -> CostMeter:
    gpus = [torch.cuda.get_device_properties(i) for i in range(placement.local_size)] if cuda else []
    names = {f"GPU-{gpu.uuid}": gpu.name for gpu in gpus}
    return CostMeter(
        run.path,
        lineage=run.lineage,
        attempt=run.attempt,
        config=recipe.cost,
        node_rank=placement.node_rank,
        local_rank=placement.local_rank,
        nodes=placement.nodes,
        device_ids=list(names),
        device_names=names,
        visible=placement.environment.get("CUDA_VISIBLE_DEVICES") if cuda else "",
        facts={"recipe": recipe.name, "ranks": world_size()},
    )


def _run(
    recipe: Recipe,
    engine_config: ds_config.EngineConfig,
    run: RunFolder,
    meter: CostMeter,
    watchdog: Watchdog,
    tracker: Tracker,
    control: Control,
    budget: Budget,
    say: Say,
    device: torch.device,
    devices: int,
    began: float,
) -> Outcome:
    @contextmanager
    def phase(name: str) -> Iterator[None]:
        micro, file = engine_config.micro_batch, engine_config.path
        with (
            watchdog.vitals.phase(name),
            meter.phase(name),
            clear_memory_errors(name, micro_batch=micro, config=file),
        ):
            yield

    say(f"price: {meter.quote.label}")
    tracker.params({"recipe": recipe.resolved(), "deepspeed": engine_config.json, "ranks": world_size()})
    with phase("setup"):
        shards = open_shards(recipe, say)
        evaluation = open_evaluation(recipe)
        # Before the targets are computed: what is wrong with batch, weights or windows is known already.
        plan = StreamPlan(
            epoch_order(recipe, shards), recipe.optim.batch_size, recipe.optim.epochs, rank(), world_size()
        )
        teacher = load_teacher(recipe, device, say)
    with phase("target_cache"):
        cache = prepare_targets(recipe, shards, teacher, say, control.check)
    with phase("setup"):
        module = build_module(recipe, teacher, shards.images, device, say)
        parameters = module.student.parameter_table()["total"]
        shapes = count_work(recipe, module, teacher, say)
        if recipe.targets.mode == "cache":
            teacher = None
        prepare_student(
            module.student, recipe.compute, device=device, zero_stage=engine_config.zero_stage, say=say
        )
        if teacher is not None:
            prepare_online_teacher(teacher, recipe.compute, device=device, dtype=engine_config.dtype)
    with phase("target_cache"):
        tokens = prepare_tokens(recipe, shards, module.student, say, control.check)
    with phase("setup"):
        engine = Engine(module, engine_config, recipe.optim, Schedule(recipe.optim, plan.steps))
        data = keys_digest(info.sha256 for _, info, _ in shards.shards)
        start = _resume(run, engine, data, say)
        if start == 0:
            fill_bank(recipe, module.bank, cache, shards, device)
        encoder = module.student.image_encoder
        curriculum = Curriculum(recipe.data.curriculum, encoder.image_size, encoder.patch_size, plan.steps)
        batches = PairBatches(
            shards,
            plan,
            module.student.tokenizer(),
            recipe.model.text.max_tokens,
            module.student.image_size,
            recipe.data.augmentation,
            cache,
            tokens,
            engine_config.accumulation
            if recipe.compute.pack_text and module.student.text_encoder.packs
            else 0,
            curriculum,
        )
        stream = BatchStream(batches, recipe.data.stream, start, pin=device.type == "cuda")
    meter.note(parameters=parameters, pairs_per_epoch=plan.pairs)
    spending = Spending(meter, budget, plan.steps, shapes=shapes, dtype=engine_config.dtype, devices=devices)
    progress = Progress(run.metrics, plan, meter, spending, tracker, say)
    if recipe.data.curriculum.active:
        say(f"curriculum: {curriculum}")
    micro, accumulation = engine_config.micro_batch, engine_config.accumulation
    say(
        f"training {plan.steps} steps of {plan.batch_size} pairs ({world_size()} ranks x {micro} x {accumulation}), "
        f"{plan.epochs} epochs of {plan.pairs:,} pairs, ZeRO-{engine_config.zero_stage} on {device.type}; "
        f"ready after {time.monotonic() - began:.1f} s"
    )

    def save(step: int) -> None:
        on_rank_zero(lambda: keep_identity(run, recipe.resolved(), say))
        state = checkpoint.Progress(step, step * plan.batch_size, run.lineage, data)
        path = checkpoint.save(
            engine.deepspeed, module, run.checkpoints, state, recipe.checkpoint, engine_config.zero_stage
        )
        say(f"checkpoint {path}")

    def score(step: int) -> None:
        found = evaluate(engine, evaluation)
        if found is None:
            return
        tracker.metrics({f"retrieval/{name}": value for name, value in found.metrics.to_dict().items()}, step)
        i2t, t2i = found.metrics.image_to_text.recall, found.metrics.text_to_image.recall
        say(f"step {step}  {recipe.data.eval_split}  R@1 image->text {i2t[1]:.2f}  text->image {t2i[1]:.2f}")

    outcome = train(
        engine,
        stream,
        plan,
        LoopConfig(
            recipe.checkpoint,
            recipe.log_every,
            recipe.evaluate_every,
            recipe.stop_after,
            recipe.faults.deadline_seconds,
        ),
        start=start,
        teacher=teacher,
        phase=phase,
        meter=meter,
        watchdog=watchdog,
        skipped_steps=SkippedSteps(
            run.path / "nonfinite.jsonl", recipe.faults.max_nonfinite, scaled=engine_config.dtype == "fp16"
        ),
        progress=progress,
        control=control,
        say=say,
        save=save,
        evaluate=score,
    )
    progress.close()
    if outcome.stopped is not None:
        spent = f": {budget.spent(meter.totals())}; raise it and" if outcome.over_budget else ";"
        since = "" if control.asked_at is None else f" ({time.monotonic() - control.asked_at:.1f} s after it)"
        say(
            f"stopped by {outcome.stopped}{since} after step {outcome.step}{spent} go on with --resume {run.path}"
        )
        return outcome
    with phase("evaluation"):
        export(engine, run)
        found = evaluate(engine, evaluation)
        if found is not None:
            _conclude(recipe, run, plan, progress, spending, outcome, meter, tracker, found)
        barrier()
    return outcome


def _resume(run: RunFolder, engine: Engine, data: str, say: Say) -> int:
    info = on_rank_zero(lambda: checkpoint.newest(run.checkpoints)) if run.resumed else None
    if info is None:
        on_rank_zero(lambda: truncate_metrics(run.metrics, 0))
        return 0
    if info.progress.data != data:
        raise CheckpointError(
            f"{info.path} was trained on other shards than --data.shards now hold: the order of pairs would not go on; "
            "restore them, or start a new run"
        )
    done = checkpoint.load(engine.deepspeed, engine.module, info, engine.config.zero_stage, say)
    if done.lineage != run.lineage:
        raise CheckpointError(
            f"{info.path} belongs to run {done.lineage}, not {run.lineage}: it was copied here"
        )
    on_rank_zero(lambda: truncate_metrics(run.metrics, done.step))
    say(f"resumed after step {done.step} from {info.path}")
    return done.step


@dataclass(frozen=True)
class Evaluation:
    """Scores of the evaluation split, and a contact sheet of retrieved images."""

    metrics: RetrievalMetrics
    sheet: Image
    data: str
    """Names of the datasets, joined by "+"."""


def evaluate(engine: Engine, shards: ImageTextShards) -> Evaluation | None:
    """Embeds ``shards`` with all ranks (collective) and scores them on rank 0; None elsewhere."""
    with engine.whole_weights() as module:
        embeddings = embed_split(module.student, shards)
    if rank() != 0:
        return None
    metrics = retrieval_metrics(embeddings.image, embeddings.text, embeddings.text_image)
    names = [
        Manifest.load(folder).name for folder in dict.fromkeys(path.parent for path, _, _ in shards.shards)
    ]
    return Evaluation(metrics, retrieval_sheet(shards, embeddings), "+".join(names))


def export(engine: Engine, run: RunFolder) -> None:
    """Writes the final weights, fp32, as a model folder (collective)."""
    state = engine.student_state()
    if state is not None:
        engine.module.student.save_pretrained(run.model, state)
    barrier()


def _conclude(
    recipe: Recipe,
    run: RunFolder,
    plan: StreamPlan,
    progress: Progress,
    spending: Spending,
    outcome: Outcome,
    meter: CostMeter,
    tracker: Tracker,
    found: Evaluation,
) -> None:
    """Results into run folder, ledger, MLflow and on the screen (rank 0)."""
    scores = found.metrics.to_dict()
    meter.note(retrieval=scores, eval_split=recipe.data.eval_split, eval_data=found.data)
    totals, efficiency = meter.totals(), spending.last_efficiency
    results = {
        "recipe": recipe.name,
        "steps": outcome.step,
        "pairs": outcome.step * plan.batch_size,
        "pairs_per_second": progress.trained_pairs / progress.train_seconds
        if progress.train_seconds
        else 0.0,
        "first_step_seconds": outcome.first_step_seconds,
        "eval_split": recipe.data.eval_split,
        "retrieval": scores,
        "device_hours": totals.device_hours,
        "usd": totals.usd,
        "usd_wasted": totals.wasted_usd,
        "tflops_per_device": efficiency.get("tflops_per_device"),
        "mfu": efficiency.get("mfu"),
        "energy_kwh": totals.energy_kwh,
        "price": totals.price,
        "skipped": outcome.skipped,
    }
    tracker.metrics({f"retrieval/{name}": value for name, value in scores.items()}, outcome.step)
    tracker.metrics({"cost/usd_total": totals.usd, "cost/device_hours": totals.device_hours}, outcome.step)
    found.sheet.save(run.path / "retrieval.png")
    tracker.artifact(run.path / "retrieval.png")
    tracker.text("retrieval.json", json.dumps(scores, indent=2))
    for name in ("recipe.json", "deepspeed.json", "metrics.jsonl"):
        tracker.artifact(run.path / name)
    write_json(run.path / "results.json", results)
    with suppress(OSError):  # a log on a full disk
        closing_table(recipe, run, tracker, found.metrics, results)
