"""Embeddings of whole splits: every image and every caption once, in the order of the data set.

Images are read, decoded and resized by threads, two batches ahead of the model: Pillow releases the GIL for
the costly parts, so two threads are as fast as two processes (200 images of 640 x 480 a second and core), and
nothing has to be pickled. Captions are sorted by length, so that a batch is padded to its own longest and
padding costs a few percent; results come back in order.

Distributed, each rank embeds a contiguous share of the images and of the captions, then all ranks gather all
of it. Two things make that safe in the middle of training:
- every rank runs the same number of forward passes, with a dummy where its share is over, because under
  ZeRO-3 each of them gathers parameters from all ranks;
- an error in one rank's data is raised after the gather, on all ranks, instead of leaving the others waiting.

Any `DualEncoder` is embedded; peers prepare pictures and pad captions in their own way, ours are sorted as above.

Equal captions are embedded once. That makes them tie exactly, as they should, rather than be ordered by the
rounding of the batches that they happened to be in.

Costs: a split of 5,000 images and 25,010 captions gathers 92 MB.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from ssmke.data.augmentation import canonical_box, render
from ssmke.data.captions import clean_caption
from ssmke.data.decode import EncodedImage, decode_image
from ssmke.data.parallel import usual_workers
from ssmke.data.tokens import by_length, tokenize
from ssmke.errors import BadSample, SSMKEError
from ssmke.evaluation.retrieval import EvaluationError
from ssmke.models.dual_encoder import DualEncoder, ImageFeatures, Student
from ssmke.models.student import SSMKE

if TYPE_CHECKING:
    from ssmke.data.shards import Sample

T = TypeVar("T")
Pixels = npt.NDArray[np.generic]

BATCHES_AHEAD = 2
SORTED_BATCHES = 32  # captions are tokenised and sorted by length in runs of this many batches


class Images(Protocol):
    """Encoded images by number, with their captions if they have any: shards, or files as they are."""

    @property
    def images(self) -> int:
        """How many."""
        ...

    def read(self, image: int) -> Sample:
        """One of them; raises BadSample for one that cannot be used, DataError where none can be. Thread-safe."""
        ...


@dataclass
class ImageEmbeddings:
    """Images that could be embedded, in the order asked for."""

    image: Tensor
    """[I, D] float32, on the CPU."""
    image_index: list[int] = field(default_factory=list)
    """Number of each row's image in the shards."""
    keys: list[str] = field(default_factory=list)
    """Sample key of each row."""
    captions: list[list[str]] = field(default_factory=list)
    """Usable captions of each row's image, cleaned."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Images and captions that could not be used, by reason."""
    error: SSMKEError | None = None
    """What kept some of the images from being read; only while other ranks must not be left waiting."""


@dataclass(frozen=True)
class SplitEmbeddings:
    """Embeddings of a split, on the CPU, and what is needed to score and to show them."""

    image: Tensor
    """[I, D] float32."""
    text: Tensor
    """[T, D] float32, captions grouped by image."""
    text_image: Tensor
    """[T] int64: the row in ``image`` of each caption's image."""
    image_index: list[int]
    """[I] number of each row's image in the shards."""
    keys: list[str]
    """[I] sample keys."""
    captions: list[str]
    """[T] the captions, as they were embedded."""
    skipped: dict[str, int]
    """Images and captions that could not be used, by reason."""


def embed_split(
    model: SSMKE | DualEncoder,
    shards: Images,
    rank: int | None = None,
    world_size: int | None = None,
    *,
    images: Sequence[int] | None = None,
    batch_size: int = 64,
    text_batch_size: int = 256,
    threads: int | None = None,
    progress: bool = False,
) -> SplitEmbeddings:
    """Embeds all images (or those numbered ``images``) and their captions, on all ranks together.

    ``rank`` and ``world_size`` default to those of the initialised process group, else to one process. Every
    rank must call it, and gets the whole result. The model is set to eval mode and back. Batch sizes are per
    rank; ``threads`` decode (default: the cores of this process, at most 8).

    Raises EvaluationError when not one image is usable, and what reading the shards raised (DataError), on
    every rank.
    """
    if world_size is None:
        in_group = dist.is_available() and dist.is_initialized()
        rank, world_size = (dist.get_rank(), dist.get_world_size()) if in_group else (0, 1)
    rank = rank or 0
    numbers = range(shards.images) if images is None else images
    mine, forwards = _share(numbers, rank, world_size, batch_size)
    bar = progress and rank == 0
    part = embed_images(
        model, shards, mine, batch_size=batch_size, threads=threads, forwards=forwards, progress=bar
    )
    parts = _gather(part, world_size)
    for error in (p.error for p in parts if p.error is not None):
        raise error
    skipped = sum((p.skipped for p in parts), Counter[str]())
    captions_of = [captions for p in parts for captions in p.captions]
    captions = [caption for of_image in captions_of for caption in of_image]
    if not captions:
        reasons = ", ".join(f"{reason} {n}" for reason, n in skipped.most_common()) or "no captions"
        raise EvaluationError(
            f"Nothing to evaluate: not one of {len(numbers):,} images is usable ({reasons})."
        )

    distinct = list(dict.fromkeys(captions))
    mine_text, forwards = _share(distinct, rank, world_size, text_batch_size)
    text = embed_texts(model, mine_text, batch_size=text_batch_size, forwards=forwards, progress=bar)
    row = {caption: i for i, caption in enumerate(distinct)}
    rows = torch.tensor([row[caption] for caption in captions])
    return SplitEmbeddings(
        image=torch.cat([p.image for p in parts]),
        text=torch.cat(_gather(text, world_size))[rows],
        text_image=torch.arange(len(captions_of)).repeat_interleave(torch.tensor([*map(len, captions_of)])),
        image_index=[i for p in parts for i in p.image_index],
        keys=[key for p in parts for key in p.keys],
        captions=captions,
        skipped=dict(skipped),
    )


def embed_images(
    model: SSMKE | ImageFeatures,
    shards: Images,
    images: Sequence[int] | None = None,
    *,
    batch_size: int = 64,
    threads: int | None = None,
    forwards: int | None = None,
    progress: bool = False,
) -> ImageEmbeddings:
    """Embeds each image of ``images`` (default: all): ours its canonical view, peers what they make of it.

    ``forwards``, on one rank of several: run at least so many batches and return the first error rather than
    raise it (see the module's docstring). Raises DataError for shards that cannot be read.
    """
    numbers = range(shards.images) if images is None else images
    prepare = _preparation(model)
    found = ImageEmbeddings(torch.empty(0, model.dim))
    embedded: list[Tensor] = []

    def load(number: int) -> _Loaded | SSMKEError | BadSample:
        try:
            return _load(shards, number, prepare)
        except (SSMKEError, BadSample) as error:
            return error

    with (
        _eval_mode(model),
        ThreadPoolExecutor(threads or usual_workers(), thread_name_prefix="decode") as pool,
        _bar("images", len(numbers), progress) as advance,
    ):
        for batch in _batches_ahead(pool, load, numbers, batch_size, forwards):
            pixels: list[Pixels] = []
            for loaded in batch:
                if isinstance(loaded, BadSample):
                    found.skipped[loaded.reason] += 1
                elif isinstance(loaded, SSMKEError):
                    if forwards is None:
                        raise loaded
                    found.error = found.error or loaded
                else:
                    pixels.append(loaded.pixels)
                    found.image_index.append(loaded.number)
                    found.keys.append(loaded.key)
                    found.captions.append(loaded.captions)
                    found.skipped.update(loaded.bad_captions)
            if not pixels and forwards is None:
                advance(len(batch))
                continue
            inputs = np.stack(pixels or [_blank(model)])  # [B, 3, S, S]
            embedded.append(model.encode_image(torch.from_numpy(inputs)).float().cpu()[: len(pixels)])
            advance(len(batch))
    found.image = torch.cat([found.image, *embedded])
    return found


def embed_texts(
    model: SSMKE | DualEncoder,
    captions: Sequence[str],
    *,
    batch_size: int = 256,
    forwards: int | None = None,
    progress: bool = False,
) -> Tensor:
    """Embeddings [T, D] float32 of ``captions``, on the CPU, in their order.

    ``forwards``, on one rank of several: run at least so many batches (see the module's docstring).
    """
    embeddings = torch.empty(len(captions), model.dim)
    done = 0
    ours = _unwrapped(model)
    with _eval_mode(model), _bar("captions", len(captions), progress) as advance:
        batches = (
            _sorted_batches(ours, captions, batch_size)
            if isinstance(ours, SSMKE)
            else _batches(model, captions, batch_size)
        )
        for rows, encoded in batches:
            embeddings[rows] = encoded
            done += 1
            advance(len(rows))
        for _ in range(done, forwards or 0):
            model.encode_text([""])
    return embeddings


def _sorted_batches(
    model: SSMKE, captions: Sequence[str], batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and their embeddings; captions of about one length together, so that little is padding."""
    tokenizer, max_tokens = model.tokenizer(), model.config.text.max_tokens
    for start in range(0, len(captions), SORTED_BATCHES * batch_size):
        run = captions[start : start + SORTED_BATCHES * batch_size]
        ids, mask = tokenize(tokenizer, run, max_tokens)  # [R, L]
        for rows, longest in by_length(mask, batch_size):
            encoded = model.encode_text(ids[rows, :longest], mask[rows, :longest])
            yield start + rows, encoded.float().cpu()


def _batches(
    model: SSMKE | DualEncoder, captions: Sequence[str], batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    for rows in torch.arange(len(captions)).split(batch_size):
        yield rows, model.encode_text(captions[int(rows[0]) : int(rows[-1]) + 1])


def _unwrapped(model: SSMKE | ImageFeatures) -> SSMKE | ImageFeatures:
    """Our model, where it came as a `DualEncoder`; any other as it is."""
    return model.model if isinstance(model, Student) else model


def _preparation(model: SSMKE | ImageFeatures) -> Callable[[bytes], Pixels]:
    """What makes an encoded image into the model's input, [3, S, S]."""
    model = _unwrapped(model)
    if not isinstance(model, SSMKE):
        prepare = model.preprocess
        return lambda data: prepare(decode_image(data))
    size = model.image_size

    def canonical(data: bytes) -> Pixels:
        image = EncodedImage(data)
        # At full size: what `SSMKE.encode_image` gives for the same picture, to the last bit.
        return render(image.pixels(), canonical_box(*image.size), False, size)

    return canonical


def _blank(model: SSMKE | ImageFeatures) -> Pixels:
    """Input for a forward pass that only other ranks need."""
    model = _unwrapped(model)
    if not isinstance(model, SSMKE):
        return model.preprocess(Image.new("RGB", (64, 64)))
    return np.zeros((3, model.image_size, model.image_size), np.uint8)


@dataclass
class _Loaded:
    number: int
    key: str
    pixels: Pixels  # [3, S, S]
    captions: list[str]
    bad_captions: list[str]  # reasons


def _load(shards: Images, number: int, prepare: Callable[[bytes], Pixels]) -> _Loaded:
    sample = shards.read(number)
    loaded = _Loaded(number, sample.key, prepare(sample.image), [], [])
    for caption in sample.captions:
        try:
            loaded.captions.append(clean_caption(caption))
        except BadSample as bad:
            loaded.bad_captions.append(bad.reason)
    return loaded


def _batches_ahead(
    pool: ThreadPoolExecutor,
    load: Callable[[int], T],
    numbers: Sequence[int],
    batch_size: int,
    at_least: int | None,
) -> Iterator[list[T]]:
    """Loaded batches in order, `BATCHES_AHEAD` more in the making; then empty ones up to ``at_least``."""
    waiting: deque[list[Future[T]]] = deque()
    batches = max(-(-len(numbers) // batch_size), at_least or 0)
    for start in range(0, batches * batch_size, batch_size):
        waiting.append([pool.submit(load, number) for number in numbers[start : start + batch_size]])
        if len(waiting) > BATCHES_AHEAD:
            yield [future.result() for future in waiting.popleft()]
    while waiting:
        yield [future.result() for future in waiting.popleft()]


def _share(items: Sequence[T], rank: int, world_size: int, batch_size: int) -> tuple[Sequence[T], int | None]:
    """This rank's contiguous part of ``items``, and the number of batches that every rank must run."""
    if world_size == 1:
        return items, None
    start, stop = (len(items) * r // world_size for r in (rank, rank + 1))
    largest = -(-len(items) // world_size)
    return items[start:stop], -(-largest // batch_size)


def _gather(part: T, world_size: int) -> list[T]:
    if world_size == 1:
        return [part]
    parts: list[T | None] = [None] * world_size
    dist.all_gather_object(parts, part)
    return [p for p in parts if p is not None]


@contextmanager
def _eval_mode(model: SSMKE | ImageFeatures) -> Iterator[None]:
    """Ours may be in training, and is put back; a `DualEncoder` is made for evaluation only."""
    model = _unwrapped(model)
    if not isinstance(model, SSMKE):
        yield
        return
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def _bar(what: str, total: int, enabled: bool) -> Iterator[Callable[[int], None]]:
    columns = (TextColumn("{task.description:>8}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not enabled) as progress:
        task = progress.add_task(what, total=total)
        yield lambda n: progress.advance(task, n)
