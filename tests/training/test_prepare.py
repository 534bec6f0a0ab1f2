"""Which datasets a run trains and evaluates on."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssmke.data.manifest import Manifest, Split
from ssmke.data.shards import Sample, write_shard
from ssmke.errors import DataError
from ssmke.recipes import RECIPES, Recipe
from ssmke.training.prepare import epoch_order, open_evaluation, open_shards
from tests.conftest import samples


def folder(path: Path, **splits: list[Sample]) -> Path:
    path.mkdir()
    made = {
        name: Split((write_shard(path / f"{name}-00000.tar", rows, name),)) for name, rows in splits.items()
    }
    Manifest(path.name, {"fingerprint": path.name}, made).save(path)
    return path


@pytest.fixture
def places(tmp_path: Path) -> list[str]:
    """Two datasets, of which only the first has a split for evaluation."""
    captioned = folder(tmp_path / "captioned", train=samples(8, 1), val=samples(3, 2))
    crawled = folder(tmp_path / "crawled", train=samples(20, 3))
    return [str(captioned), str(crawled)]


def recipe(*shards: str, eval_shards: tuple[str, ...] = ()) -> Recipe:
    made = RECIPES["ssmke-base"]()
    made.data.shards, made.data.eval_shards = shards, eval_shards
    return made


def test_sources_without_an_evaluation_split_are_trained_on_only(places: list[str]) -> None:
    made = recipe(f"coco={places[0]}", f"web={places[1]}*0.5")
    shards = open_shards(made, lambda line: None)
    assert shards.images == 28
    assert epoch_order(made, shards).pairs == shards.pairs_by_directory[0] + round(
        shards.pairs_by_directory[1] / 2
    )
    assert open_evaluation(made).images == 3


def test_evaluation_may_be_on_datasets_of_its_own(places: list[str], tmp_path: Path) -> None:
    other = folder(tmp_path / "other", val=samples(5, 4))
    assert open_evaluation(recipe(*places, eval_shards=(str(other),))).images == 5
    with pytest.raises(DataError, match="has no split 'val'"):
        open_evaluation(recipe(*places, eval_shards=(places[1],)))


def test_nothing_to_evaluate_on_is_found_out_before_training(places: list[str]) -> None:
    with pytest.raises(DataError, match=r"crawled has no split 'val'"):
        open_shards(recipe(places[1]), lambda line: None)
