"""k nearest neighbours on frozen features, as DINO measures them (Caron et al. 2021): nothing is trained.

Each of the k training images nearest by cosine votes for its class with weight exp(cosine / T); k = 20, T = 0.07.
Costs one product of test and training features, in blocks: 16 MB of scores at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ssmke.evaluation.retrieval import EvaluationError
from ssmke.evaluation.zero_shot import Classification, score_classes

NEIGHBOURS = 20
TEMPERATURE = 0.07
_BLOCK_SCORES = 1 << 22


def knn_votes(
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    classes: int,
    *,
    neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """Share [M, C] (float64, each row sums to 1) of the neighbours' votes for each class.

    ``train`` [N, D] with int64 ``labels`` [N] below ``classes``, ``test`` [M, D].

    Raises:
        EvaluationError: no training images, or ``neighbours`` below 1.
    """
    if not len(train) or neighbours < 1:
        raise EvaluationError(f"k-NN needs training images and k >= 1: got {len(train)} and {neighbours}.")
    keys = F.normalize(train.float(), dim=-1)
    neighbours = min(neighbours, len(keys))
    votes = torch.zeros(len(test), classes, dtype=torch.float64)
    rows = max(1, _BLOCK_SCORES // len(keys))
    for start in range(0, len(test), rows):
        queries = F.normalize(test[start : start + rows].float(), dim=-1)
        nearest, which = (queries @ keys.T).topk(neighbours, dim=1)  # [B, k]
        weights = (nearest.double() / temperature).softmax(1)
        votes[start : start + rows].scatter_add_(1, labels[which], weights)
    return votes


def knn(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    names: Sequence[str],
    *,
    neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    seed: int = 0,
) -> Classification:
    """`knn_votes` scored; classes that no neighbour voted for tie, and count by expectation."""
    votes = knn_votes(train, train_labels, test, len(names), neighbours=neighbours, temperature=temperature)
    return score_classes(votes.split(4096), test_labels, names, seed=seed)
