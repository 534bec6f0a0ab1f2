"""A run on the cached features of both towers, with accumulation, as a user starts it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.e2e.runs import ROOT, Pretrain, Run

pytestmark = pytest.mark.e2e

TOWERS = [
    "--model.image.frozen",
    "--model.text.frozen",
    "--targets.frozen-tokens",
    "--model.pool",
    "cls+mean",
]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ZeRO-2 with two micro-batches a step."""
    path = tmp_path_factory.mktemp("config") / "zero2.json"
    settings = json.loads((ROOT / "ds_configs" / "zero2.json").read_text())
    path.write_text(json.dumps({**settings, "gradient_accumulation_steps": 2}))
    return path


@pytest.fixture(scope="module")
def cached(pretrain: Pretrain, config: Path) -> Run:
    return pretrain(*TOWERS, "--targets.frozen-text", config=config, folder="towers")


def test_it_learns_above_the_towers_and_leaves_them_as_they_were(cached: Run, teacher_file: Path) -> None:
    assert "vit_tiny_patch16_224 cls+mean: 64 images" in cached.output
    assert "text-cls+mean: 64 images (captions)" in cached.output
    assert cached.losses[-1] < cached.losses[0]
    whole, found = load_file(teacher_file), load_file(cached.folder / "model" / "model.safetensors")
    tower = {name: value for name, value in found.items() if name.startswith("image_encoder.backbone.blocks")}
    assert len(tower) > 10
    assert all(
        value.equal(whole[name.removeprefix("image_encoder.backbone.")]) for name, value in tower.items()
    )


@pytest.mark.long
def test_the_losses_are_those_of_a_run_that_encodes_every_caption(
    pretrain: Pretrain, config: Path, cached: Run
) -> None:
    encoded = pretrain(*TOWERS, config=config, folder="towers-encoded")
    assert [line["keys"] for line in cached.metrics] == [line["keys"] for line in encoded.metrics]
    assert cached.losses == pytest.approx(encoded.losses, rel=1e-3)
