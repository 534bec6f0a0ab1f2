"""A pretraining run, assembled: data -> targets -> student -> engine -> loop -> weights, scores, cost.

Reads top to bottom as what happens. Each stage is another module's; here they are only put in order, with the
phases that the cost ledger distinguishes and with the clean end that every way out needs.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ssmke.cost.budget import Budget, BudgetSpent
from ssmke.cost.meter import CostMeter
from ssmke.data.atomic import write_json
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
from ssmke.training.control import Control
from ssmke.training.engine import Engine
from ssmke.training.loop import LoopConfig, Outcome, train
from ssmke.training.optimizer import Schedule
from ssmke.training.prepare import (
    Say,
    build_module,
    fill_bank,
    load_teacher,
    open_shards,
    prepare_targets,
    prepare_tokens,
)
from ssmke.training.progress import Progress
from ssmke.training.ranks import Placement, barrier, on_rank_zero
from ssmke.training.results import closing_table, leave_dashboard
from ssmke.training.run_folder import RunFolder, open_run, truncate_metrics
from ssmke.training.spending import Spending, count_work

if TYPE_CHECKING:
    from PIL.Image import Image


def pretrain(recipe: Recipe, deepspeed_config: str, placement: Placement) -> Outcome:
    """Runs ``recipe`` on all ranks (the process group must exist); prints its story on rank 0.

    Returns when the run is done or was stopped with a checkpoint (by a signal, a budget or ``--stop-after``);
    every foreseen failure is an `SSMKEError` raised before anything that was earned is lost.
    """
    began = time.monotonic()
    say: Say = (lambda line: print(line, flush=True)) if rank() == 0 else (lambda line: None)
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
    control = Control(lambda: budget.spent(meter.totals()) if budget.limited else None)
    devices = world_size() if cuda else placement.nodes  # as the meter counts them: on CPU a node is one
    reason, status = "failed", "FAILED"
    try:
        control.listen()
        on_rank_zero(
            lambda: budget.check_before(meter.totals(), measures_energy=any(d.energy for d in meter.devices))
        )
        outcome = _run(
            recipe, engine_config, run, meter, tracker, control, budget, say, device, devices, began
        )
        reason, status = ("finished", "FINISHED") if outcome.stopped is None else ("preempted", "KILLED")
        reason = "budget" if outcome.over_budget else reason
    except BudgetSpent:
        reason, status = "budget", "KILLED"
        raise
    except SSMKEError:
        if control.signal is not None:
            reason, status = "preempted", "KILLED"
        raise
    except KeyboardInterrupt:
        reason, status = "interrupted", "KILLED"
        raise
    finally:
        control.close()
        meter.close(reason)
        leave_dashboard(run, tracker)
        tracker.finish(status)
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
    tracker: Tracker,
    control: Control,
    budget: Budget,
    say: Say,
    device: torch.device,
    devices: int,
    began: float,
) -> Outcome:
    say(f"price: {meter.quote.label}")
    tracker.params({"recipe": recipe.resolved(), "deepspeed": engine_config.json, "ranks": world_size()})
    with meter.phase("setup"):
        shards = open_shards(recipe, say)
        teacher = load_teacher(recipe, device, say)
    with meter.phase("target_cache"):
        cache = prepare_targets(recipe, shards, teacher, say, control.check)
    with meter.phase("setup"):
        module = build_module(recipe, teacher, shards.images, device, say)
        parameters = module.student.parameter_table()["total"]
        shapes = count_work(recipe, module, teacher, say)
        if recipe.targets.mode == "cache":
            teacher = None
    with meter.phase("target_cache"):
        tokens = prepare_tokens(recipe, shards, module.student, say, control.check)
    with meter.phase("setup"):
        plan = StreamPlan(
            shards.pairs, recipe.optim.batch_size, recipe.optim.epochs, recipe.seed, rank(), world_size()
        )
        engine = Engine(module, engine_config, recipe.optim, Schedule(recipe.optim, plan.steps))
        data = keys_digest(info.sha256 for _, info, _ in shards.shards)
        start = _resume(run, engine, data, say)
        if start == 0:
            fill_bank(recipe, module.bank, cache, shards, device)
        batches = PairBatches(
            shards,
            plan,
            module.student.tokenizer(),
            recipe.model.text.max_tokens,
            module.student.image_size,
            recipe.data.augmentation,
            cache,
            tokens,
        )
        stream = BatchStream(batches, recipe.data.stream, start, pin=device.type == "cuda")
    meter.note(parameters=parameters, pairs_per_epoch=shards.pairs)
    spending = Spending(meter, budget, plan.steps, shapes=shapes, dtype=engine_config.dtype, devices=devices)
    progress = Progress(run.metrics, plan, meter, spending, tracker, say)
    micro, accumulation = engine_config.micro_batch, engine_config.accumulation
    say(
        f"training {plan.steps} steps of {plan.batch_size} pairs ({world_size()} ranks x {micro} x {accumulation}), "
        f"{plan.epochs} epochs of {shards.pairs:,} pairs, ZeRO-{engine_config.zero_stage} on {device.type}; "
        f"ready after {time.monotonic() - began:.1f} s"
    )

    def save(step: int) -> None:
        state = checkpoint.Progress(step, step * plan.batch_size, run.lineage, data)
        path = checkpoint.save(
            engine.deepspeed, module, run.checkpoints, state, recipe.checkpoint, engine_config.zero_stage
        )
        say(f"checkpoint {path}")

    def score(step: int) -> None:
        found = evaluate(engine, recipe)
        if found is None:
            return
        tracker.metrics({f"retrieval/{name}": value for name, value in found.metrics.to_dict().items()}, step)
        i2t, t2i = found.metrics.image_to_text.recall, found.metrics.text_to_image.recall
        say(f"step {step}  {recipe.data.eval_split}  R@1 image->text {i2t[1]:.2f}  text->image {t2i[1]:.2f}")

    outcome = train(
        engine,
        stream,
        plan,
        LoopConfig(recipe.checkpoint, recipe.log_every, recipe.evaluate_every, recipe.stop_after),
        start=start,
        teacher=teacher,
        meter=meter,
        progress=progress,
        control=control,
        save=save,
        evaluate=score,
    )
    progress.close()
    if outcome.stopped is not None:
        spent = f": {budget.spent(meter.totals())}; raise it and" if outcome.over_budget else ";"
        say(f"stopped by {outcome.stopped} after step {outcome.step}{spent} go on with --resume {run.path}")
        return outcome
    with meter.phase("evaluation"):
        export(engine, run)
        found = evaluate(engine, recipe)
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
    done = checkpoint.load(engine.deepspeed, engine.module, info, engine.config.zero_stage)
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


def evaluate(engine: Engine, recipe: Recipe) -> Evaluation | None:
    """Embeds the evaluation split with all ranks (collective) and scores it on rank 0; None elsewhere."""
    shards = ImageTextShards.open(recipe.data.shards, recipe.data.eval_split)
    with engine.whole_weights() as module:
        embeddings = embed_split(module.student, shards)
    if rank() != 0:
        return None
    metrics = retrieval_metrics(embeddings.image, embeddings.text, embeddings.text_image)
    return Evaluation(metrics, retrieval_sheet(shards, embeddings))


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
    names = [Manifest.load(folder).name for folder in recipe.data.shards]
    meter.note(retrieval=scores, eval_split=recipe.data.eval_split, eval_data="+".join(names))
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
    closing_table(recipe, run, tracker, found.metrics, results)
