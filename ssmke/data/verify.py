"""Check a dataset directory by reading all of it again, and list everything that is wrong.

For each shard: it is there, of the stated size and SHA-256; its tar is whole and holds nothing but samples;
keys, counts and digests are those of the manifest; the index agrees with the tar; every record parses and
names its key and split; every image is of its extension and decodes; every caption is usable. For the
directory: no key comes twice (across splits that would be a leak), and no shard or half-written file lies
there unlisted. Costs about one decode of everything, spread over ``workers``.
"""

from __future__ import annotations

import dataclasses
import stat
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ssmke.data.atomic import TEMPORARY_SUFFIX
from ssmke.data.captions import clean_caption
from ssmke.data.dataset import locate
from ssmke.data.decode import decode_image, image_extension
from ssmke.data.manifest import Manifest, ShardInfo
from ssmke.data.parallel import Progress, run_jobs, tick
from ssmke.data.remote.mirror import Mirror, gave_way
from ssmke.data.shard_scan import ShardTable, parse_record, scan
from ssmke.data.shards import ShardIndex, file_sha256, keys_digest
from ssmke.errors import BadSample, DataError


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something that is wrong."""

    file: str
    """Name of the file in the directory."""
    sample: str
    """Key of the sample, or empty if it is the file itself."""
    what: str


@dataclasses.dataclass(frozen=True)
class VerifyReport:
    """What `verify` found."""

    manifest: Manifest
    problems: tuple[Problem, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        return not self.problems


def verify(
    directory: str | Path,
    workers: int = 1,
    on_total: Callable[[int], None] = lambda images: None,
    on_items: Progress = lambda images: None,
) -> VerifyReport:
    """Check ``directory`` completely; nothing is changed in it.

    Args:
        directory: folder or address of a dataset; of an address, every shard is fetched.
        workers: processes.
        on_total: called once with the number of images.
        on_items: called with the number of images done since the last call.

    Raises:
        DataError: there is no manifest that can be read; all else is a `Problem`.
    """
    begin = time.monotonic()
    folder, mirror = locate(directory)
    manifest = Manifest.load(folder)
    on_total(manifest.images)
    jobs = [
        _Job(folder, mirror, split, info) for split, part in manifest.splits.items() for info in part.shards
    ]
    problems = [] if mirror else _listing(folder, [job.info.file for job in jobs])
    holder: dict[str, str] = {}  # key -> file
    for info, (keys, found) in zip(
        [job.info for job in jobs], run_jobs(_check_shard, jobs, workers, on_items), strict=True
    ):
        problems += found
        for key in keys:
            if holder.setdefault(key, info.file) != info.file:
                problems.append(Problem(info.file, key, f"the key is also in {holder[key]}"))
    return VerifyReport(manifest, tuple(problems), time.monotonic() - begin)


def _listing(directory: Path, files: list[str]) -> list[Problem]:
    problems = [
        Problem(file, "", "listed more than once") for file in sorted(set(files)) if files.count(file) > 1
    ]
    for path in sorted(directory.iterdir()):
        if path.suffix == ".tar" and path.name not in files:
            problems.append(Problem(path.name, "", "not in the manifest"))
        if path.name.endswith(TEMPORARY_SUFFIX):
            problems.append(Problem(path.name, "", "left over from a write that was killed: delete it"))
    return problems


@dataclasses.dataclass(frozen=True)
class _Job:
    folder: Path
    mirror: Mirror | None
    """Where it is fetched from, if it is remote."""
    split: str
    info: ShardInfo


def _check_shard(job: _Job) -> tuple[list[str], list[Problem]]:
    """Keys of a shard and what is wrong with it."""
    if job.mirror is None:
        return _check_tar(job)
    try:
        while True:
            job.mirror.indexes([job.info])
            job.mirror.ensure(job.info)
            try:
                return _check_tar(job)
            except DataError as error:
                if not gave_way(error):  # to another shard, whose check began meanwhile
                    raise
    except DataError as error:
        tick(job.info.images)
        return [], [Problem(job.info.file, "", str(error))]


def _check_tar(job: _Job) -> tuple[list[str], list[Problem]]:
    info, path = job.info, job.folder / job.info.file
    problems: list[Problem] = []

    def problem(what: str, sample: str = "") -> None:
        problems.append(Problem(info.file, sample, what))

    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise OSError("it is no file")  # to read a pipe might never end
        size = facts.st_size
        digest = file_sha256(path)
    except OSError as error:
        if job.mirror is not None and isinstance(error, FileNotFoundError):
            raise DataError(f"{path} is gone") from error
        tick(info.images)
        problem(f"cannot be read: {error.strerror or error}")
        return [], problems
    if size != info.bytes:
        problem(f"has {size:,} bytes, the manifest says {info.bytes:,}")
    elif digest != info.sha256:
        problem("its SHA-256 is not that of the manifest: the content was changed or damaged")
    try:
        table = scan(path)
    except DataError as error:
        if job.mirror is not None and gave_way(error):
            raise
        tick(info.images)
        problem(str(error))
        return [], problems
    for name, found, stated in (
        ("images", len(table.keys), info.images),
        ("captions", sum(table.captions), info.captions),
        ("keys_sha256", keys_digest(table.keys), info.keys_sha256),
    ):
        if found != stated:
            problem(f"{name} is {found}, the manifest says {stated}")
    index = _check_index(path, table, problem)
    for number, key in enumerate(table.keys):
        for what in _check_sample(index, number, key, job.split, table.extensions[number]):
            problem(what, key)
        tick()
    return table.keys, problems


def _check_index(path: Path, table: ShardTable, problem: Callable[[str], None]) -> ShardIndex:
    """An index that agrees with the tar; the one on disk is a problem if it does not."""
    stored = ShardIndex.load_stored(path)
    if stored is None:
        problem("its index is missing or stale (it is rebuilt at the next use)")
    elif not (
        np.array_equal(stored.rows, table.rows_array())
        and np.array_equal(stored.captions, table.captions_array())
        and stored.keys.tolist() == table.keys
    ):
        problem("its index disagrees with the tar: delete the .index.npz, it is rebuilt at the next use")
    return ShardIndex.of(path, table)


def _check_sample(index: ShardIndex, number: int, key: str, split: str, extension: str) -> list[str]:
    problems = []
    try:
        image, text = index.read_bytes(number)
        record = parse_record(text)
    except BadSample as error:
        return [str(error)]
    for field, expected in (("key", key), ("split", split)):
        if record.get(field) != expected:
            problems.append(f"its JSON has the {field} {record.get(field)!r}, not {expected!r}")
    if not record["captions"]:
        problems.append("has no captions")
    for position, caption in enumerate(record["captions"]):
        try:
            clean_caption(caption)
        except BadSample as error:
            problems.append(f"caption {position}: {error}")
    try:
        content = image_extension(image)
        if content != extension:
            problems.append(f"its content is {content}, its name says {extension}")
        decode_image(image)
    except BadSample as error:
        problems.append(str(error))
    return problems
