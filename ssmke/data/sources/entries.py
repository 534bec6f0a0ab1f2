"""Sources that are a list: image files with captions and splits.

Entries are dealt to shards beforehand, in their order, by count and file size: a pure function of the entries
and the files' sizes, so the same list gives the same bytes, and images that lie in a zip give those that they
give from a folder. The list is held in memory (about 1 KB an entry), which suits the sets that people
annotated, of some 100,000 images; `ssmke.data.sources.tars` is for those of millions.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ssmke.data.dealing import deal
from ssmke.data.import_state import Skip
from ssmke.data.importing import Checks, ImportReport, ShardPlan, StorageConfig, import_shards
from ssmke.data.parallel import Progress, tick
from ssmke.data.quality.cleaning import CleaningConfig
from ssmke.data.shards import Sample
from ssmke.data.sources.image_files import FileStamp, ImageFiles, close_archives
from ssmke.data.sources.layout import Document
from ssmke.errors import DataError


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


def import_entries(
    name: str,
    images: ImageFiles,
    entries: Sequence[Entry],
    skips: Sequence[Skip],
    out: Path,
    identity: Mapping[str, Any],
    source: Mapping[str, Any],
    storage: StorageConfig,
    clean: CleaningConfig,
    workers: int = 1,
    on_total: Callable[[int], None] = lambda images: None,
    on_items: Progress = lambda images: None,
    notes: Sequence[str] = (),
) -> ImportReport:
    """Write ``entries``, whose keys must be unique, to the dataset directory ``out``.

    ``on_total`` is called once with the number of entries; all else is as in `import_shards`.

    Raises:
        DataError: as `import_shards`, or an archive of images cannot be read.
    """
    on_total(len(entries))
    facts: dict[str, Any] = {"max_side": storage.max_side}
    if clean.identity():
        facts["clean"] = clean.identity()
    try:
        return import_shards(
            name=name,
            plans=_plans(name, images, entries, storage, clean),
            out=out,
            identity={
                **identity,
                "--max-side": storage.max_side,
                "--shard-images": storage.shard_images,
                "--shard-megabytes": storage.shard_megabytes,
                **clean.identity(),
            },
            source={**source, **facts},
            skips=skips,
            workers=workers,
            on_items=on_items,
            notes=notes,
        )
    finally:
        close_archives()


@dataclasses.dataclass(frozen=True)
class Captions:
    """What the caption files of a dataset say, in the folder that it is distributed as."""

    entries: Sequence[Entry]
    skips: Sequence[Skip]
    used: Sequence[Document]
    """The files."""
    fingerprint: str
    """Digest of their content."""
    notes: tuple[str, ...] = ()

    def of(self, splits: Collection[str]) -> Captions:
        """Those of the given splits; of all, if none is given.

        Raises:
            DataError: there are none of them.
        """
        if not splits:
            return self
        entries = [entry for entry in self.entries if entry.split in splits]
        if not entries:
            raise DataError(f"--splits {' '.join(splits)}: {self.used[0]} has no images of them.")
        skips = [skip for skip in self.skips if skip.split in splits]
        return dataclasses.replace(self, entries=entries, skips=skips)


def import_captions(
    importer: str,
    name: str,
    captions: Captions,
    images: ImageFiles,
    out: Path,
    storage: StorageConfig,
    clean: CleaningConfig,
    workers: int,
    on_total: Callable[[int], None],
    on_items: Progress,
    splits: Collection[str],
) -> ImportReport:
    """As `import_entries`, for ``captions`` of the ``splits`` that were asked for; what was used is told."""
    return import_entries(
        name=name,
        images=images,
        entries=captions.entries,
        skips=captions.skips,
        out=out,
        identity={
            "importer": importer,
            "captions (SHA-256)": captions.fingerprint,
            "--splits": sorted(set(splits)),
        },
        source={
            "captions_file": ", ".join(document.name for document in captions.used),
            "fingerprint": captions.fingerprint,
            "importer": importer,
        },
        storage=storage,
        clean=clean,
        workers=workers,
        on_total=on_total,
        on_items=on_items,
        notes=[f"captions and splits: {', '.join(map(str, captions.used))}", *captions.notes],
    )


@dataclasses.dataclass(frozen=True)
class _Entries:
    """The entries of one shard."""

    images: ImageFiles
    entries: tuple[Entry, ...]
    checks: Checks

    def samples(self, skips: list[Skip]) -> Iterator[Sample]:
        for entry in self.entries:
            place = Skip(entry.number, entry.file, entry.split, "")
            sample = self.checks.sample(
                place,
                entry.key,
                entry.captions,
                lambda file=entry.file: self.images.read(file),  # type: ignore[misc]
                entry.extra,
                skips,
            )
            if sample is not None:
                yield sample
            tick()


def _plans(
    name: str, images: ImageFiles, entries: Sequence[Entry], storage: StorageConfig, clean: CleaningConfig
) -> Iterator[ShardPlan]:
    for split, number, shard in _deal(images, entries, storage):
        # ASCII, because captions that are not UTF-8 are only found out by the worker.
        text = repr([(dataclasses.astuple(entry), stamp.size, stamp.time) for entry, stamp in shard])
        yield ShardPlan(
            file=f"{split}-{number:05d}.tar",
            split=split,
            plan=hashlib.sha256(text.encode("ascii", "backslashreplace")).hexdigest(),
            content=_Entries(
                images, tuple(entry for entry, _ in shard), Checks(name, split, storage.max_side, clean)
            ),
        )


def _deal(
    images: ImageFiles, entries: Sequence[Entry], storage: StorageConfig
) -> Iterator[tuple[str, int, list[tuple[Entry, FileStamp]]]]:
    """Deal entries to shards: ``(split, number in the split, entries)``."""
    splits: dict[str, list[tuple[Entry, FileStamp]]] = {}
    for entry in entries:
        splits.setdefault(entry.split, []).append((entry, images.stamp(entry.file)))
    if entries and all(stamp.size is None for members in splits.values() for _, stamp in members):
        # Not the images that are there now, so what an earlier run made of them stays.
        raise DataError(
            f"none of the {len(entries):,} images is where they are looked for ({entries[0].file} and the others): "
            "check the folder of the images."
        )
    for split, dealt in splits.items():
        sizes = [stamp.size or 0 for _, stamp in dealt]
        for number, shard in enumerate(deal(sizes, storage.shard_images, storage.shard_megabytes << 20)):
            yield split, number, dealt[shard]
