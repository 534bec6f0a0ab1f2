"""COCO 1K: recall on folds of 1,000 test images with all their captions, averaged (Karpathy & Fei-Fei, 2015).

Papers report COCO twice: on all 5,000 test images ("5K"), and as the mean over five folds of 1,000 of them ("1K"), in
the order of the split. A smaller gallery is easier, so the second is higher: the two must never be
compared. Costs a fifth of the 5K scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ssmke.evaluation.retrieval import FOLD_IMAGES, FOLDS, KS, Array, checked, rankings


@dataclass(frozen=True)
class FoldRecall:
    """Recall in percent by k, averaged over folds."""

    folds: int
    images: int
    """Images of each fold."""
    image_to_text: dict[int, float]
    text_to_image: dict[int, float]

    def to_dict(self) -> dict[str, float]:
        """Flat names for JSON and MLflow: ``i2t_r1_1k``, ..., ``mean_r10_1k``."""
        flat: dict[str, float] = {}
        for k in KS:
            flat[f"i2t_r{k}_1k"] = self.image_to_text[k]
            flat[f"t2i_r{k}_1k"] = self.text_to_image[k]
            flat[f"mean_r{k}_1k"] = (self.image_to_text[k] + self.text_to_image[k]) / 2
        return flat


def fold_recall(
    image_emb: Array,
    text_emb: Array,
    text_image: Array | Sequence[int],
    folds: int = FOLDS,
    fold_images: int = FOLD_IMAGES,
) -> FoldRecall | None:
    """Mean recall over the first ``folds`` runs of ``fold_images`` images that have captions, in their order.

    Arguments and errors as `retrieval_metrics`. None where there are fewer than two whole folds.
    """
    image, text, owner = checked(image_emb, text_emb, text_image)
    asked = torch.nonzero(torch.bincount(owner, minlength=len(image))).flatten()
    folds = min(folds, len(asked) // fold_images)
    if folds < 2:
        return None
    i2t, t2i = torch.zeros(2, len(KS), dtype=torch.float64)
    row = torch.full((len(image),), -1, device=owner.device)
    for fold in range(folds):
        chosen = asked[fold * fold_images : (fold + 1) * fold_images]
        row.fill_(-1)
        row[chosen] = torch.arange(fold_images, device=owner.device)
        captions = torch.nonzero(row[owner] >= 0).flatten()
        found = rankings(image[chosen], text[captions], row[owner[captions]])
        for total, ranking in zip((i2t, t2i), found, strict=True):
            total += torch.tensor([100 * ranking.hit_rate(k) for k in KS], dtype=torch.float64) / folds
    by_k = [dict(zip(KS, total.tolist(), strict=True)) for total in (i2t, t2i)]
    return FoldRecall(folds, fold_images, *by_k)
