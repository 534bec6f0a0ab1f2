"""The stream is exact: every pair once an epoch, alike for any ranks, workers and stop points."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssmke.data.augmentation import AugmentationConfig, show, view_box
from ssmke.data.dataset import ImageTextShards
from ssmke.data.decode import EncodedImage
from ssmke.data.manifest import Manifest, Split
from ssmke.data.order import EpochOrder, Source
from ssmke.data.shards import Sample, write_shard
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
    plan = StreamPlan(EpochOrder.once(shards.pairs, 5), batch_size, epochs, rank, world_size)
    return PairBatches(shards, plan, model.tokenizer(), 16, 32, AugmentationConfig(), targets)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 500), st.integers(1, 8), st.integers(1, 6), st.integers(1, 3), st.integers(0, 1000))
def test_ranks_share_out_each_epoch_without_gap_or_repeat(
    pairs: int, local: int, ranks: int, epochs: int, seed: int
) -> None:
    size = local * ranks
    if pairs < size:
        with pytest.raises(ConfigError, match=r"--optim\.batch-size"):
            StreamPlan(EpochOrder.once(pairs, seed), size, epochs)
        return
    order = EpochOrder.once(pairs, seed)
    whole = StreamPlan(order, size, epochs)
    parts = [StreamPlan(order, size, epochs, rank, ranks) for rank in range(ranks)]
    assert whole.steps == epochs * (pairs // size)
    for epoch in range(epochs):
        seen = []
        for step in range(epoch * whole.steps_per_epoch, (epoch + 1) * whole.steps_per_epoch):
            joined = np.concatenate([part.positions(step) for part in parts])
            assert np.array_equal(joined, whole.positions(step))
            seen.append(order.epoch(epoch)[joined])
        everything = np.concatenate(seen)
        assert len(set(everything.tolist())) == len(everything) == whole.steps_per_epoch * size


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    order = EpochOrder.once(1000, 0)
    assert sorted(order.epoch(0)) == list(range(1000))
    assert not np.array_equal(order.epoch(0), order.epoch(1))
    assert not np.array_equal(order.epoch(0), EpochOrder.once(1000, 1).epoch(0))


def test_ranks_that_do_not_divide_the_batch_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of the 3 ranks"):
        StreamPlan(EpochOrder.once(100, 0), 10, 1, 0, 3)


def test_two_ranks_show_the_pairs_of_one(shards: ImageTextShards, model: SSMKE) -> None:
    one = batches(shards, model)
    two = [batches(shards, model, rank=rank, world_size=2) for rank in (0, 1)]
    for step in range(len(one)):
        assert two[0][step].keys + two[1][step].keys == one[step].keys
        assert torch.equal(torch.cat([two[0][step].images, two[1][step].images]), one[step].images)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    ranks=st.sampled_from([1, 2, 3, 6]),
    stop=st.integers(0, 40),
    window=st.integers(0, 3),
    weight=st.sampled_from([1.0, 1.0, 0.5, 1.5]),
    workers=st.sampled_from([0, 0, 0, 2]),
)
def test_batches_depend_on_nothing_but_seed_and_data(
    sizes: list[int],
    ranks: int,
    stop: int,
    window: int,
    weight: float,
    workers: int,
    samples: Callable[..., list[Sample]],
    model: SSMKE,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Any shard sizes, ranks, workers and stop points: together, ranks show what one rank would, without a break."""
    rows = samples(max(sum(sizes), 8))
    if sum(sizes) < 8:
        sizes = [*sizes, 8 - sum(sizes)]
    shards = dealt(rows, sizes, tmp_path_factory.mktemp("dealt"))

    def data(rank: int, world_size: int) -> PairBatches:
        order = EpochOrder([Source(shards.pairs, weight)], 5, shards.first_pairs, window)
        plan = StreamPlan(order, 6, 3, rank, world_size)
        return PairBatches(shards, plan, model.tokenizer(), 16, 32, AugmentationConfig())

    whole = data(0, 1)
    expected = [whole[step].keys for step in range(len(whole))]
    stop = min(stop, len(whole))
    shown: list[tuple[str, ...]] = [()] * len(whole)
    for rank in range(ranks):
        for begin, end in (
            (0, stop),
            (stop, len(whole)),
        ):  # a new process goes on where the first one stopped
            stream = BatchStream(data(rank, ranks), StreamConfig(workers=workers), begin, pin=False)
            for step, batch in zip(range(begin, end), stream, strict=False):
                shown[step] += batch.keys
    assert shown == expected
    if window == 0 and weight == 1:  # then not even the shards matter
        undivided = dealt(rows, [len(rows)], tmp_path_factory.mktemp("whole"))
        same = batches(undivided, model, epochs=3)
        assert [same[step].keys for step in range(len(same))] == expected


def dealt(rows: list[Sample], sizes: list[int], folder: Path) -> ImageTextShards:
    """The samples in shards of these sizes."""
    infos, first = [], 0
    for number, size in enumerate(sizes):
        infos.append(write_shard(folder / f"train-{number:05d}.tar", rows[first : first + size], "train"))
        first += size
    Manifest("dealt", {"fingerprint": "x"}, {"train": Split(tuple(infos))}).save(folder)
    return ImageTextShards.open([folder], "train")


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
            picture = EncodedImage(shards.read(image).image)
            shown = shown_view(epoch, views)
            choose = partial(view_box, shards.key(image), shown, data.augmentation)
            assert np.array_equal(batch.images[row].numpy(), show(picture, choose, 32))
            if views > 1:
                assert shown == view


def test_nothing_usable_is_an_error_that_says_so(tmp_path: Path, model: SSMKE) -> None:
    broken = [Sample(f"b{i}", b"\xff\xd8\xff\xe0 not a JPEG", ("a dog",)) for i in range(8)]
    shard = write_shard(tmp_path / "train-00000.tar", broken, "train")
    Manifest("broken", {"fingerprint": "x"}, {"train": Split((shard,))}).save(tmp_path)
    data = batches(ImageTextShards.open([tmp_path], "train"), model, batch_size=2)
    for workers in (0, 1):
        stream = BatchStream(data, StreamConfig(workers=workers), 0, pin=False)
        with pytest.raises(DataError) as error:
            next(iter(stream))
        # Also out of a worker it is this message, and not its traceback.
        assert re.match(r"32 samples in a row cannot be used .*ssmke data verify", str(error.value))


def test_workers_end_with_the_iterator(shards: ImageTextShards, model: SSMKE) -> None:
    before = set(psutil.Process().children())
    iterator = iter(BatchStream(batches(shards, model), StreamConfig(workers=2), 0, pin=False))
    next(iterator)
    workers = set(psutil.Process().children()) - before
    assert len(workers) >= 2
    iterator.close()
    # Their answer to SIGTERM is to go on for two minutes.
    assert not psutil.wait_procs(workers, timeout=20)[1]


def test_captions_that_are_not_there_are_a_bad_sample(
    samples: Callable[..., list[Sample]], model: SSMKE, tmp_path: Path
) -> None:
    shards = dealt(samples(9), [9], tmp_path)
    lying = ImageTextShards([(path, info) for path, info, _ in shards.shards], shards.captions[::-1].copy())
    data = batches(lying, model)
    reasons = {reason for step in range(len(data)) for _, reason in data[step].skipped}
    assert reasons == {"not as indexed"}


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
