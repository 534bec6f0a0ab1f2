"""The frame of every training run: run folder, cost ledger, MLflow, signals, watchdog, checkpoints, and a clean end.

What is trained is the business of the ``work`` that a session is held for (`pretrain`, `unimodal`): it gets the
`Session`, prepares data and engine, calls `Session.train`, and writes its results. All that must happen however a run
ends (the ledger closed with a reason, MLflow's run finished, handlers restored) is here, once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from ssmke.cost.budget import Budget, BudgetSpent
from ssmke.cost.config import CostConfig
from ssmke.cost.meter import CostMeter
from ssmke.data.atomic import write_json
from ssmke.data.stream import BatchStream, StreamPlan
from ssmke.errors import CheckpointError, SSMKEError
from ssmke.models.teachers import Teacher
from ssmke.objectives.gather import rank, world_size
from ssmke.tracking import Tracker, TrackingConfig
from ssmke.training import checkpoint, ds_config
from ssmke.training.checkpoint import CheckpointConfig
from ssmke.training.control import Control
from ssmke.training.engine import Engine
from ssmke.training.faults import FaultConfig
from ssmke.training.loop import LoopConfig, Outcome, train
from ssmke.training.memory_errors import clear_memory_errors
from ssmke.training.nonfinite import SkippedSteps
from ssmke.training.optimizer import OptimConfig
from ssmke.training.preemption import Preemption
from ssmke.training.prepare import Say
from ssmke.training.progress import Progress
from ssmke.training.ranks import Placement, barrier, on_rank_zero
from ssmke.training.results import leave_dashboard, print_line
from ssmke.training.run_folder import RunFolder, keep_identity, open_run, truncate_metrics
from ssmke.training.watchdog import Watchdog


class RunRecipe(Protocol):
    """What a session reads of a recipe; see `ssmke.recipes.Recipe` for the fields."""

    name: str
    optim: OptimConfig
    checkpoint: CheckpointConfig
    faults: FaultConfig
    cost: CostConfig
    tracking: TrackingConfig
    runs_dir: str
    evaluate_every: int
    log_every: int
    stop_after: int | None

    def resolved(self) -> dict[str, Any]:
        """The recipe as plain JSON values."""
        ...


@dataclass(frozen=True)
class Session:
    """One attempt of a run, on this rank."""

    recipe: RunRecipe
    engine_config: ds_config.EngineConfig
    run: RunFolder
    meter: CostMeter
    watchdog: Watchdog
    tracker: Tracker
    control: Control
    budget: Budget
    say: Say
    """Prints a line on rank 0."""
    device: torch.device
    devices: int
    """As the meter counts them: on CPU a node is one."""
    began: float
    """On the monotonic clock."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What the time inside is spent on, for the ledger, the watchdog and messages about memory."""
        micro, file = self.engine_config.micro_batch, self.engine_config.path
        with (
            self.watchdog.vitals.phase(name),
            self.meter.phase(name),
            clear_memory_errors(name, micro_batch=micro, config=file),
        ):
            yield

    def resume(self, engine: Engine[Any], data: str) -> int:
        """Restores the newest checkpoint of a run that goes on (collective); gives the steps that are done.

        ``data``: digest of what is trained on. A checkpoint of other data is a `CheckpointError`.
        """
        run = self.run
        info = on_rank_zero(lambda: checkpoint.newest(run.checkpoints)) if run.resumed else None
        if info is None:
            on_rank_zero(lambda: truncate_metrics(run.metrics, 0))
            return 0
        if info.progress.data != data:
            raise CheckpointError(
                f"{info.path} was trained on other data than --data.* now name: their order would not go on; restore "
                "them, or start a new run"
            )
        done = checkpoint.load(
            engine.deepspeed,
            engine.module,
            info,
            self.recipe.checkpoint,
            engine.config.zero_stage,
            self.say,
        )
        if done.lineage != run.lineage:
            raise CheckpointError(
                f"{info.path} belongs to run {done.lineage}, not {run.lineage}: it was copied here"
            )
        on_rank_zero(lambda: truncate_metrics(run.metrics, done.step))
        self.say(f"resumed after step {done.step} from {info.path}")
        return done.step

    def train(
        self,
        engine: Engine[Any],
        stream: BatchStream,
        plan: StreamPlan,
        start: int,
        *,
        data: str,
        progress: Progress,
        evaluate: Callable[[int], None],
        teacher: Teacher | None = None,
    ) -> Outcome:
        """Trains to the end of ``plan`` or until told to stop, and says which; ``data`` as in `resume`."""
        recipe, config, say = self.recipe, self.engine_config, self.say
        say(
            f"training {plan.steps} steps of {plan.batch_size} {plan.unit} ({world_size()} ranks x "
            f"{config.micro_batch} x {config.accumulation}), {plan.epochs} epochs of {plan.pairs:,} {plan.unit}, "
            f"ZeRO-{config.zero_stage} on {self.device.type}; ready after {time.monotonic() - self.began:.1f} s"
        )

        def save(step: int) -> None:
            on_rank_zero(lambda: keep_identity(self.run, recipe.resolved(), say))
            state = checkpoint.Progress(step, step * plan.batch_size, self.run.lineage, data)
            path = checkpoint.save(
                engine.deepspeed,
                engine.module,
                self.run.checkpoints,
                state,
                recipe.checkpoint,
                config.zero_stage,
            )
            say(f"checkpoint {path}")

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
            phase=self.phase,
            meter=self.meter,
            watchdog=self.watchdog,
            skipped_steps=SkippedSteps(
                self.run.path / "nonfinite.jsonl",
                recipe.faults.max_nonfinite,
                scaled=config.dtype == "fp16",
            ),
            progress=progress,
            control=self.control,
            say=say,
            save=save,
            evaluate=evaluate,
        )
        progress.close()
        if outcome.stopped is not None:
            spent = (
                f": {self.budget.spent(self.meter.totals())}; raise it and" if outcome.over_budget else ";"
            )
            asked = self.control.asked_at
            since = "" if asked is None else f" ({time.monotonic() - asked:.1f} s after it)"
            say(
                f"stopped by {outcome.stopped}{since} after step {outcome.step}{spent} go on with --resume "
                f"{self.run.path}"
            )
        return outcome


def hold(
    recipe: RunRecipe, deepspeed_config: str, placement: Placement, work: Callable[[Session], Outcome]
) -> Outcome:
    """Opens a session on all ranks (the process group must exist), does ``work`` in it, and closes it.

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
    devices = world_size() if cuda else placement.nodes
    session = Session(
        recipe, engine_config, run, meter, watchdog, tracker, control, budget, say, device, devices, began
    )
    reason, status, left = "failed", "FAILED", "an error of its own"
    try:
        control.listen()
        watchdog.start(lambda: meter.close("failed"))
        preemption.start()
        on_rank_zero(
            lambda: budget.check_before(meter.totals(), measures_energy=any(d.energy for d in meter.devices))
        )
        say(f"price: {meter.quote.label}")
        tracker.params({"recipe": recipe.resolved(), "deepspeed": engine_config.json, "ranks": world_size()})
        outcome = work(session)
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


def _meter(recipe: RunRecipe, run: RunFolder, placement: Placement, cuda: bool) -> CostMeter:
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
