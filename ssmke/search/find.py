"""What is found for a text or a picture: an open index and the model that made it.

A model embeds one query at a time, under a lock: its threads already use every core, and two queries at once would each
take twice as long. FAISS searches run beside it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from PIL import Image

from ssmke import foreign_json
from ssmke.data.captions import clean_caption
from ssmke.data.decode import EncodedImage
from ssmke.errors import BadSample, ConfigError, DataError, WeightsError
from ssmke.search.index import Hit, SearchIndex
from ssmke.search.parts import Vectors

if TYPE_CHECKING:
    from ssmke.models.dual_encoder import DualEncoder

Target = Literal["images", "captions"]

MOST_QUERIES = 10_000
MOST_QUERY_BYTES = 64_000_000


@dataclass(frozen=True)
class Query:
    """What is looked for."""

    text: str
    """The text, or the name of the picture."""
    id: str = ""
    """What the table shows before it: of a query with one right picture, that picture's id."""
    right: frozenset[str] = frozenset()
    """Keys (or ids) of the right pictures, where they are known."""
    image: bytes | None = None
    """The encoded picture, where it is one that is looked for."""


@dataclass(frozen=True)
class Answer:
    """What was found for a query."""

    query: Query
    """What was looked for."""
    target: Target
    """What was searched."""
    hits: list[Hit] = field(default_factory=list)
    """Best first."""

    def is_right(self, hit: Hit) -> bool:
        """Whether a hit is one of the right ones."""
        return hit.item.key in self.query.right or hit.item.id in self.query.right


@dataclass(frozen=True)
class Timing:
    """Where the time of a search went."""

    encode_ms: float
    """In the model, with the wait for it."""
    search_ms: float
    """In FAISS, and reading what is shown."""


class Finder:
    """Answers queries; thread-safe."""

    def __init__(self, index: SearchIndex, encoder: DualEncoder) -> None:
        """Raises WeightsError where ``encoder`` is not the model that made ``index``."""
        check_model(index, encoder)
        self.index = index
        self._encoder = encoder
        self._lock = threading.Lock()

    def find(self, query: Query, top: int, target: Target) -> tuple[Answer, Timing]:
        """The ``top`` pictures or captions for ``query``.

        Raises:
            BadSample: its text is empty, or its picture cannot be decoded.
            DataError: captions of an index that has none; the index is damaged.
        """
        begin = time.perf_counter()
        with self._lock:
            embedding = self._embed(query)
        encoded = time.perf_counter()
        search = self.index.images if target == "images" else self.index.captions
        answer = Answer(query, target, search(embedding, top)[0])
        done = time.perf_counter()
        return answer, Timing(1000 * (encoded - begin), 1000 * (done - encoded))

    def _embed(self, query: Query) -> Vectors:
        """[1, D]."""
        if query.image is None:
            return np.asarray(self._encoder.encode_text([clean_caption(query.text)]).numpy(), np.float32)
        # Decoded under the lock too, so that several large pictures are not in memory at once.
        image = Image.fromarray(EncodedImage(query.image).pixels())
        pixels = torch.from_numpy(np.ascontiguousarray(self._encoder.preprocess(image))[None])  # [1, 3, S, S]
        return np.asarray(self._encoder.encode_image(pixels).numpy(), np.float32)


def check_model(index: SearchIndex, encoder: DualEncoder) -> None:
    """WeightsError where another model than ``encoder`` made the index: its answers would mean nothing."""
    manifest = index.manifest
    if (encoder.digest, encoder.dim) != (manifest.digest, manifest.dim):
        raise WeightsError(
            f"{index.folder} was made by another model than {encoder.name}: its weights have the digest "
            f"{manifest.digest[:12]} ({manifest.model}), these {encoder.digest[:12]}. Give that model as "
            "--model, or make an index with this one."
        )


def read_queries(path: Path, index: SearchIndex) -> list[Query]:
    """Queries of a JSON-lines file: {"query": text, "right": key or list of keys}; ``right`` may be missing.

    Raises:
        DataError: the file cannot be read, a line is no such object, or a key is not in the index; names the line.
    """
    try:
        if path.stat().st_size > MOST_QUERY_BYTES:
            raise DataError(f"--queries {path} has more than {MOST_QUERY_BYTES:,} bytes: give fewer queries.")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--queries {path} cannot be read ({error}).") from None
    queries: list[tuple[int, Query]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"line {number} of {path}"
        try:
            value = foreign_json.loads(line)
            text, right = value["query"], value.get("right", [])
            right = [right] if isinstance(right, (str, int)) and not isinstance(right, bool) else right
            # COCO's ids are numbers.
            right = [str(key) if type(key) is int else key for key in right]
            if not isinstance(text, str) or not all(isinstance(key, str) for key in right):
                raise ValueError("of other types")
            query = Query(clean_caption(text), right[0] if len(right) == 1 else "", frozenset(right))
        except (ValueError, TypeError, KeyError, AttributeError, BadSample):
            raise DataError(
                f'{where} is not {{"query": "some text", "right": "key of the right picture"}}.'
            ) from None
        queries.append((number, query))
        if len(queries) > MOST_QUERIES:
            raise DataError(f"{path} has more than {MOST_QUERIES:,} queries: give fewer.")
    if not queries:
        raise DataError(f"{path} has no queries.")
    wanted = {key for _, query in queries for key in query.right}
    there = index.rows_of(wanted) if wanted else {}
    for number, query in queries:
        for key in query.right:
            if key not in there:
                raise DataError(f"line {number} of {path}: the index has no picture with the key {key!r}.")
    return [query for _, query in queries]


def demo_queries(index: SearchIndex, count: int, seed: int = 0) -> list[Query]:
    """A caption each of ``count`` pictures of the index, drawn by ``seed``, with its own picture as the right one.

    Raises:
        ConfigError: the index has no captions.
    """
    if not index.has_captions:
        raise ConfigError(
            f"--split-demo: {index.folder} has no captions; index shards, or give --queries FILE."
        )
    rng = np.random.default_rng(seed)
    queries: list[Query] = []
    for row in rng.permutation(len(index)).tolist():
        item = index.item(row)
        if item.captions and len(queries) < count:
            caption = item.captions[int(rng.integers(len(item.captions)))]
            queries.append(Query(caption, item.id, frozenset([item.key])))
        if len(queries) == count:
            break
    return queries


def read_picture(path: Path, flag: str) -> bytes:
    """The bytes of a picture to look for.

    Raises:
        ConfigError: it cannot be read; names ``flag``.
    """
    from ssmke.data.sources.image_files import ImageFiles

    try:
        return ImageFiles({"": path.parent}).read(path.name)
    except BadSample as bad:
        raise ConfigError(f"{flag} {path}: {bad}. Give a JPEG, PNG or WebP file.") from None


def answers(finder: Finder, queries: Sequence[Query], top: int, target: Target) -> list[Answer]:
    """An answer for each query.

    Raises:
        DataError: a query that cannot be used; names it.
    """
    found: list[Answer] = []
    for query in queries:
        try:
            found.append(finder.find(query, top, target)[0])
        except BadSample as bad:
            raise DataError(f"{query.text or 'the query'}: {bad}. Give another.") from None
    return found
