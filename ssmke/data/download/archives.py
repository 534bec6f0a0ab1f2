"""Archives that a dataset is distributed in: fetched, checked, remembered.

Each is fetched with resumption and checked against its published size and digest. Where nobody published one,
the digest of the first download is recorded, and a later download of another content is refused: that is no
proof of the first, but nothing changes unnoticed. A file that the user put into the folder by hand is taken
after the same check. What was fetched, from where and with which digest is kept in ``downloads.json``, first
beside the archives and, once they are imported, in the dataset's own folder.

Compressed tars of images are unpacked, since they cannot be read at random. The folder that this makes holds a
marker, so that it can be told, also by a later run, from one that the user put there: only the first kind is
ever deleted.

Hashing costs about a second a gigabyte, once: a file whose size and time are as recorded is not read again.
Unpacking costs the disk once more, and one flush of all that the system has to write.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ssmke import foreign_json
from ssmke.data.atomic import TEMPORARY_SUFFIX, make_folder, write_error, write_json
from ssmke.data.download.packed import DAMAGED, MAX_READ, packed_members
from ssmke.data.losses import DOWNLOADS_NAME
from ssmke.data.remote.fetch import RemoteConfig, fetch_file, partial_paths
from ssmke.data.shards import file_digest
from ssmke.data.sources.catalogue import Archive
from ssmke.errors import DataError

UNPACKED_MARK = ".unpacked-by-ssmke"
"""File in a folder that `unpack_images` made."""
_EXPANSION, _EXPANSION_FREE = 8, 64 << 20
"""What a compressed tar of images may unpack to, times its size and in bytes beyond. Images hardly get smaller."""


@dataclasses.dataclass(frozen=True)
class Fetched:
    """An archive that is here."""

    name: str
    url: str
    bytes: int
    time_ns: int
    """Modification time when it was checked."""
    algorithm: str
    digest: str
    published: bool
    """Whether the digest is one that was published, or only that of the first download."""
    by_hand: bool = False
    """Whether the file was already there, without a record: then it is the user's, and never deleted."""


def fetch_archives(
    archives: Sequence[Archive],
    folder: Path,
    config: RemoteConfig,
    known: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
    on_bytes: Callable[[int], None] = lambda count: None,
) -> list[Fetched]:
    """Bring all ``archives`` to ``folder``; what is there and right is kept.

    Args:
        archives: what to fetch.
        folder: where to.
        config: retries and deadlines.
        known: folder of the dataset that an earlier download became: its record of digests counts, too.
        say: is told what is worth a line.
        on_bytes: called with the number of bytes that came since the last call.

    Raises:
        DataError: one cannot be fetched, or is not what it should be; names it and says how to get it by hand.
    """
    make_folder(folder)
    records = (read_record(known) if known is not None else {}) | read_record(folder)
    fetched = []
    for archive in archives:
        one = _have(archive, folder, records.get(archive.name), config, say, on_bytes)
        records[one.name] = one
        fetched.append(one)
        write_record(folder, list(records.values()))
    return fetched


def absent_bytes(archives: Sequence[Archive], folder: Path) -> int:
    """Stated sizes of the archives that are not here whole."""
    return sum(archive.size for archive in archives if not (folder / archive.name).is_file())


def missing_bytes(archives: Sequence[Archive], folder: Path) -> int:
    """Bytes that are still to be fetched: those, less what an earlier run has begun."""
    begun = (
        sum(part.stat().st_size for part in partial_paths(folder / archive.name))
        for archive in archives
        if not (folder / archive.name).is_file()
    )
    return max(0, absent_bytes(archives, folder) - sum(begun))


def read_record(folder: Path) -> dict[str, Fetched]:
    """The record of ``folder`` by name; empty if there is none."""
    path = folder / DOWNLOADS_NAME
    try:
        content = foreign_json.loads(path.read_bytes())
        found = [foreign_json.record(Fetched, entry) for entry in content["files"]]
        return {one.name: one for one in found}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path} is damaged: delete it, and the files beside it are checked again.") from None


def write_record(folder: Path, fetched: Sequence[Fetched], **facts: Any) -> None:
    """Write the record to ``folder``, with further facts."""
    write_json(folder / DOWNLOADS_NAME, {"files": [dataclasses.asdict(one) for one in fetched], **facts})


def unpack_images(archive: Path, folder: Path, images: str) -> None:
    """Unpack the image files of a compressed tar to ``folder / images``, which appears whole or not at all.

    Only plain files are taken, by the last part of their names alone, so that nothing can be written elsewhere. A
    folder of that name that is there already is left as it is.

    Raises:
        DataError: the archive is damaged, or the disk refuses.
    """
    final, temporary = folder / images, _unpacking(folder, images)
    if final.is_dir():
        return
    shutil.rmtree(temporary, ignore_errors=True)
    make_folder(temporary)
    try:
        _take_images(archive, temporary)
        (temporary / UNPACKED_MARK).touch()
        # One flush for all: one for each of 31,000 files would take longer than the unpacking.
        os.sync()
        temporary.rename(final)
    except DAMAGED as error:
        raise DataError(
            f"{archive} is damaged ({error}): delete it, and run the same command again."
        ) from None
    except OSError as error:
        raise write_error(final, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _take_images(archive: Path, folder: Path) -> None:
    """Write the image files of a compressed tar to ``folder``, which is empty."""
    room = _EXPANSION * archive.stat().st_size + _EXPANSION_FREE
    for member, content in packed_members(archive, room):
        name = PurePosixPath(member.name).name
        if name.startswith(".") or not name.lower().endswith((".jpg", ".jpeg", ".png")):
            continue
        try:
            with (folder / name).open("xb") as file:
                shutil.copyfileobj(content, file, MAX_READ)
        except FileExistsError:
            raise DataError(
                f"{archive} has two files named {name!r}: it is not the expected archive."
            ) from None


def is_unpacked(folder: Path) -> bool:
    """Whether `unpack_images` made ``folder``, and not the user."""
    return (folder / UNPACKED_MARK).is_file()


def remove_fetched(folder: Path, fetched: Sequence[Fetched], unpacked: Sequence[str] = ()) -> None:
    """Delete what was fetched to ``folder`` and the folders unpacked there, with all that killed runs left of them.

    What the user put there stays, and so does what other downloads to the same folder have there.
    """
    for one in fetched:
        for part in partial_paths(folder / one.name):
            part.unlink(missing_ok=True)
        if not one.by_hand:
            (folder / one.name).unlink(missing_ok=True)
    for images in unpacked:
        shutil.rmtree(_unpacking(folder, images), ignore_errors=True)
        if is_unpacked(folder / images):
            shutil.rmtree(folder / images, ignore_errors=True)
    names = {one.name for one in fetched}
    others = [one for name, one in read_record(folder).items() if name not in names]
    if others:
        write_record(folder, others)
    else:
        (folder / DOWNLOADS_NAME).unlink(missing_ok=True)


def _unpacking(folder: Path, images: str) -> Path:
    return folder / f".{images}{TEMPORARY_SUFFIX}"


def _have(
    archive: Archive,
    folder: Path,
    record: Fetched | None,
    config: RemoteConfig,
    say: Callable[[str], None],
    on_bytes: Callable[[int], None],
) -> Fetched:
    path = folder / archive.name
    expected = archive.digest or ((record.algorithm, record.digest) if record is not None else None)
    fresh = not path.is_file()
    if fresh:
        say(f"fetching {archive.name} from {archive.url}")
        try:
            limit = archive.bytes or 4 * archive.size + (1 << 30)
            fetch_file(
                archive.url, path, config, size=archive.bytes, digest=expected, on_bytes=on_bytes, limit=limit
            )
        except DataError as error:
            raise DataError(
                f"{error} Or fetch {archive.name} by other means, put it into {folder}, and run the same command "
                f"again: it is checked in the same way."
            ) from None
    size, time_ns = _stamp(path)
    if archive.bytes not in (None, size):
        raise DataError(_other(path, f"it has {size:,} bytes, not {archive.bytes:,}"))
    unchanged = record is not None and (size, time_ns) == (record.bytes, record.time_ns)
    if expected is not None and (
        fresh or (unchanged and record is not None and expected[1] == record.digest)
    ):
        algorithm, digest = expected
    else:
        algorithm = expected[0] if expected is not None else "sha256"
        try:
            digest = file_digest(path, algorithm)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}.") from error
        if expected is None:
            say(
                f"nobody published a digest of {archive.name}, so it could not be checked; its SHA-256 is recorded, "
                f"and another file under this address will be refused"
            )
        elif digest != expected[1]:
            whose = (
                "that was published"
                if archive.digest is not None
                else f"of the first time ({DOWNLOADS_NAME})"
            )
            raise DataError(_other(path, f"its {algorithm} is {digest}, not the one {whose}, {expected[1]}"))
    by_hand = not fresh and (record is None or record.by_hand)
    published = archive.digest is not None
    return Fetched(archive.name, archive.url, size, time_ns, algorithm, digest, published, by_hand)


def _other(path: Path, what: str) -> str:
    return (
        f"{path} is not the file that was expected: {what}. Delete it and run the same command again; if it comes "
        f"back the same, the host has changed it: get it from another place."
    )


def _stamp(path: Path) -> tuple[int, int]:
    try:
        facts = path.stat()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}.") from error
    return facts.st_size, facts.st_mtime_ns
