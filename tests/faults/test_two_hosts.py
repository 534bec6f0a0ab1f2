"""A run over two hosts (`two_hosts`), started by DeepSpeed's own multi-node launcher over ssh."""

from __future__ import annotations

import json
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ssmke.cost.report import report
from tests.e2e.runs import ROOT, ZERO2, Pretrain
from tests.faults.two_hosts import TwoHosts, missing, plain_environment, plug, pull, two_hosts

pytestmark = pytest.mark.e2e

MORE = ["--optim.epochs", "12", "--log-every", "1"]
"""96 steps: enough of them are left when the cable is pulled."""


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[TwoHosts]:
    """Two of them, gone afterwards."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    with two_hosts(tmp_path / "hosts", {"PYTHONPATH": str(ROOT)}) as both:
        yield both


def started(hosts: TwoHosts, flags: list[str], log: Path) -> subprocess.Popen[bytes]:
    """The run over both; what it says goes to ``log``."""
    script = [str(ROOT / "launchers" / "pretrain.py"), "--deepspeed_config", str(ZERO2), *flags]
    with log.open("wb") as file:
        return subprocess.Popen(
            hosts.deepspeed(script), stdout=file, stderr=subprocess.STDOUT, env=plain_environment()
        )


def losses(run: Path) -> list[float]:
    """The loss of every step so far."""
    path = run / "metrics.jsonl"
    whole = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line)["loss"] for line in whole if line.endswith("\n")]


def wait(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, seconds: float) -> None:
    """Until ``condition`` holds; fails when the run ends before."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.02)


@pytest.mark.long
def test_a_cable_that_is_plugged_in_again_changes_nothing(
    hosts: TwoHosts, flags: list[str], pretrain: Pretrain, tmp_path: Path
) -> None:
    run, log, targets = tmp_path / "run", tmp_path / "log", hosts.first.own / "targets"
    process = started(hosts, [*flags, *MORE, "--run-dir", str(run), "--targets.dir", str(targets)], log)
    wait(lambda: len(losses(run)) >= 20, process, log, 150)
    pull(hosts.second)
    time.sleep(1)  # what was on its way arrives
    before = len(losses(run))
    time.sleep(2)
    assert before == len(losses(run)) < 96, "the cable was not what the ranks talk over"
    plug(hosts.second)
    assert process.wait(120) == 0, log.read_text()
    one_host = pretrain(*MORE, folder=f"one-{secrets.token_hex(4)}")
    assert losses(run) == one_host.losses
    # Each host has a disk of its own for the targets, and a whole cache on it.
    caches = [
        host.run("bash", "-c", f"cd {targets} && find . -type f | sort")
        for host in (hosts.first, hosts.second)
    ]
    assert caches[0] == caches[1]
    assert caches[0].count(".npy") == 2
    assert ".partial" not in caches[0]
    assert "128 images x 1 views" in log.read_text()
    [found] = report(tmp_path).runs
    ledgers = sorted((run / "cost").glob("*/node*.jsonl"))
    assert [path.stem for path in ledgers] == ["node0000", "node0001"]
    wall = max(_seconds(path) for path in ledgers)
    assert found.usage.device_ns / 1e9 == pytest.approx(sum(_seconds(path) for path in ledgers), rel=0.05)
    assert found.usage.device_ns / 1e9 > 1.5 * wall


def _seconds(ledger: Path) -> float:
    times = [json.loads(line)["b"] for line in ledger.read_text().splitlines() if '"b"' in line]
    return float(max(times) - min(times)) / 1e9


def test_a_cable_cut_for_good_ends_both_sides_with_the_lost_rank_named(
    hosts: TwoHosts, flags: list[str], tmp_path: Path
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    limits = ["--faults.dead-seconds", "5", "--faults.hang-seconds", "30"]
    process = started(hosts, [*flags, *MORE, *limits, "--run-dir", str(run)], log)
    wait(lambda: len(losses(run)) >= 10, process, log, 150)
    pull(hosts.second)
    began = time.monotonic()

    def alive() -> bool:
        shown = [host.run("ps", "ax", "-o", "args") for host in (hosts.first, hosts.second)]
        return any("pretrain.py --local_rank" in text for text in shown)

    while alive():
        assert time.monotonic() - began < 40, log.read_text()
        time.sleep(0.2)
    assert process.wait(40) != 0
    said = log.read_text()
    assert "rank 1 (node-2" in said
    assert "at step" in said
    assert "--resume auto" in said
    assert list((run / "checkpoints").glob("*/COMPLETE.json"))
