"""A pretraining run, assembled: data -> targets -> student -> engine -> loop -> weights, scores, cost.

Reads top to bottom as what happens. Each stage is another module's; here they are only put in order, with the
phases that the cost ledger distinguishes. The clean end that every way out needs is `session`'s.
Finetuning for retrieval is the same run, of a recipe without teacher, from a trained student (``--init``).
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ssmke.cost.meter import CostMeter
from ssmke.data.atomic import write_json
from ssmke.data.batch import Batches
from ssmke.data.curriculum import Curriculum
from ssmke.data.dataset import ImageTextShards
from ssmke.data.features import FeatureBatches
from ssmke.data.manifest import Manifest
from ssmke.data.shards import keys_digest
from ssmke.data.stream import BatchStream, PairBatches, StreamPlan
from ssmke.evaluation.embed import embed_split
from ssmke.evaluation.retrieval import RetrievalMetrics, retrieval_metrics
from ssmke.evaluation.sheet import retrieval_sheet
from ssmke.objectives.gather import rank, world_size
from ssmke.objectives.pretraining import SSMKEPretraining
from ssmke.recipes import Recipe
from ssmke.tracking import Tracker
from ssmke.training.compute import prepare_online_teacher, prepare_student
from ssmke.training.engine import Engine
from ssmke.training.loop import Outcome
from ssmke.training.optimizer import Schedule
from ssmke.training.prepare import (
    build_module,
    epoch_order,
    fill_bank,
    load_teacher,
    open_evaluation,
    open_shards,
    prepare_targets,
    prepare_text,
    prepare_tokens,
)
from ssmke.training.progress import Progress
from ssmke.training.ranks import Placement, barrier, on_rank_zero
from ssmke.training.results import closing_table
from ssmke.training.run_folder import RunFolder
from ssmke.training.session import Session, hold
from ssmke.training.spending import Spending, count_work
from ssmke.training.trained import remember_init

if TYPE_CHECKING:
    from PIL.Image import Image


def pretrain(recipe: Recipe, deepspeed_config: str, placement: Placement) -> Outcome:
    """Runs ``recipe`` on all ranks (the process group must exist); prints its story on rank 0.

    Returns when the run is done or was stopped with a checkpoint (by a signal, a budget or ``--stop-after``);
    every foreseen failure is an `SSMKEError` raised before anything that was earned is lost.
    """
    return hold(recipe, deepspeed_config, placement, lambda session: _run(recipe, session))


def _run(recipe: Recipe, session: Session) -> Outcome:
    engine_config, run, meter, tracker = session.engine_config, session.run, session.meter, session.tracker
    control, say, device, phase = session.control, session.say, session.device, session.phase
    with phase("setup"):
        shards = open_shards(recipe, say)
        evaluation = open_evaluation(recipe)
        # Before the targets are computed: what is wrong with batch, weights or windows is known already.
        plan = StreamPlan(
            epoch_order(recipe, shards, reads_shards=not recipe.targets.frozen_text),
            recipe.optim.batch_size,
            recipe.optim.epochs,
            rank(),
            world_size(),
        )
        teacher = load_teacher(recipe, device, say)
    with phase("target_cache"):
        cache = prepare_targets(recipe, shards, teacher, say, control.check)
    with phase("setup"):
        if recipe.init is not None:
            folder = recipe.init
            began_with = on_rank_zero(lambda: remember_init(run.path, folder, resumed=run.resumed))
            meter.note(init=began_with)
            tracker.params({"init_sha256": began_with})
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
        texts = prepare_text(recipe, shards, module.student, say, control.check)
    with phase("setup"):
        engine = Engine(module, engine_config, recipe.optim, Schedule(recipe.optim, plan.steps))
        data = keys_digest(info.sha256 for _, info, _ in shards.shards)
        start = session.resume(engine, data)
        if start == 0:
            fill_bank(recipe, module.bank, cache, shards, device)
        encoder = module.student.image_encoder
        curriculum = Curriculum(recipe.data.curriculum, encoder.image_size, encoder.patch_size, plan.steps)
        batches: Batches
        if tokens is not None and texts is not None:
            batches = FeatureBatches(shards, plan, tokens, texts, cache)
        else:
            batches = PairBatches(
                shards,
                plan,
                module.student.tokenizer(),
                module.student.config.text.max_tokens,
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
    spending = Spending(
        meter,
        session.budget,
        plan.steps,
        shapes=shapes,
        dtype=engine_config.dtype,
        devices=session.devices,
    )
    progress = Progress(run.metrics, plan, meter, spending, tracker, say)
    if recipe.data.curriculum.active:
        say(f"curriculum: {curriculum}")

    def score(step: int) -> None:
        found = evaluate(engine, evaluation)
        if found is None:
            return
        tracker.metrics({f"retrieval/{name}": value for name, value in found.metrics.to_dict().items()}, step)
        i2t, t2i = found.metrics.image_to_text.recall, found.metrics.text_to_image.recall
        say(f"step {step}  {recipe.data.eval_split}  R@1 image->text {i2t[1]:.2f}  text->image {t2i[1]:.2f}")

    outcome = session.train(
        engine, stream, plan, start, data=data, progress=progress, evaluate=score, teacher=teacher
    )
    if outcome.stopped is not None:
        return outcome
    with phase("evaluation"):
        export(engine, run)
        found = evaluate(engine, evaluation)
        if found is not None:
            _conclude(recipe, run, plan, progress, spending, outcome, meter, tracker, found)
        barrier()
    return outcome


@dataclass(frozen=True)
class Evaluation:
    """Scores of the evaluation split, and a contact sheet of retrieved images."""

    metrics: RetrievalMetrics
    sheet: Image
    data: str
    """Names of the datasets, joined by "+"."""


def evaluate(engine: Engine[SSMKEPretraining], shards: ImageTextShards) -> Evaluation | None:
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


def export(engine: Engine[SSMKEPretraining], run: RunFolder) -> None:
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
