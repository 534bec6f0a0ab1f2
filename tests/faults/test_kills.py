"""A training that is killed and resumed is accounted like one that was not (20 kills: `benchmarks/kills.py`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.kills import compare
from ssmke.cost.ledger.outcomes import OUTCOMES
from ssmke.cost.ledger.usage import Usage
from ssmke.cost.report import report

pytestmark = pytest.mark.e2e


def test_useful_time_of_a_killed_run_is_that_of_the_unbroken_one(flags: list[str], tmp_path: Path) -> None:
    more = ["--optim.epochs", "6", "--log-every", "2"]
    result = compare([*flags, *more], tmp_path, kills=5, pace_s=0.5)
    # Steps keep their pace whatever the machine does; what else takes its time (set-up, checkpoints) does not.
    assert result.unbroken.phases["train"] / 1e9 >= 48 * 0.5
    assert abs(result.off_s("train")) <= result.allowed_s + 0.05 * 48 * 0.5
    assert sum(result.outcomes.values(), Usage()) == result.paid
    assert sum(result.outcomes[name].device_ns for name in OUTCOMES) == result.paid.device_ns
    assert result.outcomes["failed"].device_ns > 0  # set-up that was paid again
    [killed] = [run for run in report(tmp_path).runs if run.name == "killed"]
    assert [a.outcome for a in killed.attempts] == ["no end"] * 5 + ["finished"]
    assert killed.final.device_ns < killed.usage.device_ns
