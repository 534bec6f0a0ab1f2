"""Learning rates by layer, and stochastic depth."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from ssmke.evaluation.finetune.backbones import (
    ImageFeatures,
    load_image_features,
    load_pair_features,
    load_text_features,
    set_drop_path,
)
from ssmke.evaluation.finetune.glue import TextClassifier
from ssmke.evaluation.finetune.image_classification import ImageClassifier
from ssmke.evaluation.finetune.layer_decay import parameter_groups
from ssmke.evaluation.finetune.nlvr2 import PairClassifier
from ssmke.models.image_encoders import ImageEncoderConfig, build_image_encoder
from ssmke.models.student import SSMKE


def rates(model: torch.nn.Module, decay: float = 0.5) -> dict[str, float]:
    groups = parameter_groups(model, 1.0, decay, 0.05)
    found = {name: group["lr"] for group in groups for name in group["names"]}
    assert found.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    return found


def test_image_layers(model_dir: Path) -> None:
    found = rates(ImageClassifier(load_image_features(str(model_dir), "full", "mean"), 3))
    backbone = "features.encoder.backbone."
    assert {rate for name, rate in found.items() if name.startswith("head.")} == {1.0}
    assert {rate for name, rate in found.items() if name.startswith("features.shared.")} == {0.5}
    assert {rate for name, rate in found.items() if name.startswith(f"{backbone}blocks.1.")} == {0.25}
    assert {rate for name, rate in found.items() if name.startswith(f"{backbone}blocks.0.")} == {0.125}
    for name in ("cls_token", "pos_embed", "patch_embed.proj.weight"):
        assert found[backbone + name] == 0.0625
    alone = rates(ImageClassifier(load_image_features(str(model_dir), "encoder", "mean"), 3))
    assert alone[f"{backbone}blocks.1.attn.qkv.weight"] == 0.5


def test_text_layers(model_dir: Path) -> None:
    features, _ = load_text_features(str(model_dir), "full")
    found = rates(TextClassifier(features, 2, 0.1))
    backbone = "features.encoder.backbone."
    assert found[f"{backbone}embeddings.word_embeddings.weight"] == 0.0625
    assert found[f"{backbone}encoder.layer.0.attention.self.query.weight"] == 0.125
    assert found[f"{backbone}encoder.layer.1.output.dense.bias"] == 0.25
    assert found["features.shared.shared.fc1.weight"] == 0.5
    assert found["head.3.weight"] == 1.0


def test_the_shared_encoder_of_pairs_is_one(model_dir: Path) -> None:
    images, texts, _ = load_pair_features(str(model_dir))
    assert images.shared is not None
    assert texts.shared is not None
    assert images.shared.shared is texts.shared.shared
    found = rates(PairClassifier(images, texts, 8, 0.0, frozen=False))
    assert found["images.shared.shared.fc1.weight"] == 0.5
    assert not any(name.startswith("texts.shared.shared.") for name in found)


def test_layers_of_a_conv_net_fall_towards_the_stem() -> None:
    config = ImageEncoderConfig("mobilenetv2_035", depth=None, weights="none", image_size=32)
    model = ImageClassifier(ImageFeatures(build_image_encoder(config, quiet=True), None), 2)
    found = rates(model, 0.9)
    stem, early, late = (
        found[f"features.encoder.backbone.{name}"]
        for name in ("conv_stem.weight", "blocks.1.0.conv_pw.weight", "blocks.5.0.conv_pw.weight")
    )
    assert stem < early < late < 1


def test_norms_and_embeddings_are_not_decayed(model_dir: Path) -> None:
    features, _ = load_text_features(str(model_dir), "full")
    groups = parameter_groups(TextClassifier(features, 2, 0.1), 1.0, 1.0, 0.05)
    decay = {name: group["weight_decay"] for group in groups for name in group["names"]}
    assert decay["features.shared.shared.fc1.weight"] == 0.05
    for name in ("encoder.backbone.embeddings.word_embeddings.weight", "shared.shared.norm1.weight"):
        assert decay[f"features.{name}"] == 0


def test_drop_path_rises_to_the_rate_and_is_off_in_evaluation(model_dir: Path) -> None:
    features = load_image_features(str(model_dir), "encoder", "mean")
    images = torch.randn(64, 3, 32, 32)
    features.eval()
    before = features(images)
    assert set_drop_path(features.encoder, 0.5)
    blocks = features.encoder.backbone.blocks
    assert isinstance(blocks[0].drop_path1, torch.nn.Identity)
    assert blocks[1].drop_path1.drop_prob == 0.5
    assert torch.equal(features(images), before)
    features.train()
    assert not torch.equal(features(images), before)


def test_drop_path_of_what_has_none() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = ImageEncoderConfig(
            "data2vec2_base",
            depth=1,
            weights="none",
            timm_kwargs={"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
        )
        try:
            encoder = build_image_encoder(config)
        except Exception as error:
            pytest.fail(str(error))
    assert not set_drop_path(encoder, 0.1)


def test_features_are_those_of_the_student(model_dir: Path) -> None:
    student = SSMKE.from_pretrained(model_dir)
    pixels = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    normalised = torch.stack([(pixels[:, c].float() / 255 - 0.5) / 0.5 for c in range(3)], dim=1)
    with torch.no_grad():
        ours = load_image_features(str(model_dir), "full", "mean").eval()(normalised)
        theirs = student(images=pixels)["image.output"]
        torch.testing.assert_close(ours, theirs)
        tokens = student.image_encoder(normalised)
        encoder = load_image_features(str(model_dir), "encoder", "mean").eval()
        torch.testing.assert_close(encoder(normalised), tokens[:, 1:].mean(1))
        cls = load_image_features(str(model_dir), "encoder", "cls").eval()
        torch.testing.assert_close(cls(normalised), tokens[:, 0])
        ids = torch.tensor([[2, 5, 6, 3, 0], [2, 5, 6, 7, 3]])
        mask = ids > 0
        texts, _ = load_text_features(str(model_dir), "full")
        ours = texts.eval()(ids, mask, torch.zeros_like(ids))
        torch.testing.assert_close(ours, student(ids=ids, mask=mask)["text.output"])
        ones = torch.ones_like(ids)
        assert not torch.allclose(texts(ids, mask, ones), ours)  # BERT tells a pair's sentences apart
