"""What a run says: every step into metrics.jsonl, every so many steps one line, MLflow and the ledger.

Losses stay on the device until they are reported: one reduction over ranks and one copy to the host for all
steps since the last report, so that no step waits for the device.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ssmke.cost.meter import CostMeter
from ssmke.data.batch import Batch
from ssmke.data.stream import StreamPlan
from ssmke.objectives.gather import rank, world_size
from ssmke.objectives.pretraining import Losses
from ssmke.tracking import Tracker
from ssmke.training.spending import Spending, Work
from ssmke.training.step_file import StepFile
from ssmke.words import duration


@dataclass
class Window:
    """Steps since the last report."""

    losses: list[Tensor] = field(default_factory=list)
    text_tokens: int = 0
    padded_tokens: int = 0
    keys: list[int] = field(default_factory=list)
    """Sum of the keys' hashes of each step, of this rank."""
    facts: list[dict[str, Any]] = field(default_factory=list)
    begin: float = field(default_factory=time.perf_counter)
    waited: float = 0.0


class Progress:
    """Collects steps and reports them."""

    def __init__(
        self,
        metrics: Path,
        plan: StreamPlan,
        meter: CostMeter,
        spending: Spending,
        tracker: Tracker,
        say: Callable[[str], None],
    ) -> None:
        self.plan = plan
        self.pairs_per_second = 0.0
        """Over the last window, all ranks."""
        self.trained_pairs = 0
        """Pairs of this attempt."""
        self.train_seconds = 0.0
        """Seconds of this attempt spent on them, data wait included."""
        self._file = StepFile(metrics, say) if rank() == 0 else None
        self._meter, self._spending, self._tracker, self._say = meter, spending, tracker, say
        self._names: list[str] = []
        self._window = Window()

    def resume_clock(self) -> None:
        """Time since the last step does not count as training (evaluation, checkpoint)."""
        self._window.begin = time.perf_counter()

    def add(self, step: int, batch: Batch, losses: Losses, rate: float, waited: float) -> None:
        """One finished step, number ``step`` counted from 1."""
        self._names = list(losses)
        self._window.losses.append(torch.stack([value.float() for value in losses.values()]))
        self._window.keys.append(batch.keys_sum)
        self._window.facts.append({"step": step, "lr": rate})
        self._window.waited += waited
        # This rank's captions stand for all: they are a random part of the batch.
        self._window.text_tokens += batch.real_tokens * world_size()
        self._window.padded_tokens += batch.computed_tokens * world_size()

    def report(self, step: int, skipped: dict[str, int]) -> None:
        """Writes the steps since the last report; collective. A loss that is not a number is written as null."""
        window = self._window
        if not window.losses:
            return
        rows = torch.stack(window.losses)  # [steps, losses]
        keys = torch.tensor(window.keys, device=rows.device)
        if world_size() > 1:
            dist.all_reduce(rows)
            dist.all_reduce(keys)  # wraps, as the sums do
            rows /= world_size()
        values = rows.tolist()
        for facts, total in zip(window.facts, keys.tolist(), strict=True):
            facts["keys"] = f"{total % 2**64:016x}"
        seconds = time.perf_counter() - window.begin
        pairs = len(values) * self.plan.batch_size
        self.pairs_per_second = pairs / seconds
        self.trained_pairs += pairs
        self.train_seconds += seconds
        self._window = Window()
        if self._file is not None:
            self._write(window, values)
            self._print(step, values, seconds, window, skipped)

    def _write(self, window: Window, values: list[list[float]]) -> None:
        assert self._file is not None
        lines = []
        for facts, row in zip(window.facts, values, strict=True):
            numbers = [value if math.isfinite(value) else None for value in row]
            lines.append(json.dumps({**facts, **dict(zip(self._names, numbers, strict=True))}))
        self._file.add(lines)

    def _print(
        self, step: int, values: list[list[float]], seconds: float, window: Window, skipped: dict[str, int]
    ) -> None:
        rate, waited = window.facts[-1]["lr"], window.waited
        finite = [row for row in values if all(math.isfinite(value) for value in row)]
        mean = {
            name: sum(row[i] for row in finite) / len(finite) if finite else math.nan
            for i, name in enumerate(self._names)
        }
        left = (self.plan.steps - step) * seconds / len(values)
        totals = self._meter.totals()
        memory = _memory_gb()
        parts = [
            f"step {step}/{self.plan.steps}",
            f"epoch {step / self.plan.steps_per_epoch:.2f}",
            f"loss {mean['loss']:.3f}{_short(mean)}",
            f"lr {rate:.1e}",
            f"{self.pairs_per_second:,.0f} {self.plan.unit}/s",
            f"data {100 * waited / seconds:.0f}%",
            f"{memory:.1f} GB",
            f"ETA {duration(left)}",
            "$ unknown" if totals.usd is None else f"${totals.usd:.4f}",
        ]
        if skipped:
            parts.append("skipped " + ", ".join(f"{n} {reason}" for reason, n in skipped.items()))
        work = Work(
            len(values), len(values) * self.plan.batch_size, window.text_tokens, window.padded_tokens, seconds
        )
        costs, warnings = self._spending.report(step, work)
        for line in ["  ".join(parts), *warnings]:
            self._say(line)
        self._tracker.metrics(
            {
                **{name.replace(".", "/"): value for name, value in mean.items() if finite},
                "lr": rate,
                "pairs_per_second": self.pairs_per_second,
                "data_wait_share": waited / seconds,
                "device_memory_gb": memory,
                "skipped": sum(skipped.values()),
                **costs,
            },
            step,
        )

    def close(self) -> None:
        """Closes metrics.jsonl."""
        if self._file is not None:
            self._file.close()


def _short(mean: dict[str, float]) -> str:
    """The parts of the loss; those of a part have names with a dot."""
    short = {"distillation": "kd"}
    parts = {name: value for name, value in mean.items() if name != "loss" and "." not in name}
    said = ", ".join(f"{short.get(name, name)} {value:.3f}" for name, value in parts.items())
    return f" ({said})" if said else ""


def _memory_gb() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    import psutil

    return float(psutil.Process().memory_info().rss) / 1e9
