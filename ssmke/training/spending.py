"""What a run costs while it runs: the budget's warnings, the projected total, throughput per dollar, MFU.

Called once per report of `progress`, on rank 0, with numbers that are there anyway: it reads no device and no
disk. `cost` does the arithmetic; this only brings it the steps, tokens and seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from ssmke.cost.budget import Budget
from ssmke.cost.efficiency.devices import mfu
from ssmke.cost.efficiency.flops import Shapes, per_pair
from ssmke.cost.estimates.forecast import Projection, project
from ssmke.cost.meter import CostMeter
from ssmke.cost.totals import Totals
from ssmke.models.shapes import shapes_of
from ssmke.models.teachers import Teacher
from ssmke.objectives.pretraining import SSMKEPretraining
from ssmke.recipes import Recipe

_WINDOWS = 200
_NOTE_EVERY = 0.05
_BESIDE = ("evaluation", "checkpoint", "idle")


@dataclass
class Work:
    """Training work of an attempt: pairs, their text tokens with and without padding, and the seconds it took."""

    steps: int = 0
    pairs: int = 0
    text_tokens: int = 0
    padded_tokens: int = 0
    seconds: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.steps + other.steps,
            self.pairs + other.pairs,
            self.text_tokens + other.text_tokens,
            self.padded_tokens + other.padded_tokens,
            self.seconds + other.seconds,
        )


def count_work(
    recipe: Recipe, module: SSMKEPretraining, teacher: Teacher | None, say: Callable[[str], None]
) -> Shapes | None:
    """Operations of a pair, counted while parameters are whole; None, and said, for a model that resists."""
    try:
        return shapes_of(
            module,
            teacher,
            distillation=recipe.loss.distillation != "none",
            online_teacher=recipe.targets.mode == "online",
            max_tokens=recipe.model.text.max_tokens,
            batch_size=recipe.optim.batch_size,
            cached_tokens=recipe.targets.frozen_tokens,
            cached_text=recipe.targets.frozen_text,
            curriculum=recipe.data.curriculum,
        )
    except Exception as error:  # any model may be named; that it cannot be counted must not stop its training
        say(f"cost: operations per pair are not known: {type(error).__name__}: {error}")
        return None


class Spending:
    """Follows the cost of one attempt; ``shapes`` and ``dtype`` describe the work of a pair, ``devices`` the run's."""

    def __init__(
        self, meter: CostMeter, budget: Budget, steps: int, *, shapes: Shapes | None, dtype: str, devices: int
    ) -> None:
        self._meter, self._budget = meter, budget
        self._steps, self._devices = steps, devices
        self._shapes, self._dtype = shapes, dtype
        self._windows: deque[float] = deque(maxlen=_WINDOWS)
        self._noted, self._failed = 0.0, False
        self.work = Work()
        """All windows of this attempt."""
        self.last_efficiency: dict[str, Any] = {}
        """This attempt's operations per pair and per second, as in the ledger; empty where they are not known."""

    def report(self, step: int, window: Work) -> tuple[dict[str, float | None], list[str]]:
        """(metrics for MLflow, lines to say) after the ``window`` of steps that ended with ``step``.

        Whatever goes wrong in here is said once, and costs these numbers only.
        """
        self.work += window
        try:
            return self._report(step, window)
        except Exception as error:
            said, self._failed = self._failed, True
            return {}, [] if said else [f"cost: live numbers are missing: {type(error).__name__}: {error}"]

    def _report(self, step: int, window: Work) -> tuple[dict[str, float | None], list[str]]:
        self._windows.append(window.seconds / window.steps)
        totals = self._meter.totals()
        projection = self._project(step, totals)
        efficiency = self.last_efficiency = self._efficiency()
        share = step / self._steps
        if share - self._noted >= _NOTE_EVERY or step == self._steps:
            self._noted = share
            self._meter.note(forecast=_forecast(projection), efficiency=efficiency)
        metrics = {
            "cost/usd_total": totals.usd,
            "cost/usd_per_hour": totals.usd_per_hour,
            "cost/usd_wasted": totals.wasted_usd,
            "cost/device_hours": totals.device_hours,
            "cost/device_hours_wasted": totals.wasted_device_hours,
            "cost/energy_kwh": totals.energy_kwh,
            "cost/projected_usd": _float(projection.usd),
            "cost/projected_usd_low": _float(projection.usd_low),
            "cost/projected_usd_high": _float(projection.usd_high),
            "cost/projected_device_hours": projection.device_hours,
            "cost/pairs_per_usd": None
            if not totals.usd_per_hour
            else self._pairs_per_usd(totals.usd_per_hour),
            "cost/tflops_per_device": efficiency.get("tflops_per_device"),
            "cost/mfu": efficiency.get("mfu"),
            **{f"cost/hours/{name}": hours for name, hours in totals.phase_hours.items()},
        }
        return metrics, self._budget.warnings(totals)

    def _efficiency(self) -> dict[str, Any]:
        work = self.work
        if self._shapes is None or not work.pairs or not work.seconds:
            return {}
        real = per_pair(self._shapes, work.text_tokens / work.pairs)
        padded = per_pair(self._shapes, work.padded_tokens / work.pairs)
        rate = real.total * work.pairs / work.seconds / self._devices
        device = self._meter.devices[0].name if self._meter.devices else ""
        utilisation = mfu(rate, device, self._dtype)
        return {
            "flops_per_pair": real.total,
            "padded_flops_per_pair": padded.total,
            "teacher_flops_per_pair": real.teacher,
            "text_tokens_per_pair": work.text_tokens / work.pairs,
            "padded_tokens_per_pair": work.padded_tokens / work.pairs,
            "dtype": self._dtype,
            "train_seconds": work.seconds,
            "pairs": work.pairs,
            "devices": self._devices,
            "device": device,
            "tflops_per_device": rate / 1e12,
            "mfu": utilisation.mfu,
            "mfu_note": utilisation.reason,
        }

    def _project(self, step: int, totals: Totals) -> Projection:
        left = self._steps - step
        done = max(self.work.steps, 1)
        # Evaluations, checkpoints and pauses so far, per step, will go on at that rate.
        beside = sum(totals.phase_hours.get(name, 0.0) for name in _BESIDE) * 3600 / self._devices
        return project(
            spent_usd=None if totals.usd is None else Decimal(str(totals.usd)),
            spent_device_hours=totals.device_hours,
            steps_left=left,
            step_seconds=list(self._windows),
            devices=self._devices,
            usd_per_hour=None if totals.usd_per_hour is None else Decimal(str(totals.usd_per_hour)),
            extra_seconds=beside / max(step, done) * left,
        )

    def _pairs_per_usd(self, usd_per_hour: float) -> float:
        return self.work.pairs / self.work.seconds * 3600 / usd_per_hour


def _forecast(projection: Projection) -> dict[str, float | None]:
    return {
        "usd": _float(projection.usd),
        "low": _float(projection.usd_low),
        "high": _float(projection.usd_high),
        "device_hours": projection.device_hours,
    }


def _float(value: Decimal | None) -> float | None:
    return None if value is None else float(value)
