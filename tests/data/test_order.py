"""Orders of epochs: exact by source, weight and window."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmke.data.order import EpochOrder, Source
from ssmke.errors import ConfigError

shard_sizes = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def order_of(shards: list[int], seed: int = 0, window: int = 0, weight: float = 1.0) -> EpochOrder:
    firsts = np.cumsum([0, *shards])
    return EpochOrder([Source(int(firsts[-1]), weight)], seed, firsts, window)


@settings(max_examples=100, deadline=None)
@given(shard_sizes, st.integers(0, 5), st.integers(0, 14), st.integers(0, 100))
def test_every_pair_comes_once_an_epoch(shards: list[int], epoch: int, window: int, seed: int) -> None:
    order = order_of(shards, seed, window)
    assert sorted(order.epoch(epoch).tolist()) == list(range(sum(shards)))
    assert np.array_equal(order.epoch(epoch), order_of(shards, seed, window).epoch(epoch))


@settings(max_examples=100, deadline=None)
@given(shard_sizes, st.integers(1, 14), st.integers(0, 100))
def test_a_window_is_finished_before_the_next_begins(shards: list[int], window: int, seed: int) -> None:
    order = order_of(shards, seed, window)
    for epoch in (0, 1):
        sequence = order.shard_order(epoch)
        assert sorted(sequence.tolist()) == list(range(len(shards)))
        shown = order.shard_of(order.epoch(epoch))
        for first in range(0, len(shards), window):
            group = sequence[first : first + window]
            pairs = sum(shards[shard] for shard in group)
            assert set(shown[:pairs].tolist()) == set(group.tolist())
            shown = shown[pairs:]


def test_pairs_of_a_window_are_mixed() -> None:
    order = order_of([100] * 8, window=4)
    shown = order.shard_of(order.epoch(0))[:400]
    assert len(set(shown[:20].tolist())) == 4
    assert order.epoch(0).tolist() != order.epoch(1).tolist()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 60), st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0, 3.0])),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 50),
)
def test_weights_share_pairs_out_without_gap_or_repeat(parts: list[tuple[int, float]], seed: int) -> None:
    sources = [Source(pairs, weight) for pairs, weight in parts if round(pairs * weight)]
    if not sources:
        return
    firsts = np.cumsum([0, *(source.pairs for source in sources)])
    order = EpochOrder(sources, seed, firsts)
    epochs = [order.epoch(epoch) for epoch in range(8)]
    assert {len(shown) for shown in epochs} == {order.pairs} == {sum(s.drawn for s in sources)}
    counts = np.bincount(np.concatenate(epochs), minlength=firsts[-1])
    for source, first in zip(sources, firsts, strict=False):
        mine = counts[first : first + source.pairs]
        assert mine.sum() == 8 * source.drawn
        # An endless row of permutations: at no time has one pair come more than once oftener than another.
        assert mine.max() - mine.min() <= 1


def test_half_a_source_is_the_other_half_in_the_next_epoch() -> None:
    order = EpochOrder([Source(10), Source(20, 0.5)], 0, np.array([0, 10, 30]))
    first, second = (set(order.epoch(e).tolist()) for e in (0, 1))
    assert first & second == set(range(10))
    assert first | second == set(range(30))


def test_weights_and_windows_go_together() -> None:
    order = EpochOrder([Source(30, 0.5), Source(30, 2.0)], 3, np.array([0, 10, 20, 30, 45, 60]), window=2)
    shown = order.shard_of(order.epoch(0))
    assert len(shown) == 75
    sequence = order.shard_order(0).tolist()
    windows = [sequence.index(shard) // 2 for shard in shown.tolist()]
    assert windows == sorted(windows)


def test_a_weight_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"--data\.shards: the weight 0\.01 leaves no pair of web, which has 10"
    ):
        EpochOrder([Source(10, 0.01, "web")], 0, np.array([0, 10]))
