"""Recipes: what the command line can say, and what contradicts itself."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from ssmke.errors import ConfigError
from ssmke.recipes import RECIPES, DataConfig, named, parse

DS = ["--deepspeed_config", "ds_configs/zero2.json"]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_whole_and_saves_as_json(name: str) -> None:
    recipe = named(name)
    assert recipe.name == name
    assert json.loads(json.dumps(recipe.resolved()))["optim"]["lr"] == recipe.optim.lr


def test_the_published_recipe_is_the_default_of_its_parts() -> None:
    recipe = named("ssmke-base")
    assert (recipe.optim.batch_size, recipe.optim.epochs, recipe.optim.warmup) == (512, 7, 0.1)
    assert recipe.optim.lr == pytest.approx(1e-4 * 512 / 256)
    assert (recipe.optim.betas, recipe.optim.eps, recipe.optim.weight_decay) == ((0.9, 0.98), 1e-6, 0.01)
    assert (recipe.loss.distillation, recipe.loss.bank_size, recipe.loss.contrast) == (
        "contrastive",
        65_536,
        "all",
    )
    assert (recipe.data.augmentation.flip, recipe.data.augmentation.crop_min) == (0.5, 0.9)
    assert (recipe.model.image.depth, recipe.model.text.depth, recipe.model.text.max_tokens) == (6, 6, 64)
    assert recipe.model.shared.layer_scale == 0.2


def test_fields_are_overridden_from_the_command_line_and_the_launcher_flags_are_accepted() -> None:
    invocation = parse([
        "--local_rank=1", *DS, "--recipe", "ssmke-base", "--optim.lr", "3e-4", "--data.shards", "a", "b",
        "--loss.bank", "cache", "--resume", "auto",
    ])  # fmt: skip
    recipe = invocation.recipe
    assert (recipe.optim.lr, recipe.data.shards, recipe.loss.bank) == (3e-4, ("a", "b"), "cache")
    assert (recipe.resume, invocation.deepspeed_config) == ("auto", "ds_configs/zero2.json")
    assert recipe.optim.epochs == 7


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--recipe", "ssmke-bsae"], "did you mean ssmke-base"),
        (["--recipe", "ssmke-base", "--loss.distillation", "kl"], "--teacher.output logits"),
        (["--recipe", "ssmke-base-kl", "--loss.distillation", "mse"], "--teacher.output features"),
        (
            ["--recipe", "ssmke-base", "--loss.bank", "cache", "--targets.mode", "online"],
            "--targets.mode cache",
        ),
        (["--recipe", "ssmke-base", "--optim.batch-size", "0"], "--optim.batch-size"),
        (["--recipe", "ssmke-base", "--stop-after", "0"], "--stop-after"),
        (["--recipe", "ssmke-base", "--data.augmentation.flip", "2"], "--data.augmentation.flip"),
    ],
)
def test_contradictions_name_the_flag(flags: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse([*DS, *flags])
    assert message in str(error.value)


def test_the_deepspeed_config_is_required_by_name() -> None:
    with pytest.raises(ConfigError, match="--deepspeed_config is missing"):
        parse(["--recipe", "ssmke-base"])


def test_an_unknown_flag_is_refused_with_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse([*DS, "--recipe", "ssmke-base", "--optim.learning-rate", "1"])
    assert end.value.code == 2
    assert "--optim.learning-rate" in capsys.readouterr().err


def test_importing_the_package_is_cheap() -> None:
    code = "import sys, ssmke; sys.exit(any(m in sys.modules for m in ('torch', 'timm', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_place_comes_once_and_has_a_weight() -> None:
    with pytest.raises(ConfigError, match=r"--data\.shards names data/a twice: .*data/a\*2"):
        DataConfig(shards=("data/a", "x=data/a"))
    for other in ("data/a/", "./data/../data/a"):
        with pytest.raises(ConfigError, match="twice"):
            DataConfig(shards=("data/a", other))
    with pytest.raises(ConfigError, match="twice"):
        DataConfig(shards=("s3://b/a", "x=s3://b/a/"))
    assert DataConfig(shards=("a=data/a,b=s3://x/b*0.5",)).places == ("data/a", "s3://x/b")
    with pytest.raises(ConfigError, match="exactly one folder"):
        DataConfig(shards=("https://host/scenes",), make="scenes")


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("s3://key:secret@bucket/a", "s3://bucket/a"),
        ("https://me:secret@host/a", "https://host/a"),
        ("https://host/a?signature=secret", "https://host/a"),
    ],
)
def test_addresses_hold_no_secrets_because_recipes_are_kept(place: str, told: str) -> None:
    for flag in ("shards", "eval_shards"):
        with pytest.raises(ConfigError) as error:
            DataConfig(**{"shards": ("data/x",), flag: (place,)})
        assert f"--data.{flag.replace('_', '-')} {told}: an address may hold no password" in str(error.value)
        assert "secret" not in str(error.value)


def test_datasets_to_evaluate_on_have_names_but_no_weights() -> None:
    config = DataConfig(shards=("data/x",), eval_shards=("coco=data/a,web=data/b",))
    assert config.eval_places == ("data/a", "data/b")
    with pytest.raises(ConfigError, match=r"--data\.eval-shards data/a: weights are for --data\.shards only"):
        DataConfig(shards=("data/x",), eval_shards=("data/a*2",))
