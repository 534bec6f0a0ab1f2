"""Counts of whole numbers: exact quantiles of any amount of data in little memory.

Every quantity of a dataset is a whole number (words, pixels, percent, bytes), of which there are few different
ones. Counting how often each occurs gives exact means and quantiles at any size, where keeping the values would
not fit into memory, and a sketch would need explaining. Tallies of parts are merged to that of the whole.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Histogram:
    """Whole numbers and how often each was seen; quantiles are exact."""

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self.counts: Counter[int] = Counter(counts or {})

    def add(self, value: int) -> None:
        self.counts[value] += 1

    def merge(self, other: Histogram) -> None:
        self.counts.update(other.counts)

    @property
    def total(self) -> int:
        return self.counts.total()

    @property
    def sum(self) -> int:
        return sum(value * count for value, count in self.counts.items())

    @property
    def mean(self) -> float:
        return self.sum / self.total if self.counts else math.nan

    def quantiles(self, *shares: float) -> list[int]:
        """For each share the smallest value that at least this share of all values does not exceed."""
        values = sorted(self.counts)
        upto = np.cumsum([self.counts[value] for value in values])
        # Rounded, or 0.1 x 10 values would ask for the second.
        ranks = [max(1, math.ceil(round(share * int(upto[-1]), 6))) for share in shares]
        return [values[int(np.searchsorted(upto, rank))] for rank in ranks]

    def summary(self) -> dict[str, float]:
        """For a report; empty if nothing was counted."""
        if not self.counts:
            return {}
        names = ("min", "p1", "p5", "p25", "median", "p75", "p95", "p99", "max")
        shares = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
        found = dict(zip(names, self.quantiles(*shares), strict=True))
        return {"count": self.total, "mean": round(self.mean, 4), **found}


@dataclasses.dataclass
class Tally:
    """Of one split, or of several together."""

    captions_per_image: Histogram = dataclasses.field(default_factory=Histogram)
    words: Histogram = dataclasses.field(default_factory=Histogram)
    """Words of each usable caption."""
    tokens: Histogram = dataclasses.field(default_factory=Histogram)
    """Tokens of each, with the special ones; empty without a tokenizer."""
    width: Histogram = dataclasses.field(default_factory=Histogram)
    """Pixels of the upright image."""
    height: Histogram = dataclasses.field(default_factory=Histogram)
    short_side: Histogram = dataclasses.field(default_factory=Histogram)
    aspect: Histogram = dataclasses.field(default_factory=Histogram)
    """Width in percent of the height."""
    bytes: Histogram = dataclasses.field(default_factory=Histogram)
    """Of each image file, to 0.1 % (see `coarse`)."""
    image_bytes: int = 0
    """Of all image files, exactly."""
    formats: Counter[str] = dataclasses.field(default_factory=Counter)
    sources: Counter[str] = dataclasses.field(default_factory=Counter)
    """Images by the dataset that they came from."""
    unusable: Counter[str] = dataclasses.field(default_factory=Counter)
    """Samples, images and captions that training would skip, by reason."""
    repeated: int = 0
    """Captions that say what an earlier one says, letter case aside."""
    digests: list[NDArray[np.uint64]] = dataclasses.field(default_factory=list)
    """Of all captions."""

    @property
    def images(self) -> int:
        return self.captions_per_image.total

    @property
    def pairs(self) -> int:
        return self.captions_per_image.sum

    def merge(self, other: Tally) -> None:
        for field in dataclasses.fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if isinstance(mine, Histogram):
                mine.merge(theirs)
            elif isinstance(mine, Counter):
                mine.update(theirs)
            else:
                setattr(self, field.name, mine + theirs)

    def count_repeats(self) -> None:
        """To be called when everything is merged."""
        self.digests = [np.concatenate(self.digests)] if self.digests else []
        self.repeated = sum(len(digests) - len(np.unique(digests)) for digests in self.digests)

    def to_dict(self) -> dict[str, Any]:
        plain: dict[str, Any] = {"images": self.images, "pairs": self.pairs, "image_bytes": self.image_bytes}
        plain["repeated_captions"] = self.repeated
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Histogram):
                plain[field.name] = value.summary()
            elif isinstance(value, Counter):
                plain[field.name] = dict(value.most_common())
        return plain


def coarse(value: int) -> int:
    """``value`` to 11 significant bits: at most 0.1 % off, and few different values however many there are."""
    drop = max(0, value.bit_length() - 11)
    return value >> drop << drop
