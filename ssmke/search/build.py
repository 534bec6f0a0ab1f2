"""Making an index: pictures are read, decoded, prepared and made thumbnails of by threads, embedded, and kept by parts.

The model sets the pace: threads work `BATCHES_AHEAD` batches before it. Every `SECONDS` or `PICTURES` a part is
written; Ctrl-C writes the one in work, and any other end costs at most that. The same command goes on with the next
number. When all parts are there FAISS gets the embeddings, `index.json` is written, and the embeddings of the parts are
removed: FAISS's files hold them. Batches are cut by number, so an interrupted indexing gives what an undisturbed one
gives, to the last bit, where the machine computes repeatably.

Costs beside the model: 5 ms of a core a photo of 640 x 480 (decode 1.6, prepare 1.1, thumbnail 2.4), and a disk peak of
twice the embeddings. So two cores feed a model of some 400 pictures a second; a faster one waits for them.
"""

from __future__ import annotations

import io
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import psutil
import torch
from PIL import Image

from ssmke import foreign_json
from ssmke.data.atomic import make_folder, write_json
from ssmke.data.decode import EncodedImage
from ssmke.data.locks import locked
from ssmke.data.parallel import usual_workers
from ssmke.errors import BadSample, ConfigError, DataError, WeightsError
from ssmke.search.index import FILE_NAME, FORMAT, IndexManifest
from ssmke.search.nearest import KINDS, PROBES, Nearest, build
from ssmke.search.parts import FOLDER, Batch, PartWriter, Vectors, finished_parts, part_file, part_vectors

if TYPE_CHECKING:
    from ssmke.models.dual_encoder import DualEncoder
    from ssmke.search.sources import Picture, Sources

BATCHES_AHEAD = 2
PICTURES = 4096
SECONDS = 30.0
STARTED = "building.json"


@dataclass(frozen=True)
class IndexConfig:
    """How an index is made; whoever goes on with one may change the first two."""

    batch_size: int = 64
    """Pictures at a time."""
    threads: int = 0
    """Threads that read and prepare pictures; 0: the cores of this process, at most 8."""
    kind: str = "auto"
    """Kind of FAISS index: auto, flat, hnsw or ivf."""
    captions: bool = True
    """Embed captions too, so that texts can be found for a picture."""
    thumbnail: int = 320
    """Longest side of thumbnails, in pixels."""
    pictures: int = PICTURES
    """Most pictures of a part; a multiple of the batch size is not needed."""
    memory: int = 0
    """Bytes of memory that the index may count on; 0: what is free now."""

    def __post_init__(self) -> None:
        for flag, value, least in (
            ("--batch-size", self.batch_size, 1),
            ("--threads", self.threads, 0),
            ("--thumbnail", self.thumbnail, 32),
        ):
            if value < least:
                raise ConfigError(f"{flag} {value}: must be at least {least}")
        if self.thumbnail > 1024:
            raise ConfigError(f"--thumbnail {self.thumbnail}: must be at most 1024")
        if self.kind not in KINDS:
            raise ConfigError(f"--kind {self.kind}: must be one of {', '.join(KINDS)}")


@dataclass
class IndexReport:
    """What an indexing did."""

    pictures: int = 0
    """Numbers of the sources that were gone through now."""
    reused: int = 0
    """Those that were done before."""
    items: int = 0
    """Pictures in the index."""
    captions: int = 0
    """Captions in it."""
    skipped: Counter[str] = field(default_factory=Counter)
    """What could not be used, by reason, of all."""
    embed_seconds: float = 0.0
    """From the first picture to the last part, now."""
    images: Nearest | None = None
    """FAISS's index of the pictures."""
    texts: Nearest | None = None
    """That of the captions."""


def build_index(
    encoder: DualEncoder,
    sources: Sources,
    folder: Path,
    config: IndexConfig | None = None,
    progress: Callable[[int], None] = lambda pictures: None,
) -> IndexReport:
    """Makes the index ``folder``, or goes on with it; ``progress`` gets pictures as they are done, the reused first.

    Raises:
        DataError: the folder holds something else, an index of other pictures or by another model, or is in use by
            another process; nothing of the sources is usable; the file system refused.
    """
    config = config or IndexConfig()
    make_folder(folder)
    with locked(folder, wait=False, needed=False) as free:
        if not free:
            raise DataError(
                f"{folder} is being written by another process: wait for it, or give another --out."
            )
        complete = _begin(encoder, sources, folder, config)
        report = _embed(encoder, sources, folder, config, progress)
        if complete is None:
            complete = _finish(encoder, sources, folder, config, report)
        report.images, report.texts = complete.nearest_images(), complete.nearest_captions()
        for part in complete.all_parts():
            for what in ("images.npy", "captions.npy"):
                part_file(folder, part.number, what).unlink(missing_ok=True)
    return report


def _begin(encoder: DualEncoder, sources: Sources, folder: Path, config: IndexConfig) -> IndexManifest | None:
    """Marks the folder as ours; the manifest if the index is complete. Raises where it holds another."""
    wanted = {
        "format": FORMAT,
        "model digest": encoder.digest,
        "pictures": sources.fingerprint,
        "captions": config.captions,
        "thumbnail": config.thumbnail,
    }
    path = folder / STARTED
    try:
        found = foreign_json.loads(path.read_bytes())
        if not isinstance(found, dict):
            raise ValueError("it is no object")
    except FileNotFoundError:
        others = sorted(child.name for child in folder.iterdir() if not child.name.startswith("."))
        if others:
            raise DataError(
                f"--out {folder} holds other files ({', '.join(others[:3])}): give a new folder."
            ) from None
        write_json(path, wanted)
        make_folder(folder / FOLDER)
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}): remove {folder}, and index again.") from None
    differing = [name for name in wanted if found.get(name) != wanted[name]]
    if differing:
        raise DataError(
            f"{folder} was begun otherwise: {', '.join(differing)} differ"
            + (
                f" (the model's digest was {str(found.get('model digest'))[:12]}, that of {encoder.name} is "
                f"{encoder.digest[:12]})"
                if "model digest" in differing
                else ""
            )
            + ". Use what it was begun with, or give another --out."
        )
    if not (folder / FILE_NAME).exists():
        return None
    complete = IndexManifest.load(folder)
    if config.kind not in ("auto", complete.nearest_images().kind):
        raise DataError(
            f"{folder} is a complete index of kind {complete.nearest_images().kind}, not {config.kind}: give another "
            "--out."
        )
    return complete


def _embed(
    encoder: DualEncoder,
    sources: Sources,
    folder: Path,
    config: IndexConfig,
    progress: Callable[[int], None],
) -> IndexReport:
    """Embeds and writes what is missing, part by part."""
    parts = finished_parts(folder)
    report = IndexReport(reused=parts[-1].stop if parts else 0)
    progress(report.reused)
    begin = written = time.perf_counter()
    writer: PartWriter | None = None
    batches = _loaded(encoder, sources, report.reused, config)
    try:
        for start, loaded in batches:
            writer = writer or PartWriter(folder, len(parts), start)
            writer.add(_embedded(encoder, start, loaded, config))
            progress(len(loaded))
            if writer.covered >= config.pictures or time.perf_counter() - written > SECONDS:
                parts.append(writer.commit())
                writer = None
                written = time.perf_counter()
    finally:
        batches.close()
        # Whatever ended it, Ctrl-C or a damaged shard: what is computed is kept.
        if writer is not None and writer.covered:
            parts.append(writer.commit())
    report.embed_seconds = time.perf_counter() - begin
    report.pictures = len(sources) - report.reused
    report.items = sum(part.items for part in parts)
    report.captions = sum(part.captions for part in parts)
    report.skipped = sum((Counter(part.skipped) for part in parts), Counter())
    return report


def _finish(
    encoder: DualEncoder, sources: Sources, folder: Path, config: IndexConfig, report: IndexReport
) -> IndexManifest:
    """Gives FAISS the embeddings and writes the manifest."""
    parts = finished_parts(folder)
    if not report.items:
        reasons = ", ".join(f"{reason}: {number:,}" for reason, number in report.skipped.most_common())
        raise DataError(
            f"not one of {len(sources):,} pictures is usable ({reasons}): give others, and another --out."
        )

    def blocks(what: str) -> Callable[[], Iterator[Vectors]]:
        return lambda: (part_vectors(folder, part, what, encoder.dim) for part in parts)

    memory = config.memory or psutil.virtual_memory().available
    asked = "captions" if report.captions else "images"
    probes = _spread(blocks(asked), report.captions or report.items)
    built = []
    for what, count in (("images", report.items), ("captions", report.captions)):
        # Captions are looked for with pictures, pictures with captions.
        queries = probes if what == "images" else _spread(blocks("images"), report.items)
        built.append(
            build(
                folder,
                what,
                blocks(what),
                count,
                encoder.dim,
                config.kind,
                memory,
                queries,
                threads=config.threads,
            )
            if count
            else None
        )
    images, captions = built
    assert images is not None
    manifest = IndexManifest(
        format=FORMAT,
        model=_lasting_name(encoder.name),
        digest=encoder.digest,
        dim=encoder.dim,
        sources=sources.places,
        fingerprint=sources.fingerprint,
        images=asdict(images),
        captions=None if captions is None else asdict(captions),
        parts=[asdict(part) for part in parts],
    )
    manifest.save(folder)
    return manifest


@dataclass
class _Prepared:
    picture: Picture
    pixels: npt.NDArray[np.generic]  # [3, S, S]
    size: tuple[int, int]  # of the thumbnail
    thumbnail: bytes
    source: int


def _loaded(
    encoder: DualEncoder, sources: Sources, first: int, config: IndexConfig
) -> Generator[tuple[int, list[_Prepared | BadSample]], None, None]:
    """Prepared batches in order, each with the number that it starts with."""

    def load(number: int) -> _Prepared | BadSample:
        try:
            picture = sources.read(number)
            image = Image.fromarray(EncodedImage(picture.image).pixels())
            return _Prepared(
                picture,
                encoder.preprocess(image),
                *thumbnail(image, config.thumbnail),
                sources.source_of(number),
            )
        except BadSample as bad:
            return bad

    waiting: deque[tuple[int, list[Future[_Prepared | BadSample]]]] = deque()
    pool = ThreadPoolExecutor(config.threads or usual_workers(), thread_name_prefix="decode")
    try:
        for start in range(first, len(sources), config.batch_size):
            numbers = range(start, min(start + config.batch_size, len(sources)))
            waiting.append((start, [pool.submit(load, number) for number in numbers]))
            if len(waiting) > BATCHES_AHEAD:
                begin, batch = waiting.popleft()
                yield begin, [future.result() for future in batch]
        while waiting:
            begin, batch = waiting.popleft()
            yield begin, [future.result() for future in batch]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _embedded(
    encoder: DualEncoder, start: int, loaded: list[_Prepared | BadSample], config: IndexConfig
) -> Batch:
    """The batch that begins with number ``start``, embedded."""
    good = [one for one in loaded if isinstance(one, _Prepared)]
    texts = [list(one.picture.captions) if config.captions else [] for one in good]
    images = np.empty((0, encoder.dim), np.float32)
    if good:
        pixels = torch.from_numpy(np.stack([one.pixels for one in good]))  # [B, 3, S, S]
        images = _checked(encoder, encoder.encode_image(pixels).numpy())
    captions = embed_texts(encoder, [text for of_image in texts for text in of_image], 4 * config.batch_size)
    skipped = Counter(one.reason for one in loaded if isinstance(one, BadSample))
    if config.captions:
        skipped.update(reason for one in good for reason in one.picture.bad_captions)
    items = [
        {
            "key": one.picture.key,
            "id": one.picture.id,
            "source": one.source,
            "member": one.picture.member,
            "width": one.size[0],
            "height": one.size[1],
            "captions": captions_of,
        }
        for one, captions_of in zip(good, texts, strict=True)
    ]
    return Batch(start + len(loaded), images, captions, items, [one.thumbnail for one in good], skipped)


def embed_texts(encoder: DualEncoder, texts: list[str], batch_size: int) -> Vectors:
    """Embeddings [T, D] in the order of ``texts``; equal ones are embedded once, short ones beside short ones."""
    distinct = sorted(set(texts), key=lambda text: (len(text), text))
    row = {text: i for i, text in enumerate(distinct)}
    found = [np.empty((0, encoder.dim), np.float32)]
    for start in range(0, len(distinct), batch_size):
        found.append(_checked(encoder, encoder.encode_text(distinct[start : start + batch_size]).numpy()))
    embedded: Vectors = np.concatenate(found)[[row[text] for text in texts]]
    return embedded


def thumbnail(image: Image.Image, side: int) -> tuple[tuple[int, int], bytes]:
    """Size and JPEG of ``image`` at most ``side`` wide and high; smaller pictures keep their size."""
    scale = min(1.0, side / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0) if scale < 1 else image
    out = io.BytesIO()
    small.save(out, "JPEG", quality=82)
    return size, out.getvalue()


def _checked(encoder: DualEncoder, vectors: npt.NDArray[Any]) -> Vectors:
    if not np.isfinite(vectors).all():
        raise WeightsError(f"{encoder.name} gives embeddings that are not numbers: its weights are damaged.")
    return np.ascontiguousarray(vectors, np.float32)


def _spread(blocks: Callable[[], Iterator[Vectors]], count: int) -> Vectors:
    """`PROBES` of all vectors, spread evenly."""
    step = max(1, count // PROBES)
    first, found = 0, []
    for block in blocks():
        found.append(np.asarray(block[-first % step :: step], np.float32))
        first += len(block)
    return np.concatenate(found)


def _lasting_name(name: str) -> str:
    """A folder by its full path, so that the index finds its model from anywhere."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name
