"""Labelled images where they lie: class folders, ImageNet's validation images, CIFAR, Tiny ImageNet's zip.

    DIR/cat/1.jpg, DIR/dog/2.png              class folders; or DIR/train/cat/..., DIR/val/..., DIR/test/...
    DIR/n01440764/ILSVRC2012_val_...JPEG      the same, folders named by WordNet id (ImageNet, Tiny ImageNet's train)
    DIR/images/ and DIR/val_annotations.txt   Tiny ImageNet's val, a folder or a zip of it
    DIR/test_batch.bin, DIR/test.bin          CIFAR-10 and -100, the binary version

CIFAR's Python version, which torchvision downloads, is pickled, and unpickling runs what the file says: it is refused,
with the remedy. Images are read when they are needed. Classes are numbered in the order of their folders' names,
or as CIFAR numbers them. A class is called by CLIP's name for its WordNet id, else by WordNet's, else by its folder.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ssmke.data.shards import Sample, make_key
from ssmke.data.sources.image_files import IMAGE_SUFFIXES, ImageFiles, archive, is_junk, is_zip
from ssmke.errors import DataError
from ssmke.evaluation.class_names import class_name

SPLITS = ("train", "val", "validation", "test")
_TINY = "val_annotations.txt"
_CIFAR_SIDE = 32
_CIFAR = {  # files of each split, bytes of the label, which of them counts, file of the names
    "cifar10": (
        {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]},
        1,
        "batches.meta.txt",
    ),
    "cifar100": ({"train": ["train.bin"], "test": ["test.bin"]}, 2, "fine_label_names.txt"),
}


@dataclass(frozen=True)
class Labelled:
    """Images with one class each; read like shards."""

    folders: list[str]
    """What the data calls each class."""
    names: list[str]
    """What a person would call each class."""
    labels: npt.NDArray[np.int64]
    """[N] class of each image."""
    keys: list[str]
    load: Callable[[int], bytes]
    """An encoded image by its number."""

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.keys)

    def read(self, image: int) -> Sample:
        """One image, without captions; BadSample where it cannot be had."""
        return Sample(self.keys[image], self.load(image), ())

    def subset(self, rows: npt.NDArray[np.int64]) -> Labelled:
        """Some of the images, in the order of ``rows``."""
        return Labelled(
            self.folders,
            self.names,
            self.labels[rows],
            [self.keys[int(i)] for i in rows],
            lambda image: self.load(int(rows[image])),
        )


def splits_of(root: Path) -> tuple[str, ...]:
    """The splits that ``root`` has, of `SPLITS`; none where it holds classes itself.

    Raises:
        DataError: it is not there.
    """
    root = _unpacked(root)
    kind = _cifar_kind(root)
    if kind is not None:
        return tuple(split for split, files in _CIFAR[kind][0].items() if (root / files[0]).is_file())
    if is_zip(root):
        return ()
    return tuple(split for split in SPLITS if (root / split).is_dir())


def open_labelled(root: Path, split: str | None = None) -> Labelled:
    """The images of ``root``, of its ``split`` if it has some.

    Raises:
        DataError: nothing in one of the forms above, or a form that cannot be read safely.
    """
    root = _unpacked(root)
    there = splits_of(root)
    if there and (split is None or split not in there):
        given = "name one of them" if split is None else f"it has no {split!r}"
        raise DataError(f"--data {root} has the splits {', '.join(there)}: {given} with --split.")
    if split is not None and not there:
        raise DataError(f"--data {root} has no splits (folders {', '.join(SPLITS)}): leave out --split.")
    kind = _cifar_kind(root)
    if kind is not None:
        return _cifar(root, kind, split or "test")
    pickled = next((path for path in (root, root / "cifar-10-batches-py", root / "cifar-100-python")
                    if (path / "batches.meta").is_file() or (path / "meta").is_file()), None)  # fmt: skip
    if pickled is not None:
        raise DataError(
            f"--data {pickled} is CIFAR's Python version: its files are pickled, and reading them could run "
            "code, which ssmke never does. Give the binary version (cifar-10-binary.tar.gz or "
            "cifar-100-binary.tar.gz of the same site, unpacked), or folders of images by class."
        )
    place = root / split if split else root
    if is_zip(place) or (place / _TINY).is_file():
        return _tiny(place)
    return _folders(place)


def _unpacked(root: Path) -> Path:
    """``root``, or the folder in it that CIFAR's archive unpacks to."""
    if not root.exists():
        raise DataError(f"--data {root}: there is no such folder or file.")
    inner = (root / name for name in ("cifar-10-batches-bin", "cifar-100-binary"))
    return next((folder for folder in inner if folder.is_dir()), root)


def _folders(root: Path) -> Labelled:
    if not root.is_dir():
        raise DataError(f"--data {root} is no folder, and no zip archive.")
    try:
        folders = sorted(
            path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")
        )
        files: list[tuple[str, int]] = []
        for label, folder in enumerate(folders):
            files += [
                (path.relative_to(root).as_posix(), label)
                for path in sorted((root / folder).rglob("*"))
                if path.suffix.lower() in IMAGE_SUFFIXES and not is_junk(path.name)
            ]
    except OSError as error:
        raise DataError(f"cannot read --data {root}: {error.strerror or error}.") from error
    if not files:
        raise DataError(
            f"--data {root}: no images in class folders (DIR/cat/1.jpg, ...); JPEG, PNG and WebP are read."
        )
    full = sorted({label for _, label in files})
    if len(full) < len(folders):
        renumber = {label: i for i, label in enumerate(full)}
        files = [(file, renumber[label]) for file, label in files]
        folders = [folders[label] for label in full]
    return _of_files(folders, files, ImageFiles({"": root}))


def _tiny(root: Path) -> Labelled:
    """Tiny ImageNet's val: one folder of images, and a table that says each one's WordNet id."""
    if is_zip(root):
        names = archive(root).names
        table = next((name for name in names if name.rpartition("/")[2] == _TINY), None)
        if table is None:
            raise DataError(
                f"--data {root}: a zip archive without {_TINY}; unpack it and give the class folders."
            )
        text = archive(root).read(table).decode("utf-8", "replace")
        top = table.removesuffix(_TINY)
    else:
        text, top = (root / _TINY).read_text(encoding="utf-8", errors="replace"), ""
    rows = [row[:2] for row in csv.reader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE) if row]
    if not rows or any(len(row) < 2 for row in rows):
        raise DataError(f"--data {root}: {_TINY} is not a table of file and class, separated by tabs.")
    folders = sorted({row[1] for row in rows})
    number = {folder: label for label, folder in enumerate(folders)}
    files = [(f"{top}images/{file}", number[folder]) for file, folder in rows]
    return _of_files(folders, files, ImageFiles({"": root}))


def _of_files(folders: Sequence[str], files: Sequence[tuple[str, int]], images: ImageFiles) -> Labelled:
    names = [file for file, _ in files]
    return Labelled(
        list(folders),
        [class_name(folder) for folder in folders],
        np.array([label for _, label in files], dtype=np.int64),
        [make_key(name) for name in names],
        lambda image: images.read(names[image]),
    )


def _cifar_kind(root: Path) -> str | None:
    for kind, (splits, _, _) in _CIFAR.items():
        if any((root / files[0]).is_file() for files in splits.values()):
            return kind
    return None


def _cifar(root: Path, kind: str, split: str) -> Labelled:
    splits, label_bytes, names_file = _CIFAR[kind]
    row_bytes = label_bytes + 3 * _CIFAR_SIDE**2
    parts = []
    for name in splits[split]:
        try:
            data = np.fromfile(root / name, dtype=np.uint8)
        except OSError as error:
            raise DataError(f"cannot read {root / name}: {error.strerror or error}.") from error
        if not len(data) or len(data) % row_bytes:
            raise DataError(
                f"{root / name}: {len(data):,} bytes are no whole number of CIFAR's rows of {row_bytes}."
            )
        parts.append(data.reshape(-1, row_bytes))
    rows = np.concatenate(parts)  # [N, label bytes + 3 * 32 * 32]
    try:
        text = (root / names_file).read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise DataError(f"cannot read {root / names_file}, which names the classes: {error}.") from error
    folders = [line.strip() for line in text.splitlines() if line.strip()]
    labels = rows[:, label_bytes - 1].astype(np.int64)  # CIFAR-100 has the coarse label first
    if labels.max() >= len(folders):
        raise DataError(
            f"{root / names_file} names {len(folders)} classes, and there are labels to {labels.max()}."
        )

    def png(image: int) -> bytes:
        pixels = rows[image, label_bytes:].reshape(3, _CIFAR_SIDE, _CIFAR_SIDE).transpose(1, 2, 0)
        out = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(out, "PNG", compress_level=0)  # lossless
        return out.getvalue()

    keys = [f"{split}-{i:05d}" for i in range(len(rows))]
    return Labelled(folders, [class_name(folder) for folder in folders], labels, keys, png)
