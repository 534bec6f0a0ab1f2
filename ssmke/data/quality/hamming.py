"""All pairs of 64-bit hashes that differ in few bits, without comparing all pairs.

If two hashes differ in at most d bits, one of their four 16-bit chunks differs in at most d // 4. So for each
chunk the hashes are sorted into 65,536 buckets, and each query is compared only with the buckets whose number
is that near to its own: for d = 11 those are 137 of the 65,536 a chunk, under 1 % of all pairs. Comparing
within a bucket is one vectorised block. A pair is reported by the first chunk that finds it, so nothing has
to be remembered to avoid repeats, and memory is a few numbers a hash, a fixed block, and the pairs found.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_CHUNKS, _BITS = 4, 16
_BUCKETS = 1 << _BITS
_QUERIES = 1 << 15  # at a time: each is listed once for every bucket near to it
_ROWS, _COLUMNS = 1 << 10, 1 << 11  # hashes and queries compared at a time
_POPCOUNT16 = np.array([value.bit_count() for value in range(_BUCKETS)], np.uint8)

Pairs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]
"""Positions in the hashes and in the queries, and the number of bits that differ, each ``[pairs]``."""


def count_bits(values: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Set bits of each value."""
    if hasattr(np, "bitwise_count"):
        counts: NDArray[np.uint8] = np.bitwise_count(values)
        return counts
    return count_bits_by_table(values)  # numpy 1


def count_bits_by_table(values: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """As `count_bits`, for versions of numpy that cannot."""
    chunks = np.ascontiguousarray(values).view(np.uint16).reshape(*values.shape, _CHUNKS)
    return _POPCOUNT16[chunks].sum(-1, dtype=np.uint8)


def near_pairs(hashes: NDArray[np.uint64], queries: NDArray[np.uint64], most: int) -> Pairs:
    """All pairs of a hash and a query that differ in at most ``most`` bits, by query and then by hash."""
    found = list(_search(hashes, queries, most)) if len(hashes) and len(queries) else []
    rows, columns, distances = (
        np.concatenate([part[i] for part in found] or [np.zeros(0, kind)])
        for i, kind in enumerate((np.int64, np.int64, np.uint8))
    )
    order = np.lexsort((rows, columns))
    return rows[order], columns[order], distances[order]


def _search(hashes: NDArray[np.uint64], queries: NDArray[np.uint64], most: int) -> Iterator[Pairs]:
    radius = most // _CHUNKS
    masks = np.array(
        [
            sum(1 << bit for bit in bits)
            for ones in range(radius + 1)
            for bits in itertools.combinations(range(_BITS), ones)
        ],
        np.uint16,
    )
    for chunk in range(_CHUNKS):
        order, starts = _buckets(_chunk(hashes, chunk))
        sorted_hashes = hashes[order]
        for begin in range(0, len(queries), _QUERIES):
            near = _chunk(queries[begin : begin + _QUERIES], chunk)[:, None] ^ masks
            listed, query_starts = _buckets(near.ravel())
            asked = begin + listed // len(masks)
            for row, column in _within(sorted_hashes, starts, queries[asked], query_starts, most):
                row, column = order[row], asked[column]
                apart = hashes[row] ^ queries[column]
                first = _first_near_chunk(apart, radius) == chunk
                yield row[first], column[first], count_bits(apart[first])


def _within(
    hashes: NDArray[np.uint64],
    starts: NDArray[np.int64],
    queries: NDArray[np.uint64],
    query_starts: NDArray[np.int64],
    most: int,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Positions of near pairs, bucket by bucket."""
    for bucket in np.flatnonzero((np.diff(starts) > 0) & (np.diff(query_starts) > 0)).tolist():
        a, b = int(starts[bucket]), int(starts[bucket + 1])
        for c in range(int(query_starts[bucket]), int(query_starts[bucket + 1]), _COLUMNS):
            d = min(c + _COLUMNS, int(query_starts[bucket + 1]))
            for e in range(a, b, _ROWS):
                apart = hashes[e : min(e + _ROWS, b), None] ^ queries[c:d]
                near = np.flatnonzero(count_bits(apart).ravel() <= most)
                if len(near):
                    yield e + near // (d - c), c + near % (d - c)


def _chunk(hashes: NDArray[np.uint64], chunk: int) -> NDArray[np.uint16]:
    return (hashes >> np.uint64(_BITS * chunk)).astype(np.uint16)


def _buckets(values: NDArray[np.uint16]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """An order that sorts ``values``, and where each of the buckets begins in it."""
    counts = np.bincount(values, minlength=_BUCKETS)
    return np.argsort(values, kind="stable"), np.concatenate([[0], np.cumsum(counts)])


def _first_near_chunk(apart: NDArray[np.uint64], radius: int) -> NDArray[np.intp]:
    near = [_POPCOUNT16[_chunk(apart, chunk)] <= radius for chunk in range(_CHUNKS)]
    first: NDArray[np.intp] = np.argmax(near, axis=0)
    return first
