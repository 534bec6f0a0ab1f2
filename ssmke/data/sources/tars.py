"""Import of webdataset tars that others made: img2dataset's, open_clip's, the hub's copies of CC3M, CC12M, SBU.

One tar becomes one shard, read from front to back with one sample and the keys of one tar in memory (1.4 KB a
sample of the tar, so 14 MB for 10,000), however many tars there are. Shards are therefore as large as the tars,
whatever ``storage`` says of shard sizes; `ssmke data reshard` changes that.

A sample is an image (``jpg``, ``png``, ``webp``) with its captions, from the JSON or the text file beside it; the
URL, the original size and ids are kept. The name of a tar tells its split where it has one
(``cc3m-validation-0000.tar``).

Keys must be unique in a dataset, and in tars of others they often are so only within a tar. So a key becomes
``<tar>-<key>``, unless it begins with the tar's name, as img2dataset's do. That needs no look at the other
tars' keys. A tar that is damaged costs itself, from the damage on, and is reported; what img2dataset has not
finished (no ``_stats.json`` where others have one) is left for the next time.

Run again, tars that are new are added and those that changed are imported again. Where tars that were imported are
not there, or others of their names in another folder, it is refused: their shards would be deleted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Any

from ssmke.data.import_state import Skip, SourceFile
from ssmke.data.importing import Checks, ImportReport, ShardPlan, StorageConfig, import_shards
from ssmke.data.manifest import SPLIT_NAME
from ssmke.data.parallel import Progress
from ssmke.data.quality.cleaning import CleaningConfig
from ssmke.data.shards import make_key
from ssmke.data.sources.tar_members import storable, tar_members
from ssmke.data.sources.tar_samples import IMAGES, TarSamples
from ssmke.errors import BadSample, ConfigError, DataError

_HEAD = 4096
"""Bytes of a tar that tell it from another of its name."""
_SAMPLED = 3000
"""Members that an estimate looks at."""
_SPLIT_WORD = re.compile(
    r"(?:^|[-_.])(?:(train|training)|(val|valid|validation|dev)|(test))(?:[-_.]|$)", re.I
)


@dataclasses.dataclass(frozen=True)
class TarsConfig:
    """What is imported, and how it is stored."""

    tars: Path
    """Folder of webdataset tars: key.jpg (or png, webp) with key.txt, key.json or both."""
    out: Path
    """Folder to write the dataset to."""
    name: str = ""
    """Name of the dataset; by default the folder's."""
    split: str = "train"
    """Split of tars whose names have no train, validation or test in them."""
    caption_field: str = ""
    """Field of the JSON that holds the caption or a list of them; by default "captions", "caption" or "text",
    whichever has text, else the text file."""
    storage: StorageConfig = dataclasses.field(default_factory=StorageConfig)
    """How images are stored."""
    clean: CleaningConfig = dataclasses.field(default_factory=CleaningConfig)
    """What is left out."""

    def __post_init__(self) -> None:
        if not SPLIT_NAME.fullmatch(self.split):
            raise ConfigError(f"--split {self.split!r}: must be of letters, digits and _")


def import_tars(
    config: TarsConfig,
    workers: int = 1,
    on_total: Callable[[int], None] = lambda images: None,
    on_items: Progress = lambda images: None,
) -> ImportReport:
    """Import to ``config.out``; an import that was stopped goes on where it was.

    ``on_total`` is called once with the number of images, as far as it can be told without reading all: from
    img2dataset's counts, else estimated from the first tar. All else is as in `import_shards`.

    Raises:
        DataError: there are no tars, or as `import_shards`.
    """
    inputs = _find(config.tars)
    finished = {path for path in inputs if _stats(path).is_file()}
    ready = dict.fromkeys(path for path in inputs if not finished or path in finished)
    stems = [make_key(_stem(path)) for path in inputs]
    # With no name the beginning of another, keys of different tars differ within the tars' names already.
    ordered = sorted(stems)
    separate = all(not b.startswith(a) for a, b in itertools.pairwise(ordered))
    name = config.name or storable(config.tars.resolve().name)
    unfinished = [
        Skip(
            number,
            path.name,
            _split(path, config),
            "unfinished tar",
            "img2dataset has written no stats of it",
        )
        for number, path in enumerate(inputs)
        if path not in ready
    ]
    notes = []
    if unfinished:
        notes.append(
            f"{len(unfinished)} of {len(inputs)} tars are not finished by img2dataset ({unfinished[0].file} ...): "
            f"let it end, then run this again to add them"
        )
    on_total(_estimate(list(ready)))
    contents = [
        TarSamples(
            path=path,
            number=number,
            prefix=stem,
            separate=separate,
            caption_field=config.caption_field,
            checks=Checks(name, _split(path, config), config.storage.max_side, config.clean),
        )
        for number, (path, stem) in enumerate(zip(inputs, stems, strict=True))
    ]
    return import_shards(
        name=name,
        plans=_plans(contents, ready),
        out=config.out,
        identity={
            "importer": "tars",
            "--name": name,
            "--split": config.split,
            "--caption-field": config.caption_field,
            "--max-side": config.storage.max_side,
            **config.clean.identity(),
        },
        source={
            "importer": "tars",
            "fingerprint": _digest([_facts(path, times=False) for path in ready]),
            "tars": len(ready),
            "max_side": config.storage.max_side,
            **({"clean": config.clean.identity()} if config.clean.identity() else {}),
        },
        skips=unfinished,
        workers=workers,
        on_items=on_items,
        notes=notes,
        origins=[_source_file(path) for path in inputs],
    )


def _find(folder: Path) -> list[Path]:
    """The tars of a folder by name, or else its subfolders of images."""
    if not folder.is_dir():
        raise DataError(f"--tars {folder} is not a folder.")
    try:
        with os.scandir(folder) as found:
            names = sorted(entry.name for entry in found if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot read --tars {folder}: {error.strerror or error}.") from error
    tars = [folder / name for name in names if name.endswith(".tar")]
    if tars:
        return tars
    folders = [folder / name for name in names if (folder / name).is_dir()]
    samples = [path for path in folders if _stats(path).is_file() or _has_samples(path)]
    if samples:
        return samples
    below = [path.name for path in folders if next(path.glob("*.tar"), None) is not None]
    if below:
        raise DataError(
            f"--tars {folder} has no tars, but its folder {below[0]} has: give {folder / below[0]}."
        )
    compressed = next((name for name in names if name.lower().endswith((".tar.gz", ".tgz"))), None)
    if compressed is not None:
        raise DataError(
            f"--tars {folder} has only compressed tars: unpack them (gunzip {folder / compressed})."
        )
    raise DataError(
        f"--tars {folder} has no *.tar, and no folders of images with .txt or .json: give the folder that "
        f"img2dataset wrote, or that a dataset of webdataset tars was downloaded to."
    )


def _has_samples(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            suffixes = {entry.name.rpartition(".")[2].lower() for entry in entries}
    except OSError:
        return False
    return bool(suffixes & set(IMAGES)) and bool(suffixes & {"txt", "json"})


def _stem(path: Path) -> str:
    return path.name if path.is_dir() else path.name[: -len(".tar")]


def _stats(path: Path) -> Path:
    """Where img2dataset counts a shard when it is finished."""
    return path.with_name(f"{_stem(path)}_stats.json")


def _split(path: Path, config: TarsConfig) -> str:
    word = _SPLIT_WORD.search(_stem(path))
    if word is None:
        return config.split
    return "train" if word[1] else "val" if word[2] else "test"


def _plans(tars: Sequence[TarSamples], ready: Container[Path]) -> Iterator[ShardPlan]:
    numbers: dict[str, int] = {}
    for tar in tars:
        split = tar.checks.split
        number = numbers.setdefault(split, 0)
        numbers[split] += 1  # also where nothing is made of it yet, so that names stay when it is
        if tar.path in ready:
            # How keys are made depends on the names of the other tars.
            plan = _digest([_facts(tar.path), tar.prefix, tar.separate])
            yield ShardPlan(f"{split}-{number:05d}.tar", split, plan, tar, _source_file(tar.path))


def _source_file(path: Path) -> SourceFile:
    # Not of times: a folder that was copied to another place has the same tars. Tars of a few images are often of
    # one size, so the first header and image are looked at, too.
    head = b""
    with contextlib.suppress(OSError):
        if path.is_file():  # a pipe would have us wait for ever
            with path.open("rb") as file:
                head = file.read(_HEAD)
    content = _digest([_facts(path, times=False), head])
    return SourceFile(storable(path.name), _digest(str(path.parent.resolve())), content)


def _facts(path: Path, times: bool = True) -> list[Any]:
    """What tells one state of a tar, or of a folder, from another."""
    try:
        if path.is_dir():
            with os.scandir(path) as entries:
                found = sorted((entry.name, entry.stat()) for entry in entries)
        else:
            found = [(path.name, path.stat())]
    except OSError:
        return [path.name]
    return [path.name, [(name, facts.st_size, facts.st_mtime_ns if times else 0) for name, facts in found]]


def _digest(facts: Any) -> str:
    return hashlib.sha256(repr(facts).encode("ascii", "backslashreplace")).hexdigest()


def _estimate(inputs: Sequence[Path]) -> int:
    """Images in all tars: img2dataset's counts; else from the first that can be read, by size."""
    counted = [_successes(path) for path in inputs]
    if all(count is not None for count in counted):
        return sum(count or 0 for count in counted)
    if all(path.is_dir() for path in inputs):
        return sum(1 for path in inputs for file in path.iterdir() if file.suffix[1:].lower() in IMAGES)
    sizes = [path.stat().st_size if path.is_file() else 0 for path in inputs]
    for path in inputs:
        images, size = 0, 0
        try:
            for member in itertools.islice(tar_members(path), _SAMPLED):
                images += member.extension in IMAGES
                size += member.size + 1024  # its header and padding
        except BadSample:
            pass
        if images:
            return round(images * sum(sizes) / size)
    return 0


def _successes(path: Path) -> int | None:
    try:
        data = _stats(path).read_bytes()
        count = json.loads(data)["successes"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return count if isinstance(count, int) else None
