"""The stream is exact: every pair once an epoch, alike for any ranks, workers and stop points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmke.data.augmentation import AugmentationConfig, render, view_box
from ssmke.data.dataset import ImageTextShards
from ssmke.data.decode import decode_image
from ssmke.data.stream import (
    BAD_MINIMUM,
    BadSampleCounter,
    BatchStream,
    PairBatches,
    StreamConfig,
    StreamPlan,
    shown_view,
)
from ssmke.errors import BadSample, ConfigError, DataError
from ssmke.models.student import SSMKE


class KeyedTargets:
    """Targets that say which image and view they are of."""

    def __init__(self, views: int) -> None:
        self.views = views

    def row(self, image: int, view: int) -> np.ndarray:
        return np.array([image, view], dtype=np.float16)


def batches(
    shards: ImageTextShards,
    model: SSMKE,
    *,
    batch_size: int = 6,
    rank: int = 0,
    world_size: int = 1,
    epochs: int = 2,
    targets: KeyedTargets | None = None,
) -> PairBatches:
    plan = StreamPlan(shards.pairs, batch_size, epochs, 5, rank, world_size)
    return PairBatches(shards, plan, model.tokenizer(), 16, 32, AugmentationConfig(), targets)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 500), st.integers(1, 8), st.integers(1, 6), st.integers(1, 3), st.integers(0, 1000))
def test_ranks_share_out_each_epoch_without_gap_or_repeat(
    pairs: int, local: int, ranks: int, epochs: int, seed: int
) -> None:
    size = local * ranks
    if pairs < size:
        with pytest.raises(ConfigError, match=r"--optim\.batch-size"):
            StreamPlan(pairs, size, epochs, seed)
        return
    whole = StreamPlan(pairs, size, epochs, seed)
    parts = [StreamPlan(pairs, size, epochs, seed, rank, ranks) for rank in range(ranks)]
    assert whole.steps == epochs * (pairs // size)
    for epoch in range(epochs):
        seen = []
        for step in range(epoch * whole.steps_per_epoch, (epoch + 1) * whole.steps_per_epoch):
            joined = np.concatenate([part.positions(step) for part in parts])
            assert np.array_equal(joined, whole.positions(step))
            seen.append(whole.permutation(epoch)[joined])
        everything = np.concatenate(seen)
        assert len(set(everything.tolist())) == len(everything) == whole.steps_per_epoch * size


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    plan = StreamPlan(1000, 10, 2, 0)
    assert sorted(plan.permutation(0)) == list(range(1000))
    assert not np.array_equal(plan.permutation(0), plan.permutation(1))
    assert not np.array_equal(plan.permutation(0), StreamPlan(1000, 10, 2, 1).permutation(0))


def test_ranks_that_do_not_divide_the_batch_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of the 3 ranks"):
        StreamPlan(100, 10, 1, 0, 0, 3)


def test_two_ranks_show_the_pairs_of_one(shards: ImageTextShards, model: SSMKE) -> None:
    one = batches(shards, model)
    two = [batches(shards, model, rank=rank, world_size=2) for rank in (0, 1)]
    for step in range(len(one)):
        assert two[0][step].keys + two[1][step].keys == one[step].keys
        assert torch.equal(torch.cat([two[0][step].images, two[1][step].images]), one[step].images)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_workers_and_resuming_change_nothing(workers: int, shards: ImageTextShards, model: SSMKE) -> None:
    data = batches(shards, model)
    expected = [data[step].keys for step in range(len(data))]
    for start in (0, 3, len(data) - 1):
        stream = BatchStream(batches(shards, model), StreamConfig(workers=workers), start, pin=False)
        assert [batch.keys for batch in stream] == expected[start:]


def test_bad_samples_are_replaced_by_a_fixed_rule_and_counted(shards: ImageTextShards, model: SSMKE) -> None:
    data, again = batches(shards, model), batches(shards, model)
    reasons: set[str] = set()
    for step in range(len(data)):
        batch = data[step]
        assert len(batch) == 6
        assert batch.keys == again[step].keys
        assert batch.skipped == again[step].skipped
        reasons |= {reason for _, reason in batch.skipped}
    assert {"truncated image", "empty caption"} <= reasons


def test_the_run_stops_when_too_much_is_bad(shards: ImageTextShards, model: SSMKE) -> None:
    counter = BadSampleCounter(max_share=0.01)
    batch = batches(shards, model)[0]
    batch.skipped = (("a", "truncated image"),) * BAD_MINIMUM
    counter.add(batch)
    with pytest.raises(DataError, match=r"truncated image.*ssmke data verify"):
        counter.add(batch)


class Tokens(KeyedTargets):
    """Cached tokens of a frozen encoder; image 0 has none."""

    def row(self, image: int, view: int) -> np.ndarray:
        return np.full(6, np.nan if image == 0 else image, dtype=np.float16)


def test_cached_tokens_take_the_place_of_pixels(shards: ImageTextShards, model: SSMKE) -> None:
    data = batches(shards, model)
    data.tokens = Tokens(1)
    reasons = set()
    for step in range(len(data)):
        batch = data[step]
        assert batch.images.shape == (6, 6)
        assert torch.equal(batch.images[:, 0].long(), batch.image_ids)
        assert 0 not in batch.image_ids.tolist()
        reasons |= {reason for _, reason in batch.skipped}
    assert "image without cached target" in reasons


@pytest.mark.parametrize("views", [1, 3])
def test_the_student_sees_the_view_whose_target_it_gets(
    views: int, shards: ImageTextShards, model: SSMKE
) -> None:
    data = batches(shards, model, epochs=4, targets=KeyedTargets(views))
    for step in range(0, len(data), 3):
        batch, epoch = data[step], data.plan.epoch(step)
        assert batch.targets is not None
        for row in range(len(batch)):
            image, view = (int(v) for v in batch.targets[row])
            assert image == int(batch.image_ids[row])
            assert view == (epoch % views if views > 1 else 0)
            picture = decode_image(shards.read(image).image)
            shown = shown_view(epoch, views)
            box, flip = view_box(shards.key(image), shown, *picture.size, data.augmentation)
            assert np.array_equal(batch.images[row].numpy(), render(picture, box, flip, 32))
            if views > 1:
                assert shown == view


def test_nothing_usable_is_an_error_that_says_so(tmp_path: Path, model: SSMKE) -> None:
    from ssmke.data.manifest import Manifest, Split
    from ssmke.data.shards import Sample, write_shard

    broken = [Sample(f"b{i}", b"\xff\xd8\xff\xe0 not a JPEG", ("a dog",)) for i in range(8)]
    shard = write_shard(tmp_path / "train-00000.tar", broken, "train")
    Manifest("broken", {"fingerprint": "x"}, {"train": Split((shard,))}).save(tmp_path)
    data = batches(ImageTextShards.open([tmp_path], "train"), model, batch_size=2)
    with pytest.raises(DataError, match="samples in a row cannot be used"):
        data[0]


def test_captions_are_padded_to_the_longest_of_the_batch_only(shards: ImageTextShards, model: SSMKE) -> None:
    lengths = set()
    data = batches(shards, model)
    for step in range(len(data)):
        batch = data[step]
        lengths.add(batch.ids.shape[1])
        assert batch.mask.any(dim=0).all()
        assert (batch.ids[~batch.mask] == model.tokenizer().pad_token_id).all()
    assert len(lengths) > 1
    assert max(lengths) <= 16


def test_bad_sample_errors_survive_worker_processes() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(BadSample("truncated image", "key 7")))
    assert (error.reason, error.detail) == ("truncated image", "key 7")
