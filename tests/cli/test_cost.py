"""``ssmke-cost`` starts fast, without heavy libraries, and answers wrong input in one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ssmke.cli.cost import main
from ssmke.cost.ledger.reader import read_run
from tests.cost.simulated import Training

HEAVY = ("torch", "mlflow", "pandas", "numpy", "deepspeed", "transformers", "timm", "PIL", "tyro")


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Runs of a killed and of a finished training."""
    Training(tmp_path / "killed", steps=9, every=3, lineage="killed").attempt("a0", 58.0)
    ledger = tmp_path / "killed/cost/a0/node0000.jsonl"
    hour_ago = time.time() - 3600  # simulated on another machine, so only silence tells that it is dead
    os.utime(ledger, (hour_ago, hour_ago))
    Training(tmp_path / "finished", steps=9, every=3, lineage="finished").attempt("a0", None)
    return tmp_path


def test_reconcile_closes_what_died_once(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reconcile", str(workspace), "--dry-run"]) == 0
    assert "would be closed" in capsys.readouterr().out
    assert main(["reconcile", str(workspace)]) == 0
    shown = capsys.readouterr().out
    assert "killed/cost/a0/node0000.jsonl: closed as killed" in shown
    assert "1 closed, 0 still open" in shown
    assert main(["reconcile", str(workspace)]) == 0
    assert "0 closed" in capsys.readouterr().out
    assert main(["report", str(workspace), "--format", "json"]) == 0
    runs = {run["name"]: run for run in json.loads(capsys.readouterr().out)["runs"]}
    assert runs["killed"]["attempts"][0]["outcome"] == "killed"


def test_reconcile_ends_the_mlflow_run_at_its_last_heartbeat(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{workspace}/mlflow.db")
    run_id = client.create_run(client.create_experiment("e")).info.run_id
    (workspace / "killed/mlflow_run_id").write_text(run_id + "\n")
    assert main(["reconcile", str(workspace)]) == 0
    assert f"MLflow run {run_id} closed as KILLED" in capsys.readouterr().out
    run = client.get_run(run_id)
    assert run.info.status == "KILLED"
    [segment] = read_run(workspace / "killed")
    assert run.info.end_time == segment.end_wall_ns // 1_000_000


def test_a_store_that_was_away_is_caught_up_by_the_same_command(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{workspace}/mlflow.db"
    client = MlflowClient(tracking_uri=uri)
    run_id = client.create_run(client.create_experiment("e")).info.run_id
    (workspace / "killed/mlflow_run_id").write_text(run_id + "\n")
    assert main(["reconcile", str(workspace), "--tracking-uri", "http://127.0.0.1:9"]) == 1
    assert "does not answer" in capsys.readouterr().out
    assert main(["reconcile", str(workspace), "--tracking-uri", uri]) == 0
    assert "closed as KILLED" in capsys.readouterr().out
    assert client.get_run(run_id).info.status == "KILLED"


def test_a_ledger_that_cannot_be_closed_is_said_and_the_others_are_closed(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(workspace / "killed", workspace / "another")
    for path in workspace.glob("*/cost/*/*.jsonl"):
        os.utime(path, (time.time() - 3600, time.time() - 3600))
    real = os.fsync

    def refused(file: int) -> None:
        if "another" in str(Path(f"/proc/self/fd/{file}").readlink()):
            raise PermissionError(13, "Permission denied")
        real(file)

    monkeypatch.setattr(os, "fsync", refused)
    assert main(["reconcile", str(workspace)]) == 1
    shown = capsys.readouterr().out
    assert "another/cost/a0/node0000.jsonl: cannot be closed: Permission denied" in shown
    assert "killed/cost/a0/node0000.jsonl: closed as killed" in shown


def test_names_do_not_drive_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Training(tmp_path / "from/evil\x1b[31m", steps=3, every=3).attempt("a0", None)
    assert main(["import", str(tmp_path / "from"), "--into", str(tmp_path / "here")]) == 0
    assert main(["report", f"{tmp_path}/x\nerror: forged"]) == 2
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize("closed", [">/dev/full", ">&-"])
def test_an_output_that_takes_nothing_is_no_traceback(tmp_path: Path, closed: str) -> None:
    command = f"{sys.executable} -m ssmke.cli.cost report {tmp_path} {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert done.returncode == (2 if closed == ">/dev/full" else 0)


@pytest.mark.parametrize("encoding", ["ascii", "utf-8:strict"])
def test_names_that_cannot_be_encoded_are_replaced(tmp_path: Path, encoding: str) -> None:
    folder = os.fsencode(tmp_path) + b"/runs/\xc3\xa9t\xc3\xa9 \xff\xfe"
    Training(Path(os.fsdecode(folder)), steps=3, every=3).attempt("a0", None)
    for arguments in (["report", "runs"], ["import", "runs", "--into", "here"], ["audit", "runs"]):
        done = subprocess.run(
            [sys.executable, "-m", "ssmke.cli.cost", *arguments],
            capture_output=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONIOENCODING": encoding},
        )
        assert done.returncode == 0, done.stderr


def test_import_says_what_it_took(
    workspace: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    here = tmp_path_factory.mktemp("here")
    assert main(["import", str(workspace), "--into", str(here)]) == 0
    assert "2 ledgers are new, 0 have grown, 0 were here already" in capsys.readouterr().out
    assert main(["import", str(workspace), "--into", str(here)]) == 0
    assert "0 ledgers are new, 0 have grown, 2 were here already" in capsys.readouterr().out


def test_it_imports_nothing_heavy_and_starts_at_once(tmp_path: Path) -> None:
    script = (
        "import sys; from ssmke.cli.cost import main; code = main(sys.argv[1:]); "
        f"loaded = [m for m in {HEAVY!r} if m in sys.modules]; print(loaded, file=sys.stderr); sys.exit(code)"
    )
    for arguments in (["report", str(tmp_path)], ["prices", "check"], ["prices", "list"]):
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stderr.strip() == "[]"
        assert time.perf_counter() - began < 3  # 0.3 s alone on a core


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["report", "/nowhere/at/all"], "/nowhere/at/all"),
        (["import", "/nowhere/at/all"], "/nowhere/at/all"),
        (["reconcile", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert says in error
    assert error.count("\n") == 1


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m ssmke.cli.cost prices list | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
