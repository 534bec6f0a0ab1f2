"""From images with captions to a dataset directory: in parallel, resumable, every image checked.

Sources (`ssmke.data.sources`) plan the shards: what each is made of, and a digest of that, so that the same
import gives the same bytes. This module does the rest, the same for all of them. Workers write whole shards,
decoding every image once to know that it can be. Images are stored as they are (``max_side`` re-encodes
larger ones, `ssmke.data.resizing`). What cannot be used, and what the cleaning options leave out, is skipped,
counted by reason in the manifest and listed in ``skipped.jsonl``.

Finished shards are recorded (`ssmke.data.import_state`). Run again, an import keeps every shard whose plan and
SHA-256 are unchanged and writes the rest, so images that were missing the first time may simply be added. What
was left out is on the disk there, shard by shard; in memory are only counts, however much it is.
Cost: mostly the decoding, 0.13 ms for a 224-pixel JPEG and growing with the pixels, per core.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from ssmke.data.atomic import atomic_writer, encode_json, make_folder
from ssmke.data.import_state import FinishedShard, ImportState, Skip, SourceFile, skip_order
from ssmke.data.manifest import FILE_NAME, Manifest, ShardInfo, Split
from ssmke.data.parallel import Progress, run_jobs, tick
from ssmke.data.quality.cleaning import CleaningConfig, usable_captions
from ssmke.data.resizing import stored_image
from ssmke.data.shards import Sample, ShardIndex, file_sha256, index_path, write_shard
from ssmke.errors import BadSample, ConfigError, DataError

MAX_FILE_BYTES = 256 << 20
MAX_EXTRA_CHARACTERS = 2048
EVALUATION_SPLITS = ("val", "test")
SKIPPED_NAME = "skipped.jsonl"
UNREADABLE = "unreadable file"
"""Reason of what the file system refused: the only one that another run may find gone with nothing changed."""


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
class ImportReport:
    """What an import did."""

    manifest: Manifest
    reused: int
    """Shards kept from an earlier run."""
    written: int
    """Shards written by this one."""
    seconds: float
    notes: tuple[str, ...] = ()
    """What the user should know: which of several files was taken, what the source does not say."""


class ShardContent(Protocol):
    """What a shard is made of; pickled to the worker that makes it."""

    def samples(self, skips: list[Skip]) -> Iterator[Sample]:
        """Read the samples one by one, calling `tick` for each; what is left out goes to ``skips``."""
        ...


@dataclasses.dataclass(frozen=True)
class ShardPlan:
    """A shard to be made."""

    file: str
    """Name of the tar."""
    split: str
    plan: str
    """Digest of everything that the content depends on, apart from the identity of the import."""
    content: ShardContent
    origin: SourceFile | None = None
    """The file of the source that it is made of, if it is one."""


@dataclasses.dataclass(frozen=True)
class Checks:
    """What an image with captions has to pass to become a sample."""

    source: str
    """Name of the dataset."""
    split: str
    max_side: int
    clean: CleaningConfig
    """Not for `EVALUATION_SPLITS`: results on them stay comparable with others'."""

    @property
    def _clean(self) -> CleaningConfig:
        return CleaningConfig() if self.split in EVALUATION_SPLITS else self.clean

    def sample(
        self,
        place: Skip,
        key: str,
        captions: Sequence[str],
        read: Callable[[], bytes],
        extra: Mapping[str, Any],
        skips: list[Skip],
    ) -> Sample | None:
        """The sample, or None with the reasons in ``skips``.

        Args:
            place: the skip that it would become, but for the reason.
            key: of the sample.
            captions: as the source has them.
            read: gives the image file; called only if there is a caption for it. Raises `BadSample`.
            extra: as in `Sample`.
            skips: where the reasons go.
        """
        kept, dropped = usable_captions(captions, self._clean)
        skips.extend(
            dataclasses.replace(place, reason=error.reason, detail=error.detail, caption=number)
            for number, error in dropped
        )
        try:
            if not kept:
                raise BadSample("no usable caption")
            image = stored_image(read(), self._clean, max_side=self.max_side)
        except BadSample as error:
            skips.append(dataclasses.replace(place, reason=error.reason, detail=error.detail))
            return None
        return Sample(key, image, tuple(kept), self.source, extra)


def pick_extra(raw: Mapping[str, Any], fields: Iterable[str]) -> dict[str, Any]:
    """Those of ``fields`` that are a number or a short text: what is kept of foreign JSON, whatever is in it."""
    picked: dict[str, Any] = {}
    for field in fields:
        value = raw.get(field)
        if isinstance(value, str) and len(value) <= MAX_EXTRA_CHARACTERS:
            with contextlib.suppress(UnicodeError):
                value.encode()
                picked[field] = value
        elif type(value) is int and abs(value) < 1 << 63:
            picked[field] = value
    return picked


def import_shards(
    name: str,
    plans: Iterable[ShardPlan],
    out: Path,
    identity: Mapping[str, Any],
    source: Mapping[str, Any],
    skips: Sequence[Skip] = (),
    left_out: Mapping[str, int] = MappingProxyType({}),
    workers: int = 1,
    on_items: Progress = lambda images: None,
    notes: Sequence[str] = (),
    origins: Sequence[SourceFile] = (),
) -> ImportReport:
    """Make the planned shards in the dataset directory ``out``; stopped, an import goes on where it was.

    Args:
        name: of the dataset.
        plans: the shards, in order; asked for when ``out`` is known to be ours.
        out: the dataset directory.
        identity: what makes this import the same as one before, by flag name; told apart in the error.
        source: facts for the manifest.
        skips: what the source already had to leave out; listed and counted.
        left_out: what it left out besides, by reason; only counted, where a list would be too long.
        workers: processes.
        on_items: called with the number of images done since the last call.
        notes: as in `ImportReport`.
        origins: all files of a source whose shards are made of one each, also those that no shard is planned of.

    Raises:
        DataError: ``out`` holds something else (the difference is named), or images of a file that is not among
            ``origins``; it cannot be written; or no image at all could be used.
    """
    begin = time.monotonic()
    make_folder(out)
    with ImportState.open(out, identity) as state:
        state.refuse_gone(origins)
        jobs = [_Job(plan, out / plan.file, state.finished(plan.file, plan.plan)) for plan in plans]
        if any(job.finished is None for job in jobs):
            # A directory with a manifest is complete; from here on this one is not.
            (out / FILE_NAME).unlink(missing_ok=True)

        def record(number: int, result: _Result) -> FinishedShard:
            plan, before = jobs[number].plan, jobs[number].finished
            if result.reused and before is not None:
                return before
            again = any(skip.reason == UNREADABLE for skip in result.skips)
            return state.record(plan.file, "" if again else plan.plan, result.info, result.skips, plan.origin)

        shards = run_jobs(_make_shard, jobs, workers, on_items, record)
        listed = sum((Counter(shard.skipped) for shard in shards), Counter(skip.reason for skip in skips))
        _write_skips(out / SKIPPED_NAME, listed.total(), skips, state, [job.plan.file for job in jobs])
        for file in state.files() - {job.plan.file for job in jobs}:
            # Made by a run before, when the source had more shards.
            (out / file).unlink(missing_ok=True)
            index_path(out / file).unlink(missing_ok=True)
        skipped = dict(sorted((listed + Counter(left_out)).items()))
        manifest = Manifest(name, source, _splits(jobs, shards), skipped)
        if not manifest.images:
            counts = ", ".join(f"{count} x {reason}" for reason, count in manifest.skipped.items())
            raise DataError(f"nothing could be imported to {out}: {counts or 'no entries'}.")
        manifest.save(out)
    with_images = [(job, shard) for job, shard in zip(jobs, shards, strict=True) if shard.info is not None]
    reused = sum(shard is job.finished for job, shard in with_images)
    return ImportReport(manifest, reused, len(with_images) - reused, time.monotonic() - begin, tuple(notes))


@dataclasses.dataclass(frozen=True)
class _Job:
    """Everything a worker needs to make one shard."""

    plan: ShardPlan
    path: Path
    finished: FinishedShard | None
    """The shard of an earlier run, if it had the same plan."""


@dataclasses.dataclass(frozen=True)
class _Result:
    info: ShardInfo | None = None
    """None if nothing of it could be used."""
    skips: tuple[Skip, ...] = ()
    reused: bool = False
    """Whether the shard of an earlier run is still right; then nothing else is told."""


def _make_shard(job: _Job) -> _Result:
    before = job.finished
    if before is not None and _intact(job.path, before.info):
        tick(before.images_left_out + (0 if before.info is None else before.info.images))
        return _Result(reused=True)
    skips: list[Skip] = []
    samples = job.plan.content.samples(skips)
    first = next(samples, None)
    if first is None:
        job.path.unlink(missing_ok=True)
        index_path(job.path).unlink(missing_ok=True)
        return _Result(None, tuple(skips))
    info = write_shard(job.path, itertools.chain([first], samples), job.plan.split)
    return _Result(info, tuple(skips))


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


def _splits(jobs: Sequence[_Job], made: Sequence[FinishedShard]) -> dict[str, Split]:
    shards: dict[str, list[ShardInfo]] = {}
    for job, shard in zip(jobs, made, strict=True):
        if shard.info is not None:
            shards.setdefault(job.plan.split, []).append(shard.info)
    return {split: Split(tuple(infos)) for split, infos in shards.items()}


def _write_skips(
    path: Path, count: int, source: Sequence[Skip], state: ImportState, shards: Sequence[str]
) -> None:
    """List what the source left out, then what each shard did."""
    if not count:
        path.unlink(missing_ok=True)
        return
    with atomic_writer(path) as file:
        for skips in itertools.chain([sorted(source, key=skip_order)], map(state.skips, shards)):
            for skip in skips:
                file.write(encode_json(vars(skip)))
