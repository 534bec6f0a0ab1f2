"""Pooled towers: the vector is that of the real tokens, cached or not, and only what is above the towers learns."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from ssmke.errors import ConfigError
from ssmke.models.pooling import Pool, pool_tokens
from ssmke.models.shapes import shapes_of
from ssmke.models.shared import SharedConfig
from ssmke.models.student import SSMKE, StudentConfig


@given(st.lists(st.integers(2, 9), min_size=1, max_size=5), st.sampled_from(["cls", "mean", "cls+mean"]))
def test_padding_has_no_part_in_the_pooled_vector(lengths: list[int], pool: Pool) -> None:
    tokens = torch.randn(len(lengths), 9, 4, dtype=torch.float64)
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    pooled = pool_tokens(tokens, mask, pool)
    for row, length in enumerate(lengths):
        real = tokens[row, :length]
        expected = {
            "cls": real[0],
            "mean": real[1:].mean(0),
            "cls+mean": torch.cat([real[0], real[1:].mean(0)]),
        }
        torch.testing.assert_close(pooled[row, 0], expected[pool])


def _pooled(model: SSMKE, kind: str = "none") -> SSMKE:
    shared = SharedConfig(kind=kind, dim=24, heads=2)  # type: ignore[arg-type]
    image, text = (dataclasses.replace(half, frozen=True) for half in (model.config.image, model.config.text))
    torch.manual_seed(5)
    config = dataclasses.replace(model.config, image=image, text=text, shared=shared, pool="cls+mean")
    return SSMKE(config, quiet=True).eval()


@pytest.mark.parametrize("kind", ["none", "block", "mlp"])
def test_captions_of_any_padding_and_cached_features_give_one_embedding(model: SSMKE, kind: str) -> None:
    student = _pooled(model, kind)
    ids, mask = student.processor().texts(["a red dog", "two children"])
    wide = F.pad(ids, (0, 5)), F.pad(mask, (0, 5))
    expected = student(ids=ids, mask=mask)["text.output"]
    torch.testing.assert_close(student(ids=wide[0], mask=wide[1])["text.output"], expected)
    features = student.text_tokens(ids, mask)[:, 0]
    assert features.shape == (2, 64)
    again = student(ids=features, mask=torch.ones(2, 1, dtype=torch.bool))["text.output"]
    torch.testing.assert_close(again, expected)


def test_a_linear_head_is_the_projection_and_all_that_learns(model: SSMKE, tmp_path: Path) -> None:
    student = _pooled(model)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    outputs = student(images=images)
    assert list(outputs) == ["image.output"]
    expected = student.image_projection(student.image_tokens(images)[:, 0])
    torch.testing.assert_close(
        outputs["image.output"] - student.modality.scale(student.modality.image), expected
    )  # type: ignore[union-attr, operator]
    outputs["image.output"].sum().backward()
    learns = {name.split(".")[0] for name, p in student.named_parameters() if p.grad is not None}
    assert learns == {"image_projection", "modality"}
    student.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(
        SSMKE.from_pretrained(tmp_path / "saved").encode_image(images), student.encode_image(images)
    )


def test_cached_towers_cost_nothing_but_what_learns(model: SSMKE) -> None:
    shapes = shapes_of(
        _pooled(model),
        None,
        distillation=False,
        online_teacher=False,
        max_tokens=16,
        cached_tokens=True,
        cached_text=True,
    )
    # Two projections of 64 to 24, forward and both gradients, whatever the caption's length.
    assert sum(part.passes * part.forward(16.0) for part in shapes.parts) == 2 * 3 * 2 * 64 * 24
    assert shapes.forward(16.0) == shapes.forward(1.0)
    whole = shapes_of(_pooled(model), None, distillation=False, online_teacher=False, max_tokens=16)
    filling = shapes.caching(images=1, pairs=1, views=1, text_tokens=7.0)
    assert filling == whole.forward(7.0) - shapes.forward(7.0)


def test_an_unknown_pool_is_refused_by_flag() -> None:
    with pytest.raises(ConfigError, match=r"--model\.pool 'max'"):
        StudentConfig(pool="max")  # type: ignore[arg-type]
