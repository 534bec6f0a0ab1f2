"""Every model of every table is a recipe that training takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssmke.errors import ConfigError
from ssmke.recipes import parse_recipe
from ssmke.reproduce.outcome import published
from ssmke.reproduce.steps import Places, recipe_flags, steps_of, variants_of
from ssmke.reproduce.variants import SCALES, TABLES, VARIANTS, ScaleName, table

EACH = [(scale, key) for scale in SCALES for key, variant in VARIANTS.items() if scale in variant.flags]


@pytest.mark.parametrize(("scale", "key"), EACH)
def test_flags_make_a_recipe(scale: ScaleName, key: str) -> None:
    recipe = parse_recipe(recipe_flags(key, scale), "test")
    taught = recipe.loss.distillation != "none"
    untaught = ("none", "locked-image", "frozen-towers", "finetuned-coco", "finetuned-flickr30k")
    assert taught == (key not in untaught)


def test_two_models_of_a_scale_are_never_the_same_recipe() -> None:
    for scale in SCALES:
        flags = [tuple(recipe_flags(key, scale)) for at, key in EACH if at == scale]
        assert len(set(flags)) == len(flags)


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
    trained = [step.variant for step in steps if step.launches]
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


def test_an_unknown_table_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'distilation': choose one of distillation, token-type"):
        table("distilation")
