"""What an import has done so far, so that stopping one costs a shard and not a night.

``DIR/import.state.jsonl``: a first line that says which import this is (its *identity*: captions file,
options), then one line a finished shard, appended and synced as it is finished. A line that a crash cut in
half is ignored. The same identity goes on; another one is refused, naming what differs. The directory is
locked meanwhile, so that two imports never write to one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ssmke.data.atomic import TEMPORARY_SUFFIX, atomic_writer, encode_json, write_error
from ssmke.data.manifest import FILE_NAME, IMPORT_STATE_NAME, Manifest, ShardInfo
from ssmke.errors import DataError

_FORMAT = "ssmke-import/1"


@dataclasses.dataclass(frozen=True)
class Skip:
    """Something that was left out, and why."""

    entry: int
    """Number of the image in its source."""
    file: str
    split: str
    reason: str
    """The counter's key."""
    detail: str = ""
    caption: int | None = None
    """Which of the image's captions; None if it is the image."""


@dataclasses.dataclass(frozen=True)
class FinishedShard:
    """A shard of an earlier run."""

    plan: str
    """Digest of what it was made from."""
    info: ShardInfo | None
    """None if nothing of it could be used."""
    skips: tuple[Skip, ...]


class ImportState:
    """The finished shards of an import; open with `open`."""

    def __init__(self, path: Path, shards: dict[str, FinishedShard], file: BinaryIO) -> None:
        self._path = path
        self._shards = shards
        self._file = file

    @classmethod
    @contextlib.contextmanager
    def open(cls, out: Path, identity: Mapping[str, Any]) -> Iterator[ImportState]:
        """Lock ``out`` and read or begin its state; what a killed run left half written is removed.

        Raises:
            DataError: another process imports to ``out``, or it holds something else.
        """
        path = out / IMPORT_STATE_NAME
        with _lock(out):
            shards = _load(path, identity)
            for leftover in out.glob(f".*{TEMPORARY_SUFFIX}"):
                leftover.unlink(missing_ok=True)
            with atomic_writer(path) as whole:
                whole.write(encode_json({"format": _FORMAT, "identity": dict(identity)}))
                for name, shard in shards.items():
                    whole.write(_line(name, shard))
            try:
                file = path.open("ab")
            except OSError as error:
                raise write_error(path, error) from error
            with file:
                yield cls(path, shards, file)

    def finished(self, name: str, plan: str) -> FinishedShard | None:
        """The shard ``name``, if an earlier run made it of the same ``plan``."""
        shard = self._shards.get(name)
        return shard if shard is not None and shard.plan == plan else None

    def record(self, name: str, plan: str, info: ShardInfo | None, skips: Sequence[Skip]) -> None:
        """Note a finished shard, durably.

        Raises:
            DataError: the note cannot be written.
        """
        shard = FinishedShard(plan, info, tuple(skips))
        try:
            self._file.write(_line(name, shard))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise write_error(self._path, error) from error
        self._shards[name] = shard


def _line(name: str, shard: FinishedShard) -> bytes:
    return encode_json({"shard": name} | dataclasses.asdict(shard))


def _load(path: Path, identity: Mapping[str, Any]) -> dict[str, FinishedShard]:
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        _refuse_foreign(path.parent)
        return {}
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}.") from error
    header = _parse(lines[0]) if lines else None
    if header is None or header.get("format") != _FORMAT or not isinstance(header.get("identity"), dict):
        raise DataError(
            f"{path} is damaged, or of another version of ssmke: choose another --out, or delete the folder."
        )
    before = header["identity"]
    differences = [
        f"{name} was {before.get(name)!r}, now {identity.get(name)!r}"
        for name in sorted(before.keys() | identity.keys())
        if before.get(name) != identity.get(name)
    ]
    if differences:
        raise DataError(
            f"--out {path.parent} holds another import: {'; '.join(differences)}. Choose another --out, or "
            f"delete that folder."
        )
    shards = {}
    for line in lines[1:]:
        record = _parse(line)
        if record is None:
            continue
        with contextlib.suppress(KeyError, TypeError):
            info = record["info"]
            shards[record["shard"]] = FinishedShard(
                plan=record["plan"],
                info=None if info is None else ShardInfo(**info),
                skips=tuple(Skip(**skip) for skip in record["skips"]),
            )
    return shards


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
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold an advisory lock on ``folder`` itself: it leaves no file, and ends with the process."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise DataError(
                    f"another process is importing to {folder}: wait for it, or stop it."
                ) from None
            # Some network file systems cannot lock folders; the import is right without, if started once.
        yield
    finally:
        os.close(descriptor)
