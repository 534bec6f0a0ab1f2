"""MLflow shows the run, and whatever happens to MLflow never reaches training.

The store is a real sqlite database, migrated once for the module; only the outbox is tested with a receiver
that fails on purpose.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ssmke.errors import ConfigError
from ssmke.tracking import Tracker, TrackingConfig
from ssmke.tracking.outbox import BATCH, Outbox
from ssmke.tracking.provenance import environment

CONFIG = TrackingConfig()


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose database has MLflow's tables: making them takes seconds, copying them nothing."""
    workspace = tmp_path_factory.mktemp("migrated")
    tracker = Tracker.start(CONFIG, run_dir=workspace / "first", run_name="first")
    assert tracker.finish(timeout_s=300)
    return workspace


@pytest.fixture
def workspace(tmp_path: Path, migrated: Path) -> Path:
    shutil.copy(migrated / "mlflow.db", tmp_path / "mlflow.db")
    return tmp_path


def start(workspace: Path, **options: Any) -> Tracker:
    return Tracker.start(
        TrackingConfig(experiment="test"), run_dir=workspace / "run", run_name="run", **options
    )


def stored(workspace: Path) -> tuple[Any, Any]:
    """(client, run) as anyone would read it."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{workspace}/mlflow.db")
    return client, client.get_run((workspace / "run/mlflow_run_id").read_text().strip())


def test_a_run_arrives_whole(workspace: Path) -> None:
    tracker = start(
        workspace,
        lineage="lin",
        tags={"host": "here"},
        environment={"OMP_NUM_THREADS": "2", "AWS_SECRET_ACCESS_KEY": "secret"},
    )
    tracker.params({"optim": {"lr": 1e-4, "betas": [0.9, 0.98]}, "long": "x" * 10_000, "none": None})
    for step in range(3):
        tracker.metrics(
            {"loss/kd": 1.0 / (step + 1), "i2t/R@1": 50 + step, "cost/usd": None, "bad": float("inf")}, step
        )
    tracker.text("tables/retrieval.md", "| R@1 |\n")
    tracker.image("sheet.png", Image.new("RGB", (8, 8), "red"))
    (workspace / "run" / "ds.json").write_text("{}")
    tracker.artifact(workspace / "run" / "ds.json", "config")
    assert tracker.finish("FINISHED", timeout_s=120)

    client, run = stored(workspace)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "run"
    assert run.data.params["optim.lr"] == "0.0001"
    assert run.data.params["optim.betas"] == "[0.9, 0.98]"
    assert len(run.data.params["long"]) == 6000
    assert run.data.metrics == {"loss/kd": pytest.approx(1 / 3), "i2t/R_1": 52}
    assert run.data.tags["ssmke.lineage"] == "lin"
    assert run.data.tags["host"] == "here"
    experiment = client.get_experiment_by_name("test")
    assert experiment.artifact_location == (workspace / "mlartifacts/test").as_uri()
    artifacts = {
        p.relative_to(workspace / "mlartifacts/test") for p in (workspace / "mlartifacts").rglob("*.*")
    }
    names = {"/".join(p.parts[2:]) for p in artifacts}
    assert names >= {"tables/retrieval.md", "sheet.png", "config/ds.json", "environment.json"}
    everything = b"".join(p.read_bytes() for p in (workspace / "mlartifacts").rglob("*.json"))
    assert b"OMP_NUM_THREADS" in everything
    assert b"secret" not in everything
    assert (workspace / "run/artifacts/sheet.png").is_file()  # the run folder has it too


def test_a_resumed_attempt_continues_the_same_run(workspace: Path) -> None:
    first = start(workspace)
    first.params({"lr": 1, "seed": 7})
    first.metrics({"cost/usd": 5.0, "loss": 0.5}, step=100)
    assert first.finish("KILLED", timeout_s=120)
    _, before = stored(workspace)

    second = start(workspace)
    second.params({"lr": 2, "seed": 7, "new": "x"})
    second.metrics({"cost/usd": 6.0, "loss": 0.7}, step=50)  # resumed from a checkpoint at step 49
    assert second.finish("FINISHED", timeout_s=120)

    client, run = stored(workspace)
    assert run.info.run_id == before.info.run_id
    assert run.info.status == "FINISHED"
    assert run.data.params == {"lr": "1", "seed": "7", "new": "x"}
    assert run.data.tags["resumed.lr"] == "2"
    # MLflow shows the value of the largest step: cost must not be the one of before the crash.
    assert run.data.metrics["cost/usd"] == 6.0
    assert [m.step for m in client.get_metric_history(run.info.run_id, "loss")] == [100, 50]


def test_steps_of_a_key_never_go_back_within_an_attempt(workspace: Path) -> None:
    tracker = start(workspace)
    tracker.metrics({"loss": 1.0}, step=10)
    tracker.metrics({"loss": 2.0}, step=3)
    assert tracker.finish(timeout_s=120)
    assert stored(workspace)[1].data.metrics["loss"] == 2.0


def test_a_run_id_of_another_database_begins_a_new_run(
    workspace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (workspace / "run").mkdir()
    (workspace / "run/mlflow_run_id").write_text("0" * 32)
    assert start(workspace).finish(timeout_s=120)
    assert "a new one is begun" in caplog.text
    assert stored(workspace)[1].info.status == "FINISHED"


def test_an_unreachable_store_costs_no_time_and_the_next_attempt_catches_up(
    workspace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = workspace / "not a folder"
    blocked.write_text("")
    config = TrackingConfig(uri=f"sqlite:///{blocked}/mlflow.db", experiment="test")
    began = time.perf_counter()
    tracker = Tracker.start(config, run_dir=workspace / "run", run_name="run")
    for step in range(2000):
        tracker.metrics({"loss": 1.0, "cost/usd": float(step)}, step)
    tracker.text("note.txt", "hello")
    assert time.perf_counter() - began < 2.0
    assert not tracker.finish("KILLED", timeout_s=1.0)
    assert caplog.text.count("training goes on") == 1
    assert "kept in" in caplog.text

    again = start(workspace)
    assert again.finish("FINISHED", timeout_s=120)
    client, run = stored(workspace)
    assert run.data.metrics["cost/usd"] == 1999
    assert [a.path for a in client.list_artifacts(run.info.run_id) if a.path == "note.txt"]
    assert run.info.status == "FINISHED"
    assert not (workspace / "run/mlflow_unsent.jsonl").exists()


def test_an_artifact_that_cannot_be_written_is_reported_only(
    workspace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = start(workspace)
    tracker.text("../outside.txt", "no")
    tracker.image("picture.unknown-format", Image.new("RGB", (2, 2)))
    tracker.artifact(workspace / "absent.bin")
    assert tracker.finish(timeout_s=120)
    assert caplog.text.count("training goes on") == 3
    assert not (workspace / "run/outside.txt").exists()


def test_other_ranks_and_disabled_runs_do_not_even_import_mlflow(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from ssmke.tracking import *; C = TrackingConfig\n"
        "for options in ({'rank': 1}, {}):\n"
        "    t = Tracker.start(C(enabled=bool(options)), run_dir=Path(sys.argv[1]), run_name='x', **options)\n"
        "    t.params({'a': 1}); t.metrics({'b': 1}, 1); t.text('c', 'd'); t.artifact(Path('e'))\n"
        "    assert not t.enabled and t.run_id is None and t.finish()\n"
        "print([m for m in ('mlflow', 'torch', 'pandas', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "flag"),
    [
        ({"uri": "./mlruns"}, "--tracking.uri"),
        ({"uri": "file:///x"}, "--tracking.uri"),
        ({"experiment": " "}, "experiment"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_flag(fields: dict[str, str], flag: str) -> None:
    with pytest.raises(ConfigError, match=flag):
        TrackingConfig(**fields)


def test_sqlite_paths_become_absolute(tmp_path: Path) -> None:
    assert TrackingConfig().resolved_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert TrackingConfig(uri="sqlite:///sub/x.db").resolved_uri(tmp_path) == f"sqlite:///{tmp_path}/sub/x.db"
    assert TrackingConfig(uri="sqlite:////abs/x.db").resolved_uri(tmp_path) == "sqlite:////abs/x.db"
    assert TrackingConfig(uri="https://host").resolved_uri(tmp_path) == "https://host"


def test_environment_lists_versions_without_secrets() -> None:
    found = environment({"SLURM_JOB_ID": "7", "HF_TOKEN": "hf_secret"})
    assert found["variables"] == {"SLURM_JOB_ID": "7"}
    assert found["packages"]["mlflow"]


class Shaky:
    """A receiver that fails as told and remembers what arrived."""

    def __init__(self, failures: int = 0, refused: str = "") -> None:
        self.failures = failures
        self.refused = refused
        self.arrived: list[Mapping[str, Any]] = []
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def connect(self) -> None:
        self.gate.wait()

    def send(self, entry: Mapping[str, Any]) -> None:
        if entry["op"] == self.refused:
            raise ValueError("never")
        if self.failures > 0:
            self.failures -= 1
            raise ConnectionError("away")
        if entry["op"] == "metrics":
            self.batches.append(len(entry["rows"]))
        self.arrived.append(entry)

    def refuses(self, error: Exception) -> bool:
        return isinstance(error, ValueError)


def outbox(receiver: Shaky) -> Outbox:
    box = Outbox(receiver, "there", pauses_s=(0.01, 0.02))
    box.start()
    return box


def test_a_server_that_is_away_for_a_while_gets_everything_in_order(caplog: pytest.LogCaptureFixture) -> None:
    receiver = Shaky(failures=5)
    box = outbox(receiver)
    for i in range(20):
        box.put({"op": "tags", "values": {"i": i}})
    assert box.close(10) == []
    assert [e["values"]["i"] for e in receiver.arrived] == list(range(20))
    warnings = [r.getMessage() for r in caplog.records]
    assert len(warnings) == 2
    assert "away" in warnings[0]
    assert "answers again" in warnings[1]


def test_what_is_refused_does_not_block_what_follows(caplog: pytest.LogCaptureFixture) -> None:
    receiver = Shaky(refused="params")
    box = outbox(receiver)
    for i in range(3):
        box.put({"op": "params", "values": {}})
        box.put({"op": "tags", "values": {"i": i}})
    assert box.close(10) == []
    assert len(receiver.arrived) == 3
    assert len(caplog.records) == 1


def test_metrics_that_pile_up_travel_in_batches() -> None:
    receiver = Shaky()
    receiver.gate.clear()
    box = outbox(receiver)
    for i in range(2500):
        box.put({"op": "metrics", "rows": [["loss", 1.0, i, i]]})
    receiver.gate.set()
    assert box.close(10) == []
    assert sum(receiver.batches) == 2500
    assert max(receiver.batches) == BATCH
    assert [row[3] for e in receiver.arrived for row in e["rows"]] == list(range(2500))


def test_too_much_waiting_drops_the_oldest_metrics_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ssmke.tracking.outbox.LIMIT", 10)
    receiver = Shaky()
    receiver.gate.clear()
    box = outbox(receiver)
    box.put({"op": "params", "values": {}})
    time.sleep(0.05)
    for i in range(30):
        box.put({"op": "metrics", "rows": [["loss", 1.0, i, i]]})
    receiver.gate.set()
    assert box.close(10) == []
    assert receiver.arrived[0]["op"] == "params"
    assert [row[3] for e in receiver.arrived if e["op"] == "metrics" for row in e["rows"]] == list(
        range(21, 30)
    )
    with caplog.at_level(logging.WARNING):
        assert "21 metric entries were dropped" in caplog.text


def test_closing_gives_up_at_the_deadline_and_returns_the_rest() -> None:
    receiver = Shaky(failures=10**9)
    box = outbox(receiver)
    box.put({"op": "tags", "values": {}})
    began = time.perf_counter()
    assert box.close(0.3) == [{"op": "tags", "values": {}}]
    assert time.perf_counter() - began < 2
    box.put({"op": "tags", "values": {}})  # after close: ignored
    assert len(box.close(0.1)) == 1
