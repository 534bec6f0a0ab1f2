"""Retrieval numbers against independent references: plain argsort, and every order of tied candidates."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from ssmke.evaluation import retrieval
from ssmke.evaluation.retrieval import (
    KS,
    EvaluationError,
    RetrievalMetrics,
    Scores,
    five_fold_1k_median_rank,
    retrieval_metrics,
    retrieval_table,
)


def ranks_by_argsort(scores: np.ndarray, right: list[set[int]]) -> np.ndarray:
    """Position, from 1, of the first right candidate of each query; scores [Q, C] without ties."""
    order = np.argsort(-scores, axis=1)
    return np.array(
        [next(p for p, c in enumerate(o, 1) if c in r) for o, r in zip(order, right, strict=True)]
    )


def reference(ranks: np.ndarray) -> Scores:
    recall = {k: 100 * float(np.mean(ranks <= k)) for k in KS}
    return Scores(recall, float(np.median(ranks)), float(np.mean(ranks)))


def cosines(image: np.ndarray, text: np.ndarray) -> np.ndarray:
    image = image / np.linalg.norm(image, axis=1, keepdims=True)
    return image @ (text / np.linalg.norm(text, axis=1, keepdims=True)).T


def right_sets(owner: np.ndarray, images: int) -> tuple[list[set[int]], list[set[int]]]:
    return [set(np.flatnonzero(owner == i)) for i in range(images)], [{int(i)} for i in owner]


def assert_scores(measured: Scores, expected: Scores) -> None:
    assert measured.recall == pytest.approx(expected.recall, abs=1e-6)
    assert measured.median_rank == pytest.approx(expected.median_rank)
    assert measured.mean_rank == pytest.approx(expected.mean_rank)


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(1, 6), min_size=1, max_size=40),
    dim=st.integers(2, 24),
    signal=st.floats(0, 3),
    block=st.sampled_from([1, 2_000, 2**24]),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_argsort_for_any_number_of_captions_in_any_order(
    counts: list[int], dim: int, signal: float, block: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    owner = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    image = rng.standard_normal((len(counts), dim))
    text = signal * image[owner] + rng.standard_normal((len(owner), dim))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "BLOCK_BYTES", block)
        measured = retrieval_metrics(image, text, owner)
    captions_of, image_of = right_sets(owner, len(counts))
    scores = cosines(image, text)
    assert_scores(measured.image_to_text, reference(ranks_by_argsort(scores, captions_of)))
    assert_scores(measured.text_to_image, reference(ranks_by_argsort(scores.T, image_of)))


def every_tie_order(scores: np.ndarray, right: list[set[int]]) -> Scores:
    """Scores over all orders in which candidates can be presented to a stable sort."""
    ranks = []
    for order in itertools.permutations(range(scores.shape[1])):
        ranked = np.argsort(-scores[:, order], axis=1, kind="stable")
        for query, positions in enumerate(ranked):
            ranks.append(next(p for p, c in enumerate(positions, 1) if order[c] in right[query]))
    return reference(np.array(ranks))


@settings(deadline=None, max_examples=40)
@given(counts=st.lists(st.integers(0, 2), min_size=1, max_size=3).filter(any), seed=st.integers(0, 2**32 - 1))
def test_ties_count_as_the_mean_over_all_orders_of_the_tied(counts: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    owner = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    offset = np.array([1, 0, 0])  # eight vectors in all: many exact ties, and no zero vector
    image = offset + rng.integers(0, 2, (len(counts), 3))
    text = offset + rng.integers(0, 2, (len(owner), 3))
    measured = retrieval_metrics(image, text, owner)
    captions_of, image_of = right_sets(owner, len(counts))
    asked = np.flatnonzero(counts)
    scores = np.round(cosines(image, text), 9)
    assert_scores(measured.image_to_text, every_tie_order(scores[asked], [captions_of[i] for i in asked]))
    assert_scores(measured.text_to_image, every_tie_order(scores.T, image_of))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_collapsed_model_scores_exactly_chance(dtype: torch.dtype) -> None:
    """Even with data in the order that would flatter it, and a vector whose dot product rounds."""
    owner = torch.arange(300).repeat_interleave(torch.tensor([5, 4, 6]).repeat(100))
    vector = torch.linspace(-1, 1.7, 768).to(dtype)
    measured = retrieval_metrics(vector.expand(300, -1), vector.expand(len(owner), -1), owner)
    assert_scores(measured.image_to_text, measured.image_to_text_chance)
    assert_scores(measured.text_to_image, measured.text_to_image_chance)
    assert measured.fold_median_rank.text_to_image == 150.5
    assert measured.fold_median_rank.image_to_text == 150.5


def test_chance_is_what_random_embeddings_score() -> None:
    rng = np.random.default_rng(5)
    owner = np.repeat(np.arange(60), rng.integers(1, 9, 60))
    runs = [
        retrieval_metrics(rng.standard_normal((60, 8)), rng.standard_normal((len(owner), 8)), owner)
        for _ in range(200)
    ]

    def mean(direction: str, k: int) -> float:
        return float(np.mean([getattr(run, direction).recall[k] for run in runs]))

    for direction in ("image_to_text", "text_to_image"):
        chance: Scores = getattr(runs[0], f"{direction}_chance")
        assert mean(direction, 10) == pytest.approx(chance.recall[10], rel=0.05)
        ranks = np.mean([getattr(run, direction).mean_rank for run in runs])
        assert ranks == pytest.approx(chance.mean_rank, rel=0.03)


def test_chance_in_closed_form() -> None:
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(1000), 5)
    measured = retrieval_metrics(rng.standard_normal((1000, 4)), rng.standard_normal((5000, 4)), owner)
    assert measured.text_to_image_chance.recall == pytest.approx({1: 0.1, 5: 0.5, 10: 1.0})
    assert measured.text_to_image_chance.median_rank == 500.5
    assert measured.image_to_text_chance.recall[1] == pytest.approx(0.1)
    none_of_five = np.prod([(4995 - j) / (5000 - j) for j in range(5)])
    assert measured.image_to_text_chance.recall[5] == pytest.approx(100 * (1 - none_of_five))
    assert measured.image_to_text_chance.mean_rank == pytest.approx(5001 / 6)


def test_images_without_captions_are_candidates_and_not_queries() -> None:
    image = np.eye(4)
    text = np.array([[0, 1, 0, 0.0], [0, 0.6, 0, 0.8]])  # the second caption is nearer to image 3
    measured = retrieval_metrics(image, text, [1, 1])
    assert measured.text_to_image.recall[1] == 50
    assert measured.text_to_image.mean_rank == 1.5
    assert measured.image_to_text.recall[1] == 100
    assert measured.images == 4


def fold_reference(image: np.ndarray, text: np.ndarray, owner: np.ndarray, size: int) -> tuple[float, float]:
    """Written from the protocol's sentence, for data with exactly five captions per image."""
    i2t, t2i = [], []
    for start in range(0, 5 * size, size):
        for c in range(5):
            chosen = list(range(start, start + size))
            caption = [np.flatnonzero(owner == i)[c] for i in chosen]
            scores = cosines(image[chosen], text[caption])
            right = [{i} for i in range(size)]
            i2t.append(np.median(ranks_by_argsort(scores, right)))
            t2i.append(np.median(ranks_by_argsort(scores.T, right)))
    return float(np.mean(i2t)), float(np.mean(t2i))


def test_fold_median_rank_follows_the_protocol() -> None:
    rng = np.random.default_rng(1)
    owner = np.concatenate([rng.permutation(110) for _ in range(5)])
    image = rng.standard_normal((110, 16))
    text = image[owner] + 2 * rng.standard_normal((550, 16))
    measured = five_fold_1k_median_rank(image, text, owner, fold_images=20)  # images 100 to 109 are left out
    assert (measured.folds, measured.images, measured.captions) == (5, 20, 5)
    assert (measured.image_to_text, measured.text_to_image) == pytest.approx(
        fold_reference(image, text, owner, 20)
    )


def test_fold_median_rank_says_what_a_small_split_allowed() -> None:
    rng = np.random.default_rng(1)
    owner = np.repeat(np.arange(30), [1, 2, 3] * 10)
    image = rng.standard_normal((30, 16))
    fold = retrieval_metrics(image, image[owner], owner).fold_median_rank
    assert (fold.folds, fold.images, fold.captions) == (1, 30, 3)
    assert (fold.image_to_text, fold.text_to_image) == (1, 1)


@pytest.fixture
def reduced_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield
    torch.set_float32_matmul_precision(before)


def test_is_exact_inside_a_training_loop_of_low_precision(reduced_precision: None) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(300, 64, generator=generator)
    text = image[:, None] + 2.5 * torch.randn(300, 2, 64, generator=generator)
    owner = torch.arange(300).repeat_interleave(2)
    measured = retrieval_metrics(image, text.flatten(0, 1), owner)
    captions_of, image_of = right_sets(owner.numpy(), 300)
    scores = cosines(image.double().numpy(), text.flatten(0, 1).double().numpy())
    assert_scores(measured.image_to_text, reference(ranks_by_argsort(scores, captions_of)))
    assert_scores(measured.text_to_image, reference(ranks_by_argsort(scores.T, image_of)))


def test_embeddings_are_left_as_they_were() -> None:
    image, text = torch.full((3, 2), 2.0, dtype=torch.float64), torch.eye(3, 2, dtype=torch.float64) + 1
    before = image.clone(), text.clone()
    retrieval_metrics(image, text, [0, 1, 2])
    assert torch.equal(image, before[0])
    assert torch.equal(text, before[1])


@pytest.mark.parametrize(("value", "problem"), [(np.nan, "NaN"), (np.inf, "infinite"), (0.0, "all zero")])
def test_broken_captions_are_named(value: float, problem: str) -> None:
    text = np.ones((6, 4))
    text[3:5] = value
    with pytest.raises(EvaluationError, match=rf"2 of 6 caption embeddings.*{problem}.*row 3"):
        retrieval_metrics(np.ones((3, 4)), text, np.repeat(np.arange(3), 2))


@pytest.mark.parametrize(
    ("image", "text", "owner", "message"),
    [
        (np.ones((2, 4)), np.ones((3, 5)), [0, 0, 1], "got \\[2, 4\\] and \\[3, 5\\]"),
        (np.ones((0, 4)), np.ones((0, 4)), np.zeros(0, int), "0 images and 0 captions"),
        (np.ones((2, 4)), np.ones((3, 4)), [0, 0, 2], "rows 0 to 2, but there are rows 0 to 1"),
        (np.ones((2, 4)), np.ones((3, 4)), [0, 0], "expected \\[3\\], got \\[2\\]"),
        (np.ones((2, 4)), np.ones((3, 4)), [0.0, 0.0, 1.0], "an integer"),
    ],
)
def test_bad_input_is_refused(image: np.ndarray, text: np.ndarray, owner: list[int], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        retrieval_metrics(image, text, owner)


@pytest.fixture
def metrics() -> RetrievalMetrics:
    rng = np.random.default_rng(0)
    image = rng.standard_normal((50, 8))
    owner = np.repeat(np.arange(50), 2)
    return retrieval_metrics(image, image[owner] + rng.standard_normal((100, 8)), owner)


def test_dict_is_flat_json_and_complete(metrics: RetrievalMetrics) -> None:
    flat = json.loads(json.dumps(metrics.to_dict()))
    assert all(isinstance(value, (int, float)) for value in flat.values())
    assert flat["i2t_r1"] == metrics.image_to_text.recall[1]
    assert flat["t2i_r10_chance"] == pytest.approx(20)
    assert flat["mean_r5"] == pytest.approx((flat["i2t_r5"] + flat["t2i_r5"]) / 2)
    assert flat["t2i_r1_times_chance"] == pytest.approx(flat["t2i_r1"] / 2)
    assert flat["fold_images"] == 50


def test_table_shows_recall_chance_and_ratio(metrics: RetrievalMetrics) -> None:
    console = Console(width=110)
    with console.capture() as capture:
        console.print(retrieval_table(metrics, title="Scenes"))
    text = capture.get()
    assert f"{metrics.image_to_text.recall[1]:.2f}" in text
    assert f"{metrics.text_to_image.recall[10] / 20:.1f}x" in text
    assert "50 images, 100 captions" in text
