"""What accounting costs a training step: the same steps with and without the meter, in turns.

    python -m benchmarks.metering [--seconds 10] [--rounds 12] [--out benchmarks/results/metering-cpu.md]

Each round trains for some seconds with the meter (probe every second, beat every five, phases, progress, budget and
totals after each step, as the training loop does) and as long without it, in an order that alternates; the model, the
batch and the process are the same. A machine whose speed drifts hits both alike, and the ratio of the medians of all
steps is the overhead. The spread of the single rounds says how far to trust it. What cannot drown in that spread is
timed alone: the calls that the training thread makes, and the processor time of the meter's own thread.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import threading
import time
from pathlib import Path

import torch

from ssmke.cost.budget import Budget
from ssmke.cost.config import CostConfig
from ssmke.cost.meter import CostMeter
from ssmke.data.batch import Batch
from ssmke.models.student import SSMKE
from ssmke.objectives.pretraining import LossConfig, SSMKEPretraining
from ssmke.recipes import RECIPES

CONFIG = CostConfig(price="3.6", max_usd=1e6, max_device_hours=1e6)


class Step:
    """Forward, backward and AdamW of `scenes-tiny`'s student on one batch of 64 pairs."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        recipe = RECIPES["scenes-tiny"]()
        student = SSMKE(recipe.model, quiet=True)
        self._module = SSMKEPretraining(student, LossConfig(distillation="none", bank="none"))
        self._optimizer = torch.optim.AdamW(student.parameters())
        self._batch = Batch(
            images=torch.randint(0, 256, (64, 3, student.image_size, student.image_size), dtype=torch.uint8),
            ids=torch.randint(5, 50, (64, 16)),
            mask=torch.ones(64, 16, dtype=torch.bool),
            image_ids=torch.arange(64),
        )

    def __call__(self) -> None:
        self._module(self._batch)["loss"].backward()
        self._optimizer.step()
        self._optimizer.zero_grad()


def train(step: Step, meter: CostMeter, budget: Budget, seconds: float) -> list[float]:
    """Steps for ``seconds``, accounted as the training loop accounts them; seconds of each."""
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while (begin := time.perf_counter()) < end:
        with meter.phase("data_wait"):
            pass
        with meter.phase("train"):
            step()
        meter.progress(len(taken), 64 * len(taken))
        budget.spent(meter.totals())
        taken.append(time.perf_counter() - begin)
    return taken


def thread_seconds() -> float:
    """Processor time that the running meter's thread has used."""
    [thread] = [t for t in threading.enumerate() if t.name == "ssmke-cost"]
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident or 0))


def measure(seconds: float, rounds: int) -> tuple[list[list[float]], list[list[float]], float]:
    """Step times by round, with the meter and without, and the processor time of its thread per second."""
    step, budget = Step(), Budget(CONFIG)
    for _ in range(5):
        step()
    metered: list[list[float]] = []
    bare: list[list[float]] = []
    used = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for on in (number % 2 == 0, number % 2 != 0):
                # Another local rank's meter does nothing at all: the loop is the same, without accounting.
                meter = CostMeter(
                    Path(folder), lineage="l", attempt=f"a{number}-{on}", config=CONFIG, local_rank=0 if on else 1,
                    visible="" if not torch.cuda.is_available() else None,
                )  # fmt: skip
                meter.start()
                (metered if on else bare).append(train(step, meter, budget, seconds))
                used += thread_seconds() if on else 0.0
                meter.close()
    return metered, bare, used / sum(map(sum, metered))


def calls(count: int = 20_000) -> float:
    """Seconds that the training thread spends in the meter for one step."""
    with tempfile.TemporaryDirectory() as folder:
        meter = CostMeter(Path(folder), lineage="l", attempt="a", config=CONFIG, visible="")
        budget = Budget(CONFIG)
        meter.start()
        begin = time.perf_counter()
        for number in range(count):
            with meter.phase("data_wait"):
                pass
            with meter.phase("train"):
                pass
            meter.progress(number, number)
            budget.spent(meter.totals())
        spent = time.perf_counter() - begin
        meter.close()
    return spent / count


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    metered, bare, thread = measure(arguments.seconds, arguments.rounds)
    on, off = (statistics.median(t for part in parts for t in part) for parts in (metered, bare))
    ratios = sorted(statistics.median(a) / statistics.median(b) for a, b in zip(metered, bare, strict=True))
    each = calls()
    text = (
        "# Overhead of accounting\n\n"
        f"Measured with `python -m benchmarks.metering --seconds {arguments.seconds:g} --rounds {arguments.rounds}` on "
        f"{os.cpu_count()} cores ({platform.machine()}), torch {torch.__version__}.\n\n"
        "| | |\n| --- | --: |\n"
        f"| median step with the meter | {on * 1e3:.2f} ms ({sum(map(len, metered)):,} steps) |\n"
        f"| median step without | {off * 1e3:.2f} ms ({sum(map(len, bare)):,} steps) |\n"
        f"| ratio of the two | {on / off:.4f} |\n"
        f"| ratios of single rounds | {ratios[0]:.4f} to {ratios[-1]:.4f}, median {statistics.median(ratios):.4f} |\n"
        f"| processor time of the meter's thread | {thread * 1e3:.2f} ms a second ({thread:.3%}) |\n"
        f"| calls in the training thread | {each * 1e6:.1f} us a step ({each / off:.3%} of it) |\n"
    )
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
