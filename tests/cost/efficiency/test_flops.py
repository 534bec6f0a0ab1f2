"""The arithmetic of a pair reproduces the published derivation, and is a polynomial in the caption's length."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssmke.cost.efficiency import flops
from ssmke.cost.efficiency.flops import FROZEN, TRAINED, Part, Shapes, per_pair

DIM, IMAGE_TOKENS, PATCHES, PAIRS = 768, 197, 196, 7 * 3_264_868


def published(*, online: bool = False) -> Shapes:
    """Seven whole blocks for each modality, every trained part at three passes, as the specification counts."""
    block = flops.plain_block(DIM)
    image = flops.image_blocks(7, per_token=block, attention_dim=DIM, tokens=IMAGE_TOKENS)
    teacher = flops.image_blocks(12, per_token=block, attention_dim=DIM, tokens=IMAGE_TOKENS)
    patches = flops.patch_embedding(PATCHES, 16, DIM)
    return Shapes(
        parts=(
            Part("patches", TRAINED, fixed=patches),
            Part("image", TRAINED, fixed=image),
            flops.text_blocks("text", 7, per_token=block, attention_dim=DIM, passes=TRAINED),
        ),
        max_tokens=64,
        teacher=teacher + patches if online else 0.0,
    )


def test_a_block_costs_24_d2_n_and_4_n2_d() -> None:
    block = flops.image_blocks(1, per_token=flops.plain_block(DIM), attention_dim=DIM, tokens=IMAGE_TOKENS)
    assert block == 24 * DIM**2 * IMAGE_TOKENS + 4 * IMAGE_TOKENS**2 * DIM
    assert block == pytest.approx(2.91e9, abs=0.005e9)


def test_the_published_numbers() -> None:
    shapes = published(online=True)
    image, text = sum(p.fixed for p in shapes.parts), shapes.parts[2]
    assert shapes.parts[0].fixed == pytest.approx(0.23e9, abs=0.005e9)
    assert image == pytest.approx(20.6e9, abs=0.05e9)
    assert text.forward(64) == pytest.approx(6.4e9, abs=0.05e9)
    assert text.forward(13) == pytest.approx(1.3e9, abs=0.05e9)
    assert per_pair(shapes, 64).student == pytest.approx(81e9, abs=0.5e9)
    assert per_pair(shapes, 13).student == pytest.approx(66e9, abs=0.5e9)
    assert shapes.teacher == pytest.approx(35.2e9, abs=0.1e9)
    assert per_pair(published(), 64).total * PAIRS == pytest.approx(1.86e18, abs=0.01e18)
    assert per_pair(shapes, 64).total * PAIRS == pytest.approx(2.66e18, abs=0.01e18)


def test_a_frozen_part_and_a_teacher_are_forward_only() -> None:
    frozen = Shapes(
        (Part("image", FROZEN, fixed=100.0), Part("text", TRAINED, per_token=1.0)), 10, teacher=7.0
    )
    found = per_pair(frozen, 5)
    assert (found.student, found.teacher, found.total) == (115.0, 7.0, 122.0)


def test_a_block_at_the_cls_costs_keys_and_values_for_all_and_the_rest_once() -> None:
    once, each = flops.cls_block(DIM, 4 * DIM)
    by_hand = 2 * DIM * DIM * (1 + 2 * IMAGE_TOKENS + 1) + 2 * 2 * DIM * 4 * DIM + 4 * IMAGE_TOKENS * DIM
    assert once + each * IMAGE_TOKENS == by_hand


@given(st.lists(st.integers(0, 64), min_size=1, max_size=50))
def test_a_mean_length_never_overstates_a_batch_and_misses_little(lengths: list[int]) -> None:
    shapes = published()
    exact = sum(per_pair(shapes, n).total for n in lengths)
    from_mean = per_pair(shapes, sum(lengths) / len(lengths)).total * len(lengths)
    assert from_mean <= exact * (1 + 1e-12)
    assert from_mean >= exact * 0.99


@pytest.mark.parametrize("length", [-1, 64.5, float("nan")])
def test_a_length_that_no_caption_has_is_refused(length: float) -> None:
    with pytest.raises(ValueError, match="text tokens"):
        per_pair(published(), length)
