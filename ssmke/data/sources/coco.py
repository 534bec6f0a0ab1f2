"""COCO captions, from what its site and Karpathy's distribute, archives not even unpacked.

Images: ``train2014`` and ``val2014`` (or those of 2017), as folders or zips. Captions, in this order:

- Karpathy's ``dataset_coco.json``, plain or in ``caption_datasets.zip``: the splits that retrieval results are
  published on, 113,287 / 5,000 / 5,000 images with restval in train;
- COCO's own ``captions_train2014.json`` and ``captions_val2014.json``, plain or in
  ``annotations_trainval2014.zip``: train2014 is train and val2014 is val.

Which of them was taken is told. Five captions an image, sometimes six or seven; all are kept.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from ssmke.data.importing import ImportReport, StorageConfig
from ssmke.data.parallel import Progress
from ssmke.data.quality.cleaning import CleaningConfig
from ssmke.data.shards import make_key
from ssmke.data.sources.entries import Captions, Entry, import_captions
from ssmke.data.sources.image_files import ImageFiles
from ssmke.data.sources.karpathy import KARPATHY_ZIP, parse_captions, read_json
from ssmke.data.sources.layout import Document, Layout
from ssmke.errors import DataError

YEARS = ("2014", "2017")
_FORM = "of COCO's annotations (captions_train2014.json)"


def import_coco(
    root: Path,
    out: Path,
    storage: StorageConfig = StorageConfig(),  # noqa: B008 - it is frozen
    clean: CleaningConfig = CleaningConfig(),  # noqa: B008 - it is frozen
    workers: int = 1,
    on_total: Callable[[int], None] = lambda images: None,
    on_items: Progress = lambda images: None,
    splits: Collection[str] = (),
) -> ImportReport:
    """Import what lies below ``root`` to the dataset directory ``out``.

    ``splits`` other than all need only the images of their own; else as in `import_entries`.

    Raises:
        DataError: a piece is missing (names all that are looked for, and what is there), or as `import_entries`.
    """
    layout = Layout(root)
    captions, missing = _captions(layout)
    if captions is not None:
        captions = captions.of(splits)
    entries = [] if captions is None else captions.entries
    loose = next((entry.file for entry in entries if "/" not in entry.file), None)
    if captions is not None and loose is not None:
        raise DataError(
            f'{captions.used[0]}: the image {loose!a} has no field "filepath" that says which folder it is in.'
        )
    folders = sorted({entry.file.partition("/")[0] for entry in entries}) or ["train2014", "val2014"]
    places: dict[str, Path] = {}
    for folder in folders:
        place = layout.images([folder], [f"{folder}.zip"])
        if place is None:
            missing.append(f"images ({folder}/ or {folder}.zip)")
        else:
            places[folder] = place
    if missing or captions is None:
        raise layout.missing("coco-captions", missing)
    return import_captions(
        importer="coco-captions",
        name="coco",
        captions=captions,
        images=ImageFiles(places),
        out=out,
        storage=storage,
        clean=clean,
        workers=workers,
        on_total=on_total,
        on_items=on_items,
        splits=splits,
    )


def _captions(layout: Layout) -> tuple[Captions | None, list[str]]:
    """The captions in the first form that is there, or what is missing of them."""
    document = layout.document(["dataset_coco.json"], [KARPATHY_ZIP])
    if document is not None:
        karpathy = parse_captions(document.read(), str(document), "train")
        return Captions(karpathy.entries, karpathy.skips, [document], karpathy.fingerprint), []
    used, missing = _annotations(layout)
    if missing:
        return None, missing
    entries, fingerprint = _parse(used)
    return Captions(entries, [], used, fingerprint), []


def _annotations(layout: Layout) -> tuple[list[Document], list[str]]:
    """COCO's own caption files of the first year that has both, and what is missing."""
    for year in YEARS:
        found = [
            layout.document([f"captions_{part}{year}.json"], [f"annotations_trainval{year}.zip"])
            for part in ("train", "val")
        ]
        documents = [document for document in found if document is not None]
        if len(documents) == 2:
            return documents, []
    return [], [
        f"captions (dataset_coco.json, plain or in {KARPATHY_ZIP}; or captions_train2014.json and "
        "captions_val2014.json, plain or in annotations_trainval2014.zip)"
    ]


def _parse(documents: list[Document]) -> tuple[list[Entry], str]:
    """Entries of COCO's own annotations, and the digest of all of them."""
    entries: list[Entry] = []
    fingerprint = hashlib.sha256()
    for document, split in zip(documents, ("train", "val"), strict=True):
        data = document.read()
        fingerprint.update(hashlib.sha256(data).digest())
        content = read_json(data, str(document), _FORM)
        folder = document.name.removeprefix("captions_").removesuffix(".json").lower()
        captions: dict[int, list[str]] = {}
        for annotation in _records(document, content, "annotations", {"image_id": int, "caption": str}):
            captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
        for image in _records(document, content, "images", {"id": int, "file_name": str}):
            name = image["file_name"]
            if "/" in name or "\\" in name or "\0" in name or not name.isascii():
                raise DataError(f"{document}: images: the file_name {name!a} is not a plain name.")
            entries.append(
                Entry(
                    number=len(entries),
                    file=f"{folder}/{name}",
                    key=make_key(name.rpartition(".")[0] or name),
                    split=split,
                    captions=tuple(captions.get(image["id"], ())),
                    extra={"filename": name, "cocoid": image["id"]},
                )
            )
    key, count = Counter(entry.key for entry in entries).most_common(1)[0] if entries else ("", 0)
    if count > 1:
        raise DataError(f"{documents[0]} and {documents[1]} list the image {key!r} {count} times.")
    return entries, fingerprint.hexdigest()


def _records(document: Document, content: Any, field: str, kinds: dict[str, type]) -> list[dict[str, Any]]:
    records = content.get(field) if isinstance(content, dict) else None
    if not isinstance(records, list):
        raise DataError(f'{document}: field "{field}" is missing or no list: give a file {_FORM}.')
    for number, record in enumerate(records):
        for name, kind in kinds.items():
            value = record.get(name) if isinstance(record, dict) else None
            if type(value) is not kind:
                raise DataError(
                    f'{document}: {field}[{number}]: field "{name}" is missing or no {kind.__name__}.'
                )
    return records
