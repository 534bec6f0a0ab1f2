"""Flickr8k and Flickr30k, from what is distributed for them, archives not even unpacked.

Captions come in four forms, and whichever lies there is taken, in this order:

- Karpathy's ``dataset_flickr8k.json`` / ``dataset_flickr30k.json``, plain or in ``caption_datasets.zip``: the
  splits that retrieval results are published on;
- for Flickr30k the ``flickr_annotations_30k.csv`` that the hub's copies have: the same splits;
- the original token file, ``1000092795.jpg#0<tab>Two young guys ...``, with lists of the images of each split:
  Flickr8k's ``Flickr_8k.trainImages.txt`` and so on (all in ``Flickr8k_text.zip``), or for Flickr30k the
  ``train.txt``, ``val.txt`` and ``test.txt`` of Flickr30k Entities. Without lists Flickr30k is all train, which
  is told: nothing then may be evaluated on it.

Images lie in a folder or a zip. A compressed tar is not read; the error has the command that unpacks it.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ssmke.data.import_state import Skip
from ssmke.data.importing import ImportReport, StorageConfig, pick_extra
from ssmke.data.manifest import SPLIT_NAME
from ssmke.data.parallel import Progress
from ssmke.data.quality.cleaning import CleaningConfig
from ssmke.data.shards import make_key
from ssmke.data.sources.entries import Captions, Entry, import_captions
from ssmke.data.sources.image_files import ImageFiles
from ssmke.data.sources.karpathy import KARPATHY_ZIP, parse_captions
from ssmke.data.sources.layout import Document, Layout
from ssmke.errors import DataError

NO_LISTS = (
    "no lists of the splits were found, so all images are in train: do not evaluate on Flickr30k what was trained "
    "on this"
)


@dataclasses.dataclass(frozen=True)
class _Names:
    """The names under which a dataset is distributed."""

    dataset: str
    folders: tuple[str, ...]
    archives: tuple[str, ...]
    karpathy: str
    tables: tuple[str, ...]
    tokens: tuple[str, ...]
    text_archives: tuple[str, ...]
    lists: tuple[tuple[str, str], ...]
    """Split and name of its list."""
    lists_needed: bool


FLICKR8K = _Names(
    dataset="flickr8k",
    # "Flicker" is how the distributed archive spells its folder.
    folders=("Flicker8k_Dataset", "Flickr8k_Dataset", "Images"),
    archives=("Flickr8k_Dataset.zip", "Flicker8k_Dataset.zip"),
    karpathy="dataset_flickr8k.json",
    tables=(),
    tokens=("Flickr8k.token.txt",),
    text_archives=("Flickr8k_text.zip",),
    lists=(
        ("train", "Flickr_8k.trainImages.txt"),
        ("val", "Flickr_8k.devImages.txt"),
        ("test", "Flickr_8k.testImages.txt"),
    ),
    lists_needed=True,
)
FLICKR30K = _Names(
    dataset="flickr30k",
    folders=("flickr30k-images", "flickr30k_images", "Images"),
    archives=("flickr30k-images.zip", "flickr30k_images.zip"),
    karpathy="dataset_flickr30k.json",
    tables=("flickr_annotations_30k.csv",),
    tokens=("results_20130124.token",),
    text_archives=(),
    lists=(("train", "train.txt"), ("val", "val.txt"), ("test", "test.txt")),
    lists_needed=False,
)


def import_flickr8k(
    root: Path,
    out: Path,
    storage: StorageConfig = StorageConfig(),  # noqa: B008 - it is frozen
    clean: CleaningConfig = CleaningConfig(),  # noqa: B008 - it is frozen
    workers: int = 1,
    on_total: Callable[[int], None] = lambda images: None,
    on_items: Progress = lambda images: None,
    splits: Collection[str] = (),
) -> ImportReport:
    """Import what lies below ``root`` to the dataset directory ``out``; as `import_entries`.

    Raises:
        DataError: a piece is missing (names all that are looked for, and what is there), or as `import_entries`.
    """
    return _import(FLICKR8K, root, out, storage, clean, workers, on_total, on_items, splits)


def import_flickr30k(
    root: Path,
    out: Path,
    storage: StorageConfig = StorageConfig(),  # noqa: B008 - it is frozen
    clean: CleaningConfig = CleaningConfig(),  # noqa: B008 - it is frozen
    workers: int = 1,
    on_total: Callable[[int], None] = lambda images: None,
    on_items: Progress = lambda images: None,
    splits: Collection[str] = (),
) -> ImportReport:
    """As `import_flickr8k`, for Flickr30k."""
    return _import(FLICKR30K, root, out, storage, clean, workers, on_total, on_items, splits)


def _import(
    names: _Names,
    root: Path,
    out: Path,
    storage: StorageConfig,
    clean: CleaningConfig,
    workers: int,
    on_total: Callable[[int], None],
    on_items: Progress,
    splits: Collection[str],
) -> ImportReport:
    layout = Layout(root)
    images = layout.images(names.folders, names.archives, in_root=True)
    missing = (
        []
        if images
        else [f"images ({', '.join([f'{name}/' for name in names.folders] + [*names.archives])})"]
    )
    captions = _captions(names, layout, missing)
    if images is None or captions is None:
        raise layout.missing(names.dataset, missing)
    return import_captions(
        importer=names.dataset,
        name=names.dataset,
        captions=captions.of(splits),
        images=ImageFiles({"": images}),
        out=out,
        storage=storage,
        clean=clean,
        workers=workers,
        on_total=on_total,
        on_items=on_items,
        splits=splits,
    )


def _captions(names: _Names, layout: Layout, missing: list[str]) -> Captions | None:
    """The captions in the first form that is there; None adds to ``missing``."""
    document = layout.document([names.karpathy], [KARPATHY_ZIP])
    if document is not None:
        karpathy = parse_captions(document.read(), str(document), "train")
        return Captions(karpathy.entries, karpathy.skips, [document], karpathy.fingerprint)
    document = layout.document(names.tables)
    if document is not None:
        return Captions(*_unique(_table(document)), [document], _fingerprint([document]))
    document = layout.document(names.tokens, names.text_archives)
    lists = [
        (split, found)
        for split, name in names.lists
        if (found := layout.document([name], names.text_archives)) is not None
    ]
    wanted = [f"{names.karpathy}, plain or in {KARPATHY_ZIP}", *names.tables]
    complete = len(lists) == len(names.lists)
    if document is None or (names.lists_needed and not complete):
        wanted.append(f"{names.tokens[0]} with {', '.join(name for _, name in names.lists)}")
        missing.append(f"captions ({'; or '.join(wanted)})")
        return None
    split_of = (
        {_stem(line): split for split, found in lists for line in found.text().split()} if complete else None
    )
    used = [document, *(found for _, found in lists)] if complete else [document]
    entries, skips = _unique(_tokens(document, split_of))
    return Captions(entries, skips, used, _fingerprint(used), () if complete else (NO_LISTS,))


def _fingerprint(used: Sequence[Document]) -> str:
    digests = [hashlib.sha256(document.read()).digest() for document in used]
    return digests[0].hex() if len(digests) == 1 else hashlib.sha256(b"".join(digests)).hexdigest()


_Row = tuple[str, str, Sequence[str], dict[str, Any]]
"""File, split, captions, ids."""


def _unique(rows: Iterable[_Row]) -> tuple[list[Entry], list[Skip]]:
    entries: list[Entry] = []
    skips: list[Skip] = []
    files: dict[str, str] = {}  # by key
    for number, (file, split, captions, ids) in enumerate(rows):
        if not split:
            skips.append(Skip(number, file, "", "in no split"))
            continue
        key = make_key(PurePosixPath(file).stem)
        if files.get(key, file) != file:
            key = make_key(file)
        if key in files:
            skips.append(Skip(number, file, split, "duplicate file"))
            continue
        files[key] = file
        entries.append(Entry(number, file, key, split, tuple(captions), {"filename": file, **ids}))
    return entries, skips


def _tokens(document: Document, split_of: dict[str, str] | None) -> list[_Row]:
    """Rows of a token file; images that no list names have no split."""
    captions: dict[str, list[str]] = {}
    for number, line in enumerate(document.text().split("\n"), 1):
        if not line.strip():
            continue
        name, tab, caption = line.partition("\t")
        file, mark, position = name.strip().rpartition("#")
        if not tab or not mark or not position.isdigit():
            raise DataError(
                f"{document}: line {number} is {line[:80]!a}, not NAME.jpg#NUMBER, a tab, a caption."
            )
        captions.setdefault(_plain(document, f"line {number}", file), []).append(caption)
    return [
        (file, "train" if split_of is None else split_of.get(_stem(file), ""), lines, {})
        for file, lines in captions.items()
    ]


def _table(document: Document) -> list[_Row]:
    """Rows of the hub's table: columns raw (a JSON list), split, filename, img_id."""
    rows = csv.DictReader(io.StringIO(document.text(), newline=""), strict=True)
    result: list[_Row] = []
    try:
        lacking = {"raw", "split", "filename"} - set(rows.fieldnames or ())
        if lacking:
            raise DataError(f"{document}: has no column {', '.join(sorted(lacking))}.")
        for row in rows:
            where = f"line {rows.line_num}"
            try:
                captions = json.loads(row["raw"])
                if not isinstance(captions, list) or not all(
                    isinstance(caption, str) for caption in captions
                ):
                    raise ValueError("it is no list of text")
            except (ValueError, TypeError, RecursionError) as error:
                raise DataError(f'{document}: {where}: column "raw": {error}.') from None
            split = row["split"] or ""
            if not SPLIT_NAME.fullmatch(split):
                raise DataError(
                    f'{document}: {where}: column "split" is {split!a}, not letters, digits and _.'
                )
            number = row.get("img_id") or ""
            ids = {"imgid": int(number)} if number.isascii() and number.isdigit() and len(number) < 19 else {}
            result.append(
                (_plain(document, where, row["filename"] or ""), split, captions, pick_extra(ids, ids))
            )
    except csv.Error as error:
        raise DataError(f"{document}: line {rows.line_num}: {error}.") from None
    return result


def _plain(document: Document, where: str, name: str) -> str:
    """A file name without folders."""
    if not name or "/" in name or "\\" in name or "\0" in name or name in (".", "..") or not name.isascii():
        raise DataError(f"{document}: {where}: {name!a} is not the name of an image file.")
    return name


def _stem(name: str) -> str:
    """Lists give names with or without extension; ``x.jpg.1``, which Flickr8k's tokens have, is not ``x.jpg``."""
    return name.strip().removesuffix(".jpg")
