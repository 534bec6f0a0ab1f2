"""The contrast against open_clip and a float64 reference; masking; chunks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.loss import ClipLoss
from torch import Tensor

from ssmke.objectives.contrast import cosine_cross_entropy, image_text_contrast, normalise


def pairs(count: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator), torch.randn(count, dim, generator=generator)


def reference(image: np.ndarray, text: np.ndarray, scale: float, ids: list[int]) -> float:
    """The formula of the module's docstring, one row at a time, in float64."""

    def direction(rows: np.ndarray, columns: np.ndarray) -> float:
        total = 0.0
        for i, row in enumerate(rows):
            kept = [j for j in range(len(columns)) if j == i or ids[j] != ids[i]]
            logits = np.array([scale * row @ columns[j] for j in kept])
            total += np.log(np.exp(logits - logits.max()).sum()) + logits.max() - scale * row @ columns[i]
        return float(total / len(rows))

    image = image / np.linalg.norm(image, axis=1, keepdims=True)
    text = text / np.linalg.norm(text, axis=1, keepdims=True)
    return (direction(image, text) + direction(text, image)) / 2


def test_equals_open_clip_in_value_and_gradient() -> None:
    image, text = (x.requires_grad_() for x in pairs(32, 48))
    scale = torch.tensor([1 / 0.07], requires_grad=True)
    ours = image_text_contrast(image, text, scale, torch.arange(32))
    gradients = torch.autograd.grad(ours, (image, text, scale))

    theirs = ClipLoss()(normalise(image), normalise(text), scale)
    expected = torch.autograd.grad(theirs, (image, text, scale))
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, other)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 12), st.integers(1, 9), st.integers(1, 6), st.floats(1.0, 100.0), st.integers(0, 10_000)
)
def test_equals_the_float64_reference_with_shared_images(
    count: int, dim: int, images: int, scale: float, seed: int
) -> None:
    image, text = pairs(count, dim, seed)
    ids = torch.randint(0, images, (count,), generator=torch.Generator().manual_seed(seed))
    ours = image_text_contrast(image, text, torch.tensor([scale]), ids)
    expected = reference(image.double().numpy(), text.double().numpy(), scale, ids.tolist())
    assert float(ours) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_captions_of_one_image_are_no_negatives_of_each_other() -> None:
    # Two captions of the same image, both perfect: nothing is left to push away.
    same = torch.ones(2, 4)
    ids = torch.tensor([7, 7])
    assert float(image_text_contrast(same, same, torch.tensor([10.0]), ids)) == pytest.approx(0.0, abs=1e-6)
    unmasked = image_text_contrast(same, same, torch.tensor([10.0]), ids, mask=False)
    assert float(unmasked) == pytest.approx(math.log(2))


@pytest.mark.parametrize("max_logits", [1, 40, 64, 10**9])
def test_chunks_change_neither_value_nor_gradient(max_logits: int) -> None:
    rows, columns = (x.requires_grad_() for x in pairs(16, 8))
    scale = torch.tensor([5.0], requires_grad=True)
    ids = torch.arange(16) // 2
    labels = torch.arange(16)

    def run(limit: int) -> tuple[Tensor, ...]:
        loss = cosine_cross_entropy(normalise(rows), normalise(columns), scale, labels, ids, ids, limit)
        return (loss, *torch.autograd.grad(loss, (rows, columns, scale)))

    for mine, whole in zip(run(max_logits), run(10**12), strict=True):
        torch.testing.assert_close(mine, whole)


def test_half_precision_embeddings_are_compared_in_fp32() -> None:
    image, text = pairs(64, 32)
    exact = image_text_contrast(image, text, torch.tensor([100.0]), torch.arange(64))
    rounded = image_text_contrast(image.bfloat16(), text.bfloat16(), torch.tensor([100.0]), torch.arange(64))
    assert rounded.dtype == torch.float32
    # bf16 inputs move the cosines by about 1e-3; bf16 logits at scale 100 would move each by up to 0.5.
    assert abs(float(exact - rounded)) < 0.1
