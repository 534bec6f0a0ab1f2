"""The report finds the runs and derives their numbers from the ledgers alone."""

from __future__ import annotations

import json
import shutil
from decimal import Decimal
from pathlib import Path

import pytest

from ssmke.cost.ledger.reader import closing_record
from ssmke.cost.ledger.usage import Usage
from ssmke.cost.prices.file import load_prices
from ssmke.cost.probes.probe import Sample
from ssmke.cost.report import Report, report
from ssmke.errors import ConfigError, DataError
from tests.cost.simulated import GPU, PERIOD, SECOND, Run, Training

HOSTILE = '=HYPERLINK("x")|<script>alert(1)<\\script>[bold]'

OWN = """
[[own]]
name = "box"
purchase = 17520
currency = "USD"
residual = 0
bought = 2023-01-01
life_years = 4
utilisation = 1.0
electricity_per_kwh = 0.40
pue = 1.25
source = "a bill"
"""

DEARER = """
[[price]]
provider = "aws"
instance = "p5.48xlarge"
accelerator = "H100"
gpus = 8
gpu_mem_gib = 80
form = "SXM5"
region = "us-east-1"
usd_per_hour = 200
as_of = 2023-09-01
source = "a dream"
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    readings = [{"GPU-0": Sample(mj=1_500_000 * i)} for i in range(3000)]
    run = Run(tmp_path / "first")
    run.attempt("a0", [("train", 150), ("train", 150), (None, 10)], readings=readings, close=None)
    run.clock.ns += 60 * SECOND
    run.pairs = 1  # of two; resumed from the checkpoint after the first
    meter = run.attempt("a1", [("train", 120)] * 3, readings=readings, close=None)
    meter.note(parameters=117_200_000)
    meter.close("finished")
    Run(tmp_path / "group" / HOSTILE, price="none").attempt(
        "a0", [("train", 10)], close="failed", lineage="another"
    )
    (tmp_path / "no run" / "cost").mkdir(parents=True)
    return tmp_path


def test_a_run_is_summed_over_its_attempts_with_what_was_redone(workspace: Path) -> None:
    found = {r.name: r for r in report(workspace).runs}
    assert set(found) == {"first", f"group/{HOSTILE}"}
    run = found["first"]
    assert run.parameters == 117_200_000
    assert (run.pairs, run.pairs_redone) == (4, 1)
    assert [(a.outcome, a.resumed_step, a.step) for a in run.attempts] == [
        ("no end", 0, 2),
        ("finished", 1, 4),
    ]
    assert run.usage.node_ns == (310 + 5 + 360) * SECOND  # killed: one period after its last beat
    assert run.usage.usd == Decimal("0.69") * 675 / 3600
    assert sum(a.usage.device_ns for a in run.attempts) == run.usage.device_ns
    other = found[f"group/{HOSTILE}"]
    assert other.usage.usd is None
    assert other.attempts[0].outcome == "failed"


def test_copies_of_ledgers_change_nothing(workspace: Path) -> None:
    before = report(workspace)
    for path in list((workspace / "first/cost").glob("*/*.jsonl")):
        shutil.copy(path, path.with_name("copied.jsonl"))
    shutil.copytree(workspace / "first", workspace / "put aside")
    assert report(workspace) == before


def test_final_run_lineage_and_project_are_told_apart(tmp_path: Path) -> None:
    training = Training(tmp_path / "killed", steps=12, every=3)
    training.attempt("a0", 58.0)
    training.attempt("a1", None)
    Training(tmp_path / "unbroken", steps=12, every=3, lineage="another").attempt("a0", None)
    made = report(tmp_path)
    killed, unbroken = made.runs
    assert abs(killed.final.device_ns - unbroken.usage.device_ns) <= PERIOD
    assert unbroken.final == unbroken.usage
    assert unbroken.wasted == Usage()
    assert killed.usage == killed.final + killed.wasted
    assert killed.wasted.device_ns > 20 * SECOND
    assert made.project == killed.usage + unbroken.usage


def test_a_run_that_failed_is_credited_with_its_last_checkpoint_only(tmp_path: Path) -> None:
    training = Training(tmp_path / "nothing", steps=12, every=3, lineage="nothing")
    training.attempt("a0", 20.0)
    training = Training(tmp_path / "three", steps=12, every=3, lineage="three")
    training.attempt("a0", 58.0)
    for name in ("nothing", "three"):
        [path] = (tmp_path / name).glob("cost/*/*.jsonl")
        end = closing_record(path)
        with path.open("ab") as file:
            file.write(json.dumps(end).encode() + b"\n")
    pairs = {run.name: run.pairs for run in report(tmp_path).runs}
    assert pairs == {"nothing": 0, "three": 3 * 8}


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    Run(tmp_path / "good").attempt("a", [("train", 60)])
    Run(tmp_path / "newer").attempt("a", [("train", 60)], lineage="newer")
    [path] = (tmp_path / "newer").glob("cost/*/*.jsonl")
    path.write_bytes(path.read_bytes().replace(b'"v":1', b'"v":2'))
    found = report(tmp_path)
    assert [run.name for run in found.runs] == ["good"]
    assert [(u.path, "format" in u.why) for u in found.unread] == [(path, True)]


def test_quality_and_throughput_are_set_against_the_dollars_of_the_lineage(tmp_path: Path) -> None:
    run = Run(tmp_path / "r", price="36")
    meter = run.attempt("a0", [("train", 100)] * 10, close=None)
    meter.progress(10, 5000)
    meter.note(retrieval={"i2t_r1": 48.0, "t2i_r1": 32.0}, eval_split="val")
    meter.close()
    [found] = report(tmp_path).runs
    assert found.usage.usd == 10
    assert found.recall_at_1 == (48.0, 32.0)
    assert found.pairs_per_usd == 500
    assert found.usd_per_point == Decimal("0.25")
    [unknown] = report(tmp_path, reprice="none").runs
    assert (unknown.usage.usd, unknown.pairs_per_usd, unknown.usd_per_point) == (None, None, None)


def test_another_price_counts_only_when_it_is_asked_for(workspace: Path) -> None:
    [before] = report(workspace / "first").runs
    [again] = report(workspace / "first", reprice="1.38").runs
    assert again.usage.usd == 2 * (before.usage.usd or 0)
    assert again.prices == ("$1.38/h (given by --reprice)",)
    assert report(workspace / "first").runs == (before,)
    with pytest.raises(ConfigError, match=r"p5\.48xlarg"):
        report(workspace / "first", reprice="aws/p5.48xlarg")


def test_a_price_list_that_changes_after_the_run_changes_nothing(tmp_path: Path) -> None:
    Run(tmp_path / "r", price="aws/p5.48xlarge").attempt("a0", [("train", 3600)])
    [before] = report(tmp_path).runs
    prices = tmp_path / "prices.toml"
    prices.write_text(DEARER)
    [after] = report(tmp_path, catalogue=load_prices(prices)).runs
    assert after == before
    [asked] = report(tmp_path, catalogue=load_prices(prices), reprice="aws/p5.48xlarge").runs
    assert asked.usage.usd == 200


def test_electricity_of_own_hardware_is_paid_by_what_was_measured(tmp_path: Path) -> None:
    prices = tmp_path / "prices.toml"
    prices.write_text(OWN)
    readings = [
        {"GPU-0": Sample(mj=36_000_000 * i)} for i in range(3000)
    ]  # 36 kJ in 5 s: 7.2 kW, 2 kWh in 1000 s
    Run(tmp_path / "r", price="none").attempt("a0", [("train", 1000)], readings=readings)
    [run] = report(tmp_path / "r", catalogue=load_prices(prices), reprice="own/box").runs
    amortised = Decimal("0.5") * 1000 / 3600  # 17,520 over 4 years of 8,760 hours, all of them used
    assert run.usage.usd == pytest.approx(amortised + Decimal("2") * Decimal("0.5"), rel=Decimal("0.001"))
    assert not run.usage.usd_partial
    blind = Run(tmp_path / "b", price="none")
    blind.attempt("a0", [("train", 1000)])
    [run] = report(tmp_path / "b", catalogue=load_prices(prices), reprice="own/box").runs
    assert run.usage.usd_partial  # without a reading, the electricity is missing


def test_thousands_of_closed_runs_are_read_from_the_ends_of_their_files(tmp_path: Path) -> None:
    Run(tmp_path / "r").attempt("a0", [("train", 3600)])
    [path] = (tmp_path / "r/cost/a0").iterdir()
    [before] = report(tmp_path).runs
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"x" * 100_000 + b"\n" + lines[-1])
    assert report(tmp_path).runs == (before,)


def test_a_run_folder_itself_may_be_named(workspace: Path) -> None:
    [run] = report(workspace / "first").runs
    assert run.name == "first"


def test_a_folder_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        report(tmp_path / "absent")


def test_it_reports_what_lies_at_most_four_levels_down(tmp_path: Path) -> None:
    Run(tmp_path / "1/2/3/4").attempt("a", [("train", 1)], devices=[GPU])
    Run(tmp_path / "1/2/3/4b/5/6").attempt("a", [("train", 1)], devices=[GPU], lineage="another")
    found: Report = report(tmp_path)
    assert [r.name for r in found.runs] == ["1/2/3/4"]
