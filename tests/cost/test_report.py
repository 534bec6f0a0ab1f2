"""The report finds the runs, derives their numbers from the ledgers alone, and escapes what it prints."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import shutil
from decimal import Decimal
from pathlib import Path

import pytest

from ssmke.cost import text
from ssmke.cost.probe import Sample
from ssmke.cost.report import Report, report
from ssmke.errors import DataError
from tests.cost.simulated import GPU, SECOND, Run

HOSTILE = '=HYPERLINK("x")|<script>alert(1)<\\script>[bold]'


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
    Run(tmp_path / "group" / HOSTILE, price="none").attempt("a0", [("train", 10)], close="failed")
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


def test_the_same_ledger_gives_the_same_bytes_and_copies_change_nothing(workspace: Path) -> None:
    before = {form: text.render(report(workspace), form) for form in text.FORMATS}
    for path in list((workspace / "first/cost").glob("*/*.jsonl")):
        shutil.copy(path, path.with_name("copied.jsonl"))
    assert {form: text.render(report(workspace), form) for form in text.FORMATS} == before


def test_a_run_folder_itself_may_be_named(workspace: Path) -> None:
    [run] = report(workspace / "first").runs
    assert run.name == "first"


def test_a_folder_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        report(tmp_path / "absent")


def test_the_table_shows_runs_baselines_and_the_unknown(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    shown = text.render(report(workspace), "table")
    for expected in (
        "$77,414.40",
        "$9,676.80",
        "$356,106.24",
        "$15.456",
        "117.2M",
        "unknown",
        "$0.1294",
        "kWh",
    ):
        assert expected in shown
    assert "99.84 % cheaper than VLMo, 99.98 % than CLIP" in shown
    assert "1 pairs were processed again" in shown
    assert "attempt a0: no end" in shown
    assert "[bold]" in shown  # markup in a name is text


def test_control_characters_in_a_name_do_not_reach_the_terminal(tmp_path: Path) -> None:
    Run(tmp_path / "evil\x1b[2Jname").attempt("a", [("train", 1)])
    for form in ("table", "markdown"):
        assert "\x1b" not in text.render(report(tmp_path), form)


def test_json_is_complete_and_exact(workspace: Path) -> None:
    data = json.loads(text.render(report(workspace), "json"))
    dollars = {b["name"]: Decimal(b["usd"]) for b in data["baselines"]}
    assert dollars["CLIP"] == Decimal("77414.4")
    run = next(r for r in data["runs"] if r["name"] == "first")
    assert Decimal(run["usd"]) == Decimal("0.69") * 675 / 3600
    assert sum(run["phases"].values()) == pytest.approx(run["device_hours"])
    assert next(r for r in data["runs"] if r["name"] != "first")["usd"] is None


def test_csv_has_a_row_per_run_and_no_formulas(tmp_path: Path) -> None:
    Run(tmp_path / HOSTILE).attempt("a", [("train", 1)])
    rows = list(csv.DictReader(io.StringIO(text.render(report(tmp_path), "csv"))))
    assert [r["kind"] for r in rows] == ["run"] + ["baseline"] * 4
    assert rows[0]["name"] == "'" + HOSTILE
    assert not any(value[:1] in "=+-@" for row in rows for value in row.values() if value)


def test_markdown_escapes_names_and_keeps_its_columns(workspace: Path) -> None:
    shown = text.render(report(workspace), "markdown")
    assert "<script>" not in shown
    rows = [line for line in shown.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {len(text.COLUMNS) + 1}


def test_no_runs_is_said_beside_the_baselines(tmp_path: Path) -> None:
    shown = text.render(report(tmp_path), "table")
    assert "No runs with a cost ledger" in shown
    assert "$77,414.40" in shown


@pytest.mark.parametrize(
    ("usd", "partial", "shown"),
    [
        ("77414.4", False, "$77,414.40"), ("15.456", False, "$15.456"), ("9676.8", True, ">= $9,676.80"),
        ("1", False, "$1.00"), ("0.012345678", False, "$0.01235"), ("0.000123", False, "$0.0001230"),
        ("0", False, "$0.00"), (None, False, "unknown"),
    ],
)  # fmt: skip
def test_money(usd: str | None, partial: bool, shown: str) -> None:
    assert text.money(None if usd is None else Decimal(usd), partial=partial) == shown


def test_energy_says_how_much_of_it_was_measured(workspace: Path) -> None:
    [run] = report(workspace / "first").runs
    assert text.energy(run).endswith("kWh")
    half = dataclasses.replace(run.usage, energy_ns=run.usage.device_ns // 2)
    assert "(50% measured)" in text.energy(dataclasses.replace(run, usage=half))


def test_it_reports_what_lies_at_most_four_levels_down(tmp_path: Path) -> None:
    Run(tmp_path / "1/2/3/4").attempt("a", [("train", 1)], devices=[GPU])
    Run(tmp_path / "1/2/3/4b/5/6").attempt("a", [("train", 1)], devices=[GPU])
    found: Report = report(tmp_path)
    assert [r.name for r in found.runs] == ["1/2/3/4"]
