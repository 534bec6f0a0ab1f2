"""Disks that fill up under a training: it goes on where it can, and stops with one error where it cannot."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

import pytest

from ssmke.cost.ledger.reader import read_run
from ssmke.data.sources.scenes import ScenesConfig, write_scenes
from ssmke.errors import DataError
from ssmke.training.checkpoint_files import newest
from ssmke.training.results import print_line
from ssmke.training.step_file import StepFile
from tests.e2e.runs import ZERO2, environment, start
from tests.faults.small_disk import fill, small_disk


@pytest.mark.e2e
def test_a_disk_that_fills_within_a_checkpoint_costs_only_that_one(
    flags: list[str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Room for the estimate but not for all of it: a rank meets the end of the disk while the others write or wait."""
    run = tmp_path / "run"
    with small_disk(run / "checkpoints", "256m") as disk:
        more = ["--run-dir", str(run), "--optim.epochs", "40", "--checkpoint.keep", "1"]
        process = subprocess.Popen(
            start(ZERO2, 2, [*flags, *more]), cwd=tmp_path, env=environment(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        request.addfinalizer(process.kill)
        while process.poll() is None and not list(disk.glob("*/COMPLETE.json")):
            time.sleep(0.01)
        size = sum(path.stat().st_size for path in next(disk.glob("step-*")).rglob("*") if path.is_file())
        fill(disk, leave=size - 16 * 1024)
        began = time.monotonic()
        output, _ = process.communicate()
        assert process.returncode in (2, 4), output
        assert time.monotonic() - began < 60
        assert "cannot be written" in output, output
        assert "go on with --resume auto" in output
        assert "Traceback" not in output, output
        kept = newest(run / "checkpoints")
        assert kept is not None
        assert kept.progress.step >= 8


@pytest.mark.e2e
def test_a_full_disk_between_checkpoints_costs_nothing(
    flags: list[str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with small_disk(tmp_path / "workspace", "256m") as disk:
        tracked = [flag for flag in flags if flag != "--tracking.no-enabled"]
        more = [
            "--run-dir",
            str(disk / "run"),
            "--runs-dir",
            str(disk),
            "--optim.epochs",
            "50",
            "--log-every",
            "10",
        ]
        more += ["--checkpoint.no-every-epoch", "--cost.heartbeat_seconds", "0.1"]
        process = subprocess.Popen(
            start(ZERO2, 0, [*tracked, *more]), cwd=tmp_path, env=environment(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        request.addfinalizer(process.kill)
        assert process.stdout is not None
        said = _until(process.stdout, "step 40/")
        filler = fill(disk)
        said += _until(process.stdout, "step 250/")
        filler.unlink()
        rest, _ = process.communicate()
        assert process.returncode == 0, said + rest
        assert "metrics.jsonl cannot be written (No space left on device): training goes on" in said
        assert "metrics.jsonl can be written again, nothing is missing in it" in said + rest
        lines = [json.loads(line) for line in (disk / "run/metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == list(range(1, 401))
        [ledger] = read_run(disk / "run")
        assert (ledger.reason, ledger.step) == ("finished", 400)
        with sqlite3.connect(disk / "mlflow.db") as database:
            rows = database.execute("select step from metrics where key = 'loss' order by step").fetchall()
        assert [row[0] for row in rows] == list(range(10, 401, 10))


def _until(pipe: IO[str], words: str) -> str:
    said = ""
    for line in pipe:
        said += line
        if line.startswith(words):
            return said
    raise AssertionError(said)


def test_lines_that_a_full_disk_refused_are_written_when_there_is_room(tmp_path: Path) -> None:
    said: list[str] = []
    with small_disk(tmp_path / "disk", "64k") as disk:
        file = StepFile(disk / "metrics.jsonl", said.append)
        file.add(["first"])
        # A page stays free beside the one that the first line began, so that a write is cut within a line.
        filler = fill(disk, leave=4096)
        file.add([f"{number} " + "x" * 1000 for number in range(20)])
        assert (disk / "metrics.jsonl").read_text() == "first\n"
        file.add(["last"])
        assert len(said) == 1
        filler.unlink()
        file.close()
        lines = (disk / "metrics.jsonl").read_text().splitlines()
        assert [line.split()[0] for line in lines] == ["first", *map(str, range(20)), "last"]
        assert len(said) == 2


def test_a_log_on_a_full_disk_loses_lines_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        print_line("a line")
        print_line("another" * 9000)
        monkeypatch.undo()
        with suppress(OSError):
            full.close()


def test_data_that_outgrow_the_disk_are_finished_by_the_same_command(tmp_path: Path) -> None:
    config = ScenesConfig(train=40, val=0, test=0, images_per_shard=10)
    with small_disk(tmp_path / "disk", "1m") as disk:
        filler = fill(disk, leave=100 * 1024)
        with pytest.raises(DataError, match=r"cannot write .*disk is full.*same command again"):
            write_scenes(disk / "scenes", config, workers=1)
        finished = {path: path.stat().st_mtime_ns for path in (disk / "scenes").glob("*.tar")}
        assert 0 < len(finished) < 4
        assert not list((disk / "scenes").glob(".*.tar.*partial"))
        filler.unlink()
        write_scenes(disk / "scenes", config, workers=1)
        assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in finished.items())
        assert len(list((disk / "scenes").glob("*.tar"))) == 4
