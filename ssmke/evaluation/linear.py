"""Linear probe on frozen features: multinomial logistic regression, its L2 penalty chosen on held-out training images.

CLIP's protocol (Radford et al. 2021, appendix A.3): scikit-learn's objective, sum of cross entropies * C + |W|^2 / 2
with a free bias, at most 1,000 iterations of L-BFGS; C from a coarse grid of 1e-6 ... 1e6, refined around the best by
halving the step to an eighth of a decade, on a tenth of the training images (of each class, seeded); then all training
images at that C. The minimum is the same as scikit-learn's (tests/evaluation/test_linear.py); torch's L-BFGS finds it
on a GPU too, and each fit starts where the one with the next stronger penalty ended.

No augmentation, no standardising: features as the model gives them. Costs some 20 fits: 8,000 images of 200 classes
took about a minute on a core, with the [CLS] of scenes-tiny's image encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssmke.evaluation.retrieval import EvaluationError
from ssmke.evaluation.zero_shot import Classification, score_classes

COARSE = tuple(range(-6, 7, 2))
"""Decades of C that are tried first."""
HELD_OUT = 0.1
ITERATIONS = 1000


@dataclass(frozen=True)
class Linear:
    """A fitted classifier."""

    weight: Tensor
    """[C, D]."""
    bias: Tensor
    """[C]."""

    def scores(self, features: Tensor) -> Tensor:
        """Logits [N, C]."""
        return features.to(self.weight) @ self.weight.T + self.bias


def fit(
    features: Tensor,
    labels: Tensor,
    classes: int,
    c: float,
    *,
    start: Linear | None = None,
    iterations: int = ITERATIONS,
) -> Linear:
    """Logistic regression at inverse penalty ``c`` on features [N, D] with int64 labels [N]; in their dtype."""
    weight = features.new_zeros(classes, features.shape[1]) if start is None else start.weight.clone()
    bias = features.new_zeros(classes) if start is None else start.bias.clone()
    weight.requires_grad_()
    bias.requires_grad_()
    penalty = 1 / (2 * c * len(features))
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=iterations,
        max_eval=2 * iterations,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(features @ weight.T + bias, labels) + penalty * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    if not bool(weight.isfinite().all()):
        raise EvaluationError(f"The linear probe diverged at C = {c:g}: are the features finite?")
    return Linear(weight.detach(), bias.detach())


def held_out(labels: Tensor, share: float = HELD_OUT, seed: int = 0) -> Tensor:
    """Which of the images [N] (bool) are held out: ``share`` of each class, at least one of those with two."""
    rng = np.random.default_rng(seed)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    owner = labels.cpu().numpy()
    for label in np.unique(owner):
        own = np.flatnonzero(owner == label)
        count = max(1, round(share * len(own))) if len(own) > 1 else 0
        chosen[torch.from_numpy(rng.permutation(own)[:count])] = True
    return chosen


def choose_c(
    features: Tensor, labels: Tensor, classes: int, *, seed: int = 0
) -> tuple[float, dict[float, float]]:
    """The best C, and the held-out accuracy (percent) of each that was tried; of equals the strongest penalty."""
    out = held_out(labels, seed=seed).to(labels.device)
    if not bool(out.any()) or bool(out.all()):
        raise EvaluationError(
            "A linear probe needs at least two training images of some class, to choose its penalty."
        )
    tried: dict[float, float] = {}
    fits: dict[float, Linear] = {}

    def score(exponent: float) -> float:
        if exponent not in tried:
            stronger = [e for e in fits if e < exponent]
            start = fits[max(stronger)] if stronger else None
            fits[exponent] = fit(features[~out], labels[~out], classes, 10.0**exponent, start=start)
            guesses = fits[exponent].scores(features[out]).argmax(1)
            tried[exponent] = 100 * float((guesses == labels[out]).double().mean())
        return tried[exponent]

    for decade in COARSE:
        score(float(decade))
    step = 1.0
    while step >= 0.125:
        best = max(sorted(tried), key=lambda e: (tried[e], -e))
        for exponent in (best - step, best + step):
            if COARSE[0] <= exponent <= COARSE[-1]:
                score(exponent)
        step /= 2
    best = max(sorted(tried), key=lambda e: (tried[e], -e))
    return 10.0**best, {10.0**e: tried[e] for e in sorted(tried)}


def linear(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    names: Sequence[str],
    *,
    seed: int = 0,
) -> tuple[Classification, float]:
    """The probe's accuracy on ``test``, and the C that was chosen on ``train`` alone."""
    c, _ = choose_c(train, train_labels, len(names), seed=seed)
    model = fit(train, train_labels, len(names), c)
    scores = (model.scores(block).double().cpu() for block in test.split(4096))
    return score_classes(scores, test_labels.cpu(), names, seed=seed), c
