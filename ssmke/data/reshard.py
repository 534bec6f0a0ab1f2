"""One or several datasets into new shards: merged, of other sizes, smaller, cleaned, without copies or leaks.

Which image goes where is planned first (`ssmke.data.reshard_plan`); the shards are then made as an import makes
them (`ssmke.data.importing`): in parallel, whole or not at all, resumable, the same inputs and options giving
the same bytes. The inputs are only read. Images that need not be smaller are copied byte for byte, undecoded
(`ssmke data verify` finds damaged ones). Every sample keeps its ``source`` and ids, and its key, unless an image
before it has the same one.

Evaluation splits stay whole by default: cleaning and the removal of duplicates are for ``clean_splits``, or a
benchmark would silently become another. Exact duplicates are removed within a split; across splits they are
leaks, which `ssmke data leaks` finds and ``drop`` removes.

Cost an image and core: 0.13 ms to copy, 0.3 ms more for its SHA-256 where duplicates are looked for; 6 ms to make
a 640 x 480 photo smaller. Memory at its peak: 80 bytes an image, 200 while looking for duplicates, and some
hundreds for each that is left out.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssmke.data.atomic import make_folder
from ssmke.data.import_state import ImportState
from ssmke.data.importing import ImportReport, ShardPlan, StorageConfig, import_shards
from ssmke.data.manifest import Manifest
from ssmke.data.parallel import Progress
from ssmke.data.quality.cleaning import CleaningConfig
from ssmke.data.quality.inputs import input_shards
from ssmke.data.quality.leaks import read_leaks
from ssmke.data.reshard_plan import OTHER_SOURCE, NewShard, Selection, Survey, reads_samples, survey
from ssmke.data.reshard_samples import Origin, ReshardedShard, Rules
from ssmke.data.shards import file_sha256
from ssmke.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True)
class ReshardConfig:
    """What is merged to what."""

    inputs: tuple[Path, ...]
    """Folders of the datasets, in the order in which their images are wanted."""
    out: Path
    """Folder to write the new dataset to."""
    name: str = ""
    """Of the new dataset; by default the names of the inputs, joined by +."""
    storage: StorageConfig = dataclasses.field(default_factory=StorageConfig)
    """How images are stored."""
    short_side: int = 0
    """Scale images with a shorter side above this down to it, re-encoded as JPEG; 0 does not."""
    sources: tuple[str, ...] = ()
    """Keep only images of these sources; none: of all."""
    drop: tuple[Path, ...] = ()
    """Files that `ssmke data leaks` wrote: leave out the training images that they name."""
    drop_duplicates: bool = False
    """Leave out images of the same bytes as one before, joining their captions onto it."""
    clean: CleaningConfig = dataclasses.field(default_factory=CleaningConfig)
    """What else is left out."""
    clean_splits: tuple[str, ...] = ("train",)
    """Splits that ``clean`` and ``drop_duplicates`` are for; the others stay as they are, to be comparable."""

    def __post_init__(self) -> None:
        if not self.inputs:
            raise ConfigError("IN is missing: give the folders of the datasets, then --out")
        if self.short_side != 0 and self.short_side < 32:
            raise ConfigError(f"--short-side {self.short_side}: must be 0 (store as is) or at least 32")
        resolved = [folder.resolve() for folder in self.inputs]
        for folder in resolved:
            if resolved.count(folder) > 1:
                raise ConfigError(f"IN {folder}: was given twice")
        out = self.out.resolve()
        for folder in resolved:
            if folder in (out, *out.parents):
                raise ConfigError(
                    f"--out {self.out}: is in the input {folder}, which is only read; choose another"
                )


@dataclasses.dataclass(frozen=True)
class ReshardReport:
    """What `reshard` did."""

    result: ImportReport
    """The new dataset, and what making it took."""
    images: int
    """Images of the inputs: those of the new dataset and those left out."""
    joined: int
    """Captions of exact duplicates that went to the images kept; those that they had are skipped as repeated."""
    renamed: int
    """Images that got another key, because one before has theirs."""
    before: Mapping[str, Mapping[str, int]]
    """What had been left out when the inputs were made, by reason, by input."""


def reshard(
    config: ReshardConfig,
    workers: int = 1,
    on_total: Callable[[int], None] = lambda images: None,
    on_items: Progress = lambda images: None,
) -> ReshardReport:
    """Write the new dataset; stopped, the same call goes on where it was.

    Args:
        config: what is merged to what.
        workers: processes.
        on_total: called once with the number of images to go through, twice each if they are read twice.
        on_items: called with the number of images done since the last call.

    Raises:
        ConfigError: no input has one of the splits to be cleaned.
        DataError: an input or a file of leaks cannot be used, ``out`` holds something else, or nothing is left.
    """
    begin = time.monotonic()
    manifests = [Manifest.load(folder) for folder in config.inputs]
    origins = [
        Origin(shard, manifest.name, number)
        for number, (folder, manifest) in enumerate(zip(config.inputs, manifests, strict=True))
        for shard in input_shards([folder])
    ]
    _check_clean_splits(config, {split for manifest in manifests for split in manifest.splits})
    selection = _selection(config)
    identity = _identity(config, manifests)
    make_folder(config.out)
    with ImportState.open(config.out, identity):
        pass  # a folder that holds something else is refused now, not after reading everything
    images = sum(manifest.images for manifest in manifests)
    on_total(images * (2 if reads_samples(selection) else 1))
    found = survey(origins, selection, workers, on_items)
    skips, other = found.skips(), found.of_other_sources
    left_out = Counter(skip.reason for skip in skips) + Counter({OTHER_SOURCE: other})
    if not found.kept:
        counts = ", ".join(f"{count:,} x {reason}" for reason, count in left_out.items())
        raise DataError(f"nothing would be left for --out {config.out}: {counts}.")
    on_items(left_out.total())
    duplicates = found.duplicates[:, 0]
    facts = {
        "joined_captions": int(found.captions[duplicates].sum()),
        "renamed_keys": int(found.renamed.sum()),
    }
    inputs = [
        {"name": manifest.name, "images": manifest.images, "captions": manifest.captions}
        | {"skipped": dict(manifest.skipped), "source": dict(manifest.source)}
        for manifest in manifests
    ]
    source = {"importer": "reshard", "fingerprint": _digest(identity), "inputs": inputs, "options": identity}
    result = import_shards(
        name=config.name or "+".join(dict.fromkeys(manifest.name for manifest in manifests)),
        plans=_plans(config, found),
        out=config.out,
        identity=identity,
        source=source | facts,
        skips=skips,
        # Only counted: listed one by one, what is not wanted of a large dataset would not fit into memory.
        left_out={OTHER_SOURCE: other} if other else {},
        workers=workers,
        on_items=on_items,
    )
    return ReshardReport(
        result=dataclasses.replace(result, seconds=time.monotonic() - begin),
        images=images,
        joined=facts["joined_captions"],
        renamed=facts["renamed_keys"],
        before={
            str(folder): manifest.skipped for folder, manifest in zip(config.inputs, manifests, strict=True)
        },
    )


def _plans(config: ReshardConfig, found: Survey) -> Iterator[ShardPlan]:
    storage = config.storage
    sides = [side for side in (storage.max_side, config.short_side) if side]
    # A re-encoded image is far below its size as raw pixels; as those of a square it is bounded well enough.
    largest = 3 * min(sides) ** 2 if sides else None
    for new in found.deal(storage.shard_images, storage.shard_megabytes << 20, largest):
        clean = config.clean if new.split in config.clean_splits else CleaningConfig()
        content = _content(new, found, Rules(storage.max_side, config.short_side, clean))
        digests = [origin.shard.info.sha256 for origin in content.origins]
        facts = repr((digests, sorted(content.joined.items()), content.rules))
        rows = np.stack([content.images, content.shard, content.position, content.renamed])
        plan = hashlib.sha256(facts.encode() + rows.tobytes()).hexdigest()
        yield ShardPlan(f"{new.split}-{new.number:05d}.tar", new.split, plan, content)


def _content(new: NewShard, found: Survey, rules: Rules) -> ReshardedShard:
    shard, position = found.place(new.images)
    copies, kept = found.duplicates_of(new.images).T
    copy_shard, copy_position = found.place(copies)
    used, which = np.unique(np.concatenate([shard, copy_shard]), return_inverse=True)
    joined: dict[int, list[tuple[int, int]]] = {}
    for image, there, i in zip(
        kept.tolist(), which[len(shard) :].tolist(), copy_position.tolist(), strict=True
    ):
        joined.setdefault(image, []).append((there, i))
    origins = tuple(found.origins[i] for i in used.tolist())
    return ReshardedShard(
        origins, new.images, which[: len(shard)], position, found.renamed[new.images], joined, rules
    )


def _check_clean_splits(config: ReshardConfig, there: set[str]) -> None:
    """Refuse splits that no input has: what was asked for them would silently not be done."""
    asked = config.drop_duplicates or bool(config.clean.identity())
    unknown = sorted(set(config.clean_splits) - there)
    if unknown and (asked or config.clean_splits != ReshardConfig.clean_splits):
        raise ConfigError(
            f"--clean-splits {unknown[0]}: no input has that split; give some of {', '.join(sorted(there))}"
        )
    if asked and not config.clean_splits:
        raise ConfigError(
            "--clean-splits is empty: --clean and --drop-duplicates would do nothing; give splits"
        )


def _selection(config: ReshardConfig) -> Selection:
    leaks = [(path, read_leaks(path)) for path in config.drop]
    inputs = {str(folder.resolve()) for folder in config.inputs}
    for path, found in leaks:
        folders = {leak.train.dir for leak in found}
        if folders and not folders & inputs:
            raise DataError(
                f"--drop {path} is about {min(folders)}, which is not among the inputs: give the file that "
                f"`ssmke data leaks` wrote for them."
            )
    return Selection(
        sources=config.sources,
        leaks=tuple(leak for _, found in leaks for leak in found),
        duplicates=config.drop_duplicates,
        duplicate_splits=config.clean_splits,
    )


def _identity(config: ReshardConfig, manifests: Sequence[Manifest]) -> dict[str, Any]:
    content = [
        (manifest.name, split, [shard.sha256 for shard in part.shards])
        for manifest in manifests
        for split, part in manifest.splits.items()
    ]
    return {
        "importer": "reshard",
        "IN (SHA-256)": _digest(content),
        "--name": config.name,
        **{
            f"--{name.replace('_', '-')}": value for name, value in dataclasses.asdict(config.storage).items()
        },
        "--short-side": config.short_side,
        "--sources": ",".join(config.sources),
        "--drop (SHA-256)": ",".join(file_sha256(path) for path in config.drop),
        "--drop-duplicates": config.drop_duplicates,
        "--clean-splits": ",".join(config.clean_splits),
        **config.clean.identity(),
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
