"""A ledger on a disk that is full: training goes on, and what was missed is written when there is room."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssmke.cost.ledger.reader import read_run

SCRIPT = """
import sys, time
from pathlib import Path
from ssmke.cost import CostConfig, CostMeter
meter = CostMeter(Path(sys.argv[1]), lineage="l", attempt="a", visible="",
                  config=CostConfig(price="3.6", heartbeat_seconds=0.1))
meter.start()
for step in range(1_000_000):
    with meter.phase("train"):
        time.sleep(0.01)
    meter.progress(step, step)
    if Path(sys.argv[2]).exists():
        break
meter.close()
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "run" / "cost"
    folder.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


def test_training_goes_on_and_the_ledger_catches_up(small_disk: Path, tmp_path: Path) -> None:
    filler = small_disk / "someone else's file"
    filler.write_bytes(b"x" * 60 * 1024)
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "run"), str(tmp_path / "stop")],
        stderr=subprocess.PIPE,
        text=True,
    )
    while len(list(small_disk.glob("a/*.jsonl"))) == 0:
        time.sleep(0.05)
    began = time.monotonic()
    time.sleep(3.0)  # 30 beats of 250 bytes do not fit into the 4 KiB that are left
    [open_ledger] = read_run(tmp_path / "run")
    missing = time.monotonic() - began - (open_ledger.end_ns - open_ledger.begin_ns) / 1e9
    assert process.poll() is None
    assert missing > 0.5, "the disk was never full"
    filler.unlink()
    time.sleep(0.5)
    (tmp_path / "stop").touch()
    _, said = process.communicate(timeout=30)
    assert process.returncode == 0
    assert said.count("training goes on") == 1
    assert "No space left on device" in said or "disk full" in said
    [closed] = read_run(tmp_path / "run")
    assert closed.reason == "finished"
    assert closed.end_ns - closed.begin_ns > 3.4e9
    assert closed.phases["train"] / (closed.end_ns - closed.begin_ns) > 0.8
