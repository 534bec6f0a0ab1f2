"""Which of a row of images go into one shard: as many as its bounds on images and bytes allow, in their order.

A pure function of the sizes, so the same images give the same shards. A million are dealt in some milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

SAMPLE_OVERHEAD = 2048
"""Bytes that a sample takes in a shard beside its image: JSON, headers, padding."""


def deal(sizes: ArrayLike, most_images: int, most_bytes: int) -> Iterator[slice]:
    """Deal images of the given ``sizes`` in bytes; one that is too large for any shard gets its own."""
    upto = np.cumsum(np.asarray(sizes, np.int64) + SAMPLE_OVERHEAD)
    begin = 0
    while begin < len(upto):
        before = int(upto[begin - 1]) if begin else 0
        full = int(np.searchsorted(upto, before + most_bytes, side="right"))
        end = max(begin + 1, min(begin + most_images, full))
        yield slice(begin, end)
        begin = end
