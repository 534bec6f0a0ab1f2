"""The audit finds what would mislead, and says nothing of the kind where there is nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ssmke.cost.audit import Finding, of_report, of_run, shared_nodes
from ssmke.cost.ledger.usage import HOUR_NS, Usage
from ssmke.cost.probes.probe import Sample
from ssmke.cost.report import RunReport, Unread, report
from tests.cost.simulated import SECOND, Run, Training

COUNTER = [{"GPU-0": Sample(mj=1_500_000 * i)} for i in range(3000)]
PRICE: dict[str, Any] = {
    "usd_per_hour": "3.06", "usd_per_hour_low": "0.79", "usd_per_hour_high": "3.9015", "guessed": False,
    "label": "$3.06/h (aws/p3.2xlarge)", "why": "chosen", "provider": "aws", "tier": "on_demand",
    "as_of": "2023-10-01", "source": "list", "source_ref": "abc", "confidence": "A",
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> RunReport:
    """An hour on one GPU with a counter, begun on 2023-11-14, finished."""
    Run(tmp_path / "r", price="3.06").attempt("a", [("train", 3600)], readings=COUNTER)
    return replace(_only(tmp_path), snapshots=(PRICE,))


def _only(folder: Path) -> RunReport:
    [found] = report(folder).runs
    return found


def _warned(found: Iterable[Finding]) -> str:
    return "\n".join(f"{f.about}: {f.text}" for f in found if f.severity == "warn")


def _told(found: Iterable[Finding]) -> str:
    return "\n".join(f"{f.about}: {f.text}" for f in found)


def test_a_clean_run_has_no_warning_but_its_assumptions(run: RunReport) -> None:
    found = of_run(run)
    assert _warned(found) == ""
    told = _told(found)
    for expected in ("price from list @abc, as of 2023-10-01, grade A", "44 days old", "energy counters: ±5 %",
                     "upstream cost is excluded", "no time went into teacher targets", "host, network and cooling",
                     "1 node, NVIDIA H100"):  # fmt: skip
        assert expected in told


def test_a_guess_shows_between_which_dollars_the_run_lies(run: RunReport) -> None:
    assert run.usage.usd is not None
    warned = _warned(of_run(replace(run, snapshots=({**PRICE, "guessed": True},))))
    assert "the price is guessed" in warned
    low, high = (run.usage.usd / Decimal("3.06") * Decimal(x) for x in ("0.79", "3.9015"))
    assert f"makes it ${low:.3f}".rstrip("0") in warned
    assert f"to ${high:.3f}" in warned


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"as_of": "unknown"}, "undated"),
        ({"as_of": "2021-09"}, "804 days old"),
        ({"as_of": "2024-01-01T00:00:00Z"}, "48 days after the run began"),
        ({"confidence": "C"}, "grade C"),
    ],
)
def test_a_weak_price_is_a_warning(run: RunReport, change: dict[str, Any], expected: str) -> None:
    assert expected in _warned(of_run(replace(run, snapshots=({**PRICE, **change},))))


def test_a_number_that_somebody_typed_has_no_source(tmp_path: Path) -> None:
    Run(tmp_path / "r", price="0.69").attempt("a", [("train", 60)])
    assert "the price has no source" in _told(of_run(_only(tmp_path)))


def test_no_price_partial_and_several_prices_are_warnings(run: RunReport, tmp_path: Path) -> None:
    Run(tmp_path / "other/r", price="none").attempt("a", [("train", 60)], lineage="other")
    assert "no price is known" in _warned(of_run(_only(tmp_path / "other")))
    half = replace(run.usage, priced_ns=run.usage.node_ns // 2)
    assert "a lower bound: 0.5 of 1 node-hours" in _warned(of_run(replace(run, usage=half)))
    assert "2 different prices" in _warned(
        of_run(replace(run, snapshots=(PRICE, {**PRICE, "usd_per_hour": "1"})))
    )


def test_assumptions_of_own_hardware_are_repeated(run: RunReport) -> None:
    own = {"usd_per_hour": "0.5", "provider": "own", "tier": "own", "source": "invoice", "as_of": "2020-01-01",
           "assumptions": {"utilisation": "0.5 of 8760 h a year"}}  # fmt: skip
    found = of_run(replace(run, snapshots=(own,)))
    assert "assumed utilisation: 0.5 of 8760 h" in _told(found)
    assert "days old" not in _told(found)  # what was bought stays bought at its price


def test_mismatched_bases_are_flagged_and_like_ones_are_not(run: RunReport, tmp_path: Path) -> None:
    baselines = report(tmp_path).baselines
    warned = _warned(of_run(run, baselines))
    assert "CLIP at reserved_3y $77,414.40, $225,607.68 on demand" in warned
    assert "CoCa at cud_3y" in warned
    assert "S-SMKE" not in warned  # on demand as this run is
    reserved = replace(run, snapshots=({**PRICE, "tier": "reserved_3y"},))
    warned = _warned(of_run(reserved, baselines))
    assert "CLIP" not in warned
    assert "S-SMKE at on_demand $15.456" in warned


def test_a_killed_attempt_and_what_was_redone_are_told(tmp_path: Path) -> None:
    training = Training(tmp_path / "r", steps=6, every=2)
    training.attempt("a", 43.0)
    training.attempt("b", None)
    found = of_run(_only(tmp_path))
    assert "1 of 2 attempts has no end" in _warned(found)
    assert "of the lineage's device-hours are not in the result (redone" in _told(found)


def test_one_open_attempt_at_the_end_may_still_be_running(tmp_path: Path) -> None:
    Run(tmp_path / "r").attempt("a", [("train", 60)], close=None)
    found = of_run(_only(tmp_path))
    assert "1 of 1 attempt has no end" in _told(found)
    assert "no end" not in _warned(found)


def test_a_ledger_without_devices_is_a_warning(tmp_path: Path) -> None:
    run = Run(tmp_path / "r", price="3.6")
    run.attempt("a", [("train", 100)])
    run.attempt("b", [("train", 100)])
    [ledger] = (tmp_path / "r/cost/a").glob("*.jsonl")
    text = ledger.read_text(encoding="utf-8")
    ledger.write_text(re.sub(r'"devices":\[.*?\]', '"devices":[]', text), encoding="utf-8")
    found = _only(tmp_path)
    warned = _warned(of_run(found))
    assert "device-hours: 1 of 2 attempts lists no device: 0.02778 node-hours ($0.1000) are paid" in warned
    assert "lists no device" not in _told(of_run(replace(found, attempts=found.attempts[1:])))


def test_ledgers_that_could_not_be_read_are_a_warning(tmp_path: Path) -> None:
    found = report(tmp_path)
    assert "could not be read" not in _told(of_report(found))
    found = replace(found, unread=(Unread(Path("a/b.jsonl"), "Permission denied"),))
    first = of_report(found)[0]
    assert first.severity == "warn"
    assert first.text.startswith("1 ledger could not be read: a/b.jsonl (Permission denied)")
    assert "lower bound" in first.text


def test_unexplained_time_and_clock_jumps_are_told(tmp_path: Path) -> None:
    run = Run(tmp_path / "r")
    run.attempt("a", [("train", 60), (None, 60)])
    found = _only(tmp_path)
    assert "50.0 % of the time no phase was open" in _warned(of_run(found))
    assert "set 2 times by more than 2 s" in _told(of_run(replace(found, clock_jumps=2)))


def test_energy_that_is_estimated_or_thin_is_a_warning(run: RunReport) -> None:
    assert "rated power x time" in _warned(of_run(replace(run, energy_methods=("tdp",))))
    assert "±30 %" in _warned(of_run(replace(run, energy_methods=("mig",))))
    assert "energy" not in _warned(of_run(replace(run, energy_methods=("power",))))
    thin = replace(run.usage, energy_ns=run.usage.device_ns // 4)
    assert "25.0 % of the device time was measured" in _warned(of_run(replace(run, usage=thin)))
    blind = Usage(device_ns=HOUR_NS, node_ns=HOUR_NS, phases={"train": HOUR_NS})
    assert "energy: unknown" in _told(of_run(replace(run, usage=blind, energy_methods=())))


def test_two_runs_on_one_node_both_pay_for_it(tmp_path: Path) -> None:
    one, two, later = (Run(tmp_path / name) for name in ("one", "two", "later"))
    one.attempt("a", [("train", 1800)], lineage="one")
    two.clock.ns += 900 * SECOND
    two.attempt("b", [("train", 3600)], lineage="two")
    later.clock.ns += 90_000 * SECOND
    later.attempt("c", [("train", 60)], lineage="later")
    shared = shared_nodes(report(tmp_path).runs)
    assert set(shared) == {"one", "two"}
    assert "shared its node with two for 0.25 h" in _warned(shared["one"])
    assert "shared its node with one for 0.25 h" in _warned(shared["two"])


def test_a_resumed_run_and_a_copy_share_nothing_with_themselves(tmp_path: Path) -> None:
    training = Training(tmp_path / "r", steps=6, every=2)
    training.attempt("a", 43.0)
    training.attempt("b", None)
    path = next((tmp_path / "r/cost").glob("*/*.jsonl"))
    path.with_name("copy.jsonl").write_bytes(path.read_bytes())
    assert shared_nodes(report(tmp_path).runs) == {}


def test_the_workspace_names_the_published_inconsistencies(tmp_path: Path) -> None:
    found = of_report(report(tmp_path))
    warned = _warned(found)
    for title in ("Unlike price bases", "Wrong label", "Hours or device-hours"):
        assert title in warned
    assert "gcp/n1-standard-4+V100/us-central1/spot" in warned  # grade C
    assert "no storage or transfer is counted" in _told(found)
    assert "compute unpublished, so no dollars: VLMo, 1B pairs, BEiT-3, FLAVA" in _told(found)


def test_warnings_come_first(run: RunReport) -> None:
    found = of_run(replace(run, energy_methods=("tdp",), snapshots=({**PRICE, "guessed": True},)))
    severities = [f.severity for f in found]
    assert severities == sorted(severities, key=["warn", "info"].index)
    assert severities.count("warn") == 2
