"""An MLflow server that is away for a minute in mid-run: training does not wait, and afterwards nothing is missing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.kills import start as start_paced

pytestmark = pytest.mark.e2e

AWAY_S = 60
STEPS, EVERY, PACE_S = 256, 4, 0.4


class Server:
    """A real MLflow server that can be killed and started again on its port and database."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            str(Path(sys.executable).parent / "mlflow"), "server", "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{self._folder}/server.db",
            "--artifacts-destination", str(self._folder / "artifacts"),
        ]  # fmt: skip
        log = (self._folder / "server.log").open("ab")
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
        self._process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=1).read()
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError((self._folder / "server.log").read_text())

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path)
    running.start()
    yield running
    running.stop()


def test_a_minute_without_a_server_loses_nothing_and_delays_nothing(
    flags: list[str], server: Server, tmp_path: Path
) -> None:
    tracking = [f for f in flags if f != "--tracking.no-enabled"]
    tracking += ["--tracking.uri", server.uri, "--run-dir", str(tmp_path / "run")]
    tracking += ["--optim.epochs", str(STEPS // 8), "--log-every", str(EVERY), "--checkpoint.no-every-epoch"]
    process = start_paced(tracking, tmp_path, PACE_S)
    metrics = tmp_path / "run/metrics.jsonl"
    while process.poll() is None and _steps(metrics) < 3 * EVERY:
        time.sleep(0.1)
    before, at = _steps(metrics), time.monotonic()
    server.stop()
    time.sleep(AWAY_S)
    done, seconds = _steps(metrics) - before, time.monotonic() - at
    server.start()
    assert process.wait() == 0, (tmp_path / "output.log").read_text()[-3000:]
    assert done >= seconds / PACE_S * 0.7 - EVERY, "training was slower while the server was away"
    said = (tmp_path / "output.log").read_text()
    assert said.count("training goes on") == 1
    assert "answers again" in said

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=server.uri)
    run_id = (tmp_path / "run/mlflow_run_id").read_text().strip()
    assert client.get_run(run_id).info.status == "FINISHED"
    for key in ("loss", "cost/usd_total", "cost/projected_usd"):
        steps = [m.step for m in client.get_metric_history(run_id, key)]
        assert sorted(set(steps)) == list(range(EVERY, STEPS + 1, EVERY)), key
    assert not (tmp_path / "run/mlflow_unsent.jsonl").exists()


def _steps(metrics: Path) -> int:
    try:
        return len([json.loads(line) for line in metrics.read_text().splitlines()])
    except (OSError, ValueError):
        return 0
