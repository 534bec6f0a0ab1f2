"""The embedded dataset: same seed, same bytes; splits share no composition; captions say what is drawn."""

from __future__ import annotations

import dataclasses
import fcntl
import io
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ssmke.data.manifest import IMPORT_STATE_NAME, Manifest
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
from ssmke.data.sources.scenes import ScenesConfig, write_scenes
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


def test_an_interrupted_run_goes_on_and_clears_away_what_it_had_begun(tmp_path: Path) -> None:
    whole = write_scenes(tmp_path / "whole", SMALL, workers=1)

    part, drawn = tmp_path / "part", 0

    def stop(images: int) -> None:
        nonlocal drawn
        drawn += images
        if drawn > 12:  # in the second shard of three of train
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_scenes(part, SMALL, workers=1, on_items=stop)
    assert list(files(part)) == ["train-00000.tar"]
    with pytest.raises(DataError, match="has not finished"):
        Manifest.load(part)
    (part / ".train-00001.tar.0123abcd.partial").write_bytes(b"of a run that was killed")
    kept = (part / "train-00000.tar").stat().st_mtime_ns
    assert write_scenes(part, SMALL, workers=1) == whole
    assert (part / "train-00000.tar").stat().st_mtime_ns == kept
    assert files(part) == files(tmp_path / "whole")
    assert not list(part.glob(".*"))


def test_scenes_that_are_there_are_left_as_they_are(tmp_path: Path) -> None:
    manifest = write_scenes(tmp_path, SMALL, workers=1)
    # As written before there was such a file.
    (tmp_path / IMPORT_STATE_NAME).unlink()
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    drawn: list[int] = []
    assert write_scenes(tmp_path, SMALL, 1, drawn.append, drawn.append) == manifest
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert not drawn
    (tmp_path / "val-00000.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"val-00000\.tar is missing or damaged.*delete the folder"):
        write_scenes(tmp_path, SMALL, workers=1)


def state_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_other_scenes_are_refused_by_the_flags_that_differ(tmp_path: Path) -> None:
    write_scenes(tmp_path, SMALL, workers=1)
    before = state_of(tmp_path)
    other = dataclasses.replace(SMALL, train=8, seed=3)
    for name in ("manifest.json", "no such file"):
        # Also where only the shards of a run that was stopped are there.
        (tmp_path / name).unlink(missing_ok=True)
        with pytest.raises(
            DataError, match=r"holds (other scenes|another import): .*--seed was 0, now 3"
        ) as error:
            write_scenes(tmp_path, other, workers=1)
        assert "--train was 24, now 8" in str(error.value)
        assert "Choose another --out" in str(error.value)
        assert files(tmp_path) == {name: data for name, data in before.items() if name.endswith(".tar")}


def test_scenes_of_another_version_are_not_drawn_over(tmp_path: Path) -> None:
    manifest = write_scenes(tmp_path, SMALL, workers=1)
    source = dict(manifest.source) | {"fingerprint": "0" * 64}
    dataclasses.replace(manifest, source=source).save(tmp_path)
    before = state_of(tmp_path)
    with pytest.raises(DataError, match="another version of ssmke drew them"):
        write_scenes(tmp_path, SMALL, workers=1)
    assert state_of(tmp_path) == before


def test_another_dataset_is_never_overwritten(tmp_path: Path, dataset: Callable[..., Path]) -> None:
    for name in ("flickr8k", "scenes"):  # a dataset made of scenes, by reshard, bears that name as well
        folder = dataset(name, {"train": [2]})
        before = state_of(folder)
        with pytest.raises(DataError, match=f"holds the dataset '{name}', made otherwise"):
            write_scenes(folder, SMALL, workers=1)
        assert state_of(folder) == before


def test_tars_of_the_user_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "train-00000.tar").write_bytes(b"years of work")
    with pytest.raises(DataError, match=r"is not empty \(it holds 'train-00000.tar'\)"):
        write_scenes(tmp_path, SMALL, workers=1)
    assert state_of(tmp_path) == {"train-00000.tar": b"years of work"}


def test_two_runs_never_draw_into_one_folder(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process"):
            write_scenes(tmp_path, SMALL, workers=1)
    finally:
        os.close(descriptor)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("field", "value"),
    [("train", -1), ("test", 100_000), ("captions", 0), ("side", 4), ("images_per_shard", 0)],
)
def test_impossible_sizes_name_the_flag(field: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"--{field.replace('_', '-')}"):
        ScenesConfig(**{field: value})
