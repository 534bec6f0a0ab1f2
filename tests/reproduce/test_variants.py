"""Every model of every table is a recipe that training takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssmke.errors import ConfigError
from ssmke.recipes import parse_recipe
from ssmke.reproduce.outcome import published
from ssmke.reproduce.steps import Places, recipe_flags, steps_of, variants_of
from ssmke.reproduce.variants import SCALES, TABLES, VARIANTS, ScaleName, table
from ssmke.training.unimodal.recipes import parse_image, parse_text

EACH = [(scale, key) for scale in SCALES for key, variant in VARIANTS.items() if scale in variant.flags]


@pytest.mark.parametrize(("scale", "key"), EACH)
def test_flags_make_a_recipe(scale: ScaleName, key: str) -> None:
    recipe = parse_recipe(recipe_flags(key, scale), "test")
    taught = recipe.loss.distillation != "none"
    untaught = ("none", "locked-image", "frozen-towers", "finetuned-coco", "finetuned-flickr30k")
    assert taught == (key not in untaught)


def test_two_models_of_a_scale_are_never_the_same_training(tmp_path: Path) -> None:
    for scale in SCALES:
        steps = steps_of(list(TABLES.values()), scale, Places(tmp_path, tmp_path / "data"))
        trained = [
            tuple(word for word in step.command if not word.endswith(f"runs/{step.variant}"))
            for step in steps
            if step.launches
        ]
        assert len(set(trained)) == len(trained)


def test_what_a_scale_lacks_says_why() -> None:
    for key, variant in VARIANTS.items():
        for scale in SCALES:
            assert scale in variant.flags or variant.differs.get(scale), (key, scale)


def test_published_figures_have_a_value_a_column_and_a_model() -> None:
    figures = published()
    for name in (found.published for found in TABLES.values() if found.published):
        assert set(figures[name]["rows"]) <= set(VARIANTS)
        for row in figures[name]["rows"].values():
            assert len(row) == len(figures[name]["columns"])
            assert all(value is None or 0 < value <= 100 for value in row)


def test_shared_models_are_trained_once(tmp_path: Path) -> None:
    tables = list(TABLES.values())
    steps = steps_of(tables, "scenes", Places(tmp_path, tmp_path / "data"))
    trained = [step.variant for step in steps if step.launches and step.variant in VARIANTS]
    assert trained == variants_of(tables, "scenes")
    assert len(set(trained)) == len(trained) < sum(len(found.variants) for found in tables)
    assert len({step.result for step in steps}) == len(steps)


def test_finetuning_comes_after_what_it_starts_from(tmp_path: Path) -> None:
    names = [
        step.name for step in steps_of([TABLES["finetuning"]], "full", Places(tmp_path, tmp_path / "data"))
    ]
    assert names.index("bank") < names.index("finetuned-coco")
    [step] = [
        step
        for step in steps_of([TABLES["finetuning"]], "full", Places(tmp_path, Path("d")))
        if step.name == "finetuned-flickr30k"
    ]
    assert step.command[0] == "finetune_retrieval.py"
    assert step.command[step.command.index("--init") + 1] == str(tmp_path / "runs/bank/model")
    assert step.command[step.command.index("--data.shards") + 1] == "d/flickr30k"


def test_halves_are_distilled_before_the_model_that_is_built_from_them(tmp_path: Path) -> None:
    steps = steps_of([TABLES["halves"]], "scenes", Places(tmp_path, tmp_path / "data"))
    names = [step.name for step in steps]
    assert names[:3] == ["distilled-image", "distilled-text", "distilled-halves"]
    command = steps[2].command
    assert command[command.index("--model.text.weights") + 1] == str(tmp_path / "runs/distilled-text/model")
    for step, parse in ((steps[0], parse_image), (steps[1], parse_text)):
        parse([*step.command[1:]])


def test_an_unknown_table_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'distilation': choose one of distillation, token-type"):
        table("distilation")
