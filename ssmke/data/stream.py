"""The training stream: which pair is where, and how it becomes a batch.

Notable:
- An epoch is one permutation of all pairs, a pure function of (seed, epoch). Global batch ``t`` is its t-th
  slice and rank ``r`` takes the r-th part of that, so the sequence of global batches is the same for any number
  of ranks and workers, every rank sees the same number of steps, and a resumed run starts at the very next
  batch by arithmetic, without reading anything. The remainder of an epoch (less than a batch) is left out; it
  is another one each epoch.
- The shards' index makes tars random-access (one `pread` a sample), so the shuffle is a full one.
- A sample that cannot be used is replaced by another one, by a fixed rule of its position, counted by
  reason, and reported with the batch; when too large a share is bad the run stops with `DataError`.
- The view shown in epoch ``e`` is number ``e`` of its sample (`augmentation`), or the view whose cached target
  it gets. With cached targets the row is read in the same place as the pixels, from a memory map.
- The unit of work of a DataLoader worker is a whole batch: captions are tokenised together, order is kept by
  the loader, and nothing depends on how many workers there are.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from ssmke.data.augmentation import AugmentationConfig, render, view_box
from ssmke.data.batch import Batch
from ssmke.data.captions import clean_caption
from ssmke.data.dataset import ImageTextShards
from ssmke.data.decode import decode_image
from ssmke.data.shards import Sample
from ssmke.data.tokens import tokenize
from ssmke.errors import BadSample, ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPLACEMENTS = 32
"""How many other pairs are tried in place of a bad one before the data is called broken."""

BAD_MINIMUM = 20
"""Bad samples that are tolerated whatever their share."""


class TargetRows(Protocol):
    """Cached teacher targets as the stream reads them (`targets.cache.TargetCache`)."""

    views: int

    def row(self, image: int, view: int) -> npt.NDArray[np.float16]:
        """Target of view ``view`` of image number ``image``, [D]."""
        ...


WORKER_GRACE_SECONDS = 120
"""How long a data worker outlives a SIGTERM."""


@dataclass
class StreamConfig:
    """How pairs are fed."""

    workers: int = 2
    """DataLoader processes per rank; 0 decodes in the training process."""
    prefetch: int = 4
    """Batches ready per worker."""
    max_bad: float = 0.01
    """Share of unusable samples at which the run stops (the first 20 are always tolerated)."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ConfigError(f"--data.stream.workers {self.workers}: must be 0 or more")
        if self.prefetch < 1:
            raise ConfigError(f"--data.stream.prefetch {self.prefetch}: must be at least 1")
        if not 0 <= self.max_bad <= 1:
            raise ConfigError(f"--data.stream.max-bad {self.max_bad}: must lie in 0..1")


@dataclass(frozen=True)
class StreamPlan:
    """Arithmetic of the stream: who gets which pairs when."""

    pairs: int
    batch_size: int
    """Pairs of a global batch."""
    epochs: int
    seed: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.pairs < self.batch_size:
            raise ConfigError(
                f"--optim.batch-size {self.batch_size} is larger than the {self.pairs} pairs of the data: "
                "lower it, or add shards"
            )
        if self.batch_size % self.world_size:
            raise ConfigError(
                f"--optim.batch-size {self.batch_size} is not a multiple of the {self.world_size} ranks"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Full global batches in one epoch."""
        return self.pairs // self.batch_size

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.steps_per_epoch * self.epochs

    def epoch(self, step: int) -> int:
        """The epoch that ``step`` belongs to, from 0."""
        return step // self.steps_per_epoch

    def permutation(self, epoch: int) -> npt.NDArray[np.int64]:
        """The order of pairs in ``epoch``, [pairs]."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
        order = np.arange(self.pairs, dtype=np.int64)
        rng.shuffle(order)
        return order

    def positions(self, step: int) -> npt.NDArray[np.int64]:
        """Positions within the epoch's permutation of this rank's pairs at ``step``, [B / world size]."""
        local = self.batch_size // self.world_size
        start = (step % self.steps_per_epoch) * self.batch_size + self.rank * local
        return np.arange(start, start + local, dtype=np.int64)


@dataclass
class PairBatches(Dataset[Batch]):
    """Map from step to this rank's batch: a pure function, whichever process evaluates it."""

    shards: ImageTextShards
    plan: StreamPlan
    tokenizer: PreTrainedTokenizerBase
    max_tokens: int
    image_size: int
    augmentation: AugmentationConfig
    targets: TargetRows | None = None
    tokens: TargetRows | None = None
    """Cached tokens of a frozen image encoder, which take the place of pixels."""
    _order: tuple[int, npt.NDArray[np.int64]] | None = field(default=None, init=False, repr=False)

    def __len__(self) -> int:
        return self.plan.steps

    def __getitem__(self, step: int) -> Batch:
        epoch = self.plan.epoch(step)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, self.plan.permutation(epoch)
        order = self._order[1]
        skipped: list[tuple[str, str]] = []
        rows = [self._usable(order, int(position), epoch, skipped) for position in self.plan.positions(step)]
        ids, mask = tokenize(self.tokenizer, [row.caption for row in rows], self.max_tokens)
        targets = [row.target for row in rows if row.target is not None]
        return Batch(
            images=torch.from_numpy(np.stack([row.shown for row in rows])),  # [B, 3, S, S] or [B, N * D]
            ids=ids,
            mask=mask,
            image_ids=torch.tensor([row.image for row in rows]),
            targets=torch.from_numpy(np.stack(targets)) if targets else None,  # [B, D]
            keys=tuple(row.key for row in rows),
            skipped=tuple(skipped),
            real_tokens=int(mask.sum()),
        )

    def _usable(
        self, order: npt.NDArray[np.int64], position: int, epoch: int, skipped: list[tuple[str, str]]
    ) -> _Row:
        # A stride coprime to most lengths walks through distinct pairs, far from the neighbours in the batch.
        stride = len(order) // 2 + 1
        for attempt in range(REPLACEMENTS):
            pair = int(order[(position + attempt * stride) % len(order)])
            try:
                return self._row(pair, epoch)
            except BadSample as error:
                image, _ = self.shards.pair(pair)
                skipped.append((self.shards.key(image), error.reason))
        raise DataError(
            f"{REPLACEMENTS} samples in a row cannot be used ({dict(Counter(r for _, r in skipped))}), the last "
            f"one {skipped[-1][0]!r}: run `ssmke data verify` on the shards"
        )

    def _row(self, pair: int, epoch: int) -> _Row:
        image, caption = self.shards.pair(pair)
        sample = self.shards.read(image)
        text = clean_caption(sample.captions[caption])
        view = shown_view(epoch, self.targets.views if self.targets else 0)
        # With one cached view the target is the canonical view's, whichever view the student sees.
        target = None if self.targets is None else _cached(self.targets, image, view)
        shown = self._shown(sample, view) if self.tokens is None else _cached(self.tokens, image, 0)
        return _Row(f"{sample.key}#{caption}", image, text, shown, target)

    def _shown(self, sample: Sample, view: int) -> npt.NDArray[np.uint8]:
        picture = decode_image(sample.image)
        box, flip = view_box(sample.key, view, *picture.size, self.augmentation)
        return render(picture, box, flip, self.image_size)


def _cached(cache: TargetRows, image: int, view: int) -> npt.NDArray[np.float16]:
    row = cache.row(image, view if cache.views > 1 else 0)
    if np.isnan(row[0]):
        raise BadSample("image without cached target", f"image {image}")
    return row


@dataclass(frozen=True)
class _Row:
    key: str
    image: int
    caption: str
    shown: npt.NDArray[np.uint8] | npt.NDArray[np.float16]
    target: npt.NDArray[np.float16] | None


def shown_view(epoch: int, cached_views: int) -> int:
    """The view that the student is shown in ``epoch``: that of its cached target where several are cached."""
    return epoch % cached_views if cached_views > 1 else epoch


class BadSampleCounter:
    """Counts skipped samples by reason, and says when they are too many."""

    def __init__(self, max_share: float) -> None:
        self.max_share = max_share
        self.by_reason: Counter[str] = Counter()
        self.seen = 0
        self.example = ""

    def add(self, batch: Batch) -> None:
        """Counts a batch; raises `DataError` when the share of bad samples exceeds the limit."""
        self.seen += len(batch) + len(batch.skipped)
        self.by_reason.update(reason for _, reason in batch.skipped)
        if batch.skipped:
            self.example = batch.skipped[-1][0]
        bad = self.by_reason.total()
        if bad > BAD_MINIMUM and bad > self.max_share * self.seen:
            raise DataError(
                f"{bad} of {self.seen} samples could not be used ({dict(self.by_reason)}; the last one "
                f"{self.example!r}): run `ssmke data verify` on the shards, or raise --data.stream.max-bad"
            )


class BatchStream:
    """Iterates the batches of a run from any step."""

    def __init__(self, batches: PairBatches, config: StreamConfig, start: int, pin: bool) -> None:
        self.bad = BadSampleCounter(config.max_bad)
        self._loader: DataLoader[Batch] = DataLoader(
            batches,
            batch_size=None,
            sampler=range(start, len(batches)),
            num_workers=config.workers,
            prefetch_factor=config.prefetch if config.workers else None,
            pin_memory=pin,
            worker_init_fn=_start_worker,
        )

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            self.bad.add(batch)
            yield batch


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    # A stop reaches every process of the job, but the rank still needs its batches to finish the step and save.
    # It ends its workers itself; the alarm is for a rank that cannot.
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(WORKER_GRACE_SECONDS))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
