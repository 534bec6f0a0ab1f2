"""A run that was stopped goes on as if it never had been."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.e2e.runs import ROOT, ZERO2, Pretrain, Run, environment, start

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("stop", [3, pytest.param(8, marks=pytest.mark.long)])
def test_resuming_after_any_step_repeats_the_unbroken_run(
    stop: int, pretrain: Pretrain, unbroken: Run
) -> None:
    folder = f"stopped-{stop}"
    first = pretrain("--stop-after", str(stop), folder=folder)
    assert f"stopped by --stop-after {stop} after step {stop}" in first.output
    assert not (first.folder / "results.json").exists()
    run = pretrain("--resume", "auto", folder=folder)
    assert f"resumed after step {stop}" in run.output
    for key in ("step", "keys", "lr", "loss"):
        assert [line[key] for line in run.metrics] == [line[key] for line in unbroken.metrics], key


@pytest.fixture(scope="module")
def stopped(pretrain: Pretrain) -> Path:
    """The folder of a run that was stopped after step 11."""
    return pretrain("--stop-after", "11", folder="stopped").folder


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    stopped: Path, pretrain: Pretrain, unbroken: Run
) -> None:
    folder = shutil.copytree(stopped, stopped.with_name("damaged"))
    newest = folder / "checkpoints" / "step-00000011"
    victim = next(newest.glob("*optim_states.pt"))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    run = pretrain("--resume", "auto", folder="damaged")
    assert "step-00000011 is damaged" in run.output
    assert "resumed after step 8" in run.output
    assert [line["loss"] for line in run.metrics] == [line["loss"] for line in unbroken.metrics]


def test_one_rank_goes_on_with_states_in_host_memory_after_a_kill_in_the_conversion(
    stopped: Path, pretrain: Pretrain, unbroken: Run
) -> None:
    folder = shutil.copytree(stopped, stopped.with_name("world"))
    left = folder / "checkpoints" / ".step-00000011.converted"  # as a kill leaves it
    left.mkdir()
    (left / "rest.pt").write_bytes(b"half a fi")
    run = pretrain(
        "--resume", "auto", folder="world", ranks=0, config=ROOT / "ds_configs" / "zero2_offload.json"
    )
    assert "step-00000011 of 2 ranks with ZeRO-2 goes on with 1 rank and ZeRO-2: converted in" in run.output
    assert not left.exists()
    for key in ("step", "keys", "lr"):
        assert [line[key] for line in run.metrics] == [line[key] for line in unbroken.metrics], key
    assert run.losses == pytest.approx(unbroken.losses, rel=2e-4)


@pytest.mark.parametrize("target", ["the launcher", "every process", "a notice"])
def test_sigterm_finishes_the_step_saves_and_ends(target: str, flags: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "terminated"
    more = [
        "--run-dir",
        str(folder),
        "--optim.epochs",
        "400",
        "--log-every",
        "1",
        "--data.stream.workers",
        "1",
    ]
    notice = tmp_path / "leave"
    if target == "a notice":
        more += ["--faults.preemption", str(notice)]
    process = subprocess.Popen(
        start(ZERO2, 2, [*flags, *more]),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    metrics, deadline = folder / "metrics.jsonl", time.monotonic() + 120
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 5:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    if target == "the launcher":
        process.send_signal(signal.SIGTERM)
    elif target == "a notice":
        notice.touch()
    else:  # as a container's or SLURM's end does
        os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=90)
    assert "stopped by" in output
    assert "Traceback" not in output
    done = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert (folder / "checkpoints" / f"step-{done[-1]:08d}" / "COMPLETE.json").exists()
    ledger = [line for path in (folder / "cost").rglob("*.jsonl") for line in path.read_text().splitlines()]
    assert any('"preempted"' in line for line in ledger)
