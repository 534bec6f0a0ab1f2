"""The sheet shows the right images, in order, and frames the right one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssmke.data.contact_sheet import RIGHT, contact_sheet
from ssmke.data.dataset import ImageTextShards
from ssmke.data.decode import decode_image
from ssmke.evaluation import sheet
from ssmke.evaluation.embed import SplitEmbeddings, embed_split
from ssmke.models.student import SSMKE


@pytest.fixture
def found(model: SSMKE, shards: ImageTextShards) -> SplitEmbeddings:
    return embed_split(model, shards)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the real `contact_sheet` was asked to draw."""
    seen: dict[str, Any] = {}

    def spy(rows: Sequence[tuple[Image.Image, Sequence[str]]], **options: Any) -> Image.Image:
        seen.update(options, rows=rows)
        return contact_sheet(rows, **options)

    monkeypatch.setattr(sheet, "contact_sheet", spy)
    return seen


def test_each_row_is_a_caption_with_its_best_images(
    shards: ImageTextShards, found: SplitEmbeddings, drawn: dict[str, Any]
) -> None:
    queries = [0, len(found.captions) - 1]
    sheet.retrieval_sheet(shards, found, queries, top=3)
    assert drawn["columns"] == 4
    assert len(drawn["rows"]) == 8
    for row, query in enumerate(queries):
        scores = (found.image @ found.text[query]).numpy()
        right = int(found.text_image[query])
        own, *best = drawn["rows"][4 * row : 4 * row + 4]
        assert found.captions[query] in own[1][0]
        assert f"rank {1 + int((scores > scores[right]).sum())}" in own[1][1]
        for (picture, _), i in zip([own, *best], [right, *np.argsort(-scores)[:3]], strict=True):
            expected = decode_image(shards.read(found.image_index[i]).image)
            assert np.array_equal(np.asarray(picture), np.asarray(expected))


def test_the_right_image_is_framed(
    shards: ImageTextShards, found: SplitEmbeddings, drawn: dict[str, Any]
) -> None:
    text = found.image[found.text_image]  # a perfect model
    perfect = SplitEmbeddings(
        found.image, text, found.text_image, found.image_index, found.keys, found.captions, found.skipped
    )
    picture = sheet.retrieval_sheet(shards, perfect, [4], top=2)
    assert drawn["borders"] == [None, RIGHT, None]
    green = tuple(int(RIGHT[i : i + 2], 16) for i in (1, 3, 5))
    assert (np.asarray(picture) == green).all(axis=2).sum() > 1000


def test_queries_are_drawn_from_different_images_and_repeat(
    shards: ImageTextShards, found: SplitEmbeddings, drawn: dict[str, Any]
) -> None:
    def captions(seed: int) -> list[str]:
        sheet.retrieval_sheet(shards, found, count=6, top=1, seed=seed)
        return [lines[0] for _, lines in drawn["rows"][::2]]

    assert captions(0) == captions(0) != captions(1)
    assert len(captions(0)) == 6
    rows = [found.text_image[i] for i in sheet._draw(found, 100, seed=3)]
    assert sorted(torch.stack(rows).tolist()) == list(range(len(found.image)))
