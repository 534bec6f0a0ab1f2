"""Image files in folders or zip archives, read in place.

Datasets come as archives of tens of thousands of photos; unpacking COCO's would cost another 19 GB of disk. A
zip can be read at random, so it serves as a folder: a file is looked up under its full name,
then below the one folder that holds all images (``train2014/``, ``flickr30k-images/``). Nothing is ever
extracted, so a member's name can do no harm; its stated size bounds what is read, so a bomb cannot either.
What macOS adds to archives (``__MACOSX/``, ``._name``) is not there for us. A compressed tar can only be read
from its start and is not accepted here.

Each process opens an archive once, at about 8 microseconds a member; then a file costs some 40 more than in a
folder, against the 500 that an import takes for a small photo.
"""

from __future__ import annotations

import dataclasses
import functools
import lzma
import stat
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from ssmke.data.importing import MAX_FILE_BYTES, UNREADABLE
from ssmke.errors import BadSample, DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
# What zipfile raises on archives that are damaged, encrypted, or of a method that it does not know.
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    ValueError,
    LookupError,
    OverflowError,
    RuntimeError,
)


@dataclasses.dataclass(frozen=True)
class FileStamp:
    """What tells one state of a file from another; both None where there is no file."""

    size: int | None
    time: int | None
    """Modification time in ns; in an archive the CRC-32, which tells more."""


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """Where the files of a dataset are."""

    places: Mapping[str, Path]
    """Folder or zip archive by the first part of the file's path; ``""`` holds all others, under their full path."""

    def stamp(self, file: str) -> FileStamp:
        """Size and time of a file.

        Raises:
            DataError: the archive that it should be in cannot be read.
        """
        place, name = self._locate(file)
        if place is None:
            return FileStamp(None, None)
        if is_zip(place):
            member = archive(place).member(name)
            return FileStamp(None, None) if member is None else FileStamp(member.file_size, member.CRC)
        try:
            facts = (place / name).stat()
        except (OSError, ValueError):
            return FileStamp(None, None)
        return FileStamp(facts.st_size, facts.st_mtime_ns)

    def read(self, file: str) -> bytes:
        """Content of a file.

        Raises:
            BadSample: "missing file", "not a file", "file too large", "unreadable file", or "damaged in archive".
            DataError: the archive that it should be in cannot be read.
        """
        place, name = self._locate(file)
        if place is None:
            raise BadSample("missing file")
        return archive(place).read(name) if is_zip(place) else _read(place / name)

    def _locate(self, file: str) -> tuple[Path | None, str]:
        first, _, rest = file.partition("/")
        if rest and first in self.places:
            return self.places[first], rest
        return self.places.get(""), file


def is_zip(place: Path) -> bool:
    """Whether ``place`` is taken for a zip archive rather than a folder."""
    return place.suffix.lower() == ".zip" and not place.is_dir()


def is_junk(name: str) -> bool:
    """Whether an archive's member is one that macOS adds to what was asked for."""
    return name.startswith("__MACOSX/") or name.rpartition("/")[2].startswith("._")


class Archive:
    """A zip archive, open; get it from `archive`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}.") from error
        except _DAMAGED as error:
            raise DataError(
                f"{path} is no zip archive, or cut short ({error}): copy or download it again."
            ) from None
        self._members = {
            member.filename: member
            for member in self._zip.infolist()
            if member.filename and not member.is_dir() and not is_junk(member.filename)
        }
        self._top = _common_folder(name for name in self._members if name.lower().endswith(IMAGE_SUFFIXES))

    @property
    def names(self) -> list[str]:
        """Full names of the members, without macOS's."""
        return list(self._members)

    def member(self, name: str) -> zipfile.ZipInfo | None:
        """The member of that full name, or of that name below the one folder of all images."""
        return self._members.get(name) or self._members.get(self._top + name)

    def read(self, name: str, limit: int = MAX_FILE_BYTES) -> bytes:
        """Content of a member.

        Raises:
            BadSample: "missing file", "file too large" (it says that it is over ``limit``), "unreadable file", or
                "damaged in archive": it does not unpack to what the archive says, or is encrypted.
        """
        member = self.member(name)
        if member is None:
            raise BadSample("missing file")
        if member.file_size > limit:
            raise BadSample("file too large", f"{member.file_size:,} bytes")
        try:
            with self._zip.open(member) as file:
                # Never more than the stated size, and what is left over then fails the checksum.
                return file.read()
        except OSError as error:
            raise BadSample(UNREADABLE, error.strerror or str(error)) from None
        except (*_DAMAGED, MemoryError) as error:  # lzma asks for the memory that an archive states
            raise BadSample("damaged in archive", str(error)) from None


def archive(path: Path) -> Archive:
    """The archive, opened once by this process as long as the file stays as it is.

    Raises:
        DataError: it cannot be read, or is no zip archive.
    """
    try:
        facts = path.stat()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}.") from error
    return _archive(path, facts.st_size, facts.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _archive(path: Path, size: int, time: int) -> Archive:
    return Archive(path)


def close_archives() -> None:
    """Let go of all archives that this process has open."""
    _archive.cache_clear()


def _common_folder(names: Iterable[str]) -> str:
    """The folder that holds everything, with its slash; empty if there is none."""
    common: tuple[str, ...] | None = None
    for name in names:
        parts = PurePosixPath(name).parts[:-1]
        if common is None:
            common = parts
        else:
            same = 0
            while same < min(len(common), len(parts)) and common[same] == parts[same]:
                same += 1
            common = common[:same]
        if not common:
            return ""
    return "".join(f"{part}/" for part in common or ())


def _read(path: Path) -> bytes:
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise BadSample("not a file")  # reading a pipe or device might never end
        if facts.st_size > MAX_FILE_BYTES:
            raise BadSample("file too large", f"{facts.st_size:,} bytes")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise BadSample("missing file") from None
    except OSError as error:
        raise BadSample(UNREADABLE, error.strerror or str(error)) from None
