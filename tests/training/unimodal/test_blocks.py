"""Distilled blocks: the loss against timm's own intermediate outputs in float64, and the folder that comes out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from ssmke.errors import ConfigError, WeightsError
from ssmke.models.image_encoders import ImageEncoder, ImageEncoderConfig, build_image_encoder
from ssmke.training.unimodal.blocks import BlockDistillation, build_pair
from ssmke.training.unimodal.encoder_folder import load_image_encoder, save_image_encoder
from ssmke.training.unimodal.image_batches import images_alone
from ssmke.training.unimodal.layers import chosen_layers, matched_layers
from ssmke.training.unimodal.recipes import BlockConfig
from tests.training.unimodal.conftest import VIT


def test_layers_are_distilberts_and_the_last_learns_the_last() -> None:
    assert chosen_layers(12, 6, "alternate") == [0, 2, 4, 7, 9, 11]  # its extract_distilbert.py
    assert chosen_layers(12, 6, "first") == [0, 1, 2, 3, 4, 5]
    assert chosen_layers(4, 1, "alternate") == [3]
    assert matched_layers(12, 6) == [1, 3, 5, 7, 9, 11]
    assert matched_layers(5, 2) == [1, 4]


@pytest.mark.parametrize(("init", "taken"), [("first", [0, 1]), ("alternate", [0, 3])])
@pytest.mark.parametrize("match", ["all", "last"])
def test_the_loss_is_that_of_timms_intermediate_outputs_in_float64(
    init: str, taken: list[int], match: str, image: ImageEncoderConfig, vit_file: Path
) -> None:
    config = BlockConfig(init, match)  # type: ignore[arg-type]
    module = BlockDistillation(*build_pair(image, config), config)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    losses = module(images_alone(images, [0, 1, 2], ["a", "b", "c"], []))
    whole = timm.create_model("vit_tiny_patch16_224", **VIT).double().eval()
    whole.load_state_dict(load_file(vit_file))
    half = timm.create_model("vit_tiny_patch16_224", **VIT).double().eval()
    half.load_state_dict(load_file(vit_file))
    half.blocks = torch.nn.Sequential(*(half.blocks[number] for number in taken))
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (whole.pretrained_cfg["mean"],
                                                                             whole.pretrained_cfg["std"]))  # fmt: skip
    pixels = (images.double() / 255 - mean) / std

    def outputs(model: torch.nn.Module, blocks: list[int]) -> list[np.ndarray]:
        x = model.norm_pre(model._pos_embed(model.patch_embed(pixels)))
        found = {}
        for number, block in enumerate(model.blocks):
            x = block(x)
            found[number] = x.detach().numpy()
        return [found[number] for number in blocks]

    own, theirs = outputs(half, [0, 1]), outputs(whole, [1, 3])
    if match == "last":
        own, theirs = own[1:], theirs[1:]
    errors = [np.mean((a - b) ** 2) for a, b in zip(own, theirs, strict=True)]
    assert float(losses["loss"]) == pytest.approx(np.mean(errors), rel=1e-5)
    names = ["mse.1", "mse.2"][-len(errors) :]
    assert [float(losses[name]) for name in names] == pytest.approx(errors, rel=1e-5)
    assert all(name.startswith("student.") for name, _ in module.named_parameters())


BEIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [("vit_tiny_patch16_224", VIT), ("beitv2_base_patch16_224", BEIT), ("data2vec2_base", BEIT)],
)
@pytest.mark.filterwarnings("ignore::ssmke.models.weights.UntrainedWeightsWarning")
def test_the_folder_loads_as_weights_of_pretraining_and_by_itself(
    name: str, kwargs: dict[str, int], tmp_path: Path
) -> None:
    config = ImageEncoderConfig(name, depth=2, weights="none", timm_kwargs={**kwargs})
    student, _ = build_pair(config, BlockConfig())
    save_image_encoder(tmp_path / "out", config, student.state_dict())
    pixels = torch.randn(2, 3, 32, 32)
    for weights in (tmp_path / "out", tmp_path / "out" / "model.safetensors"):
        loaded = build_image_encoder(dataclasses.replace(config, weights=str(weights)))
        assert not loaded.load_report.dropped
        assert torch.equal(loaded(pixels), student(pixels))
    alone = load_image_encoder(tmp_path / "out")
    assert isinstance(alone, ImageEncoder)
    assert torch.equal(alone(pixels), student(pixels))


def test_what_cannot_be_distilled_is_refused(image: ImageEncoderConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"depth 4: the teacher has 4 blocks"):
        build_pair(dataclasses.replace(image, depth=4), BlockConfig())
    (tmp_path / "config.json").write_text('{"format": "other"}')
    with pytest.raises(WeightsError, match="no folder of an image encoder"):
        load_image_encoder(tmp_path)
