"""Live cost numbers of a run, from the real meter in simulated time; and that they can fail without harm."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssmke.cost.budget import Budget
from ssmke.cost.config import CostConfig
from ssmke.cost.efficiency.flops import Part, Shapes
from ssmke.cost.ledger.reader import read_run
from ssmke.cost.meter import CostMeter
from ssmke.cost.probes.replay import FakeProbe
from ssmke.training.spending import Spending, Work
from tests.cost.simulated import GPU, MACHINE, SECOND, Clock

SHAPES = Shapes(
    parts=(Part("text", passes=3, per_token=1e10), Part("image", passes=1, fixed=2e10)), max_tokens=64
)
CONFIG = CostConfig(price="36", max_usd=1.0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def meter(tmp_path: Path, clock: Clock) -> CostMeter:
    running = CostMeter(
        tmp_path, lineage="l", attempt="a", config=CONFIG, probe=FakeProbe([GPU]), machine=MACHINE, clock=clock,
        wall=clock.wall, heartbeat=False,
    )  # fmt: skip
    running.start()
    return running


def train(
    clock: Clock, meter: CostMeter, spending: Spending, windows: int
) -> tuple[dict[str, float | None], list[str]]:
    """Windows of 10 steps of 16 pairs in 10 s, as a loop reports them."""
    said: list[str] = []
    metrics: dict[str, float | None] = {}
    for window in range(windows):
        with meter.phase("train"):
            clock.ns += 10 * SECOND
        work = Work(steps=10, pairs=160, text_tokens=160 * 13, padded_tokens=160 * 20, seconds=10.0)
        metrics, lines = spending.report(10 * (window + 1), work)
        said += lines
    return metrics, said


def test_the_projection_of_an_even_run_is_what_it_will_cost(clock: Clock, meter: CostMeter) -> None:
    spending = Spending(meter, Budget(CONFIG), 100, shapes=SHAPES, dtype="bf16", devices=1)
    metrics, _ = train(clock, meter, spending, 6)
    assert metrics["cost/usd_total"] == pytest.approx(0.6)
    assert metrics["cost/projected_usd"] == pytest.approx(1.0)
    assert metrics["cost/projected_device_hours"] == pytest.approx(100 / 3600)
    assert metrics["cost/pairs_per_usd"] == pytest.approx(16 * 3600 / 36)
    metrics, _ = train(clock, meter, spending, 4)
    assert metrics["cost/usd_total"] == pytest.approx(1.0)


def test_mfu_is_operations_of_real_tokens_over_the_peak(clock: Clock, meter: CostMeter) -> None:
    spending = Spending(meter, Budget(CONFIG), 100, shapes=SHAPES, dtype="bf16", devices=1)
    metrics, _ = train(clock, meter, spending, 2)
    per_pair = 3 * 1e10 * 13 + 2e10
    assert metrics["cost/tflops_per_device"] == pytest.approx(per_pair * 16 / 1e12)
    assert metrics["cost/mfu"] == pytest.approx(per_pair * 16 / 989e12)
    assert spending.last_efficiency["padded_flops_per_pair"] == pytest.approx(3 * 1e10 * 20 + 2e10)


def test_the_budget_s_warnings_are_said_and_the_forecast_is_in_the_ledger(
    clock: Clock, meter: CostMeter, tmp_path: Path
) -> None:
    spending = Spending(meter, Budget(CONFIG), 100, shapes=None, dtype="fp32", devices=1)
    metrics, said = train(clock, meter, spending, 10)
    assert [line.split(",")[0] for line in said] == [
        "budget: 50% used",
        "budget: 80% used",
        "budget: 100% used",
    ]
    assert metrics["cost/mfu"] is None
    meter.close()
    [segment] = read_run(tmp_path)
    assert segment.facts["forecast"]["usd"] == pytest.approx(1.0)
    assert segment.facts["efficiency"] == {}


def test_numbers_that_cannot_be_made_are_told_once_and_stop_nothing(clock: Clock, meter: CostMeter) -> None:
    longer = Shapes(parts=SHAPES.parts, max_tokens=5)  # captions of 13 tokens cannot be
    spending = Spending(meter, Budget(CONFIG), 100, shapes=longer, dtype="bf16", devices=1)
    metrics, said = train(clock, meter, spending, 3)
    assert metrics == {}
    assert len(said) == 1
    assert "live numbers are missing" in said[0]
