"""Retrieval to look at: captions, and the images that the model finds for them.

Each row is one query: at the left the caption with its own image, then the best images in order, the right
one framed. Numbers say how good a model is; this says what its mistakes are like. About 10 ms an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ssmke.data.contact_sheet import RIGHT, contact_sheet
from ssmke.data.decode import decode_image

if TYPE_CHECKING:
    from PIL.Image import Image

    from ssmke.evaluation.embed import Images, SplitEmbeddings


def retrieval_sheet(
    shards: Images,
    found: SplitEmbeddings,
    queries: Sequence[int] | None = None,
    *,
    count: int = 6,
    top: int = 5,
    seed: int = 0,
    title: str = "Text to image",
) -> Image:
    """The ``top`` images for some captions.

    ``queries`` are rows of ``found.text``; by default ``count`` captions of different images, drawn by
    ``seed`` alone, so that sheets of one split can be compared between models.
    """
    if queries is None:
        queries = _draw(found, count, seed)
    top = min(top, len(found.image))
    cells: list[tuple[Image, list[str]]] = []
    borders: list[str | None] = []
    for query in queries:
        scores = found.image @ found.text[query]  # [I]
        right = int(found.text_image[query])
        best = torch.argsort(scores, descending=True, stable=True)[:top].tolist()
        rank = 1 + int((scores > scores[right]).sum())
        cells.append(
            (_image(shards, found, right), [f"“{found.captions[query]}”", f"its image: rank {rank:,}"])
        )
        borders.append(None)
        for place, row in enumerate(best, 1):
            cells.append((_image(shards, found, row), [f"{place}.  cosine {float(scores[row]):.3f}"]))
            borders.append(RIGHT if row == right else None)
    return contact_sheet(
        cells,
        columns=1 + top,
        title=title,
        subtitle=f"Left: a caption and its image. Right of it: the best {top} of {len(found.image):,} images for "
        "the caption alone; green: its image was found.",
        borders=borders,
        thumbnail=208,
    )


def _draw(found: SplitEmbeddings, count: int, seed: int) -> list[int]:
    order = np.random.default_rng(seed).permutation(len(found.captions))
    _, first = np.unique(found.text_image.numpy()[order], return_index=True)  # one caption of each image
    return [int(order[i]) for i in np.sort(first)[:count]]


def _image(shards: Images, found: SplitEmbeddings, row: int) -> Image:
    return decode_image(shards.read(found.image_index[row]).image)
