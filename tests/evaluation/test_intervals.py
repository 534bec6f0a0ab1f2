"""Intervals: what scipy's bootstrap gives, what theory gives, the image as the unit, and spread over seeds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from ssmke.evaluation.intervals import (
    accuracy_interval,
    aggregate,
    class_mean_interval,
    percentile_interval,
    resampled_ratios,
    retrieval_intervals,
)
from ssmke.evaluation.retrieval import KS, EvaluationError, retrieval_metrics


def embeddings(images: int, captions: int, noise: float, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(images, 24, generator=generator)
    own = noise * torch.randn(images, 1, 24, generator=generator)  # captions of one image err together
    text = (image[:, None] + own + 0.3 * torch.randn(images, captions, 24, generator=generator)).flatten(0, 1)
    return image, text, torch.arange(images).repeat_interleave(captions)


def test_is_scipys_percentile_bootstrap() -> None:
    rng = np.random.default_rng(3)
    hits = (rng.random(400) < 0.37).astype(float)
    theirs = stats.bootstrap(
        (hits,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1)
    ).confidence_interval
    ours = accuracy_interval(hits)
    assert ours.low == pytest.approx(100 * theirs.low, abs=0.5)
    assert ours.high == pytest.approx(100 * theirs.high, abs=0.5)


def test_a_ratio_of_clusters_is_scipys_paired_bootstrap() -> None:
    rng = np.random.default_rng(5)
    captions = rng.integers(1, 7, 300).astype(float)
    hits = rng.binomial(captions.astype(int), rng.beta(0.5, 0.5, 300)).astype(float)
    theirs = stats.bootstrap(
        (hits, captions),
        lambda h, n, axis=-1: h.sum(axis) / n.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    ours = percentile_interval(resampled_ratios(hits[:, None], captions[:, None])[:, 0])
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.006)


def test_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(300):
        hits = (rng.random(200) < 0.6).astype(float)[:, None]
        draws = 100 * resampled_ratios(hits, np.ones_like(hits), resamples=300, seed=trial)
        interval = percentile_interval(draws[:, 0])
        inside += interval.low <= 60 <= interval.high
    assert 0.91 < inside / 300 < 0.98


def test_intervals_of_all_recalls_hold_them_and_repeat() -> None:
    image, text, owner = embeddings(150, 5, noise=1.3)
    metrics = retrieval_metrics(image, text, owner)
    found = retrieval_intervals(metrics, owner.numpy())
    flat = metrics.to_dict()
    assert set(found) == {f"{way}_r{k}" for way in ("i2t", "t2i", "mean") for k in KS}
    for name, interval in found.items():
        assert interval.low < flat[name] < interval.high
    assert retrieval_intervals(metrics, owner.numpy()) == found
    assert retrieval_intervals(metrics, owner.numpy(), seed=1) != found


def test_each_recall_equals_a_bootstrap_that_takes_captions_with_their_images() -> None:
    """Drawn one by one from hits that numpy's argsort found."""
    image, text, owner = embeddings(80, 3, noise=1.5)
    scores = torch.nn.functional.normalize(text) @ torch.nn.functional.normalize(image).T  # [T, I]
    t2i = ((scores > scores[torch.arange(240), owner, None]).sum(1) < 5).double().numpy().reshape(80, 3)
    best = torch.stack([scores[owner == i, i].max() for i in range(80)])
    i2t = ((scores > best).sum(0) < 5).double().numpy()
    rng = np.random.default_rng(9)
    drawn = [rng.integers(80, size=80) for _ in range(4000)]
    for name, per_image in (("t2i_r5", t2i.mean(1)), ("i2t_r5", i2t), ("mean_r5", (t2i.mean(1) + i2t) / 2)):
        low, high = np.quantile([100 * per_image[rows].mean() for rows in drawn], [0.025, 0.975])
        found = retrieval_intervals(retrieval_metrics(image, text, owner), owner.numpy())[name]
        assert (found.low, found.high) == pytest.approx((low, high), abs=1.3)


def test_captions_of_one_image_are_no_independent_queries() -> None:
    image, text, owner = embeddings(200, 5, noise=1.5)
    metrics = retrieval_metrics(image, text, owner)
    clustered = retrieval_intervals(metrics, owner.numpy())["t2i_r1"]
    ranking = metrics.text_to_image.ranking
    assert ranking is not None
    naive = accuracy_interval(1 - ranking.misses(1).numpy())
    assert clustered.high - clustered.low > 1.3 * (naive.high - naive.low)


def test_the_order_of_captions_and_images_without_any_do_not_matter() -> None:
    image, text, owner = embeddings(60, 2, noise=1.0)
    metrics = retrieval_metrics(image, text, owner)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(1))
    shuffled = retrieval_metrics(image, text[order], owner[order])
    assert retrieval_intervals(shuffled, owner[order].numpy()) == retrieval_intervals(metrics, owner.numpy())
    with_more = torch.cat([image, -image[:5]])
    longer = retrieval_metrics(with_more, text, owner)
    found = retrieval_intervals(longer, owner.numpy())
    assert found["t2i_r10"].low <= longer.to_dict()["t2i_r10"] <= found["t2i_r10"].high


def test_mean_over_classes_is_drawn_within_classes() -> None:
    rng = np.random.default_rng(2)
    labels = np.repeat([0, 1, 2], [400, 40, 10])
    hits = (rng.random(450) < np.array([0.9, 0.5, 0.3])[labels]).astype(float)
    by_class = [hits[labels == c] for c in range(3)]
    theirs = stats.bootstrap(
        by_class,
        lambda *parts, axis=-1: sum(part.mean(axis) for part in parts) / 3,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    ours = class_mean_interval(hits, labels)
    assert (ours.low, ours.high) == pytest.approx((100 * theirs.low, 100 * theirs.high), abs=1.2)


def test_no_images_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="at least one image"):
        accuracy_interval([])


def test_seeds_aggregate() -> None:
    found = aggregate([{"r1": 40.0, "only": 1.0}, {"r1": 44.0}, {"r1": 42.0}])
    assert set(found) == {"r1"}
    assert found["r1"].mean == pytest.approx(42)
    assert found["r1"].std == pytest.approx(2)
    assert str(found["r1"]) == "42.00 ± 2.00"
    with pytest.raises(EvaluationError, match="at least two"):
        aggregate([{"r1": 1.0}])
