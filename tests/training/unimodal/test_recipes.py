"""Recipes of unimodal distillation and of finetuning: published sizes, and what contradicts itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from ssmke.errors import ConfigError
from ssmke.recipes import named, parse_finetuning
from ssmke.training.unimodal.recipes import IMAGE_RECIPES, TEXT_RECIPES, parse_image, parse_text

DS = ["--deepspeed_config", "ds_configs/zero2.json"]


@pytest.mark.parametrize("name", [*IMAGE_RECIPES, *TEXT_RECIPES])
def test_every_recipe_is_whole_and_saves_as_json(name: str) -> None:
    recipe = (IMAGE_RECIPES | TEXT_RECIPES)[name]()
    assert recipe.name == name
    assert json.loads(json.dumps(recipe.resolved()))["optim"]["lr"] == recipe.optim.lr


def test_the_published_sizes() -> None:
    image, text = IMAGE_RECIPES["distill-image-base"](), TEXT_RECIPES["distill-text-base"]()
    tuning = named("finetune-coco")
    found = [(r.optim.batch_size, r.optim.epochs, r.optim.lr, r.optim.warmup) for r in (image, text, tuning)]
    assert found == [(256, 10, 1e-4, 0.1), (256, 1, 5e-4, 0.01), (1024, 5, 3e-5, 0.1)]
    assert (image.data.augmentation.crop_min, image.data.augmentation.flip) == (0.08, 0.5)
    assert (tuning.data.augmentation.crop_min, tuning.data.augmentation.flip) == (0.5, 0.5)
    assert (image.model.image.depth, text.model.text.depth, text.model.text.max_tokens) == (6, 6, 256)
    assert (text.distil.temperature, text.distil.mlm, tuning.loss.distillation) == (2.0, 0.0, "none")


@pytest.mark.parametrize(
    ("parse", "flags", "message"),
    [
        (parse_image, ["--recipe", "distill-image-bsae"], "did you mean distill-image-base"),
        (parse_image, ["--model.image.frozen"], "--model.image.frozen"),
        (parse_image, ["--model.image.depth", "None"], "--model.image.depth"),
        (parse_image, ["--data.curriculum.patch-drop", "0.5"], "--data.curriculum"),
        (parse_text, ["--model.text.max-tokens", "8"], "--model.text.max-tokens"),
        (parse_text, ["--distil.masked", "0.9"], "--distil.masked"),
        (parse_text, ["--distil.soft", "0", "--distil.cosine", "0"], "nothing to learn"),
        (parse_text, ["--data.files", "a"], "--data.files or as --data.shards"),
        (parse_text, ["--seed", "-1"], "--seed"),
        (parse_finetuning, [], "--init is missing"),
    ],
)
def test_contradictions_name_the_flag(parse: Callable[..., Any], flags: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse([*DS, *flags])
    assert message in str(error.value)
