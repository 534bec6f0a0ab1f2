"""The embedded dataset: same seed, same bytes; splits share no composition; captions say what is drawn."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ssmke.data.manifest import Manifest
from ssmke.data.shards import ShardIndex
from ssmke.data.sources import scene_plan
from ssmke.data.sources.scene_captions import (
    COLOUR_WORDS,
    MAX_WORDS,
    SHAPE_WORDS,
    caption_words,
    write_captions,
)
from ssmke.data.sources.scene_plan import COLOURS, Scene, Thing, draw_scene, plan_scenes, split_of
from ssmke.data.sources.scene_render import render_scene
from ssmke.data.sources.scenes import PROGRESS, ScenesConfig, write_scenes
from ssmke.errors import ConfigError, DataError

SMALL = ScenesConfig(train=24, val=6, test=10, images_per_shard=8)


def scene_of(seed: int) -> Scene:
    return draw_scene(np.random.default_rng(seed))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix == ".tar"}


def test_no_composition_is_in_two_splits() -> None:
    keys = {split: {scene.key for scene in plan_scenes(0, split, 600)} for split in scene_plan.SPLITS}
    other_seed = {scene.key for scene in plan_scenes(9001, "train", 600)}
    assert not keys["train"] & keys["val"]
    assert not keys["train"] & keys["test"]
    assert not keys["val"] & keys["test"]
    assert not other_seed & (keys["val"] | keys["test"]), "another seed must not leak test compositions"


def test_held_out_scenes_are_all_different() -> None:
    for split in ("val", "test"):
        scenes = plan_scenes(0, split, 800)
        assert len({scene.key for scene in scenes}) == 800


@given(st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_a_mirrored_pair_is_the_same_composition_only_for_next_to(seed: int) -> None:
    scene = scene_of(seed)
    if scene.kind != "pair":
        return
    swapped = Scene(scene.kind, scene.groups[::-1], scene.relation, scene.canvas, scene.seed)
    assert (swapped.key == scene.key) == (scene.relation == "next")


def test_plan_is_a_prefix_of_a_longer_plan() -> None:
    assert plan_scenes(3, "test", 20) == plan_scenes(3, "test", 60)[:20]


def test_every_split_has_every_kind_of_scene() -> None:
    for split in scene_plan.SPLITS:
        kinds = Counter(scene.kind for scene in plan_scenes(1, split, 400))
        assert set(kinds) == set(scene_plan.KINDS)


def _extent(things: list[Thing], axis: str) -> tuple[float, float]:
    places = [getattr(thing, axis) for thing in things]
    return min(places), max(places)


@given(st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_relations_hold_in_the_geometry(seed: int) -> None:
    scene = scene_of(seed)
    first, last = list(scene.groups[0]), list(scene.groups[-1])
    if scene.kind in ("pair", "group and one") and scene.relation in ("left", "above"):
        axis = "x" if scene.relation == "left" else "y"
        assert _extent(first, axis)[1] < _extent(last, axis)[0]
    if scene.relation == "inside":
        distance = np.hypot(first[0].x - last[0].x, first[0].y - last[0].y)
        assert distance + first[0].radius < last[0].radius
    for thing in (thing for group in scene.groups for thing in group):
        # Nothing touches the border: a crop of 90 % of the area then cuts edges, never a whole thing.
        assert thing.x - thing.radius > 0.02
        assert thing.x + thing.radius < 0.98
        assert thing.y - thing.radius > 0.02
        assert thing.y + thing.radius < 0.98


@given(st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_colours_that_are_named_can_be_seen(seed: int) -> None:
    scene = scene_of(seed)
    pixels = np.asarray(render_scene(scene), np.int32).reshape(-1, 3)
    for group in scene.groups:
        nearest = np.abs(pixels - np.array(COLOURS[group[0].colour])).max(axis=1)
        assert (nearest <= 24).sum() >= 4, f"{group[0].kind} is not visible in {scene.key}"


@given(st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_captions_are_distinct_short_and_of_the_vocabulary(seed: int) -> None:
    captions = write_captions(scene_of(seed), 5)
    vocabulary = set(caption_words())
    assert len(set(captions)) == 5
    for caption in captions:
        words = caption.split()
        assert 1 < len(words) <= MAX_WORDS
        assert set(words) <= vocabulary
        assert "{" not in caption


@given(st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_full_captions_name_every_shape_and_colour(seed: int) -> None:
    scene = scene_of(seed)
    full = write_captions(scene, 2)[1]  # the second level of the cycle is "full"
    for group in scene.groups:
        thing, many = group[0], int(len(group) > 1)
        shapes = "|".join(re.escape(forms[many]) for forms in SHAPE_WORDS[thing.shape])
        colours = "|".join(map(re.escape, COLOUR_WORDS.get(thing.colour, (thing.colour,))))
        assert re.search(rf"\b({colours}) ({shapes})\b", full), (thing.kind, full)


def test_captions_are_many_and_seldom_shared() -> None:
    captions = [caption for scene in plan_scenes(0, "train", 800) for caption in write_captions(scene, 5)]
    assert len(set(captions)) > 0.97 * len(captions)


def test_same_seed_same_bytes_whatever_the_number_of_workers(tmp_path: Path) -> None:
    one = write_scenes(tmp_path / "one", SMALL, workers=1)
    two = write_scenes(tmp_path / "two", SMALL, workers=2)
    assert one == two
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert not (tmp_path / "one" / PROGRESS).exists()


def test_manifest_and_samples_say_what_was_asked_for(tmp_path: Path) -> None:
    manifest = write_scenes(tmp_path, SMALL, workers=1)
    assert manifest == Manifest.load(tmp_path)
    assert {name: split.images for name, split in manifest.splits.items()} == {
        "train": 24,
        "val": 6,
        "test": 10,
    }
    assert manifest.splits["test"].captions == 50
    shard = manifest.splits["test"].shards[0]
    sample = ShardIndex.load(tmp_path / shard.file).read(0)
    image = Image.open(io.BytesIO(sample.image))
    assert (image.format, image.size, image.mode) == ("JPEG", (64, 64), "RGB")
    assert len(sample.captions) == 5
    assert split_of(sample.extra["composition"]) == "test"


def test_another_seed_gives_other_scenes(tmp_path: Path) -> None:
    write_scenes(tmp_path / "0", SMALL, workers=1)
    write_scenes(
        tmp_path / "1", ScenesConfig(train=24, val=6, test=10, images_per_shard=8, seed=1), workers=1
    )
    assert files(tmp_path / "0")["test-00000.tar"] != files(tmp_path / "1")["test-00000.tar"]


def test_a_rerun_keeps_finished_shards_and_repairs_damaged_ones(tmp_path: Path) -> None:
    manifest = write_scenes(tmp_path, SMALL, workers=1)
    before = files(tmp_path)
    kept = (tmp_path / "train-00000.tar").stat().st_mtime_ns
    damaged = tmp_path / "train-00001.tar"
    damaged.write_bytes(before["train-00001.tar"][:-700])
    assert write_scenes(tmp_path, SMALL, workers=1) == manifest
    assert files(tmp_path) == before
    assert (tmp_path / "train-00000.tar").stat().st_mtime_ns == kept


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    whole = write_scenes(tmp_path / "whole", SMALL, workers=1)
    part = tmp_path / "part"
    write_scenes(part, SMALL, workers=1)
    manifest = json.loads((part / "manifest.json").read_text())
    done = manifest["splits"]["train"]["shards"][:1]
    state = {"fingerprint": manifest["source"]["fingerprint"], "shards": done}
    (part / PROGRESS).write_text(json.dumps(state))
    for path in part.glob("*.json"):
        if path.name == "manifest.json":
            path.unlink()
    for path in [*part.glob("val*"), *part.glob("test*")]:
        path.unlink()
    kept = (part / "train-00000.tar").stat().st_mtime_ns
    assert write_scenes(part, SMALL, workers=1) == whole
    assert (part / "train-00000.tar").stat().st_mtime_ns == kept
    assert not (part / PROGRESS).exists()


def test_a_garbled_progress_file_only_costs_time(tmp_path: Path) -> None:
    (tmp_path / PROGRESS).write_text('{"fingerprint": ')
    assert write_scenes(tmp_path, SMALL, workers=1).images == 40


def test_another_dataset_is_never_overwritten(tmp_path: Path) -> None:
    Manifest(name="flickr8k", source={}, splits={}, skipped={}).save(tmp_path)
    with pytest.raises(DataError, match="flickr8k"):
        write_scenes(tmp_path, SMALL, workers=1)


@pytest.mark.parametrize(
    ("field", "value"),
    [("train", -1), ("test", 100_000), ("captions", 0), ("side", 4), ("images_per_shard", 0)],
)
def test_impossible_sizes_name_the_flag(field: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"--{field.replace('_', '-')}"):
        ScenesConfig(**{field: value})  # type: ignore[arg-type]
