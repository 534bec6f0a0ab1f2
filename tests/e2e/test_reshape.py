"""One run over changing numbers of ranks and ZeRO stages, by the same command.

Tolerance: as between the stages (`test_zero_stages`), 2e-4 relative on each loss: gradients are added in another order.
Keys and learning rates are equal exactly.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ssmke.training import checkpoint
from tests.e2e.runs import ROOT, Pretrain, Run, environment

pytestmark = pytest.mark.e2e


def config(name: str) -> Path:
    return ROOT / "ds_configs" / f"{name}.json"


def assert_same_run(run: Run, unbroken: Run) -> None:
    for key in ("step", "keys", "lr"):
        assert [line[key] for line in run.metrics] == [line[key] for line in unbroken.metrics], key
    assert run.losses == pytest.approx(unbroken.losses, rel=2e-4)


def assert_same_weights(run: Run, unbroken: Run) -> None:
    ours, theirs = (load_file(r.folder / "model" / "model.safetensors") for r in (run, unbroken))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(
            ours[name], value, rtol=0, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.fixture(scope="module")
def reshaped(pretrain: Pretrain) -> list[Run]:
    """Two ranks with ZeRO-2, one with ZeRO-1, two with ZeRO-3: one run."""
    return [
        pretrain("--stop-after", "5", folder="reshaped"),
        pretrain("--resume", "auto", "--stop-after", "5", folder="reshaped", ranks=1, config=config("zero1")),
        pretrain("--resume", "auto", folder="reshaped", config=config("zero3")),
    ]


def test_each_change_is_said(reshaped: list[Run]) -> None:
    _, second, third = reshaped
    first_change = (
        "checkpoint step-00000005 of 2 ranks with ZeRO-2 goes on with 1 rank and ZeRO-1: converted in"
    )
    assert first_change in second.output
    assert "resumed after step 5" in second.output
    assert "checkpoint step-00000010 of 1 rank with ZeRO-1 goes on with 2 ranks and ZeRO-3" in third.output
    assert not list(third.folder.glob("checkpoints/.*"))


def test_keys_rates_losses_and_weights_are_those_of_the_unbroken_run(
    reshaped: list[Run], unbroken: Run
) -> None:
    run = reshaped[-1]
    assert_same_run(run, unbroken)
    assert_same_weights(run, unbroken)


DIES_BEFORE_LOADING = """
import os, runpy, signal
from ssmke.training import universal

universal.place = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
runpy.run_path({launcher!r}, run_name="__main__")
"""


def test_a_kill_between_conversion_and_load_leaves_nothing_that_looks_complete(
    reshaped: list[Run], flags: list[str], tmp_path: Path
) -> None:
    folder = shutil.copytree(reshaped[-1].folder, tmp_path / "killed")
    script = tmp_path / "dies.py"
    script.write_text(DIES_BEFORE_LOADING.format(launcher=str(ROOT / "launchers" / "pretrain.py")))
    command = [sys.executable, str(script), "--deepspeed_config", str(config("zero2")), *flags]
    done = subprocess.run(
        [*command, "--run-dir", str(folder), "--resume", "auto"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(),
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    checkpoints = folder / "checkpoints"
    assert len(list((checkpoints / ".step-00000016.converted").iterdir())) == 4
    assert not list(checkpoints.glob(".*/COMPLETE.json"))
    found = checkpoint.newest(checkpoints)  # the next start removes the rest: see `test_resume`
    assert found is not None
    assert found.progress.step == 16
