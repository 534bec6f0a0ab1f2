"""COCO 1K folds: the mean of what each fold scores by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssmke.evaluation.folds import fold_recall
from ssmke.evaluation.retrieval import retrieval_metrics


def test_is_the_mean_of_the_folds_scored_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(53, 12, generator=generator)
    owner = torch.arange(53).repeat_interleave(torch.tensor([1, 2, 3] * 17 + [2, 1]))
    owner = owner[torch.randperm(len(owner), generator=generator)]
    text = image[owner] + 1.2 * torch.randn(len(owner), 12, generator=generator)
    found = fold_recall(image, text, owner, folds=5, fold_images=10)
    assert found is not None
    expected: dict[str, list[float]] = {}
    for fold in range(5):
        rows = range(10 * fold, 10 * fold + 10)
        chosen = [t for t in range(len(owner)) if int(owner[t]) in rows]
        metrics = retrieval_metrics(
            image[list(rows)], text[chosen], torch.tensor([int(owner[t]) - 10 * fold for t in chosen])
        ).to_dict()
        for way in ("i2t", "t2i", "mean"):
            for k in (1, 5, 10):
                expected.setdefault(f"{way}_r{k}_1k", []).append(metrics[f"{way}_r{k}"])
    assert found.to_dict() == pytest.approx({name: np.mean(values) for name, values in expected.items()})
    assert found.to_dict()["t2i_r1_1k"] > retrieval_metrics(image, text, owner).text_to_image.recall[1]


def test_images_without_captions_are_in_no_fold() -> None:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(12, 8, generator=generator)
    owner = torch.tensor([0, 2, 3, 5, 6, 8, 9, 11])
    text = image[owner] + torch.randn(8, 8, generator=generator)
    found = fold_recall(image, text, owner, folds=2, fold_images=4)
    dense = fold_recall(image[owner], text, torch.arange(8), folds=2, fold_images=4)
    assert found == dense


def test_a_small_split_has_none() -> None:
    image = torch.randn(19, 4)
    assert fold_recall(image, image, torch.arange(19), folds=5, fold_images=10) is None
