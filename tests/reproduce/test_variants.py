"""Every model of every table is a recipe that training takes."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
import tyro
from PIL import Image
from tyro.conf import OmitArgPrefixes

from ssmke.data.sources.scene_plan import Scene
from ssmke.data.sources.scene_render import render_scene
from ssmke.errors import ConfigError
from ssmke.evaluation.finetune.config import GlueConfig, ImageClassificationConfig
from ssmke.evaluation.finetune.labelled_images import read_image_classes
from ssmke.models.student import SSMKE
from ssmke.recipes import parse_recipe
from ssmke.reproduce import cut_halves, labelled_scenes
from ssmke.reproduce.outcome import published
from ssmke.reproduce.steps import Places, Step, recipe_flags, steps_of, variants_of
from ssmke.reproduce.suites import ALONE, FINETUNED
from ssmke.reproduce.variants import SCALES, TABLES, VARIANTS, ScaleName, table
from ssmke.training.unimodal.recipes import parse_image, parse_text

EACH = [(scale, key) for scale in SCALES for key, variant in VARIANTS.items() if scale in variant.flags]


@pytest.mark.parametrize(("scale", "key"), EACH)
def test_flags_make_a_recipe(scale: ScaleName, key: str) -> None:
    recipe = parse_recipe(recipe_flags(key, scale), "test")
    taught = recipe.loss.distillation != "none"
    untaught = (
        "none",
        "locked-image",
        "frozen-towers",
        "frozen-towers-block",
        "finetuned-coco",
        "finetuned-flickr30k",
    )
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
    for found in (found for found in TABLES.values() if found.published):
        name = found.published or ""
        assert set(figures[name]["rows"]) <= set(ALONE if found.kind == "alone" else VARIANTS)
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


def test_what_is_set_for_all_gives_way_to_what_a_variant_is() -> None:
    more = ["--optim.epochs", "1", "--optim.betas", "0.8", "0.9", "--loss.distillation", "mse"]
    bank, none = (parse_recipe(recipe_flags(key, "scenes", more), "test") for key in ("bank", "none"))
    assert bank.optim.epochs == none.optim.epochs == 1
    assert bank.optim.betas == (0.8, 0.9)
    assert (bank.loss.distillation, none.loss.distillation) == ("mse", "none")


def _words(step: Step, flag: str) -> str:
    return step.command[step.command.index(flag) + 1]


def test_each_seed_has_its_own_runs_halves_and_starts(tmp_path: Path) -> None:
    tables, data = [TABLES[name] for name in ("halves", "finetuning", "teachers")], tmp_path / "data"
    one = steps_of(tables, "scenes", Places(tmp_path, data, (3,)))
    three = steps_of(tables, "scenes", Places(tmp_path, data, (3, 4, 5)))
    assert three[: len(one)] == one, "what there is of the first seed is gone on with"
    assert len(three) == 3 * len(one) == len({step.result for step in three})
    names = {step.name: step for step in three}
    assert _words(names["bank-seed4"], "--seed") == "4"
    assert _words(names["finetuned-coco-seed4"], "--init") == str(tmp_path / "runs/bank-seed4/model")
    assert _words(names["distilled-halves-seed5"], "--model.image.weights") == str(
        tmp_path / "runs/distilled-image-seed5/model"
    )
    assert _words(names["untrained-teacher-seed4"], "--targets.dir") == f"{tmp_path}/untrained-targets-seed4"
    assert _words(names["bank-seed5-scenes"], "--model") == str(tmp_path / "runs/bank-seed5/model")
    for step, first in zip(three[len(one) :], one, strict=False):
        assert step.timed_as == (first.timed_as or first.name)


@pytest.mark.parametrize("scale", ["scenes", "full"])
def test_halves_are_finetuned_by_commands_that_evaluation_takes(scale: ScaleName, tmp_path: Path) -> None:
    steps = steps_of([TABLES["unimodal"]], scale, Places(tmp_path, tmp_path / "data", (0, 1)))
    found = [step for step in steps if step.variant in ALONE]
    assert len(found) == 2 * len(ALONE) * len(FINETUNED[scale])
    for step in found:
        suite, *flags = step.command[1:]
        config: GlueConfig | ImageClassificationConfig
        if suite == "glue":
            config = tyro.cli(OmitArgPrefixes[GlueConfig], args=flags)
        else:
            config = tyro.cli(OmitArgPrefixes[ImageClassificationConfig], args=flags)
        assert config.part == "encoder"
        made = config.model.removeprefix("transformers:").removesuffix("/model")
        before = [str(other.result.parent) for other in steps[: steps.index(step)]]
        assert made in before, "it is there by then"
    distilled = [step.name for step in steps if step.variant == "distilled-text"]
    assert distilled == (["distilled-text", "distilled-text-seed1"] if scale == "full" else [])
    assert steps_of([TABLES["unimodal"]], "small", Places(tmp_path, tmp_path)) == []


def test_only_the_table_of_teachers_classifies_by_names(tmp_path: Path) -> None:
    places = Places(tmp_path, tmp_path / "data")
    for name, models in (("teachers", 5), ("distillation", 0)):
        steps = steps_of([TABLES[name]], "full", places)
        assert sum(step.command[:2] == ("evaluate", "zero-shot") for step in steps) == models


def test_labelled_scenes_have_their_classes_on_both_sides_and_no_place_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []

    def noted(scene: Scene) -> Image.Image:
        shown.append(scene.key)
        return render_scene(scene)

    monkeypatch.setattr(labelled_scenes, "render_scene", noted)
    for folder in (tmp_path / "a", tmp_path / "b"):
        shown.clear()
        labelled_scenes.write_labelled_scenes(folder, {"train": 60, "val": 40})
    data = read_image_classes(tmp_path / "a", 0.2, 0)
    assert data.digest == read_image_classes(tmp_path / "b", 0.2, 0).digest
    assert len(data.names) > 10
    assert 0 < data.train.images < 60
    assert set(shown[: data.train.images]).isdisjoint(shown[data.train.images :])
    with Image.open(io.BytesIO(data.train.load(0))) as picture:
        assert picture.size == (64, 64)


def test_cut_halves_are_those_that_pretraining_starts_from(tmp_path: Path) -> None:
    cut_halves.main(["--out", str(tmp_path / "cut"), *recipe_flags("bank", "scenes")])
    saved = SSMKE.from_pretrained(tmp_path / "cut")
    recipe = parse_recipe(recipe_flags("mse", "scenes"), "test")
    fresh = SSMKE(recipe.model)
    for half in ("image_encoder", "text_encoder"):
        mine, other = (getattr(model, half).state_dict() for model in (saved, fresh))
        assert all(torch.equal(value, other[name]) for name, value in mine.items())


def test_an_unknown_table_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'distilation': choose one of distillation, token-type"):
        table("distilation")
