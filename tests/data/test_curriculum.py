"""What the student sees of an image at which step, as a pure function."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssmke.data.augmentation import AugmentationConfig, show, view_box
from ssmke.data.batch import Batch
from ssmke.data.curriculum import Curriculum, CurriculumConfig, kept_count, kept_patches, side_at
from ssmke.data.dataset import ImageTextShards
from ssmke.data.decode import EncodedImage
from ssmke.data.order import EpochOrder
from ssmke.data.stream import BatchStream, PairBatches, StreamConfig, StreamPlan
from ssmke.errors import ConfigError
from ssmke.models.image_encoders import ImageEncoderConfig
from ssmke.models.student import SSMKE
from ssmke.recipes import Recipe, named, parse_recipe
from ssmke.targets.cache import TargetsConfig


@given(st.text(max_size=20), st.integers(0, 100), st.integers(1, 300), st.floats(0, 0.999))
def test_kept_patches_are_a_sorted_choice_of_the_wanted_size(
    key: str, number: int, patches: int, drop: float
) -> None:
    kept = kept_patches(key, number, patches, drop)
    assert kept.dtype == np.int64
    assert len(kept) == kept_count(patches, drop) >= 1
    assert abs(len(kept) - patches * (1 - drop)) <= 1
    assert kept[0] >= 0
    assert kept[-1] < patches
    assert (np.diff(kept) > 0).all()
    assert np.array_equal(kept, kept_patches(key, number, patches, drop))


def test_another_process_keeps_the_same_patches() -> None:
    code = (
        "from ssmke.data.curriculum import kept_patches; print(kept_patches('photo#2', 3, 16, 0.5).tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(kept_patches("photo#2", 3, 16, 0.5).tolist())


def test_every_patch_and_every_pair_of_patches_is_kept_equally_often() -> None:
    draws = 4000
    single: Counter[int] = Counter()
    pairs: Counter[tuple[int, int]] = Counter()
    for draw in range(draws):
        kept = kept_patches(f"photo{draw % 40}", draw // 40, 9, 5 / 9).tolist()
        single.update(kept)
        pairs.update((a, b) for a in kept for b in kept if a < b)
    # Binomial: 4 of 9 and 4*3 of 9*8, within five deviations.
    for count, chance in ((single, 4 / 9), (pairs, 12 / 72)):
        deviation = (draws * chance * (1 - chance)) ** 0.5
        assert max(abs(seen - draws * chance) for seen in count.values()) < 5 * deviation
    assert len(single) == 9
    assert len(pairs) == 36


def test_the_number_and_the_key_decide_which() -> None:
    sets = {tuple(kept_patches(key, number, 64, 0.5)) for key in ("a", "b") for number in range(5)}
    assert len(sets) == 10


@pytest.mark.parametrize(
    ("share", "sizes"), [(0.0, [64] * 5), (0.8, [32] * 4 + [64]), (1.0, [32] * 5), (0.5, [32] * 2 + [64] * 3)]
)
def test_the_first_share_of_the_steps_is_small(share: float, sizes: list[int]) -> None:
    config = CurriculumConfig(image_size=32, share=share)
    assert [side_at(config, 64, step, 5) for step in range(5)] == sizes


def test_size_and_patches_change_together() -> None:
    curriculum = Curriculum(CurriculumConfig(32, 0.75, 0.5), full_size=64, patch_size=8, steps=10)
    for step in range(10):
        kept = curriculum.kept(step, "photo#0", 2)
        if step < 5:
            assert curriculum.side(step) == 32
            assert kept is not None
            assert kept.tolist() == kept_patches("photo#0", 2, 16, 0.75).tolist()  # of the smaller image's 16
        else:
            assert (curriculum.side(step), kept) == (64, None)
    assert str(curriculum) == "steps 1 to 5 of 10: 32 of 64 pixels a side, 75% of the patches left out"


@pytest.mark.parametrize("config", [CurriculumConfig(), CurriculumConfig(32, 0.5, share=0.0)])
def test_without_a_curriculum_nothing_is_left_out(config: CurriculumConfig) -> None:
    curriculum = Curriculum(config, full_size=64, patch_size=None, steps=10)
    assert not config.active
    assert {curriculum.side(step) for step in range(10)} == {64}
    assert curriculum.kept(0, "photo#0", 0) is None
    assert [(p.share, p.side, p.drop) for p in config.phases(64)] == [(1.0, 64, 0.0)]


def test_phases_share_out_the_run() -> None:
    phases = CurriculumConfig(patch_drop=0.5, share=0.75).phases(64)
    assert [(p.share, p.side, p.drop) for p in phases] == [(0.75, 64, 0.5), (0.25, 64, 0.0)]
    assert len(CurriculumConfig(patch_drop=0.5, share=1.0).phases(64)) == 1


@pytest.mark.parametrize(
    ("values", "flag"),
    [
        ({"image_size": 0}, "image-size 0"),
        ({"patch_drop": 1.0}, "patch-drop 1.0"),
        ({"patch_drop": -0.1}, "patch-drop -0.1"),
        ({"share": 1.5}, "share 1.5"),
    ],
)
def test_impossible_parameters_are_refused_by_flag(values: dict[str, float], flag: str) -> None:
    with pytest.raises(ConfigError, match=rf"--data\.curriculum\.{flag}"):
        CurriculumConfig(**values)  # type: ignore[arg-type]


CHEAP = CurriculumConfig(image_size=16, patch_drop=0.5, share=0.5)


def batches(
    shards: ImageTextShards, model: SSMKE, config: CurriculumConfig, *, rank: int = 0, world_size: int = 1
) -> PairBatches:
    plan = StreamPlan(EpochOrder.once(shards.pairs, 5), 6, 2, rank, world_size)
    curriculum = Curriculum(config, 32, 8, plan.steps)
    return PairBatches(
        shards, plan, model.tokenizer(), 16, 32, AugmentationConfig(), packed_parts=3, curriculum=curriculum
    )


def same(ours: Batch, theirs: Batch) -> bool:
    kept = (ours.kept is None) == (theirs.kept is None)
    return (
        kept
        and ours.keys == theirs.keys
        and torch.equal(ours.images, theirs.images)
        and (ours.kept is None or theirs.kept is None or torch.equal(ours.kept, theirs.kept))
    )


def test_a_batch_has_one_size_and_each_pair_its_own_patches(shards: ImageTextShards, model: SSMKE) -> None:
    data = batches(shards, model, CHEAP)
    whole = batches(shards, model, CurriculumConfig())
    assert len(data) >= 8
    for step in range(len(data)):
        batch, plain, epoch = data[step], whole[step], data.plan.epoch(step)
        assert batch.keys == plain.keys
        assert plain.kept is None
        if step >= round(len(data) / 2):
            assert same(batch, plain)
            continue
        assert batch.images.shape == (6, 3, 16, 16)
        assert batch.kept is not None
        assert batch.kept.tolist() == [kept_patches(key, epoch, 4, 0.5).tolist() for key in batch.keys]
        for row, key in enumerate(batch.keys):  # the very crop of the full size, rendered smaller
            choose = partial(view_box, key.split("#")[0], epoch, data.augmentation)
            image = EncodedImage(shards.read(int(batch.image_ids[row])).image)
            assert np.array_equal(batch.images[row].numpy(), show(image, choose, 16))
        for number, part in enumerate(batch.split(3)):
            assert part.kept is not None
            assert torch.equal(part.kept, batch.kept[2 * number : 2 * number + 2])


def test_two_ranks_show_what_one_would(shards: ImageTextShards, model: SSMKE) -> None:
    one = batches(shards, model, CHEAP)
    two = [batches(shards, model, CHEAP, rank=rank, world_size=2) for rank in (0, 1)]
    for step in range(len(one)):
        whole, parts = one[step], [half[step] for half in two]
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        kept = [part.kept for part in parts if part.kept is not None]
        assert len(kept) == (0 if whole.kept is None else 2)
        assert whole.kept is None or torch.equal(torch.cat(kept), whole.kept)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_resuming_change_nothing(workers: int, shards: ImageTextShards, model: SSMKE) -> None:
    data = batches(shards, model, CHEAP)
    switch = round(len(data) / 2)
    for start in (switch - 2, switch, len(data) - 1):
        stream = BatchStream(batches(shards, model, CHEAP), StreamConfig(workers=workers), start, pin=False)
        seen = list(stream)
        assert len(seen) == len(data) - start
        assert all(same(batch, data[start + number]) for number, batch in enumerate(seen))


def test_cached_targets_stay_those_of_the_whole_image(shards: ImageTextShards, model: SSMKE) -> None:
    class Targets:
        views = 1

        def row(self, image: int, view: int) -> np.ndarray:
            return np.array([image, view], dtype=np.float16)

    data = batches(shards, model, CHEAP)
    data.targets = Targets()
    batch = data[0]
    assert batch.targets is not None
    assert batch.targets[:, 0].tolist() == batch.image_ids.tolist()
    assert not batch.targets[:, 1].any()


def test_an_online_teacher_sees_all_patches_but_no_smaller_images() -> None:
    def recipe(config: CurriculumConfig, **targets: Any) -> Recipe:
        base = named("ssmke-base")
        return dataclasses.replace(
            base,
            data=dataclasses.replace(base.data, curriculum=config),
            targets=TargetsConfig(**targets),
            model=dataclasses.replace(base.model, image=ImageEncoderConfig(frozen=True)),
        )

    recipe(CurriculumConfig(patch_drop=0.5), mode="online")
    recipe(CurriculumConfig(112, 0.5), mode="cache")
    with pytest.raises(ConfigError, match=r"--data\.curriculum\.image-size 112 .*--targets\.mode cache"):
        recipe(CurriculumConfig(112), mode="online")
    with pytest.raises(ConfigError, match=r"--targets\.frozen-tokens .*whole images"):
        recipe(CurriculumConfig(patch_drop=0.5), frozen_tokens=True)


def test_flags_reach_the_recipe() -> None:
    recipe = parse_recipe(
        [
            "--data.curriculum.image-size", "112", "--data.curriculum.patch-drop", "0.25",
            "--data.curriculum.share", "0.6", "--model.image.freeze-blocks", "2", "--model.text.freeze-layers", "3",
        ],
        "pretrain.py",
    )  # fmt: skip
    assert recipe.data.curriculum == CurriculumConfig(112, 0.25, 0.6)
    assert (recipe.model.image.freeze_blocks, recipe.model.text.freeze_layers) == (2, 3)
