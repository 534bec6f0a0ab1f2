"""The training stream: which pair is where, and how it becomes a batch.

Notable:
- The order of an epoch is a pure function of (seed, epoch): see `order`. Global batch ``t`` is its t-th slice and
  rank ``r`` takes the r-th part of that, so the sequence of global batches is the same for any number of ranks and
  workers, every rank sees the same number of steps, and a resumed run starts at the very next batch by arithmetic,
  without reading anything. The remainder of an epoch (less than a batch) is left out; it is another one each epoch.
- The shards' index makes tars random-access (one `pread` a sample), so the shuffle is a full one. Shards that have
  to be fetched are shown a window at a time, the next window being fetched meanwhile.
- A sample that cannot be used is replaced by another one, by a fixed rule of its position, counted by
  reason, and reported with the batch; when too large a share is bad the run stops with `DataError`.
- The view shown in epoch ``e`` is number ``e`` of its sample (`augmentation`), or the view whose cached target
  it gets. With cached targets the row is read in the same place as the pixels, from a memory map.
- The unit of work of a DataLoader worker is a whole batch: captions are tokenised together, order is kept by
  the loader, and nothing depends on how many workers there are.
- Where a curriculum shows less of the images at first, their size follows from the step, and the patches that a pair
  keeps from its key and epoch.
- Pixels stay bytes until they are on the device, and are written once, into the batch's own memory.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ssmke.data.augmentation import AugmentationConfig, show, view_box
from ssmke.data.batch import Batch, Batches
from ssmke.data.captions import clean_caption
from ssmke.data.curriculum import Curriculum
from ssmke.data.dataset import ImageTextShards
from ssmke.data.decode import EncodedImage
from ssmke.data.order import EpochOrder
from ssmke.data.packing import pack
from ssmke.data.tokens import tokenize
from ssmke.data.waiting import NOTHING, SAY_AFTER, WaitWatch, places
from ssmke.errors import BadSample, ConfigError, DataError, SSMKEError

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
    window: int | None = None
    """Shards among which pairs are shuffled; 0 shuffles over all. By default 0, and 16 where shards are remote."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ConfigError(f"--data.stream.workers {self.workers}: must be 0 or more")
        if self.prefetch < 1:
            raise ConfigError(f"--data.stream.prefetch {self.prefetch}: must be at least 1")
        if self.window is not None and self.window < 0:
            raise ConfigError(f"--data.stream.window {self.window}: must be 0 (all shards) or more")
        if not 0 <= self.max_bad <= 1:
            raise ConfigError(f"--data.stream.max-bad {self.max_bad}: must lie in 0..1")


@dataclass(frozen=True)
class StreamPlan:
    """Arithmetic of the stream: who gets which pairs when."""

    order: EpochOrder
    batch_size: int
    """Pairs of a global batch."""
    epochs: int
    rank: int = 0
    world_size: int = 1
    unit: str = "pairs"
    """What a batch consists of, for messages: pairs, images or rows of text."""

    def __post_init__(self) -> None:
        if self.pairs < self.batch_size:
            raise ConfigError(
                f"--optim.batch-size {self.batch_size} is larger than the {self.pairs} {self.unit} of the data: "
                "lower it, or add data"
            )
        if self.batch_size % self.world_size:
            raise ConfigError(
                f"--optim.batch-size {self.batch_size} is not a multiple of the {self.world_size} ranks"
            )

    @property
    def pairs(self) -> int:
        """Pairs of an epoch, before the remainder is left out."""
        return self.order.pairs

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

    def positions(self, step: int) -> npt.NDArray[np.int64]:
        """Positions within the epoch's order of this rank's pairs at ``step``, [B / world size]."""
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
    packed_parts: int = 0
    """Equal parts of the batch (micro-batches) whose captions are packed into rows, each for itself; 0: none."""
    curriculum: Curriculum | None = None
    """What is shown of an image at which step; None: all of it, at `image_size`."""
    _window: tuple[int, int] | None = field(default=None, init=False, repr=False)
    at: npt.NDArray[np.int64] = field(default_factory=lambda: places(0), init=False, repr=False)
    """The image that each worker is at; see `waiting`."""

    def __len__(self) -> int:
        return self.plan.steps

    def __getitem__(self, step: int) -> Batch:
        """This rank's batch of ``step``. Raises `DataError` when too many samples in a row cannot be used."""
        epoch = self.plan.epoch(step)
        order = self.plan.order.epoch(epoch)
        positions = self.plan.positions(step)
        curriculum = self.curriculum
        self._fetch_ahead(epoch, order[positions])
        images = self._empty(len(positions), self.image_size if curriculum is None else curriculum.side(step))
        skipped: list[tuple[str, str]] = []
        worker = get_worker_info()
        place = 0 if worker is None else worker.id
        rows = [
            self._usable(order, int(position), epoch, images[row], skipped, place)
            for row, position in enumerate(positions)
        ]
        self.at[place] = NOTHING
        ids, mask = tokenize(self.tokenizer, [row.caption for row in rows], self.max_tokens)
        targets = [row.target for row in rows if row.target is not None]
        kept = [] if curriculum is None else [curriculum.kept(step, row.key, epoch) for row in rows]
        shown = [patches for patches in kept if patches is not None]
        lengths = mask.sum(dim=1).tolist()
        return Batch(
            images=images,
            ids=ids,
            mask=mask,
            image_ids=torch.tensor([row.image for row in rows]),
            targets=torch.from_numpy(np.stack(targets)) if targets else None,  # [B, D]
            keys=tuple(row.key for row in rows),
            skipped=tuple(skipped),
            real_tokens=sum(lengths),
            packing=tuple(
                pack(part, ids.shape[1], self.max_tokens) for part in _parts(lengths, self.packed_parts)
            ),
            kept=torch.from_numpy(np.stack(shown)) if shown else None,  # [B, K]
        )

    def where(self, number: int) -> str:
        """The shard that image ``number`` lies in."""
        return self.shards.place(self.shards.shard_of(number)[0])

    def _usable(
        self,
        order: npt.NDArray[np.int64],
        position: int,
        epoch: int,
        shown: torch.Tensor,
        skipped: list[tuple[str, str]],
        place: int,
    ) -> _Row:
        stride = replacement_stride(self.plan, len(order))
        for attempt in range(REPLACEMENTS):
            pair = int(order[(position + attempt * stride) % len(order)])
            try:
                return self._row(pair, epoch, shown, place)
            except BadSample as error:
                image, _ = self.shards.pair(pair)
                skipped.append((self.shards.key(image), error.reason))
        raise DataError(
            f"{REPLACEMENTS} samples in a row cannot be used ({dict(Counter(r for _, r in skipped))}), the last "
            f"one {skipped[-1][0]!r}: run `ssmke data verify` on the shards"
        )

    def _row(self, pair: int, epoch: int, shown: torch.Tensor, place: int) -> _Row:
        """One pair of the batch; its pixels or tokens go to ``shown``."""
        image, caption = self.shards.pair(pair)
        self.at[place] = image
        sample = self.shards.read(image)
        if caption >= len(sample.captions):
            raise BadSample("not as indexed", f"{sample.key} has {len(sample.captions)} captions")
        text = clean_caption(sample.captions[caption])
        view = shown_view(epoch, self.targets.views if self.targets else 0)
        # With one cached view the target is the canonical view's, whichever view the student sees.
        target = None if self.targets is None else _cached(self.targets, image, view)
        if self.tokens is None:
            choose = partial(view_box, sample.key, view, self.augmentation)
            show(EncodedImage(sample.image), choose, shown.shape[1], out=shown)
        else:
            shown.copy_(torch.from_numpy(_cached(self.tokens, image, 0)))
        return _Row(f"{sample.key}#{caption}", image, text, target)

    def _empty(self, pairs: int, side: int) -> torch.Tensor:
        """Memory of a batch's pixels [B, 3, S, S] or tokens [B, N * D]."""
        if self.tokens is not None:
            return torch.empty((pairs, len(self.tokens.row(0, 0))), dtype=torch.float16)
        return torch.empty((pairs, 3, side, side), dtype=torch.uint8)

    def _fetch_ahead(self, epoch: int, pairs: npt.NDArray[np.int64]) -> None:
        """Where shards are remote: begin to fetch this window's and the next one's when a window is entered."""
        order = self.plan.order
        if not (order.window and self.shards.remote):
            return
        shards = order.shard_order(epoch)
        here = int(np.flatnonzero(shards == order.shard_of(pairs[:1])[0])[0]) // order.window
        if self._window == (epoch, here):
            return
        self._window = epoch, here
        coming = shards[here * order.window : (here + 2) * order.window]
        if len(coming) < 2 * order.window and epoch + 1 < self.plan.epochs:
            coming = np.concatenate([coming, order.shard_order(epoch + 1)[: order.window]])
        self.shards.prefetch(coming.tolist())


def replacement_stride(plan: StreamPlan, pairs: int) -> int:
    """How far apart the pairs lie that are tried in place of a bad one, in an epoch's order of ``pairs``.

    They are distinct and not in the same batch; with windows from the same or the next one, because any other would
    have to be fetched for a single sample.
    """
    return plan.batch_size + 1 if plan.order.window else pairs // 2 + 1


def _cached(cache: TargetRows, image: int, view: int) -> npt.NDArray[np.float16]:
    row = cache.row(image, view if cache.views > 1 else 0)
    if np.isnan(row[0]):
        raise BadSample("image without cached target", f"image {image}")
    return row


def _parts(lengths: list[int], parts: int) -> list[list[int]]:
    size = len(lengths) // parts if parts else 0
    return [lengths[number * size : (number + 1) * size] for number in range(parts)]


@dataclass(frozen=True)
class _Row:
    key: str
    image: int
    caption: str
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


@dataclass
class _ErrorsAsValues(Dataset["Batch | SSMKEError"]):
    """Errors for the user are handed to the rank: raised in a worker, they would become a text of its traceback."""

    batches: Batches

    def __getitem__(self, step: int) -> Batch | SSMKEError:
        try:
            return self.batches[step]
        except SSMKEError as error:
            return error


class BatchStream:
    """Iterates the batches of a run from any step; close the iterator, or its workers wait for the process' end."""

    def __init__(
        self, batches: Batches, config: StreamConfig, start: int, pin: bool, say_after: float = SAY_AFTER
    ) -> None:
        self.bad = BadSampleCounter(config.max_bad)
        batches.at = places(config.workers)
        self._batches, self._workers = batches, config.workers
        self._start = self._step = start
        self._watch = WaitWatch(self._awaited, say_after)
        self._loader: DataLoader[Batch | SSMKEError] = DataLoader(
            _ErrorsAsValues(batches),
            batch_size=None,
            sampler=range(start, len(batches)),
            num_workers=config.workers,
            prefetch_factor=config.prefetch if config.workers else None,
            pin_memory=pin,
            worker_init_fn=_start_worker,
        )

    def __iter__(self) -> Generator[Batch, None, None]:
        self._step = self._start
        batches = iter(self._loader)
        try:
            with self._watch.running():
                while True:
                    with self._watch.waiting():
                        batch = next(batches, None)
                    if batch is None:
                        return
                    if isinstance(batch, SSMKEError):
                        raise batch
                    self._step += 1
                    self.bad.add(batch)
                    yield batch
        finally:
            del batches  # a traceback would keep it, and with it the workers

    def _awaited(self) -> str:
        """What the next batch is and where it stands."""
        # The loader deals batches to its workers in turn.
        worker = (self._step - self._start) % self._workers if self._workers else 0
        image = int(self._batches.at[worker])
        who = f"data worker {worker}" if self._workers else "this process"
        where = "at no shard" if image == NOTHING else f"at {self._batches.where(image)}"
        return f"the batch of step {self._step + 1} of rank {self._batches.plan.rank}: {who} is {where}"


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    # A stop reaches every process of the job, but the rank still needs its batches to finish the step and save.
    # It ends its workers itself; the alarm is for a rank that cannot.
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(WORKER_GRACE_SECONDS))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
