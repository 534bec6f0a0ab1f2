"""The wall clock is set back and forward by days under a training, which counts by clocks that cannot be set."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from ssmke.cost.ledger.reader import read_run
from ssmke.training.checkpoint_files import newest
from ssmke.training.run_folder import open_run
from tests.e2e.runs import ROOT, ZERO2, environment, start

DAY = 86_400


@pytest.mark.e2e
def test_days_back_and_forth_change_no_duration_and_end_nothing(flags: list[str], tmp_path: Path) -> None:
    """And when a data worker is then killed, the run ends with one message, its checkpoint and its ledger kept."""
    offset, run = tmp_path / "offset", tmp_path / "run"
    offset.write_text("0")
    tracked = [flag for flag in flags if flag != "--tracking.no-enabled"]
    more = ["--run-dir", str(run), "--runs-dir", str(tmp_path), "--optim.epochs", "2000", "--log-every", "10"]
    more += ["--data.stream.workers", "1", "--checkpoint.no-every-epoch", "--checkpoint.minutes", "0.02"]
    more += ["--cost.heartbeat_seconds", "0.1", "--cost.max_device_hours", "2"]
    variables = {
        **environment(),
        "PYTHONPATH": f"{ROOT / 'tests/faults/clock'}{os.pathsep}{ROOT}",
        "CLOCK_OFFSET": str(offset),
    }
    began = time.monotonic()
    process = subprocess.Popen(
        start(ZERO2, 0, [*tracked, *more]), cwd=tmp_path, env=variables, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    said, jumps, saved = "", [-2 * DAY, 5 * DAY], 0
    for line in process.stdout:
        said += line
        saved = saved + 1 if line.startswith("checkpoint ") else saved
        if line.startswith("step ") and jumps and saved >= 2:
            saved = 0
            offset.write_text(
                str(jumps.pop(0))
            )  # the next one after two more checkpoints: their pace is kept
        elif line.startswith("step ") and not jumps and saved >= 2:
            saved = -1_000_000
            [worker] = [
                p
                for p in psutil.Process(process.pid).children()
                if "resource_tracker" not in " ".join(p.cmdline())
            ]
            worker.send_signal(signal.SIGKILL)
    assert process.wait() == 2, said
    seconds = time.monotonic() - began
    assert not jumps
    assert "was killed (Killed)" in said
    assert "Traceback" not in said, said
    [ledger] = read_run(run)
    assert (ledger.reason, ledger.jumps) == ("failed", 2)
    assert (ledger.end_ns - ledger.begin_ns) / 1e9 < seconds
    assert sum(ledger.phases.values()) == ledger.end_ns - ledger.begin_ns
    kept = newest(run / "checkpoints")
    assert kept is not None
    # A dead worker is told to the main thread wherever it is, between a checkpoint and its record, too.
    written = sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))
    assert kept.progress.step == written[-1]
    assert ledger.saves[-1].step in written[-2:]


def test_names_of_runs_are_in_order_of_making_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {"resume": "none", "run_dir": None, "runs_dir": str(tmp_path), "name": "r"}
    made = []
    for days in (0, -2, -2, 5, 0):
        monkeypatch.setattr(time, "strftime", _clock_of(time.strftime, days))
        made.append(open_run(recipe).path.name)
        monkeypatch.undo()
    assert made == sorted(made)
    assert len(set(made)) == 5
    assert open_run({**recipe, "resume": "auto"}).path.name == made[-1]


def _clock_of(strftime, days: int):  # type: ignore[no-untyped-def]
    return lambda pattern, when=None: strftime(pattern, when or time.localtime(time.time() + days * DAY))
