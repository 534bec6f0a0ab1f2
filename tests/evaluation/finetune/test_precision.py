"""bf16: what CUDA trains in, tried on the CPU for dtypes, and on a GPU where there is one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ssmke.evaluation.finetune import loop
from ssmke.evaluation.finetune.config import GlueConfig, LoopConfig, Nlvr2Config, RunConfig
from ssmke.evaluation.finetune.run import run_glue, run_image_classification, run_nlvr2
from tests.evaluation.finetune.test_images import configured


def quiet(_: str) -> None: ...


def test_all_suites_learn_in_bf16(
    model_dir: Path,
    image_folder: Path,
    glue_folder: Path,
    nlvr2_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "_autocast", lambda _: torch.autocast("cpu", dtype=torch.bfloat16))
    images = run_image_classification(configured(model_dir, image_folder, 3), quiet)
    plain = configured(model_dir, image_folder, 3)
    assert images["metrics"]["top1"]["mean"] >= 60
    text = GlueConfig(str(model_dir), glue_folder, tasks=("SST-2", "STS-B"), epochs=4, batch_size=16, lr=2e-3)
    assert run_glue(text, quiet)["means"]["mean"]["mean"] >= 60
    pairs = Nlvr2Config(
        str(model_dir),
        nlvr2_folder,
        hidden=32,
        loop=LoopConfig(epochs=10, batch_size=8, lr=3e-3, layer_decay=0.9),
        run=RunConfig(workers=0),
    )
    assert run_nlvr2(pairs, quiet)["metrics"]["accuracy"]["mean"] >= 70
    monkeypatch.undo()
    assert run_image_classification(plain, quiet)["epochs"] != images["epochs"]  # it was another arithmetic


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_resumes_and_learns(model_dir: Path, image_folder: Path, tmp_path: Path) -> None:
    run = RunConfig(work=tmp_path, workers=2)
    config = configured(model_dir, image_folder, 6, run=run)
    found = run_image_classification(config, quiet, torch.device("cuda"))
    assert found["metrics"]["top1"]["mean"] >= 70
    assert run_image_classification(config, quiet, torch.device("cuda"))["epochs"] == found["epochs"]
