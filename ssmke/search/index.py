"""An index folder, opened: what is nearest to an embedding, and what is shown of it.

    INDEX/index.json                model and its digest, sources, counts, kinds and digests of the FAISS files
    INDEX/images.faiss              and captions.faiss; .ivfdata beside them where lists are on the disk
    INDEX/parts/00000.items.jsonl   key, place and captions, a line a picture
    INDEX/parts/00000.thumbs        thumbnails, JPEGs one after the other

`index.json` is written last, so a folder without it is an index in the making. Opening checks sizes and the digests of
the FAISS files (0.8 s a GB; lists on the disk by size alone) before FAISS reads them. Items and thumbnails are mapped
and read one at a time.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ssmke import foreign_json
from ssmke.data.atomic import write_json
from ssmke.errors import DataError
from ssmke.search.nearest import KINDS, Nearest, load
from ssmke.search.parts import Item, Part, PartReader, Vectors

FORMAT = "ssmke-search-1"
FILE_NAME = "index.json"


@dataclass(frozen=True)
class IndexManifest:
    """Content of ``index.json``."""

    format: str
    """`FORMAT`."""
    model: str
    """Name of the model that embedded it."""
    digest: str
    """SHA-256 of that model's weights."""
    dim: int
    """Width of the embeddings."""
    sources: list  # of str; checked by `load`
    """Where the pictures were, in order."""
    fingerprint: str
    """Of the sources, when they were indexed."""
    images: dict[str, Any]
    """`Nearest` of the pictures."""
    captions: dict[str, Any] | None
    """`Nearest` of the captions; None where there are none."""
    parts: list = field(default_factory=list)  # of `Part`
    """Parts, in order."""

    def save(self, folder: Path) -> None:
        """Writes it, atomically. Raises DataError."""
        write_json(folder / FILE_NAME, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> IndexManifest:
        """Reads and checks it.

        Raises:
            DataError: it is missing, damaged or of another format.
        """
        path = folder / FILE_NAME
        try:
            content = foreign_json.loads(path.read_bytes())
        except FileNotFoundError:
            unfinished = (folder / "parts").is_dir()
            raise DataError(
                f"the index {folder} is not finished: run the same `ssmke search index` again."
                if unfinished
                else f"{folder} is not an index (it has no {FILE_NAME}): make one with `ssmke search index "
                f"--model MODEL --images DIR --out {folder}`."
            ) from None
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror or error}).") from None
        except ValueError as error:
            raise DataError(
                f"{path} is damaged: it is not JSON ({error}). Restore it, or index again."
            ) from None
        found = content.get("format") if isinstance(content, dict) else None
        if found != FORMAT:
            raise DataError(
                f"{path} has format {found!a:.60}, this version of ssmke reads {FORMAT!r}: index again."
            )
        try:
            manifest = foreign_json.record(cls, content)
            if not all(type(place) is str for place in manifest.sources):
                raise ValueError("a source is no text")
            manifest.check()
        except ValueError as error:
            raise DataError(f"{path} is damaged: {error}. Restore it, or index again.") from None
        return manifest

    def check(self) -> None:
        """ValueError where its numbers contradict each other."""
        parts = self.all_parts()
        if [part.number for part in parts] != list(range(len(parts))):
            raise ValueError("parts are missing")
        for what, facts, held in (
            ("images", self.nearest_images(), sum(part.items for part in parts)),
            ("captions", self.nearest_captions(), sum(part.captions for part in parts)),
        ):
            if facts is not None and (facts.kind not in KINDS[1:] or facts.vectors != held):
                raise ValueError(
                    f"{what}: {facts.vectors} vectors of kind {facts.kind!a}, its parts hold {held}"
                )

    def all_parts(self) -> list[Part]:
        """`parts` as records."""
        return [foreign_json.record(Part, part) for part in self.parts]

    def nearest_images(self) -> Nearest:
        """`images` as a record."""
        return foreign_json.record(Nearest, self.images)

    def nearest_captions(self) -> Nearest | None:
        """`captions` as a record."""
        return None if self.captions is None else foreign_json.record(Nearest, self.captions)


@dataclass(frozen=True)
class Hit:
    """One picture that was found."""

    row: int
    """Its number in the index."""
    score: float
    """Cosine with the query."""
    item: Item
    """What is known of it."""
    caption: str = ""
    """The caption that was found, where captions were searched."""


class SearchIndex:
    """An open index; reading it is thread-safe, as FAISS's searches and maps of files are."""

    def __init__(self, folder: Path) -> None:
        """Raises DataError where the folder is no index, or damaged."""
        self.folder = folder
        self.manifest = IndexManifest.load(folder)
        self._parts = self.manifest.all_parts()
        self._readers = [PartReader(folder, part) for part in self._parts]
        for reader in self._readers:
            reader.check()
        self._first = np.cumsum([0, *(part.items for part in self._parts)], dtype=np.int64)  # [parts + 1]
        dim = self.manifest.dim
        self._images = load(folder, "images", self.manifest.nearest_images(), dim)
        captions = self.manifest.nearest_captions()
        self._captions = None if captions is None else load(folder, "captions", captions, dim)
        # Counts come from the lines themselves only when captions are searched: a part holds few enough.
        self._first_caption = np.cumsum([0, *(part.captions for part in self._parts)], dtype=np.int64)
        self._caption_rows: dict[int, np.ndarray[Any, np.dtype[np.int64]]] = {}

    def __len__(self) -> int:
        return int(self._first[-1])

    @property
    def has_captions(self) -> bool:
        """Whether captions can be searched."""
        return self._captions is not None

    def item(self, row: int) -> Item:
        """The picture ``row``. Raises IndexError where there is none, DataError where its line is damaged."""
        part, place = self._locate(row)
        return self._readers[part].item(place)

    def thumbnail(self, row: int) -> bytes:
        """JPEG of the picture ``row``. Raises as `item` does."""
        part, place = self._locate(row)
        return self._readers[part].thumbnail(self._readers[part].item(place))

    def rows_of(self, keys: set[str]) -> dict[str, int]:
        """Rows of the pictures with these keys or ids, by reading every line: 25 microseconds each."""
        found: dict[str, int] = {}
        for row in range(len(self)):
            item = self.item(row)
            for name in (item.key, item.id):
                if name in keys:
                    found.setdefault(name, row)
        return found

    def images(self, queries: Vectors, top: int) -> list[list[Hit]]:
        """The ``top`` pictures for each of ``queries`` [q, D], best first."""
        scores, rows = self._images.search(np.ascontiguousarray(queries, np.float32), min(top, len(self)))
        return [
            [
                Hit(int(r), float(s), self.item(int(r)))
                for s, r in zip(of_scores, of_rows, strict=True)
                if r >= 0
            ]
            for of_scores, of_rows in zip(scores, rows, strict=True)
        ]

    def captions(self, queries: Vectors, top: int) -> list[list[Hit]]:
        """The ``top`` different captions for each of ``queries`` [q, D], best first.

        Raises:
            DataError: the index has none.
        """
        if self._captions is None:
            raise DataError(
                f"{self.folder} has no captions: pictures of a folder have none; index shards, or search images."
            )
        # Several pictures may share a caption; it is shown once.
        several = min(8 * top, self._captions.ntotal)
        scores, rows = self._captions.search(np.ascontiguousarray(queries, np.float32), several)
        found: list[list[Hit]] = []
        for of_scores, of_rows in zip(scores.tolist(), rows.tolist(), strict=True):
            hits: dict[str, Hit] = {}
            for score, row in zip(of_scores, of_rows, strict=True):
                if row >= 0 and len(hits) < top:
                    picture, caption = self._caption(row)
                    hits.setdefault(caption, Hit(picture, score, self.item(picture), caption))
            found.append(list(hits.values()))
        return found

    def _locate(self, row: int) -> tuple[int, int]:
        if not 0 <= row < len(self):
            raise IndexError(f"picture {row} of {len(self)}")
        part = int(np.searchsorted(self._first, row, side="right")) - 1
        return part, row - int(self._first[part])

    def _caption(self, row: int) -> tuple[int, str]:
        """Row of the picture, and the text, of caption ``row``."""
        part = int(np.searchsorted(self._first_caption, row, side="right")) - 1
        if part not in self._caption_rows:
            counts = [len(self._readers[part].item(i).captions) for i in range(self._parts[part].items)]
            if sum(counts) != self._parts[part].captions:
                raise DataError(
                    f"part {part} of {self.folder} has {sum(counts)} captions, its record says "
                    f"{self._parts[part].captions}: index again."
                )
            self._caption_rows[part] = np.cumsum([0, *counts], dtype=np.int64)
        firsts = self._caption_rows[part]
        inside = row - int(self._first_caption[part])
        place = int(np.searchsorted(firsts, inside, side="right")) - 1
        item = self._readers[part].item(place)
        return int(self._first[part]) + place, item.captions[inside - int(firsts[place])]
