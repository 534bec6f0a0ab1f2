"""The manifest: what a dataset directory holds, in one small JSON file that a person can read.

``DIR/manifest.json`` is written last, so a directory that has one is complete. It counts and fingerprints
every shard: opening a dataset compares sizes (one ``stat`` a shard), `ssmke.data.verify` compares everything,
and the target cache binds itself to ``keys_sha256``, so that it notices changed shards without reading them.

    {"format": "ssmke-shards/1", "name": "flickr8k", "source": {...}, "skipped": {"truncated image": 2},
     "splits": {"train": {"images": 6000, "captions": 30000, "shards": [{"file": "train-00000.tar", ...}]}}}
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssmke.data.atomic import write_json
from ssmke.errors import DataError

FORMAT = "ssmke-shards/1"
FILE_NAME = "manifest.json"
IMPORT_STATE_NAME = "import.state.jsonl"
SPLIT_NAME = re.compile(r"[A-Za-z0-9_]{1,64}")
TAR_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}\.tar")


@dataclasses.dataclass(frozen=True)
class ShardInfo:
    """Facts of one shard."""

    file: str
    """Name of the tar, in the directory of the manifest."""
    images: int
    """Samples in the tar."""
    captions: int
    """Captions of all its samples."""
    bytes: int
    """Size of the tar."""
    sha256: str
    """SHA-256 of the tar, hexadecimal."""
    keys_sha256: str
    """SHA-256 of the sample keys joined by newlines, in the order of the tar."""


@dataclasses.dataclass(frozen=True)
class Split:
    """The shards of one split, in order."""

    shards: tuple[ShardInfo, ...]

    @property
    def images(self) -> int:
        return sum(shard.images for shard in self.shards)

    @property
    def captions(self) -> int:
        return sum(shard.captions for shard in self.shards)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Content of ``manifest.json``."""

    name: str
    """Name of the dataset; the default of every sample's ``source``."""
    source: Mapping[str, Any]
    """Free facts on where the data came from, and a ``fingerprint`` of it."""
    splits: Mapping[str, Split]
    """Shards by split name."""
    skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """What was left out, by reason."""

    @property
    def images(self) -> int:
        return sum(split.images for split in self.splits.values())

    @property
    def captions(self) -> int:
        return sum(split.captions for split in self.splits.values())

    def save(self, directory: str | Path) -> Path:
        """Write ``directory/manifest.json`` atomically.

        Raises:
            DataError: it cannot be written.
        """
        path = Path(directory) / FILE_NAME
        splits = {
            name: {
                "images": split.images,
                "captions": split.captions,
                "shards": [dataclasses.asdict(shard) for shard in split.shards],
            }
            for name, split in self.splits.items()
        }
        content = {
            "format": FORMAT,
            "name": self.name,
            "source": dict(self.source),
            "splits": splits,
            "skipped": dict(self.skipped),
        }
        write_json(path, content)
        return path

    @classmethod
    def load(cls, directory: str | Path) -> Manifest:
        """Read and check ``directory/manifest.json``.

        Raises:
            DataError: missing, not JSON, of an unknown format, or garbled; names the file and the field.
        """
        path = Path(directory) / FILE_NAME
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise DataError(_missing(path)) from None
        except NotADirectoryError:
            raise DataError(f"{path.parent} is a file; a dataset is a folder with a {FILE_NAME}.") from None
        except IsADirectoryError:
            raise DataError(_garbled(path, "it is a folder, not a file")) from None
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}.") from error
        except UnicodeDecodeError:
            raise DataError(_garbled(path, "it is not UTF-8 text")) from None
        try:
            content = json.loads(text)
            # JSON may spell half of a surrogate pair, which no terminal and no file can take.
            json.dumps(content, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            before = error.object[max(0, error.start - 20) : error.start]
            raise DataError(_garbled(path, f"the text after {before!r} is not Unicode")) from None
        except ValueError as error:
            raise DataError(_garbled(path, f"it is not JSON ({error})")) from None
        except RecursionError:
            raise DataError(_garbled(path, "it is nested too deeply")) from None
        if not isinstance(content, dict) or "format" not in content:
            raise DataError(_garbled(path, 'it has no "format"'))
        if content["format"] != FORMAT:
            raise DataError(
                f"{path} has format {content['format']!r}, but this version of ssmke reads {FORMAT!r}: "
                f"use the version of ssmke that wrote it, or make the dataset again."
            )
        try:
            return cls._parse(content)
        except _Garbled as error:
            raise DataError(_garbled(path, str(error))) from None

    @classmethod
    def _parse(cls, content: Mapping[str, Any]) -> Manifest:
        splits = {}
        for name, value in _field(content, "splits", dict, "").items():
            if not SPLIT_NAME.fullmatch(name):
                raise _Garbled(f"split name {name!r} is not made of letters, digits and _")
            where = f"splits.{name}."
            if not isinstance(value, dict):
                raise _Garbled(f"{where[:-1]} is not an object")
            shards = _field(value, "shards", list, where)
            split = Split(tuple(_shard(shard, f"{where}shards[{i}].") for i, shard in enumerate(shards)))
            for count in ("images", "captions"):
                stated, summed = _field(value, count, int, where), getattr(split, count)
                if stated != summed:
                    raise _Garbled(f"{where}{count} is {stated}, but its shards have {summed}")
            splits[name] = split
        skipped = _field(content, "skipped", dict, "")
        for reason in skipped:
            _field(skipped, reason, int, "skipped.")
        return cls(
            name=_field(content, "name", str, ""),
            source=_field(content, "source", dict, ""),
            splits=splits,
            skipped=skipped,
        )


class _Garbled(Exception):
    """What is wrong with a manifest's content, before its path is put in front."""


def _missing(path: Path) -> str:
    if not path.parent.exists():
        return f"{path.parent} does not exist: give the folder of a dataset (one with a {FILE_NAME})."
    if (path.parent / IMPORT_STATE_NAME).exists():
        return (
            f"{path.parent} holds an import that has not finished: run the same `ssmke data` command again."
        )
    return (
        f"{path.parent} has no {FILE_NAME}, so it is not a dataset: make one with `ssmke data make scenes "
        f"--out DIR` or `ssmke data import karpathy ... --out DIR`."
    )


def _garbled(path: Path, what: str) -> str:
    return f"{path} is damaged: {what}. Restore it from a copy, or make the dataset again in another folder."


def _field(content: Mapping[str, Any], name: str, kind: type, where: str) -> Any:
    if name not in content:
        raise _Garbled(f"{where}{name} is missing")
    value = content[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _Garbled(f"{where}{name} is not of type {kind.__name__}")
    if isinstance(value, int) and value < 0:
        raise _Garbled(f"{where}{name} is negative")
    return value


def _shard(value: Any, where: str) -> ShardInfo:
    if not isinstance(value, dict):
        raise _Garbled(f"{where[:-1]} is not an object")
    kinds = {"file": str, "images": int, "captions": int, "bytes": int, "sha256": str, "keys_sha256": str}
    shard = ShardInfo(**{name: _field(value, name, kind, where) for name, kind in kinds.items()})
    if not TAR_NAME.fullmatch(shard.file):
        raise _Garbled(
            f"{where}file is {shard.file[:250]!r}, but must be a plain file name of letters, digits, _, - and dots "
            f"that ends in .tar"
        )
    return shard
