"""What lies in a folder that holds a dataset as it is distributed: image folders, archives, caption files.

Names decide, whatever their case, anywhere in the folder and `DEPTH` levels below; the shallowest wins, then
the first by name. A caption file may lie in a zip and is read there. What is missing becomes one error that
lists what was looked for and what is there, because a dataset of four downloads has many ways of not being
complete.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ssmke.data.sources.image_files import IMAGE_SUFFIXES, archive, is_junk
from ssmke.errors import BadSample, DataError

DEPTH = 3
MAX_DOCUMENT_BYTES = 1 << 30
_COMPRESSED = (".tar", ".tar.gz", ".tgz")
_LISTED = 12


@dataclasses.dataclass(frozen=True)
class Document:
    """A file of text, plain or in a zip archive."""

    path: Path
    member: str = ""
    """Name within the archive ``path``."""

    def __str__(self) -> str:
        return f"{self.path}: {self.member}" if self.member else str(self.path)

    @property
    def name(self) -> str:
        return (self.member or self.path.name).rpartition("/")[2]

    def read(self) -> bytes:
        """The content.

        Raises:
            DataError: it cannot be read, or has more than a gigabyte.
        """
        try:
            if self.member:
                return archive(self.path).read(self.member, MAX_DOCUMENT_BYTES)
            if self.path.stat().st_size > MAX_DOCUMENT_BYTES:
                raise DataError(
                    f"{self.path} has more than {MAX_DOCUMENT_BYTES:,} bytes: is it the right file?"
                )
            return self.path.read_bytes()
        except BadSample as error:
            raise DataError(f"cannot read {self}: {error}. Copy or download it again.") from None
        except OSError as error:
            raise DataError(f"cannot read {self}: {error.strerror or error}.") from error

    def text(self) -> str:
        """The content as text; bytes that are not UTF-8 become surrogates. Raises `DataError` as `read`."""
        return self.read().decode("utf-8-sig", "surrogateescape")


class Layout:
    """A folder's content by name; look at it with `Layout(root)`."""

    def __init__(self, root: Path) -> None:
        """Raises `DataError` where ``root`` is no folder or cannot be read."""
        self.root = root
        self._folders: dict[str, list[Path]] = {}
        self._files: dict[str, Path] = {}
        if not root.is_dir():
            raise DataError(f"--root {root} is not a folder.")
        for folder, files in _walk(root):
            self._folders.setdefault(folder.name.lower(), []).append(folder)
            for name in files:
                self._files.setdefault(name.lower(), folder / name)

    def images(
        self, folders: Sequence[str], archives: Sequence[str], *, in_root: bool = False
    ) -> Path | None:
        """The first of ``folders`` that has images in it, else the first of the zip ``archives``.

        Unpacking often makes ``Flickr8k_Dataset/Flicker8k_Dataset/``; only the inner one has images. With
        ``in_root`` they may also lie in the root itself.
        """
        candidates = [folder for name in folders for folder in self._folders.get(name.lower(), ())]
        for folder in candidates:
            if _has_images(folder):
                return folder
        for name in archives:
            if name.lower() in self._files:
                return self._files[name.lower()]
        return self.root if in_root and _has_images(self.root) else None

    def document(self, names: Sequence[str], archives: Sequence[str] = ()) -> Document | None:
        """The first of ``names`` that lies there plain, else the first that is in one of the zip ``archives``.

        Raises:
            DataError: such an archive is damaged.
        """
        for name in names:
            if name.lower() in self._files:
                return Document(self._files[name.lower()])
        for archive_name in archives:
            path = self._files.get(archive_name.lower())
            members = {} if path is None else _members(path)
            for name in names:
                if path is not None and name.lower() in members:
                    return Document(path, members[name.lower()])
        return None

    def missing(self, dataset: str, pieces: Sequence[str]) -> DataError:
        """The error for a dataset of which ``pieces`` (each a phrase with the names looked for) are not there."""
        folders = [folder for folders in self._folders.values() for folder in folders if folder != self.root]
        here = sorted((*folders, *self._files.values()))
        names = [str(path.relative_to(self.root)) + "/" * path.is_dir() for path in here]
        shown = ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if names[_LISTED:] else "")
        text = f"--root {self.root} does not hold all of {dataset}. Missing: {'; '.join(pieces[:_LISTED])}."
        text += f" Found there: {shown or 'nothing'}."
        packed = [path for path in here if path.name.lower().endswith(_COMPRESSED)]
        for path in packed[:_LISTED]:
            text += f" {path.name} cannot be read in place: unpack it (tar -xf {path} -C {path.parent})."
        return DataError(text)


def _walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """``(folder, files in it)``, the shallow first, without images and hidden files."""
    level = [root]
    for depth in range(DEPTH + 1):
        below: list[Path] = []
        for folder in level:
            try:
                with os.scandir(folder) as found:
                    entries = sorted(found, key=lambda entry: entry.name)
            except OSError as error:
                if folder == root:
                    raise DataError(f"cannot read --root {root}: {error.strerror or error}.") from error
                continue
            entries = [entry for entry in entries if not entry.name.startswith((".", "__MACOSX"))]
            files = [
                entry.name
                for entry in entries
                if entry.is_file() and not entry.name.lower().endswith(IMAGE_SUFFIXES)
            ]
            yield folder, files
            below += [folder / entry.name for entry in entries if entry.is_dir()]
        level = below if depth < DEPTH else []


def _has_images(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(
                entry.name.lower().endswith(IMAGE_SUFFIXES) and not is_junk(entry.name) for entry in entries
            )
    except OSError:
        return False


def _members(path: Path) -> dict[str, str]:
    """Full names by plain name, lower case."""
    members: dict[str, str] = {}
    for name in archive(path).names:
        members.setdefault(name.rpartition("/")[2].lower(), name)
    return members
