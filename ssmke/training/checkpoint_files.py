"""What lies in ``checkpoints/``: which folders are whole, what is in them, and which of them stay.

Only a folder with ``COMPLETE.json``, whose digests hold, is ever resumed from. A folder without it is what a kill left
behind and is removed by the next save.

Damage and a disk that cannot be read are two things. A damaged checkpoint is set aside (``COMPLETE.json`` becomes
``DAMAGED.json``), so that it does not count as one to keep, and the one before is used. A read that fails stops the
run, and so does damage to all: to go back or to begin again would end with the removal of what may still be whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ssmke.data.atomic import encode_json, write_json
from ssmke.data.shards import file_sha256
from ssmke.errors import CheckpointError

COMPLETE = "COMPLETE.json"
DAMAGED = "DAMAGED.json"
_REQUIRED = {"progress", "zero_stage", "world_size", "files"}
_LATER = {"bytes", "optimizer", "digest"}
"""What checkpoints of earlier versions lack, all or none of it."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands; saved with each checkpoint."""

    step: int
    """Steps done."""
    pairs: int
    """Pairs seen."""
    lineage: str
    """Identity of the run over all its attempts."""
    data: str = ""
    """Digest of the training shards: the order of pairs is a function of them."""


@dataclass(frozen=True)
class CheckpointInfo:
    """A complete checkpoint."""

    path: Path
    progress: Progress
    zero_stage: int
    world_size: int
    files: dict[str, str]
    """Digest of each file."""
    bytes: dict[str, int]
    """Size of each file; empty in checkpoints of earlier versions."""
    optimizer: str | None
    """Class of the optimiser, which says where its states live; None in checkpoints of earlier versions."""


class Incomplete(CheckpointError):
    """Files are missing, or another node's are not seen yet."""


class Unreadable(CheckpointError):
    """The file system failed; the checkpoint may be whole."""


def complete(path: Path, progress: Progress, *, zero_stage: int, world_size: int, optimizer: str) -> None:
    """Writes the mark that makes ``path`` a checkpoint, when all its files are on the disk."""
    files = _files(path)
    for name in files:
        _sync(path / name)
    record: dict[str, Any] = {
        "progress": asdict(progress),
        "zero_stage": zero_stage,
        "world_size": world_size,
        "optimizer": optimizer,
        "files": _digests(path),
        "bytes": {name: (path / name).stat().st_size for name in files},
    }
    write_json(path / COMPLETE, {**record, "digest": _digest(record)})


def read(path: Path) -> CheckpointInfo:
    """Reads and verifies one checkpoint; any difference from what was written is a `CheckpointError`."""
    info = _record(path)
    try:
        have = _digests(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    missing = sorted(set(info.files) - set(have))
    if missing:
        raise Incomplete(f"checkpoint {path} is damaged: {', '.join(missing[:3])} changed or missing")
    damaged = sorted(name for name in info.files if have[name] != info.files[name])
    if damaged:
        raise CheckpointError(f"checkpoint {path} is damaged: {', '.join(damaged[:3])} changed or missing")
    return info


def newest(folder: Path) -> CheckpointInfo | None:
    """The newest complete and undamaged checkpoint, or None where there never was one.

    Damaged ones are named in a warning and set aside. `CheckpointError` if there is no other.
    """
    for path in sorted(folder.glob("step-*"), reverse=True):
        if not (path / COMPLETE).exists():
            continue
        try:
            return _read_patiently(path)
        except Unreadable:
            raise
        except CheckpointError as error:
            warnings.warn(f"{error}; trying the checkpoint before it")
            if not isinstance(error, Incomplete):
                with contextlib.suppress(OSError):
                    (path / COMPLETE).replace(path / DAMAGED)
    damaged = [path.name for path in sorted(folder.glob("step-*")) if _marked(path)]
    if damaged:
        raise CheckpointError(
            f"{folder}: all checkpoints are damaged ({', '.join(damaged)}): restore one of them from a copy (with its "
            f"{COMPLETE}), or remove the folder to begin again at step 0"
        )
    return None


def _read_patiently(path: Path) -> CheckpointInfo:
    """`read`; network file systems show files of another node late, so what is missing is looked for once more."""
    try:
        return read(path)
    except Incomplete:
        time.sleep(2.0)
        return read(path)


def remove_from(folder: Path, step: int) -> None:
    """Removes checkpoints of ``step`` and later: of an attempt that this one has gone back before."""
    for path in folder.glob("step-*"):
        if path.name >= f"step-{step:08d}":
            (path / COMPLETE).unlink(missing_ok=True)
            shutil.rmtree(path)


def prune(folder: Path, keep: int, newest: Path | None = None) -> None:
    """Leaves the newest ``keep`` whole checkpoints and nothing else; what is newer than ``newest`` is not looked at.

    Whole is what has all its files in full length: reading them all again with every save would cost as much as the
    save. A changed byte is found when a run goes on.
    """
    for left in folder.glob(".step-*.converted"):
        shutil.rmtree(left, ignore_errors=True)
    paths = sorted(path for path in folder.glob("step-*") if newest is None or path.name <= newest.name)
    whole = [path for path in paths if (path / COMPLETE).exists() and _has_all(path)]
    if not whole:
        return
    for path in sorted(set(paths) - set(whole[-keep:])):
        if (path / COMPLETE).exists() and path not in whole:
            warnings.warn(
                f"checkpoint {path} is damaged: removed, it does not count as one of the {keep} kept"
            )
        # The mark goes first, so that a kill in between never leaves a folder that looks complete.
        with contextlib.suppress(OSError):
            (path / COMPLETE).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)


def _record(path: Path) -> CheckpointInfo:
    """What ``COMPLETE.json`` says, if it is as it was written."""
    try:
        record = json.loads((path / COMPLETE).read_text(encoding="utf-8"))
        if set(record) not in (_REQUIRED, _REQUIRED | _LATER):
            raise ValueError(f"{COMPLETE} has other fields")
        stated = record.pop("digest", None)
        if stated is not None and stated != _digest(record):
            raise ValueError(f"{COMPLETE} was changed")
        info = CheckpointInfo(
            path,
            Progress(**record["progress"]),
            record["zero_stage"],
            record["world_size"],
            dict(record["files"]),
            dict(record.get("bytes", {})),
            record.get("optimizer"),
        )
        if not _typed(info):
            raise ValueError(f"{COMPLETE} has values of another kind")
        if path.name != f"step-{info.progress.step:08d}":
            raise ValueError(f"{COMPLETE} is of step {info.progress.step}")
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {path} is not complete (it has no {COMPLETE})") from None
    except OSError as error:
        raise _unreadable(path, error) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged or not complete ({error})") from None
    return info


def _typed(info: CheckpointInfo) -> bool:
    where = info.progress
    return (
        all(type(n) is int for n in (where.step, where.pairs, info.zero_stage, info.world_size))
        and all(isinstance(text, str) for text in (where.lineage, where.data, *info.files.values()))
        and all(type(size) is int for size in info.bytes.values())
        and isinstance(info.optimizer, str | None)
    )


def _marked(path: Path) -> bool:
    return (path / COMPLETE).exists() or (path / DAMAGED).exists()


def _has_all(path: Path) -> bool:
    try:
        info = _record(path)
        return all(
            (path / name).stat().st_size == info.bytes.get(name, (path / name).stat().st_size)
            for name in info.files
        )
    except FileNotFoundError:
        return False
    except (OSError, Unreadable):
        return True  # not known to be damaged
    except CheckpointError:
        return False


def _unreadable(path: Path, error: OSError) -> Unreadable:
    return Unreadable(
        f"checkpoint {path} cannot be read ({error}): mend the file system, then run the same command again"
    )


def _files(folder: Path) -> list[str]:
    marks = (COMPLETE, DAMAGED)
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.name not in marks
    )


def _digests(folder: Path) -> dict[str, str]:
    files = _files(folder)
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(files, pool.map(lambda name: file_sha256(folder / name), files), strict=True))


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(encode_json(record)).hexdigest()


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # not every file system lets it
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
