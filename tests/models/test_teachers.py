"""The frozen teacher: what it outputs, that it stays frozen, and that it can be told from another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from ssmke.errors import ConfigError
from ssmke.models.teachers import Teacher, TeacherConfig, build_teacher
from ssmke.models.weights import UntrainedWeightsWarning

SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}
VIT = "vit_tiny_patch16_224"
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
MOBILENET = DATA / "weights" / "mobilenetv2_100_keras_int8deq_timm.pth"
FLICKR = DATA / "flickr8k"


def small(**settings: Any) -> Teacher:
    torch.manual_seed(0)
    return build_teacher(TeacherConfig(VIT, "none", timm_kwargs=SMALL, **settings), quiet=True)


def pixels(size: int, batch: int = 2) -> Tensor:
    torch.manual_seed(3)
    return torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)


def test_it_is_frozen_for_good() -> None:
    teacher = small()
    nn.ModuleDict({"teacher": teacher}).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    out = teacher(pixels(32))
    assert (out.shape, out.dtype, out.requires_grad) == ((2, 32), torch.float32, False)


def test_features_of_a_vit_are_the_cls_before_the_norm_and_logits_the_class_scores() -> None:
    features, logits = small(), small(output="logits")
    whole = timm.create_model(VIT, **SMALL).eval()
    whole.load_state_dict(logits.network.state_dict())
    x = (pixels(32) / 255 - 0.5) / 0.5  # this model's mean and deviation
    torch.testing.assert_close(logits(pixels(32)), whole(x), atol=1e-5, rtol=1e-4)
    assert logits.dim == 1000
    shared = {k: v for k, v in whole.state_dict().items() if not k.startswith(("norm.", "head."))}
    features.network.load_state_dict({f"backbone.{k}": v for k, v in shared.items()})
    normed = whole.norm(features(pixels(32))[:, None])[:, 0]
    torch.testing.assert_close(normed, whole.forward_features(x)[:, 0], atol=1e-5, rtol=1e-4)


def test_features_of_a_conv_net_are_pooled() -> None:
    teacher = build_teacher(TeacherConfig("mobilenetv2_050", "none", image_size=64), quiet=True)
    x = pixels(64)
    mean, std = (torch.tensor(v)[:, None, None] for v in (teacher.mean, teacher.std))
    whole = timm.create_model("mobilenetv2_050").eval()
    whole.load_state_dict(teacher.network.state_dict(), strict=False)  # all but the classifier
    features = whole.forward_features((x / 255 - mean) / std)
    torch.testing.assert_close(teacher(x), features.mean(dim=(2, 3)), atol=1e-5, rtol=1e-4)
    assert teacher.dim == 1280


def test_resnet_teacher_of_the_thesis_has_class_scores() -> None:
    teacher = build_teacher(TeacherConfig("resnet50.a1_in1k", "none", "logits", image_size=64), quiet=True)
    assert teacher(pixels(64)).shape == (2, teacher.dim) == (2, 1000)
    assert sum(p.numel() for p in teacher.parameters()) == 25_557_032  # as published


def test_outputs_stay_fp32_and_close_in_bf16() -> None:
    teacher = small()
    exact = teacher(pixels(32))
    digest = teacher.digest
    half = teacher.bfloat16()(pixels(32))
    assert half.dtype == torch.float32
    assert (half - exact).norm() < 0.02 * exact.norm()
    assert teacher.digest == digest


def test_its_description_tells_it_from_every_other_teacher() -> None:
    description = small().describe()
    assert json.loads(json.dumps(description)) == description
    assert small().describe() == description
    other = build_teacher(TeacherConfig(VIT, "none", timm_kwargs=SMALL), quiet=True)  # other random weights
    others = [other, small(output="logits"), small(mean=(0.4, 0.5, 0.5)), small(image_size=64)]
    assert all(o.describe() != description for o in others)


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match=r"takes uint8 images of 3 x 32 x 32.*--teacher\.image-size"):
        small()(pixels(64))
    with pytest.raises(ConfigError, match="takes uint8"):
        small()(pixels(32).float())
    with pytest.raises(ConfigError, match=r"--teacher\.output must be"):
        TeacherConfig(output="tokens")  # type: ignore[arg-type]
    for name, weights in [
        ("beitv2_base_patch16_224", "hub"),
        ("data2vec2_base", "none"),
        ("vit_small_patch16_224.dino", "none"),
    ]:
        with pytest.raises(ConfigError, match=r"self-supervised and has no classes.*in1k_ft_in1k"):
            build_teacher(TeacherConfig(name, weights, "logits"), quiet=True)
    with pytest.raises(ConfigError, match=r"--teacher\.name"):
        build_teacher(TeacherConfig("no_such_model", "none"))
    with pytest.warns(UntrainedWeightsWarning, match=r"--teacher\.weights none"):
        build_teacher(TeacherConfig(VIT, "none", timm_kwargs=SMALL))


def photos(about_dogs: bool, count: int) -> Tensor:
    """Photos of Flickr8k that all five people describe with a dog, or none with an animal."""
    for path in (MOBILENET, FLICKR):
        if not path.exists():
            pytest.skip(f"{path} (real photos and weights for development) is not on this machine")
    animals = ("dog", "puppy", "animal", "horse", "cat", "bird", "hound", "retriever", "terrier", "bulldog")
    crops = []
    for entry in json.loads((FLICKR / "captions.json").read_text(encoding="utf-8"))["images"]:
        captions = [sentence["raw"].lower() for sentence in entry["sentences"]]
        dogs = all("dog" in caption for caption in captions)
        none = not any(animal in caption for caption in captions for animal in animals)
        if dogs if about_dogs else none:
            image = Image.open(FLICKR / "images" / entry["filename"]).convert("RGB").resize((224, 224))
            crops.append(np.asarray(image))
        if len(crops) == count:
            break
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)


def test_real_mobilenet_tells_dogs_and_stays_in_evaluation_mode() -> None:
    config = TeacherConfig(
        "mobilenetv2_100",
        str(MOBILENET),
        "logits",
        timm_kwargs={"pad_type": "same"},
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    images = torch.cat([photos(True, 24), photos(False, 24)])
    teacher = build_teacher(config).train()
    scores = teacher(images)
    classes = scores.argmax(dim=1)
    is_dog = (classes >= 151) & (classes <= 268)  # the dog breeds of ImageNet-1K
    assert is_dog[:24].float().mean() > 0.75
    assert is_dog[24:].float().mean() < 0.1
    torch.testing.assert_close(teacher(images[:1]), scores[:1], atol=1e-3, rtol=1e-3)  # no batch statistics
