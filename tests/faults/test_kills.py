"""A training that is hurt in every kind of place ends as the one that was not, in what it learnt and in what it cost.

Many more: ``python -m benchmarks.faults``; the accounts of 20 kills: ``python -m benchmarks.kills``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.faults.attempts import tiny
from benchmarks.faults.campaign import Campaign, Fault
from ssmke.cost.report import report

pytestmark = pytest.mark.e2e

FAULTS = (
    Fault("targets", "SIGKILL", "rank 1"),
    Fault("set-up", "SIGINT", "group"),
    Fault("training", "SIGTERM", "rank 1"),
    Fault("writing", "SIGKILL", "rank 0"),
    Fault("pruning", "SIGKILL", "group"),
    Fault("ending", "SIGTERM", "launcher"),
)


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param((FAULTS[0], FAULTS[3], FAULTS[5]), id="three"),
        pytest.param(FAULTS, id="one in every place", marks=pytest.mark.long),
    ],
)
def test_faults_change_nothing(faults: tuple[Fault, ...], tmp_path: Path) -> None:
    campaign = Campaign(tmp_path, tiny(tmp_path, 2), pace_s=0.25)
    hurt = campaign.lineage("hurt", faults, campaign.unbroken())
    assert hurt.problems == []
    assert [injury.fault for injury in hurt.injuries] == list(faults)
    for injury in hurt.injuries:
        if injury.fault.signal != "SIGKILL":
            assert injury.tracebacks == [], injury
            assert injury.lost_steps == 0, injury
    # `problems` has the sums and the useful seconds; here, that the report tells the same story.
    assert hurt.accounts is not None
    assert hurt.accounts.outcomes["failed"].device_ns > 0  # set-up that was paid again
    [told] = [run for run in report(tmp_path / "hurt").runs if run.name == "run"]
    ledgers = sum(injury.ledger is not None for injury in hurt.injuries)
    assert len(told.attempts) in (ledgers, ledgers + 1)
    assert told.attempts[-1].outcome == "finished"
    assert told.final.device_ns < told.usage.device_ns
