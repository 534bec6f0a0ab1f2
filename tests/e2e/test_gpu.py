"""The same job on CUDA devices: bf16, fused optimiser, NVML accounting."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
import torch

from tests.e2e.runs import ROOT, ZERO2, Run, environment, start

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.e2e,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, there is none here"),
]


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"])
def test_training_runs_on_the_gpu_and_is_accounted(
    name: str, flags: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("gpu") / "run"
    command = start(ROOT / "ds_configs" / f"{name}.json", 1, [*flags, "--run-dir", str(folder)])
    visible = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0")}
    done = subprocess.run(
        command, capture_output=True, text=True, env={**environment(), **visible}, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = Run(done.stdout, folder)
    assert json.loads((folder / "deepspeed.json").read_text())["bf16"]["enabled"] is True
    assert run.losses[-1] < run.losses[0]
    assert json.loads((folder / "results.json").read_text())["device_hours"] > 0


def test_gpu_and_cpu_agree_in_fp32(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    workspace = tmp_path_factory.mktemp("both")
    document = {**json.loads(ZERO2.read_text()), "bf16": {"enabled": False}}
    config = workspace / "fp32.json"
    config.write_text(json.dumps(document))
    losses = []
    for device in ("", os.environ.get("CUDA_VISIBLE_DEVICES", "0")):
        folder = workspace / f"run{len(losses)}"
        command = start(config, 1, [*flags, "--run-dir", str(folder)])
        env = {**environment(), "CUDA_VISIBLE_DEVICES": device}
        subprocess.run(command, capture_output=True, text=True, env=env, check=True)
        losses.append(Run("", folder).losses)
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)
