"""``ssmke-cost report`` and ``audit`` on a command line: folders, formats, files, prices, exit codes."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest

from ssmke.cli.cost import audit, report
from ssmke.cost.render import FORMATS
from ssmke.errors import ConfigError, DataError
from tests.cost.simulated import Run

Command = Callable[..., int]


@pytest.fixture
def command() -> Command:
    def call(*words: str) -> int:
        parser = argparse.ArgumentParser()
        commands = parser.add_subparsers(required=True)
        report.add(commands)
        audit.add(commands)
        arguments = parser.parse_args(words)
        code: int = arguments.run(arguments)
        return code

    return call


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    Run(tmp_path / "runs/my-run", price="3.6").attempt("a", [("train", 1000)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


def test_without_arguments_the_workspace_stands_beside_the_baselines(
    command: Command, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("report") == 0
    shown = capsys.readouterr().out
    assert "Your runs in runs" in shown
    assert re.search(r"^my-run .*\$1\.00", shown, re.MULTILINE)
    for expected in ("$77,414.40", "$9,676.80", "$356,106.24", "$15.456", "99.84 %", "99.98 %", "SAIL"):
        assert expected in shown
    assert max(map(len, shown.splitlines())) <= 100


@pytest.mark.parametrize("form", FORMATS)
def test_a_metered_run_is_in_every_format(
    command: Command, workspace: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    assert command("report", "runs", "--format", form) == 0
    assert re.search(r"my-(\{\})?run", capsys.readouterr().out)


def test_it_writes_a_file_and_says_so(
    command: Command, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("report", "--format", "json", "--out", "r.json") == 0
    assert capsys.readouterr().out == "r.json: 1 run, json\n"
    [run] = json.loads(Path("r.json").read_text())["runs"]
    assert Decimal(run["usd"]) == 1
    assert command("report", "--out", "absent/too/r.txt") == 0
    assert "my-run" in Path("absent/too/r.txt").read_text(encoding="utf-8")
    for wrong in ("r.json/r.txt", "absent"):  # below a file; a folder
        with pytest.raises(ConfigError, match=f"--out {wrong}: "):
            command("report", "--out", wrong)


def test_repricing_is_asked_for_and_stores_nothing(
    command: Command, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.read_bytes() for p in Path("runs").rglob("*.jsonl")}
    command("report", "--format", "json", "--reprice", "aws/p3.2xlarge")
    [run] = json.loads(capsys.readouterr().out)["runs"]
    assert Decimal(run["usd"]) == pytest.approx(Decimal("3.06") * 1000 / 3600)
    assert {p: p.read_bytes() for p in Path("runs").rglob("*.jsonl")} == before


def test_prices_of_ones_own_are_found_beside_the_runs(
    command: Command, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("prices.toml").write_text(
        '[[line]]\nname = "bucket"\nkind = "storage"\ngb = 100\nper_gb_month = 0.02\nfrom = 2024-01-01\n'
        'source = "list"\n'
    )
    command("report", "--format", "json")
    project = json.loads(capsys.readouterr().out)["project"]
    # Still rented: counted up to today, two dollars for each month since January 2024.
    assert Decimal(project["lines"][0]["usd"]) > 30
    assert Decimal(project["usd_with_lines"]) == 1 + Decimal(project["lines"][0]["usd"])
    assert "still running" in project["lines"][0]["factors"]


def test_a_terminal_that_knows_ascii_only_is_no_reason_to_fail(
    command: Command, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert command("report") == 0
    sys.stdout.flush()
    assert b"$77,414.40" in raw.getvalue()
    assert command("report", "--format", "csv", "--out", "r\u00e9\x1b[2J.csv") == 0
    assert command("audit") == 0
    sys.stdout.flush()
    assert b"r??[2J.csv: 1 run, csv" in raw.getvalue()
    assert b"\x1b" not in raw.getvalue()


def test_a_closed_standard_output_is_no_reason_to_fail(
    command: Command, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert command("report") == 0
    assert command("report", "--out", "r.txt") == 0
    assert command("audit") == 0


def test_a_folder_whose_name_is_no_text_is_reported_in_every_format(
    command: Command, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = os.fsdecode(b"bad\xff\x1bname")
    Run(workspace / "runs" / name).attempt("a", [("train", 10)], lineage="bad")
    for form in FORMATS:
        assert command("report", "--format", form, "--out", f"{form}.out") == 0
        assert command("report", f"runs/{name}", "--format", form, "--out", f"{name}/{form}") == 0
    assert command("audit") == 0
    shown = capsys.readouterr().out
    assert "2 runs" in shown
    assert "\x1b" not in shown
    shown.encode()


def test_a_ledger_that_cannot_be_read_is_said_by_report_and_audit(
    command: Command, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = workspace / "runs/lost/cost/a/0.jsonl"
    lost.parent.mkdir(parents=True)
    lost.write_text("this is\nno ledger\n", encoding="utf-8")
    assert command("report") == 0
    assert "1 ledger could not be read: runs/lost/cost/a/0.jsonl (" in " ".join(
        capsys.readouterr().out.split()
    )
    assert command("audit") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("1 run in runs: >= $1.00\n")
    assert "1 ledger could not be read: runs/lost/cost/a/0.jsonl" in " ".join(shown.split())
    assert command("audit", "--strict") == 1
    lost.unlink()
    assert command("audit", "--strict") == 0


def test_a_folder_that_is_not_there_is_one_clear_error(command: Command, workspace: Path) -> None:
    for name in ("report", "audit"):
        with pytest.raises(DataError, match="/nowhere/at/all"):
            command(name, "/nowhere/at/all")


def test_the_audit_says_each_thing_once_and_names_the_runs(
    command: Command, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(5):
        run = Run(workspace / f"runs/r{number}", price="none" if number == 3 else "3.6")
        run.clock.ns += (number + 1) * 10**15
        run.attempt("a", [("train", 100)], lineage=f"{number}")
    assert command("audit") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("6 runs in runs: >= $1.40")
    assert shown.index("Warnings behind your runs") < shown.index("Assumptions behind your runs")
    assert re.search(r"! dollars: no price is known.*\(r3\)", " ".join(shown.split()))
    assert shown.count("upstream cost is excluded") == 1
    assert "(all 6 runs)" in shown
    assert "(my-run, r0, r1 and 2 more)" in " ".join(shown.split())
    assert "Wrong label" in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_the_audit_as_json_and_its_strict_exit_code(
    command: Command, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("audit", "--format", "json") == 0
    data = json.loads(capsys.readouterr().out)
    assert [r["name"] for r in data["runs"]] == ["my-run"]
    assert {f["severity"] for f in data["workspace"]} == {"warn", "info"}
    assert command("audit", "--strict") == 0  # what is wrong with published numbers is not the run's fault
    Run(workspace / "runs/free", price="none").attempt("a", [("train", 10)], lineage="free")
    assert command("audit", "--strict") == 1


def test_an_empty_workspace_is_audited_too(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("audit", str(tmp_path)) == 0
    shown = capsys.readouterr().out
    assert "No runs with a cost ledger" in shown
    assert "behind your runs" not in shown
