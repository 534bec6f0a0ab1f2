"""A caption set as it is distributed, evaluated in place: Karpathy's JSON beside its images, nothing imported first.

    coco/dataset_coco.json        val2014/ train2014/ or their zips
    flickr30k/dataset_flickr30k.json      flickr30k-images/ or .zip
    flickr8k/dataset_flickr8k.json        Flicker8k_Dataset/, images/ or a zip
    anything/captions.json (the same form)        images/, images.zip or beside it

The JSON may lie in ``caption_datasets.zip``. Images are read as they are needed, which a zip is as good for as a
folder; one that is missing or damaged is skipped and counted, as with shards. `ssmke data import` remains the way for
training, and for the token files that Flickr8k came with at first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ssmke.data.dataset import ImageTextShards
from ssmke.data.manifest import FILE_NAME
from ssmke.data.remote.fetch import is_remote
from ssmke.data.shards import Sample
from ssmke.data.sources.entries import Entry
from ssmke.data.sources.image_files import ImageFiles
from ssmke.data.sources.karpathy import KARPATHY_ZIP, parse_captions
from ssmke.data.sources.layout import Layout
from ssmke.errors import DataError

CAPTION_FILES = ("dataset_coco.json", "dataset_flickr30k.json", "dataset_flickr8k.json", "captions.json")
IMAGE_FOLDERS = (
    "images",
    "flickr30k-images",
    "flickr30k_images",
    "Flicker8k_Dataset",
    "Flickr8k_Dataset",
)


class CaptionedFiles:
    """One split of image files with captions, read like `ImageTextShards`; open with `open`."""

    def __init__(self, entries: Sequence[Entry], files: ImageFiles) -> None:
        self._entries = entries
        self._files = files

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self._entries)

    def read(self, image: int) -> Sample:
        """One image with its captions; BadSample where the file cannot be had."""
        entry = self._entries[image]
        return Sample(entry.key, self._files.read(entry.file), entry.captions, extra=entry.extra)

    @classmethod
    def open(cls, root: Path, split: str) -> CaptionedFiles:
        """The ``split`` of what lies in ``root``.

        Raises:
            DataError: captions, images or the split are not there; names what was looked for.
        """
        layout = Layout(root)
        document = layout.document(CAPTION_FILES, [KARPATHY_ZIP])
        if document is None:
            raise DataError(
                f"--data {root}: neither shards (it has no {FILE_NAME}) nor a caption set in Karpathy's form (none of "
                f"{', '.join(CAPTION_FILES)}, plain or in {KARPATHY_ZIP}): import it with `ssmke data import`."
            )
        captions = parse_captions(document.read(), str(document), "train")
        entries = [entry for entry in captions.entries if entry.split == split]
        if not entries:
            there = ", ".join(sorted({entry.split for entry in captions.entries})) or "none"
            raise DataError(f"{document} has no images in split {split!r}; its splits: {there}.")
        return cls(entries, ImageFiles(_places(layout, entries)))


def _places(layout: Layout, entries: Sequence[Entry]) -> dict[str, Path]:
    """Where the images of ``entries`` lie, as `ImageFiles` takes it."""
    places: dict[str, Path] = {}
    missing: list[str] = []
    for folder in sorted({entry.file.partition("/")[0] if "/" in entry.file else "" for entry in entries}):
        names = [folder] if folder else IMAGE_FOLDERS
        place = layout.images(names, [f"{name}.zip" for name in names], in_root=not folder)
        if place is None:
            missing.append("images (" + ", ".join(f"{name}/ or {name}.zip" for name in names) + ")")
        else:
            places[folder] = place
    if missing:
        raise DataError(f"--data {layout.root}: missing {'; '.join(missing)}.")
    return places


def open_captioned(data: Sequence[str], split: str) -> ImageTextShards | CaptionedFiles:
    """Shards, several of them as one, or one folder in the public layout.

    Raises:
        DataError: as `ImageTextShards.open` and `CaptionedFiles.open`.
    """
    plain = [
        place
        for place in data
        if not is_remote(place) and Path(place).is_dir() and not (Path(place) / FILE_NAME).exists()
    ]
    if not plain:
        return ImageTextShards.open(data, split)
    if len(data) > 1:
        raise DataError(
            f"--data {plain[0]} has no {FILE_NAME}: several datasets are evaluated as one only as shards."
        )
    return CaptionedFiles.open(Path(plain[0]), split)
