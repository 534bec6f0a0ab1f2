"""The order of an epoch: which pairs it shows, and when; a pure function of the seed and the epoch's number.

- **All pairs once** is the default, as in the thesis, however many sources there are.
- **Weights** say how often an epoch shows each pair of a source. With 0.5, two epochs share its pairs out without
  gap or repeat: a source is an endless row of permutations of its pairs, and every epoch takes the next part of it.
- **Windows** keep an epoch to a few shards at a time, for shards that have to be fetched: shards are shuffled, dealt
  to windows of ``window`` shards, and the pairs of a window are shuffled among themselves. Without windows the
  shuffle is over everything.

Costs 8 bytes a pair and about 25 ns a pair once an epoch (3.3 million pairs: 80 ms), with windows four times that;
starting in the middle costs nothing more, since nothing is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ssmke.errors import ConfigError

# Places in the counter of the random generator that are far from each other: one key, several streams.
_PAIRS, _SHARDS, _SOURCES = 0, 1, 2


@dataclass(frozen=True)
class Source:
    """Pairs that belong together, and how often an epoch shows each of them."""

    pairs: int
    weight: float = 1.0
    name: str = ""
    """For messages."""

    @property
    def drawn(self) -> int:
        """Pairs that an epoch takes."""
        return round(self.pairs * self.weight)


class EpochOrder:
    """Orders of all epochs of a run."""

    def __init__(
        self, sources: Sequence[Source], seed: int, first_pairs: npt.NDArray[np.int64], window: int = 0
    ) -> None:
        """``first_pairs`` [shards + 1]: number of the first pair of every shard; ``window`` in shards, 0 for all."""
        self.sources = tuple(sources)
        self.seed = seed
        self.window = window
        self._first_pairs = first_pairs
        self._latest: tuple[int, npt.NDArray[np.int64]] | None = None
        for source in sources:
            if source.drawn < 1:
                raise ConfigError(
                    f"--data.shards: the weight {source.weight:g} leaves no pair of {source.name or 'a source'}, "
                    f"which has {source.pairs:,}"
                )

    @classmethod
    def once(cls, pairs: int, seed: int) -> EpochOrder:
        """All of one source's pairs in every epoch, shuffled as a whole."""
        return cls([Source(pairs)], seed, np.array([0, pairs]))

    @property
    def pairs(self) -> int:
        """Pairs of an epoch."""
        return sum(source.drawn for source in self.sources)

    def epoch(self, number: int) -> npt.NDArray[np.int64]:
        """Numbers of the pairs that epoch ``number`` shows, in order, [pairs]; the latest is kept and read-only."""
        if self._latest is None or self._latest[0] != number:
            order = self._shuffled(number)
            order.flags.writeable = False
            self._latest = number, order
        return self._latest[1]

    def _shuffled(self, number: int) -> npt.NDArray[np.int64]:
        order = self._drawn(number)
        self._random(number, _PAIRS).shuffle(order)
        if not self.window:
            return order
        rank = np.empty(self.shards, np.int64)
        rank[self.shard_order(number)] = np.arange(self.shards)
        windows = (rank // min(self.window, self.shards))[self.shard_of(order)]  # [pairs]
        # Stable, so that a window keeps the shuffled order; numpy sorts 16-bit numbers in linear time.
        narrow = windows.astype(np.uint16) if self.shards <= 1 << 16 else windows
        return order[np.argsort(narrow, kind="stable")]

    @property
    def shards(self) -> int:
        """Number of shards."""
        return len(self._first_pairs) - 1

    def shard_order(self, number: int) -> npt.NDArray[np.int64]:
        """Shards in the order in which epoch ``number`` comes to them, [shards]; only with windows."""
        return self._random(number, _SHARDS).permutation(self.shards)

    def shard_of(self, pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The shard of every given pair."""
        return np.searchsorted(self._first_pairs, pairs, side="right") - 1

    def _drawn(self, epoch: int) -> npt.NDArray[np.int64]:
        if all(source.weight == 1 for source in self.sources):
            return np.arange(self.pairs, dtype=np.int64)
        parts, first = [], 0
        for number, source in enumerate(self.sources):
            parts.append(first + self._part(number, source, epoch))
            first += source.pairs
        return np.concatenate(parts)

    def _part(self, number: int, source: Source, epoch: int) -> npt.NDArray[np.int64]:
        """The next ``source.drawn`` pairs of a source's row of permutations."""
        begin, end = epoch * source.drawn, (epoch + 1) * source.drawn
        rounds = range(begin // source.pairs, (end - 1) // source.pairs + 1)
        row = [self._random(k, _SOURCES + number).permutation(source.pairs) for k in rounds]
        begin -= rounds.start * source.pairs
        return np.concatenate(row)[begin : begin + source.drawn]

    def _random(self, number: int, stream: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=[self.seed, number], counter=[0, 0, 0, stream]))
