"""What an import has done so far, so that stopping one costs a shard and not a night.

``DIR/import.state.jsonl``: a first line that says which import this is (its *identity*: captions file,
options), then one line a finished shard, appended and synced as it is finished. A line that a crash cut in
half is ignored. The same identity goes on; another one is refused, naming what differs. The directory is
locked meanwhile, so that two imports never write to one.

The lines also hold what was left out, image by image. Only counts of that are kept in memory: a large import with
cleaning leaves out millions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ssmke import foreign_json
from ssmke.data.atomic import TEMPORARY_SUFFIX, atomic_writer, encode_json, write_error
from ssmke.data.locks import locked
from ssmke.data.manifest import FILE_NAME, IMPORT_STATE_NAME, TAR_NAME, Manifest, ShardInfo
from ssmke.differences import differences
from ssmke.errors import DataError
from ssmke.words import counted

_FORMAT = "ssmke-import/1"
_NAMED = 5
"""Of files that are gone; the others are counted."""


@dataclasses.dataclass(frozen=True)
class Skip:
    """Something that was left out, and why."""

    entry: int
    """Number of the image in its source, or of the tar that it is in."""
    file: str
    split: str
    reason: str
    """The counter's key."""
    detail: str = ""
    caption: int | None = None
    """Which of the image's captions; None if it is the image."""


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """The file or folder that a shard is made of, where it is one."""

    name: str
    folder: str
    """Digest of the path of the folder that it is in."""
    content: str
    """Digest of what it is, as far as a look tells: its size and beginning."""

    def is_gone(self, now: SourceFile | None) -> bool:
        """Whether ``now``, which has its name, is another file. One that changed where it was is the same."""
        return now is None or (now.folder != self.folder and now.content != self.content)


@dataclasses.dataclass(frozen=True)
class FinishedShard:
    """A shard of this run or an earlier one."""

    plan: str
    """Digest of what it was made from; "" if it is to be made again."""
    info: ShardInfo | None
    """None if nothing of it could be used."""
    skipped: Mapping[str, int]
    """What was left out of it, by reason."""
    images_left_out: int
    """How many of these are images, not captions of them."""
    origin: SourceFile | None = None

    @classmethod
    def of(
        cls, plan: str, info: ShardInfo | None, skips: Sequence[Skip], origin: SourceFile | None = None
    ) -> FinishedShard:
        images = sum(skip.caption is None for skip in skips)
        return cls(plan, info, Counter(skip.reason for skip in skips), images, origin)


def skip_order(skip: Skip) -> tuple[int, int]:
    """The order of a list of skips: by image, itself before its captions."""
    return skip.entry, -1 if skip.caption is None else skip.caption


@dataclasses.dataclass(frozen=True)
class _Line:
    """Where in the file a line is."""

    begin: int
    size: int


class ImportState:
    """The finished shards of an import; open with `open`."""

    def __init__(
        self, path: Path, shards: dict[str, FinishedShard], lines: dict[str, _Line], file: BinaryIO
    ) -> None:
        self._path = path
        self._shards = shards
        self._lines = lines
        self._file = file

    @classmethod
    @contextlib.contextmanager
    def open(cls, out: Path, identity: Mapping[str, Any]) -> Iterator[ImportState]:
        """Lock ``out`` and read or begin its state; what a killed run left half written is removed.

        Raises:
            DataError: another process imports to ``out``, or it holds something else.
        """
        path = out / IMPORT_STATE_NAME
        with locked(out, wait=False, needed=False) as ours:
            if not ours:
                raise DataError(f"another process is importing to {out}: wait for it, or stop it.")
            shards, before = _load(path, identity)
            for leftover in out.glob(f".*{TEMPORARY_SUFFIX}"):
                leftover.unlink(missing_ok=True)
            lines = {}
            with atomic_writer(path) as whole:
                whole.write(encode_json({"format": _FORMAT, "identity": dict(identity)}))
                for name, line in _read_lines(path, before):
                    line = line.rstrip(b"\n") + b"\n"  # a crash may have cut off just that
                    lines[name] = _Line(whole.tell(), len(line))
                    whole.write(line)
            try:
                file = path.open("ab")
            except OSError as error:
                raise write_error(path, error) from error
            with file:
                yield cls(path, shards, lines, file)

    def files(self) -> set[str]:
        """Names of all shards that this run and earlier ones recorded."""
        return set(self._shards)

    def finished(self, name: str, plan: str) -> FinishedShard | None:
        """The shard ``name``, if an earlier run made it of the same ``plan``."""
        shard = self._shards.get(name)
        return shard if shard is not None and shard.plan == plan else None

    def refuse_gone(self, source: Iterable[SourceFile]) -> None:
        """Make sure that no shard would be deleted because ``source`` is another than it was.

        Raises:
            DataError: images were imported of files that are not in it.
        """
        here = {file.name: file for file in source}
        before = [shard.origin for shard in self._shards.values() if shard.info is not None and shard.origin]
        gone = sorted(file.name for file in before if file.is_gone(here.get(file.name)))
        if gone:
            named = [f"{name} (another of that name is)" if name in here else name for name in gone[:_NAMED]]
            raise DataError(
                f"--out {self._path.parent} holds images of {counted(len(gone), 'file')} not in the source any more: "
                f"{', '.join(named)}{' ...' if gone[_NAMED:] else ''}. They would be deleted: choose another --out, or "
                f"give a source that has these files beside the others."
            )

    def record(
        self,
        name: str,
        plan: str,
        info: ShardInfo | None,
        skips: Sequence[Skip],
        origin: SourceFile | None = None,
    ) -> FinishedShard:
        """Note a finished shard, durably; an empty ``plan`` has the next run make it again.

        Raises:
            DataError: the note cannot be written.
        """
        skips = sorted(skips, key=skip_order)
        shard = FinishedShard.of(plan, info, skips, origin)
        line = encode_json(
            {
                "shard": name,
                "plan": plan,
                "info": None if info is None else dataclasses.asdict(info),
                "origin": None if origin is None else dataclasses.asdict(origin),
                "skips": [vars(skip) for skip in skips],  # not asdict(): there may be millions
            }
        )
        try:
            begin = self._file.seek(0, os.SEEK_END)
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise write_error(self._path, error) from error
        self._lines[name] = _Line(begin, len(line))
        self._shards[name] = shard
        return shard

    def skips(self, name: str) -> list[Skip]:
        """What was left out of a shard that is recorded, in `skip_order`.

        Raises:
            DataError: the file cannot be read.
        """
        for _, line in _read_lines(self._path, {name: self._lines[name]}):
            record = _parse(line) or {"skips": []}
            return sorted((Skip(**skip) for skip in record["skips"]), key=skip_order)
        return []


def _load(path: Path, identity: Mapping[str, Any]) -> tuple[dict[str, FinishedShard], dict[str, _Line]]:
    """The shards of a state by name, and where their lines are; of several of a name the last."""
    shards, lines = {}, {}
    try:
        with path.open("rb") as file:
            begin = len(header := file.readline())
            changed = _changes(path, _parse(header), identity)
            for line in file:
                record = _parse(line)
                with contextlib.suppress(KeyError, TypeError, ValueError):
                    if record is not None:
                        name, shard = _shard(record)
                        shards[name] = shard
                        lines[name] = _Line(begin, len(line))
                begin += len(line)
    except FileNotFoundError:
        _refuse_foreign(path.parent)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}.") from error
    else:
        if changed and _holds_images(path.parent, shards):
            raise DataError(
                f"--out {path.parent} holds another import: {'; '.join(changed)}. Choose another --out, or delete that "
                f"folder."
            )
        if changed:
            return {}, {}  # begun in vain, with a wrong flag perhaps: nothing is lost with it
    return shards, lines


def _shard(record: dict[str, Any]) -> tuple[str, FinishedShard]:
    """Name and shard of a line; KeyError, TypeError or ValueError where it is none.

    Files of these names are deleted when the source has no more use for them, so a name may lead nowhere else.
    """
    name, plan = record["shard"], record["plan"]
    if not TAR_NAME.fullmatch(name) or type(plan) is not str:
        raise ValueError(name)
    info = None if record["info"] is None else foreign_json.record(ShardInfo, record["info"])
    if info is not None and info.file != name:
        raise ValueError(info.file)
    origin = None if record.get("origin") is None else foreign_json.record(SourceFile, record["origin"])
    skips = [Skip(**skip) for skip in record["skips"]]
    # Not with `foreign_json.record`: there may be millions.
    if not all(
        type(s.entry) is int and type(s.reason) is type(s.file) is type(s.split) is type(s.detail) is str
        and _is_text(s.reason + s.file + s.split + s.detail) and (s.caption is None or type(s.caption) is int)
        for s in skips
    ):  # fmt: skip
        raise TypeError(name)
    return name, FinishedShard.of(plan, info, skips, origin)


def _is_text(value: str) -> bool:
    """No half of a surrogate pair, which JSON may spell but no file can take."""
    return value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value)


def _holds_images(out: Path, shards: Mapping[str, FinishedShard]) -> bool:
    # Tars and a manifest count also where a damaged state does not tell of them.
    recorded = any(shard.info is not None for shard in shards.values())
    return recorded or (out / FILE_NAME).exists() or next(out.glob("*.tar"), None) is not None


def _changes(path: Path, header: dict[str, Any] | None, identity: Mapping[str, Any]) -> list[str]:
    """What differs between the import that a state is of and the one that ``identity`` names."""
    try:
        # A record of millions of skips may be long; the header is short, and what is nested in it gets compared.
        header = None if header is None else foreign_json.loads(json.dumps(header))
    except ValueError:
        header = None
    if header is None or header.get("format") != _FORMAT or not isinstance(header.get("identity"), dict):
        raise DataError(
            f"{path} is damaged, or of another version of ssmke: choose another --out, or delete the folder."
        )
    return [
        f"{name} was {before!r}, now {now!r}"
        for name, before, now in differences(header["identity"], identity)
    ]


def _read_lines(path: Path, lines: Mapping[str, _Line]) -> Iterator[tuple[str, bytes]]:
    if not lines:
        return
    try:
        with path.open("rb") as file:
            for name, line in lines.items():
                file.seek(line.begin)
                yield name, file.read(line.size)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}.") from error


def _refuse_foreign(out: Path) -> None:
    if (out / FILE_NAME).exists():
        name = Manifest.load(out).name
        raise DataError(f"--out {out} holds the dataset {name!r}, made otherwise: choose another --out.")
    others = sorted(child.name for child in out.iterdir() if not child.name.endswith(TEMPORARY_SUFFIX))
    if others:
        raise DataError(
            f"--out {out} is not empty (it holds {others[0]!r}) and no import: choose another --out."
        )


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
