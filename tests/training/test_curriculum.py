"""The curriculum of a recipe meets the model and the accounting of a run."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch

from ssmke.cost.efficiency.flops import per_pair
from ssmke.data.curriculum import CurriculumConfig
from ssmke.errors import ConfigError
from ssmke.models.image_encoders import ImageEncoderConfig, build_image_encoder
from ssmke.models.shapes import shapes_of_recipe
from ssmke.models.teachers import build_teacher
from ssmke.recipes import Recipe, named
from ssmke.training.compute import ComputeConfig, prepare_student
from ssmke.training.prepare import build_module
from ssmke.training.spending import count_work


def scenes(curriculum: CurriculumConfig, **data: object) -> Recipe:
    recipe = named("scenes-tiny")
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, curriculum=curriculum, **data))


@pytest.mark.parametrize(
    ("size", "message"),
    [(20, "image-size 20 is not a multiple of the patch size 16"), (72, "image-size 72 is larger than")],
)
def test_images_that_the_student_cannot_take_are_refused_before_training(size: int, message: str) -> None:
    recipe = scenes(CurriculumConfig(size))
    with pytest.raises(ConfigError, match=message):
        build_module(recipe, build_teacher(recipe.teacher), 100, torch.device("cpu"), lambda line: None)


def test_the_cost_of_a_pair_is_the_runs_mean_before_and_when_the_modules_exist() -> None:
    whole, cheap = scenes(CurriculumConfig()), scenes(CurriculumConfig(48, 0.5, 0.75))
    short = scenes(CurriculumConfig(48, 0.5, 1.0))
    costs = [per_pair(shapes_of_recipe(recipe), 13).total for recipe in (whole, cheap, short)]
    assert costs[1] == pytest.approx(0.25 * costs[0] + 0.75 * costs[2], rel=1e-12)
    assert costs[2] < 0.6 * costs[0]
    teacher = build_teacher(cheap.teacher)
    module = build_module(cheap, teacher, 10_000, torch.device("cpu"), lambda line: None)
    counted = count_work(cheap, module, teacher, pytest.fail)
    assert counted is not None
    assert per_pair(counted, 13).total == pytest.approx(costs[1], rel=1e-12)


@pytest.mark.parametrize(
    ("name", "compiled"),
    [
        ("vit_tiny_patch16_224", "off"),
        ("data2vec2_base", "off"),
        pytest.param("beitv2_base_patch16_224", "on", marks=pytest.mark.long),
    ],
)
def test_compiled_and_checkpointed_blocks_see_the_same_patches(name: str, compiled: Any, model: Any) -> None:
    torch.manual_seed(0)
    vit: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
    config = ImageEncoderConfig(name, None, "none", freeze_blocks=1, timm_kwargs=vit)
    model.image_encoder = build_image_encoder(config, quiet=True)
    with torch.no_grad():
        for parameter in model.image_encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    fast = copy.deepcopy(model)
    prepare_student(
        fast,
        ComputeConfig(compile=compiled, checkpointing=True),
        device=torch.device("cpu"),
        zero_stage=0,
        say=pytest.fail,
    )
    views = [(24, torch.tensor([[0, 2, 7, 8], [1, 3, 4, 5]])), (32, None)]  # the two parts of a curriculum
    for side, kept in views:
        images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
        for student in (model, fast):
            student.zero_grad()
            sum(out.square().sum() for out in student(images, kept=kept).values()).backward()
        for (key, plain), quick in zip(model.named_parameters(), fast.parameters(), strict=True):
            assert (plain.grad is None) == (quick.grad is None), key
            if plain.grad is not None:
                torch.testing.assert_close(quick.grad, plain.grad, rtol=1e-4, atol=1e-4, msg=key)
    torch.compiler.reset()
