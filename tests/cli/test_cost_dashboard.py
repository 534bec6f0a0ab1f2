"""`ssmke-cost dashboard` and `plot`: the file, the standing MLflow run, and what is said about them."""

from __future__ import annotations

import argparse
import io
import os
import sys
from pathlib import Path

import pytest

from ssmke.cli.cost import dashboard, plot
from ssmke.errors import ConfigError
from tests.cost.simulated import Run


def command(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    dashboard.add(commands)
    plot.add(commands)
    arguments = parser.parse_args(argv)
    code: int = arguments.run(arguments)
    return code


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    Run(tmp_path / "runs/one").attempt("a", [("train", 60)])
    return tmp_path / "runs"


def test_without_a_store_the_file_is_written_and_mlflow_stays_away(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = "mlflow" in sys.modules
    assert command("dashboard", str(runs)) == 0
    assert (runs / "cost_dashboard.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    shown = capsys.readouterr().out
    assert "1 run" in shown
    assert "no mlflow.db" in shown
    assert ("mlflow" in sys.modules) is loaded


def test_the_standing_run_is_made_once_and_then_renewed(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{runs / 'mlflow.db'}"
    for _ in range(2):
        assert command("dashboard", str(runs), "--tracking-uri", uri, "--experiment", "costs") == 0
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("costs")
    assert experiment is not None
    [standing] = client.search_runs([experiment.experiment_id])
    assert standing.info.run_name == "cost dashboard"
    assert standing.info.status == "FINISHED"
    [artifact] = client.list_artifacts(standing.info.run_id)
    assert artifact.path == "cost_dashboard.html"
    assert standing.data.metrics["cost/usd_total"] == pytest.approx(0.69 / 60)
    assert str(runs) in (experiment.artifact_location or "")
    shown = capsys.readouterr().out
    assert f"mlflow ui --backend-store-uri {uri}" in shown
    assert f"/runs/{standing.info.run_id}/artifacts/cost_dashboard.html" in shown

    # A run folder's page goes to its own MLflow run, found by the database above it.
    own = client.create_run(experiment.experiment_id)
    (runs / "one/mlflow_run_id").write_text(own.info.run_id + "\n", encoding="utf-8")
    assert command("dashboard", str(runs / "one")) == 0
    assert [a.path for a in client.list_artifacts(own.info.run_id)] == ["cost_dashboard.html"]
    assert client.get_run(own.info.run_id).info.status == "RUNNING"


def test_wrong_arguments_name_the_flag_and_the_remedy(runs: Path) -> None:
    with pytest.raises(ConfigError, match="--tracking-uri 'mlruns': give sqlite:///"):
        command("dashboard", str(runs), "--tracking-uri", "mlruns")
    with pytest.raises(ConfigError, match=r"--out .*x\.pdf: the page is HTML"):
        command("dashboard", str(runs), "--out", "x.pdf")
    with pytest.raises(ConfigError, match="contradict"):
        command("dashboard", str(runs), "--no-tracking", "--tracking-uri", "https://x")
    with pytest.raises(ConfigError, match="fits none of the test sets here: COCO 5K test"):
        command("plot", str(runs), "--out", str(runs / "a.png"), "--test", "imagenet")


def test_wrong_arguments_are_refused_before_anything_is_read_or_written(runs: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    for flags in (["--tracking-uri", "foo"], ["--out", str(tmp_path / "new/x.pdf")]):
        with pytest.raises(ConfigError, match=flags[0]):
            command("dashboard", str(runs), *flags)
        with pytest.raises(ConfigError, match=flags[0]):
            command("dashboard", str(tmp_path / "no/such/folder"), *flags)
    assert sorted(tmp_path.rglob("*")) == before


def test_names_that_are_no_text_reach_neither_terminal_nor_traceback(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = os.fsdecode(b"bad\xff\x1bname")
    Run(runs / name).attempt("a", [("train", 60)], lineage="bad")
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert command("dashboard", str(runs)) == 0
    assert command("dashboard", str(runs / name), "--out", str(runs / name / "new/page.html")) == 0
    assert command("plot", str(runs), "--out", str(runs / name / "a.svg"), "--test", "coco") == 0
    sys.stdout.flush()
    assert (runs / name / "new/page.html").is_file()
    assert b"page.html (1 run)" in raw.getvalue()
    assert b"\x1b" not in raw.getvalue()
    monkeypatch.setattr(sys, "stdout", None)
    assert command("dashboard", str(runs)) == 0


def test_plot_writes_the_figure_and_names_the_front(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("plot", str(runs), "--out", str(runs / "a.svg"), "--test", "coco") == 0
    assert (runs / "a.svg").is_file()
    assert "S-SMKE ($15.456), CLIP ($77,414.40)" in capsys.readouterr().out
