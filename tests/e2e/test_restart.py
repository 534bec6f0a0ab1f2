"""The platform restarts what died: torchrun starts the ranks again, and `--resume auto` goes on."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.e2e.runs import ROOT, ZERO2, environment

pytestmark = pytest.mark.e2e


def test_torchrun_starts_a_killed_rank_again_and_the_run_is_finished(
    flags: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    command = [
        *(str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc-per-node", "2"),
        *("--max-restarts", "1", str(ROOT / "launchers" / "pretrain.py"), "--deepspeed_config", str(ZERO2)),
        *(*flags, "--run-dir", str(folder), "--resume", "auto", "--optim.epochs", "24", "--log-every", "1"),
    ]
    refused = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert "error: torchrun --max-restarts" in refused.stderr
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**environment(), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
    )
    metrics, deadline = folder / "metrics.jsonl", time.monotonic() + 180
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 20:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    ranks = [p for p in psutil.Process(process.pid).children() if p.environ().get("RANK") == "1"]
    ranks[0].kill()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "rank 1 (" in output
    assert "died, last heard of" in output
    assert "resumed after step" in output
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == list(range(1, 193))
    assert (folder / "results.json").exists()
    assert len(list((folder / "cost").iterdir())) == 2
