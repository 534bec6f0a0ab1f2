"""From image files with captions to a dataset directory: in parallel, resumable, every image checked.

Sources (`ssmke.data.sources`) say which files, captions and splits there are; this module does the rest, the
same for all of them. Entries are dealt to shards beforehand, in their order, by count and file size: a pure
function of the entries and the files' sizes, so the same import gives the same bytes. Workers then write
whole shards, decoding every image once to know that it can be. Images are stored as they are (``max_side``
re-encodes larger ones). What cannot be used is skipped, counted by reason in the manifest and listed in
``skipped.jsonl``.

Finished shards are recorded (`ssmke.data.import_state`). Run again, an import keeps every shard whose
entries, files and SHA-256 are unchanged and writes the rest, so images that were missing the first time may
simply be added. Cost: mostly the decoding, 0.4 ms for a 224-pixel JPEG and growing with the pixels, per core.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ssmke.data.atomic import atomic_writer, encode_json, make_folder
from ssmke.data.captions import clean_caption
from ssmke.data.decode import decode_image
from ssmke.data.import_state import FinishedShard, ImportState, Skip
from ssmke.data.manifest import FILE_NAME, Manifest, ShardInfo, Split
from ssmke.data.parallel import Progress, run_jobs, tick
from ssmke.data.shards import Sample, ShardIndex, file_sha256, index_path, write_shard
from ssmke.errors import BadSample, ConfigError, DataError

MAX_FILE_BYTES = 256 << 20
JPEG_QUALITY = 92
SKIPPED_NAME = "skipped.jsonl"


@dataclasses.dataclass(frozen=True)
class StorageConfig:
    """How images are stored."""

    max_side: int = 0
    """Scale images with a longer side down to this one, re-encoded as JPEG; 0 stores all as they are."""
    shard_images: int = 1000
    """Images of a shard, at most."""
    shard_megabytes: int = 256
    """Size of a shard, at most; a larger image gets a shard of its own."""

    def __post_init__(self) -> None:
        if self.max_side != 0 and self.max_side < 32:
            raise ConfigError(f"--max-side {self.max_side}: must be 0 (store as is) or at least 32")
        if self.shard_images < 1:
            raise ConfigError(f"--shard-images {self.shard_images}: must be at least 1")
        if self.shard_megabytes < 1:
            raise ConfigError(f"--shard-megabytes {self.shard_megabytes}: must be at least 1")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One image file with its captions."""

    number: int
    """Its position in the source, for reports."""
    file: str
    """Path below the image folder."""
    key: str
    """Key in the shards (see `ssmke.data.shards.make_key`)."""
    split: str
    captions: tuple[str, ...]
    """Raw captions."""
    extra: Mapping[str, Any]
    """Ids of the source, kept in the sample's JSON."""


@dataclasses.dataclass(frozen=True)
class ImportReport:
    """What an import did."""

    manifest: Manifest
    reused: int
    """Shards kept from an earlier run."""
    written: int
    """Shards written by this one."""
    seconds: float


def import_entries(
    name: str,
    images: Path,
    entries: Sequence[Entry],
    skips: Sequence[Skip],
    out: Path,
    identity: Mapping[str, Any],
    source: Mapping[str, Any],
    storage: StorageConfig,
    workers: int = 1,
    on_total: Callable[[int], None] = lambda images: None,
    on_items: Progress = lambda images: None,
) -> ImportReport:
    """Write ``entries`` to the dataset directory ``out``; an import that was stopped goes on where it was.

    Args:
        name: of the dataset; every sample's ``source``.
        images: folder that the entries' files are below.
        entries: what to import; their keys must be unique.
        skips: what the source already had to leave out.
        out: the dataset directory.
        identity: what makes this import the same as one before, by flag name; told apart in the error.
        source: facts for the manifest.
        storage: how images are stored.
        workers: processes.
        on_total: called once with the number of entries.
        on_items: called with the number of entries done since the last call.

    Raises:
        DataError: ``out`` holds something else (the difference is named) or cannot be written, or no entry at
            all could be used.
    """
    begin = time.monotonic()
    make_folder(out)
    identity = dict(identity) | {
        f"--{field.replace('_', '-')}": value for field, value in dataclasses.asdict(storage).items()
    }
    with ImportState.open(out, identity) as state:
        on_total(len(entries))
        jobs = [
            _job(out, images, name, split, number, shard, storage.max_side, state)
            for split, number, shard in _deal(images, entries, storage)
        ]
        if any(job.finished is None for job in jobs):
            # A directory with a manifest is complete; from here on this one is not.
            (out / FILE_NAME).unlink(missing_ok=True)

        def record(number: int, result: _ShardResult) -> None:
            if not result.reused:
                state.record(jobs[number].path.name, jobs[number].plan, result.info, result.skips)

        results = run_jobs(_make_shard, jobs, workers, on_items, record)
        all_skips = sorted(
            itertools.chain(skips, *(result.skips for result in results)),
            key=lambda skip: (skip.entry, -1 if skip.caption is None else skip.caption),
        )
        _write_skips(out / SKIPPED_NAME, all_skips)
        manifest = Manifest(name, source, _splits(jobs, results), Counter(skip.reason for skip in all_skips))
        if not manifest.images:
            counts = ", ".join(f"{count} x {reason}" for reason, count in manifest.skipped.items())
            raise DataError(f"nothing could be imported to {out}: {counts or 'no entries'}.")
        manifest.save(out)
    reused = sum(result.reused for result in results)
    return ImportReport(manifest, reused, len(jobs) - reused, time.monotonic() - begin)


@dataclasses.dataclass(frozen=True)
class _Stamped:
    """An entry with the size and time of its file; None where there is no file."""

    entry: Entry
    size: int | None
    time: int | None


@dataclasses.dataclass(frozen=True)
class _ShardJob:
    """Everything a worker needs to make one shard."""

    path: Path
    images: Path
    source: str
    split: str
    entries: tuple[Entry, ...]
    max_side: int
    plan: str
    """Digest of the entries and of their files' sizes and times."""
    finished: FinishedShard | None
    """The shard of an earlier run, if it had the same plan."""


@dataclasses.dataclass(frozen=True)
class _ShardResult:
    info: ShardInfo | None
    """None if none of its entries could be used."""
    skips: tuple[Skip, ...]
    reused: bool


def _deal(
    images: Path, entries: Sequence[Entry], storage: StorageConfig
) -> Iterator[tuple[str, int, list[_Stamped]]]:
    """Deal entries to shards: ``(split, number in the split, entries)``."""
    splits: dict[str, list[Entry]] = {}
    for entry in entries:
        splits.setdefault(entry.split, []).append(entry)
    limit = storage.shard_megabytes << 20
    for split, members in splits.items():
        number, size, shard = 0, 0, list[_Stamped]()
        for stamped in (_stamp(images, entry) for entry in members):
            # A tar pads and heads each of its two members: about 2 KB a sample.
            needs = (stamped.size or 0) + 2048
            if shard and (len(shard) == storage.shard_images or size + needs > limit):
                yield split, number, shard
                number, size, shard = number + 1, 0, []
            shard.append(stamped)
            size += needs
        yield split, number, shard


def _stamp(images: Path, entry: Entry) -> _Stamped:
    try:
        facts = (images / entry.file).stat()
    except (OSError, ValueError):
        return _Stamped(entry, None, None)
    return _Stamped(entry, facts.st_size, facts.st_mtime_ns)


def _job(
    out: Path,
    images: Path,
    source: str,
    split: str,
    number: int,
    shard: Sequence[_Stamped],
    max_side: int,
    state: ImportState,
) -> _ShardJob:
    name = f"{split}-{number:05d}.tar"
    # ASCII, because captions that are not UTF-8 are only found out by the worker.
    plan = hashlib.sha256(
        repr([dataclasses.astuple(stamped) for stamped in shard]).encode("ascii", "backslashreplace")
    )
    entries = tuple(stamped.entry for stamped in shard)
    finished = state.finished(name, plan.hexdigest())
    return _ShardJob(out / name, images, source, split, entries, max_side, plan.hexdigest(), finished)


def _make_shard(job: _ShardJob) -> _ShardResult:
    if job.finished is not None and _intact(job.path, job.finished.info):
        tick(len(job.entries))
        return _ShardResult(job.finished.info, job.finished.skips, reused=True)
    skips: list[Skip] = []
    samples = _samples(job, skips)
    first = next(samples, None)
    if first is None:
        job.path.unlink(missing_ok=True)
        index_path(job.path).unlink(missing_ok=True)
        return _ShardResult(None, tuple(skips), reused=False)
    info = write_shard(job.path, itertools.chain([first], samples), job.split)
    return _ShardResult(info, tuple(skips), reused=False)


def _intact(path: Path, info: ShardInfo | None) -> bool:
    if info is None:
        return True
    try:
        if path.stat().st_size != info.bytes or file_sha256(path) != info.sha256:
            return False
        ShardIndex.load(path)
    except (OSError, DataError):
        return False
    return True


def _samples(job: _ShardJob, skips: list[Skip]) -> Iterator[Sample]:
    for entry in job.entries:
        captions: list[str] = []
        for number, raw in enumerate(entry.captions):
            try:
                captions.append(clean_caption(raw))
            except BadSample as error:
                skips.append(Skip(entry.number, entry.file, entry.split, error.reason, error.detail, number))
        try:
            if not captions:
                raise BadSample("no usable caption")
            image = _read_image(job.images / entry.file, job.max_side)
        except BadSample as error:
            skips.append(Skip(entry.number, entry.file, entry.split, error.reason, error.detail))
        else:
            yield Sample(entry.key, image, tuple(captions), job.source, entry.extra)
        tick()


def _read_image(path: Path, max_side: int) -> bytes:
    """The bytes to store, known to decode."""
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise BadSample("not a file")  # reading a pipe or device might never end
        if facts.st_size > MAX_FILE_BYTES:
            raise BadSample("file too large", f"{facts.st_size:,} bytes")
        data = path.read_bytes()
    except FileNotFoundError:
        raise BadSample("missing file") from None
    except OSError as error:
        raise BadSample("unreadable file", error.strerror or str(error)) from None
    image = decode_image(data)
    if max_side == 0 or max(image.size) <= max_side:
        return data
    scale = max_side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _splits(jobs: Sequence[_ShardJob], results: Sequence[_ShardResult]) -> dict[str, Split]:
    shards: dict[str, list[ShardInfo]] = {}
    for job, result in zip(jobs, results, strict=True):
        if result.info is not None:
            shards.setdefault(job.split, []).append(result.info)
    return {split: Split(tuple(infos)) for split, infos in shards.items()}


def _write_skips(path: Path, skips: Sequence[Skip]) -> None:
    if not skips:
        path.unlink(missing_ok=True)
        return
    with atomic_writer(path) as file:
        for skip in skips:
            file.write(encode_json(dataclasses.asdict(skip)))
