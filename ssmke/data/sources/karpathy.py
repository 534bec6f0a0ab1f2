"""Import of caption sets in Karpathy's JSON form: Flickr8k, Flickr30K, COCO.

    {"dataset": "flickr8k", "images": [{"filename": "1.jpg", "split": "train", "imgid": 0,
                                        "sentences": [{"raw": "A child in a pink dress ."}, ...]}, ...]}

COCO's entries also have ``filepath`` (a folder below the image directory) and ``cocoid``; its 30,504
``restval`` images count as train, as in published results on the Karpathy splits. A file that is not of this
form is refused, naming the entry and the field; an image or caption that cannot be used is skipped and
counted. Everything else, including what the import costs, is in `ssmke.data.importing`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from ssmke.data.import_state import Skip
from ssmke.data.importing import ImportReport, StorageConfig, pick_extra
from ssmke.data.manifest import SPLIT_NAME
from ssmke.data.parallel import Progress
from ssmke.data.quality.cleaning import CleaningConfig
from ssmke.data.shards import make_key
from ssmke.data.sources.entries import Entry, import_entries
from ssmke.data.sources.image_files import ImageFiles, is_zip
from ssmke.errors import ConfigError, DataError

KARPATHY_ZIP = "caption_datasets.zip"
"""The archive that his captions of COCO, Flickr8k and Flickr30k are distributed in."""
Restval = Literal["train", "keep", "skip"]


@dataclasses.dataclass(frozen=True)
class KarpathyConfig:
    """What is imported, and how it is stored."""

    images: Path
    """Folder of the image files, or a zip archive of them."""
    captions: Path
    """The JSON file with captions and splits."""
    out: Path
    """Folder to write the dataset to."""
    restval: Restval = "train"
    """What COCO's split "restval" becomes: part of train, a split of its own, or nothing."""
    storage: StorageConfig = dataclasses.field(default_factory=StorageConfig)
    """How images are stored."""
    clean: CleaningConfig = dataclasses.field(default_factory=CleaningConfig)
    """What is left out."""

    def __post_init__(self) -> None:
        if self.restval not in ("train", "keep", "skip"):
            raise ConfigError(f"--restval {self.restval!r}: must be train, keep or skip")


def import_karpathy(
    config: KarpathyConfig,
    workers: int = 1,
    on_total: Callable[[int], None] = lambda images: None,
    on_items: Progress = lambda images: None,
) -> ImportReport:
    """Import to ``config.out``; an import that was stopped goes on where it was.

    ``workers`` processes; ``on_total`` and ``on_items`` as in `import_entries`.

    Raises:
        DataError: the captions file cannot be used (names entry and field), or as `import_entries`.
    """
    if not config.images.is_dir() and not (is_zip(config.images) and config.images.is_file()):
        raise DataError(f"--images {config.images} is not a folder, and no zip archive.")
    try:
        data = config.captions.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read --captions {config.captions}: {error.strerror or error}.") from error
    captions = parse_captions(data, f"--captions {config.captions}", config.restval)
    return import_entries(
        name=captions.dataset or config.captions.stem,
        images=ImageFiles({"": config.images}),
        entries=captions.entries,
        skips=captions.skips,
        out=config.out,
        identity={
            "importer": "karpathy",
            "--captions (SHA-256)": captions.fingerprint,
            "--restval": config.restval,
        },
        source={
            "captions_file": config.captions.name,
            "fingerprint": captions.fingerprint,
            "importer": "karpathy",
            "restval": config.restval,
        },
        storage=config.storage,
        clean=config.clean,
        workers=workers,
        on_total=on_total,
        on_items=on_items,
    )


@dataclasses.dataclass(frozen=True)
class KarpathyCaptions:
    """What a captions file says."""

    dataset: str
    """Name that it gives the dataset; may be empty."""
    fingerprint: str
    """SHA-256 of the file."""
    entries: list[Entry]
    skips: list[Skip]
    """Images that cannot be entries."""


def parse_captions(data: bytes, where: str, restval: Restval) -> KarpathyCaptions:
    """Read the content of a captions file.

    Raises:
        DataError: it is not of Karpathy's form; the message begins with ``where`` and names entry and field.
    """
    content = read_json(data, where, "in Karpathy's form")
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise DataError(f'{where}: field "images" is missing or no list: give a file in Karpathy\'s form.')
    dataset = content.get("dataset")
    entries, skips = _parse(content, where, restval)
    return KarpathyCaptions(
        dataset if isinstance(dataset, str) else "", hashlib.sha256(data).hexdigest(), entries, skips
    )


def read_json(data: bytes, where: str, form: str) -> Any:
    """Parse JSON; a byte that is not UTF-8 becomes a surrogate, and costs its caption instead of the file.

    Raises:
        DataError: it is no JSON; ``form`` says what is wanted.
    """
    try:
        return json.loads(data.decode("utf-8-sig", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON ({error}): give a file {form}.") from None


def _parse(content: Mapping[str, Any], where: str, restval: Restval) -> tuple[list[Entry], list[Skip]]:
    entries: list[Entry] = []
    skips: list[Skip] = []
    files: dict[str, str] = {}  # by key
    for number, raw in enumerate(content["images"]):
        fields = _Fields(where, number, raw)
        name, folder, split = fields.text("filename"), fields.text("filepath", ""), fields.split()
        captions = fields.captions()
        if split == "restval" and restval != "keep":
            if restval == "skip":
                continue
            split = "train"
        file = f"{folder}/{name}" if folder else name
        location = PurePosixPath(file)
        if location.is_absolute() or ".." in location.parts or "\0" in file:
            skips.append(Skip(number, file, split, "path outside of --images"))
            continue
        key = make_key(location.stem)
        if files.get(key, file) != file:
            key = make_key(file)  # another image of the same stem: 1.jpg beside 1.png, or in another folder
        if key in files:
            skips.append(Skip(number, file, split, "duplicate file"))
            continue
        files[key] = file
        ids = pick_extra(raw, ("imgid", "cocoid"))
        entries.append(Entry(number, file, key, split, captions, {"filename": name} | ids))
    return entries, skips


class _Fields:
    """Typed access to one entry, with errors that say where in the file."""

    def __init__(self, where: str, number: int, raw: Any) -> None:
        self._where = f"{where}: images[{number}]"
        if not isinstance(raw, dict):
            raise DataError(f"{self._where} is not an object: give a file in Karpathy's form.")
        self._raw = raw
        if isinstance(raw.get("filename"), str):
            self._where += f" ({raw['filename']!a})"

    def text(self, field: str, default: str | None = None) -> str:
        value = self._raw.get(field, default)
        if value is None:
            raise self._error(field, "is missing")
        if not isinstance(value, str) or (not value and default is None):
            raise self._error(field, f"is {value!r}, but must be text")
        try:
            value.encode()
        except UnicodeError:
            raise self._error(field, "is not UTF-8") from None
        return value

    def split(self) -> str:
        name = self.text("split")
        if not SPLIT_NAME.fullmatch(name):
            raise self._error("split", f"is {name!r}, but must be of letters, digits and _")
        return name

    def captions(self) -> tuple[str, ...]:
        sentences = self._raw.get("sentences")
        if not isinstance(sentences, list):
            raise self._error("sentences", "is missing" if sentences is None else "is not a list")
        captions = []
        for position, sentence in enumerate(sentences):
            raw = sentence.get("raw") if isinstance(sentence, dict) else None
            if not isinstance(raw, str):
                raise self._error(f"sentences[{position}].raw", "is missing or not text")
            captions.append(raw)
        return tuple(captions)

    def _error(self, field: str, what: str) -> DataError:
        return DataError(f'{self._where}: field "{field}" {what}.')
