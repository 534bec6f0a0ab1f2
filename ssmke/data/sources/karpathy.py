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
from ssmke.data.importing import Entry, ImportReport, StorageConfig, import_entries
from ssmke.data.manifest import SPLIT_NAME
from ssmke.data.parallel import Progress
from ssmke.data.shards import make_key
from ssmke.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True)
class KarpathyConfig:
    """What is imported, and how it is stored."""

    images: Path
    """Folder of the image files."""
    captions: Path
    """The JSON file with captions and splits."""
    out: Path
    """Folder to write the dataset to."""
    restval: Literal["train", "keep", "skip"] = "train"
    """What COCO's split "restval" becomes: part of train, a split of its own, or nothing."""
    storage: StorageConfig = dataclasses.field(default_factory=StorageConfig)
    """How images are stored."""

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
    if not config.images.is_dir():
        raise DataError(f"--images {config.images} is not a folder.")
    content, fingerprint = _read(config.captions)
    entries, skips = _parse(content, config)
    dataset = content.get("dataset")
    return import_entries(
        name=dataset if isinstance(dataset, str) and dataset else config.captions.stem,
        images=config.images,
        entries=entries,
        skips=skips,
        out=config.out,
        identity={
            "importer": "karpathy",
            "--captions (SHA-256)": fingerprint,
            "--restval": config.restval,
        },
        source={
            "captions_file": config.captions.name,
            "fingerprint": fingerprint,
            "importer": "karpathy",
            "max_side": config.storage.max_side,
            "restval": config.restval,
        },
        storage=config.storage,
        workers=workers,
        on_total=on_total,
        on_items=on_items,
    )


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """Content of the captions file, and its SHA-256."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read --captions {path}: {error.strerror or error}.") from error
    try:
        # A byte that is not UTF-8 becomes a surrogate, and costs its caption instead of the file.
        content = json.loads(data.decode("utf-8-sig", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"--captions {path} is not JSON ({error}): give a file in Karpathy's form.") from None
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise DataError(
            f'--captions {path}: field "images" is missing or no list: give a file in Karpathy\'s form.'
        )
    return content, hashlib.sha256(data).hexdigest()


def _parse(content: Mapping[str, Any], config: KarpathyConfig) -> tuple[list[Entry], list[Skip]]:
    entries: list[Entry] = []
    skips: list[Skip] = []
    files: dict[str, str] = {}  # by key
    for number, raw in enumerate(content["images"]):
        fields = _Fields(config.captions, number, raw)
        name, folder, split = fields.text("filename"), fields.text("filepath", ""), fields.split()
        captions = fields.captions()
        if split == "restval" and config.restval != "keep":
            if config.restval == "skip":
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
        ids = {field: raw[field] for field in ("imgid", "cocoid") if field in raw}
        entries.append(Entry(number, file, key, split, captions, {"filename": name} | ids))
    return entries, skips


class _Fields:
    """Typed access to one entry, with errors that say where in the file."""

    def __init__(self, path: Path, number: int, raw: Any) -> None:
        self._where = f"--captions {path}: images[{number}]"
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
