"""NLVR2 as its authors release it: JSON lines with a sentence and a label, and a folder of images.

    nlvr2/train.json  nlvr2/dev.json  nlvr2/test1.json
    nlvr2/images/train/34/train-10171-0-img0.png    (train images lie in numbered folders, "directory" in the JSON)
    nlvr2/images/dev/dev-850-0-img1.png

An example's identifier, `dev-850-0-1`, is split, sentence set, pair of images, sentence: its images are
`dev-850-0-img0` (left) and `-img1`. The same sentence is asked of several pairs: all examples that share split, set and
sentence number belong to one unique sentence, as in the authors' own script for consistency.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssmke import foreign_json
from ssmke.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_LABELS = {"true": 1, "false": 0, True: 1, False: 0}


@dataclass(frozen=True)
class Nlvr2Example:
    """A sentence about two images, and whether it is true."""

    identifier: str
    left: Path
    right: Path
    sentence: str
    label: int
    """1: true."""

    @property
    def unique_sentence(self) -> str:
        """The same for all pairs of images that one sentence is asked of."""
        split, group, _, sentence = self.identifier.split("-")
        return f"{split}-{group}-{sentence}"


@dataclass(frozen=True)
class Nlvr2Split:
    """Examples whose images are there."""

    examples: list[Nlvr2Example]
    missing: int
    """Examples left out because an image is missing."""
    digest: str
    """SHA-256 over identifiers, sentences and labels."""


def read_nlvr2(root: Path, split: str, images: Path | None, allow_missing: bool) -> Nlvr2Split:
    """Reads ``root/SPLIT.json`` (or .jsonl), and finds the images below ``images`` (None: ``root/images``).

    Raises:
        DataError: the file is missing or a line is not an example; there are no images; or some are missing and
            ``allow_missing`` is false.
    """
    names = (f"{split}.json", f"{split}.jsonl", f"data/{split}.json")
    file = next((root / name for name in names if (root / name).is_file()), None)
    if file is None:
        raise DataError(
            f"{root} has none of {', '.join(names)}: give the folder of the NLVR2 release as --data"
        )
    folder = root / "images" if images is None else images
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the one with NLVR2's images as --images")
    examples: list[Nlvr2Example] = []
    missing: list[str] = []
    digest = hashlib.sha256()
    for number, values in _lines(file):
        identifier, sentence, label = _fields(values, f"{file}, line {number}")
        pair = "-".join(identifier.split("-")[:3])
        found = [
            _image(folder, identifier.split("-")[0], values.get("directory"), f"{pair}-{side}")
            for side in ("img0", "img1")
        ]
        left, right = found
        if left is None or right is None:
            missing.append(f"{pair}-{'img0' if left is None else 'img1'}")
            continue
        examples.append(Nlvr2Example(identifier, left, right, sentence, label))
        digest.update(f"{identifier}\0{sentence}\0{label}\n".encode())
    if missing and not (allow_missing and examples):
        raise DataError(
            f"{folder}: the images of {len(missing):,} of {len(examples) + len(missing):,} examples of {file.name} are "
            f"missing, first {missing[0]}.png (looked for in it, in {split}/ and in {split}/DIRECTORY/): complete the "
            "download, or leave these examples out with --allow-missing"
        )
    if not examples:
        raise DataError(f"{file} holds no examples: download it again")
    return Nlvr2Split(examples, len(missing), digest.hexdigest())


def _lines(file: Path) -> list[tuple[int, dict[str, Any]]]:
    found = []
    try:
        with file.open(encoding="utf-8", newline="\n") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    values = foreign_json.loads(line)
                except ValueError as error:
                    raise DataError(
                        f"{file}, line {number}: not JSON ({error}): download it again (one object a line)"
                    ) from None
                if not isinstance(values, dict):
                    raise DataError(f"{file}, line {number}: not an object; the release has one a line")
                found.append((number, values))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read ({error}): download it again") from None
    return found


def _fields(values: dict[str, Any], where: str) -> tuple[str, str, int]:
    identifier, sentence, label = (values.get(name) for name in ("identifier", "sentence", "label"))
    parts = identifier.split("-") if isinstance(identifier, str) else []
    # The identifier becomes a file's name, so it must not lead anywhere else.
    if not isinstance(identifier, str) or len(parts) != 4 or not all(part.isalnum() for part in parts):
        raise DataError(f"{where}: identifier {identifier!r} is not of the form SPLIT-SET-PAIR-SENTENCE")
    if not isinstance(sentence, str) or not sentence.strip():
        raise DataError(f"{where} ({identifier}): no sentence")
    key = label.lower() if isinstance(label, str) else label
    if not isinstance(key, (str, bool)) or key not in _LABELS:
        raise DataError(f'{where} ({identifier}): label {label!r} is neither "True" nor "False"')
    return identifier, sentence, _LABELS[key]


def _image(folder: Path, split: str, directory: Any, name: str) -> Path | None:
    places = [folder / split, folder]
    if isinstance(directory, (int, str)) and str(directory).isalnum():
        places = [folder / split / str(directory), folder / str(directory), *places]
    for place in places:
        for suffix in SUFFIXES:
            if (path := place / f"{name}{suffix}").is_file():
                return path
    return None
