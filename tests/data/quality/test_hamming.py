from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ssmke.data.quality import hamming
from ssmke.data.quality.hamming import count_bits, count_bits_by_table, near_pairs


def clustered(count: int, seed: int) -> NDArray[np.uint64]:
    """Hashes around a few centres, so that every distance up to 20 or so occurs."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).integers(0, 2**64, 8, np.uint64)
    hashes = rng.choice(centres, count)
    strength = rng.random(count)
    for _ in range(10):
        flipped = np.uint64(1) << rng.integers(0, 64, count).astype(np.uint64)
        hashes ^= np.where(rng.random(count) < strength, flipped, np.uint64(0))
    return hashes


def every_pair(a: NDArray[np.uint64], b: NDArray[np.uint64], most: int) -> list[tuple[int, int, int]]:
    pairs = [(i, j, bin(int(x ^ y)).count("1")) for j, y in enumerate(b) for i, x in enumerate(a)]
    return [pair for pair in pairs if pair[2] <= most]


@pytest.mark.parametrize("most", [0, 1, 3, 4, 7, 8, 11, 12, 15])
def test_finds_what_comparing_all_pairs_finds(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hamming, "_QUERIES", 50)  # so that the queries come in several parts
    hashes, queries = clustered(150, 1), clustered(120, 2)
    found = near_pairs(hashes, queries, most)
    expected = every_pair(hashes, queries, most)
    assert list(zip(*(array.tolist() for array in found), strict=True)) == expected
    assert {distance for _, _, distance in expected} == set(range(most + 1))


def test_many_equal_hashes_are_compared_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hamming, "_ROWS", 40)
    monkeypatch.setattr(hamming, "_COLUMNS", 25)
    one = np.uint64(0x0123456789ABCDEF)
    hashes, queries = np.full(130, one), np.full(90, one ^ np.uint64(0b111))
    rows, columns, distances = near_pairs(hashes, queries, 3)
    assert list(zip(columns.tolist(), rows.tolist(), strict=True)) == [
        (j, i) for j in range(90) for i in range(130)
    ]
    assert set(distances.tolist()) == {3}
    assert len(near_pairs(hashes, queries, 2)[0]) == 0


def test_nothing_to_compare() -> None:
    none, one = np.zeros(0, np.uint64), np.zeros(1, np.uint64)
    for a, b in ((none, one), (one, none), (none, none)):
        assert [len(array) for array in near_pairs(a, b, 5)] == [0, 0, 0]


def test_bits_are_counted_the_same_with_any_numpy() -> None:
    values = np.random.default_rng(0).integers(0, 2**64, (30, 40), np.uint64)
    values[0, :3] = 0, 1, 2**64 - 1
    expected = [[bin(value).count("1") for value in row] for row in values.tolist()]
    assert count_bits(values).tolist() == expected
    assert count_bits_by_table(values).tolist() == expected
    assert count_bits_by_table(values[::2, ::3]).tolist() == [row[::3] for row in expected[::2]]
