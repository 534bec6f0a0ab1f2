"""A budget stops all ranks after the same step, with a checkpoint and an exit code of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ssmke.cost.ledger.reader import read_run
from tests.e2e.runs import Pretrain, Run

pytestmark = pytest.mark.e2e

SPENT_IN_SETUP = ("--cost.max_device_hours", "0.0002")
"""0.7 s: used up while the models are loaded, and noticed at the first chance."""


@pytest.fixture(scope="module")
def stopped(pretrain: Pretrain, unbroken: Run) -> Run:
    """A run whose first step is its last; ``unbroken`` has filled the target cache."""
    return pretrain(*SPENT_IN_SETUP, "--log-every", "1", folder="budget", code=3)


def test_it_stops_with_a_checkpoint_and_says_why(stopped: Run) -> None:
    assert "stopped by the budget after step " in stopped.output
    assert "of 0.0002 device-hours (--cost.max_device_hours)" in stopped.output
    assert "--resume" in stopped.output
    assert len(list((stopped.folder / "checkpoints").glob("step-*"))) == 1
    [segment] = read_run(stopped.folder)
    assert segment.reason == "budget"
    assert segment.step is not None
    assert [m.step for m in segment.saves] == [segment.step]


def test_it_goes_on_when_the_budget_is_raised_and_repeats_the_unbroken_run(
    stopped: Run, pretrain: Pretrain, unbroken: Run
) -> None:
    run = pretrain("--cost.max_device_hours", "100", "--resume", "auto", folder="budget")
    assert [line["loss"] for line in run.metrics] == [line["loss"] for line in unbroken.metrics]
    first, second = sorted(read_run(run.folder), key=lambda s: s.begin_ns)
    assert second.resumed_step == first.step
    assert json.loads((run.folder / "results.json").read_text())["device_hours"] > 0.0002


def test_a_budget_that_is_spent_already_is_refused_at_once(stopped: Run, pretrain: Pretrain) -> None:
    run = pretrain("--cost.max_device_hours", "0.0001", "--resume", "auto", folder="budget", ranks=0, code=2)
    assert "device-hours (--cost.max_device_hours) already: raise the limit" in run.output


def test_it_stops_the_target_cache_on_all_ranks(pretrain: Pretrain, tmp_path: Path) -> None:
    run = pretrain(*SPENT_IN_SETUP, "--targets.dir", str(tmp_path), folder="budget in the cache", code=3)
    assert "stopped by the budget" in run.output
    assert "Traceback" not in run.output
    assert [s.reason for s in read_run(run.folder)] == ["budget"]
