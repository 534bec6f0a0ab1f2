"""An MLflow server that is slow, never answers, or is gone: training does not wait, and nothing is missing afterwards.

A longer outage: ``python -m tests.faults.test_mlflow_away --away 60``.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.faults.attempts import ROOT, tiny

pytestmark = pytest.mark.e2e

AWAY_S = 12.0
EPOCH, EVERY, PACE_S = 24, 4, 0.2
SLOW_S = 2.0


class Server:
    """A real MLflow server that can be killed and started again on its port and database."""

    def __init__(self, folder: Path) -> None:
        self.port = _listen().getsockname()[1]
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers."""
        command = [
            str(Path(sys.executable).parent / "mlflow"), "server", "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{self._folder}/server.db",
            "--artifacts-destination", str(self._folder / "artifacts"),
        ]  # fmt: skip
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=1).read()
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError((self._folder / "server.log").read_text())

    def stop(self) -> None:
        """As a crash does."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


class Wire:
    """A TCP connection to the server at ``port`` that can be made slow or mute; without a server it just closes.

    ``mode``: "plain", "slow" (every answer comes `SLOW_S` late), "mute" (requests are taken and never answered).
    ``met`` counts what clients met.
    """

    def __init__(self, port: int | None) -> None:
        self.mode = "plain"
        self.met: Counter[str] = Counter()
        self._port, self._socket = port, _listen()
        self.uri = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """No new connections."""
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                if self._port is None:
                    self._hold(client)
                    return
                with socket.create_connection(("127.0.0.1", self._port)) as server:
                    self._pass_on(client, server)
            except OSError:
                self.met["gone"] += 1

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        while True:
            readable, _, _ = select.select([client, server], [], [])
            if client in readable:
                request = client.recv(1 << 16)
                if not request:
                    return
                if self.mode == "mute":
                    self._hold(client)
                    return
                server.sendall(request)
            if server in readable:
                answer = server.recv(1 << 16)
                if not answer:
                    raise ConnectionError
                if self.mode == "slow":
                    self.met["slow"] += 1
                    time.sleep(SLOW_S)
                client.sendall(answer)

    def _hold(self, client: socket.socket) -> None:
        self.met["mute"] += 1
        while self.mode == "mute" and client.fileno() >= 0:
            time.sleep(0.05)


def _listen() -> socket.socket:
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    return listening


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path)
    running.start()
    yield running
    running.stop()


def test_an_outage_loses_nothing_and_delays_nothing(server: Server, tmp_path: Path) -> None:
    outage(server, tmp_path, AWAY_S)


def outage(server: Server, folder: Path, away_s: float) -> None:
    """A training whose server is slow for a third of ``away_s``, mute for a third, and dead for the last."""
    wire = Wire(server.port)
    epochs = 2 + round(away_s / PACE_S / EPOCH)
    flags = [f for f in tiny(folder, epochs) if f != "--tracking.no-enabled"]
    flags += ["--tracking.uri", wire.uri, "--run-dir", str(folder / "run"), "--log-every", str(EVERY)]
    flags += ["--checkpoint.no-every-epoch", "--cost.price", "3.6"]
    # One process is enough: only rank 0 speaks to MLflow.
    command = [sys.executable, str(ROOT / "benchmarks/paced_pretrain.py")]
    command += ["--deepspeed_config", str(ROOT / "ds_configs/zero2.json"), *flags]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    with (folder / "output.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            cwd=folder,
            # One thread: those of OpenMP wait for each other by spinning, seconds a step on a machine with other work.
            env={**environment, "PACE_SECONDS": str(PACE_S), "OMP_NUM_THREADS": "1"},
        )
    try:
        _disturb(process, server, wire, folder / "run/metrics.jsonl", away_s)
        assert process.wait(timeout=120) == 0, (folder / "output.log").read_text()[-3000:]
    finally:
        process.kill()
    assert set(wire.met) == {"slow", "mute", "gone"}
    said = (folder / "output.log").read_text()
    assert said.count("training goes on") == 1
    assert "answers again" in said
    _nothing_is_missing(f"http://127.0.0.1:{server.port}", folder / "run", epochs * EPOCH)
    wire.close()


def _disturb(
    process: subprocess.Popen[bytes], server: Server, wire: Wire, metrics: Path, away_s: float
) -> None:
    while process.poll() is None and _steps(metrics) < 2 * EVERY:
        time.sleep(0.1)
    before, at = _steps(metrics), time.monotonic()
    wire.mode = "slow"
    time.sleep(away_s / 3)
    wire.mode = "mute"
    time.sleep(away_s / 3)
    server.stop()
    wire.mode = "plain"
    time.sleep(away_s / 3)
    done, seconds = _steps(metrics) - before, time.monotonic() - at
    server.start()
    # Half the pace: a run that waited for the server would have done next to nothing.
    assert done >= seconds / PACE_S * 0.5 - EVERY, f"{done} steps in {seconds:.0f} s"


def _nothing_is_missing(uri: str, run: Path, steps: int) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    run_id = (run / "mlflow_run_id").read_text().strip()
    assert client.get_run(run_id).info.status == "FINISHED"
    for key in ("loss", "cost/usd_total", "cost/projected_usd"):
        found = [m.step for m in client.get_metric_history(run_id, key)]
        assert sorted(set(found)) == list(range(EVERY, steps + 1, EVERY)), key
    assert not (run / "mlflow_unsent.jsonl").exists()


def _steps(metrics: Path) -> int:
    try:
        return len([json.loads(line) for line in metrics.read_text().splitlines()])
    except (OSError, ValueError):
        return 0


MUTE = """
import sys, time
from pathlib import Path
from ssmke.tracking import Tracker, TrackingConfig
folder = Path(sys.argv[1])
tracker = Tracker.start(TrackingConfig(uri=sys.argv[2]), run_dir=folder, run_name="mute")
while not (folder / "asked").exists():
    time.sleep(0.05)
longest = 0.0
for step in range(1000):
    begin = time.monotonic()
    tracker.metrics({"loss": 1.0}, step)
    longest = max(longest, time.monotonic() - begin)
begin = time.monotonic()
complete = tracker.finish("FINISHED", timeout_s=1.0)
print(longest, time.monotonic() - begin, complete)
"""


def test_a_server_that_never_answers_holds_up_neither_the_steps_nor_the_end(tmp_path: Path) -> None:
    wire = Wire(None)
    wire.mode = "mute"
    process = subprocess.Popen(
        [sys.executable, "-c", MUTE, str(tmp_path), wire.uri], stdout=subprocess.PIPE, text=True
    )
    try:
        while not wire.met["mute"]:
            assert process.poll() is None
            time.sleep(0.05)
        asked = time.monotonic()
        (tmp_path / "asked").touch()
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        wire.mode = "plain"
        wire.close()
    longest, finish, complete = output.split()
    assert process.returncode == 0
    assert complete == "False"
    assert float(longest) < 1.0
    # MLflow itself would wait for 15 seconds, twice.
    assert float(finish) < 6.0
    assert time.monotonic() - asked < 12.0
    kept = [json.loads(line) for line in (tmp_path / "mlflow_unsent.jsonl").read_text().splitlines()]
    assert sum(len(entry["rows"]) for entry in kept if entry["op"] == "metrics") == 1000
    assert kept[-1] == {"op": "status", "status": "FINISHED"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--away", type=float, default=60.0)
    away_s = parser.parse_args().away
    with tempfile.TemporaryDirectory() as name:
        running = Server(Path(name))
        running.start()
        try:
            outage(running, Path(name), away_s)
        finally:
            running.stop()
    print(f"{away_s:.0f} s away: no step was late, nothing is missing")


if __name__ == "__main__":
    main()
