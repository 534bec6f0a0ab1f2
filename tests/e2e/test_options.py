"""Fewer patches, smaller images and frozen lower blocks in one run, started and resumed as a user does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.e2e.runs import ROOT, Pretrain, Run

pytestmark = pytest.mark.e2e

OPTIONS = [
    "--model.image.name", "beitv2_base_patch16_224", "--model.image.weights", "none",
    "--data.curriculum.image-size", "24", "--data.curriculum.patch-drop", "0.5", "--data.curriculum.share", "0.5",
    "--model.image.freeze-blocks", "1", "--model.text.freeze-layers", "1",
]  # fmt: skip
"""BEiT, whose position bias depends on the grid and on the patches; 8 of 16 steps are small."""


@pytest.fixture(scope="module")
def whole(pretrain: Pretrain) -> Run:
    """The run with everything on, never stopped."""
    return pretrain(*OPTIONS, folder="options")


def test_a_run_with_everything_on_says_so_and_ends_with_a_model(whole: Run) -> None:
    assert (
        "curriculum: steps 1 to 8 of 16: 24 of 32 pixels a side, 50% of the patches left out" in whole.output
    )
    assert len(whole.losses) == 16
    image = json.loads((whole.folder / "model" / "config.json").read_text())["student"]["image"]
    assert image["freeze_blocks"] == 1
    with safe_open(whole.folder / "model" / "model.safetensors", "pt") as model:
        table = model.get_tensor("image_encoder.backbone.blocks.1.attn.relative_position_bias_table")
        frozen = model.get_tensor("image_encoder.backbone.blocks.0.attn.relative_position_bias_table")
    assert table.shape == (7 * 7 + 3, 2)
    assert table.any()  # it starts at zero
    assert not frozen.any()


@pytest.mark.long
def test_resuming_before_the_switch_repeats_the_unbroken_run(pretrain: Pretrain, whole: Run) -> None:
    pretrain(*OPTIONS, "--stop-after", "5", folder="options-5")
    run = pretrain(*OPTIONS, "--resume", "auto", folder="options-5")
    assert "resumed after step 5" in run.output
    for key in ("step", "keys", "lr", "loss"):
        assert [line[key] for line in run.metrics] == [line[key] for line in whole.metrics], key


@pytest.mark.long
def test_zero3_accumulation_and_checkpointing_give_the_same_losses(
    pretrain: Pretrain, whole: Run, tmp_path: Path
) -> None:
    config = json.loads((ROOT / "ds_configs" / "zero3.json").read_text())
    config["gradient_accumulation_steps"] = 2
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # partition small parameters too
    path = tmp_path / "zero3.json"
    path.write_text(json.dumps(config))
    run = pretrain(*OPTIONS, "--compute.checkpointing", config=path)
    assert run.losses == pytest.approx(whole.losses, abs=2e-4)
