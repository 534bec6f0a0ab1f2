"""The metrics of GLUE, in percent, written out: a dozen lines of numpy, checked against scikit-learn and scipy.

Where a metric is undefined, because all predictions or all labels are equal, it is 0: a model that has learned nothing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike

Floats = npt.NDArray[np.float64]


def accuracy(predicted: ArrayLike, right: ArrayLike) -> float:
    """Share of equal entries of two [N]."""
    return 100 * float((np.asarray(predicted) == np.asarray(right)).mean())


def f1(predicted: ArrayLike, right: ArrayLike) -> float:
    """Harmonic mean of precision and recall of class 1; [N] of 0 and 1 each."""
    guess, truth = np.asarray(predicted) == 1, np.asarray(right) == 1
    both = int((guess & truth).sum())
    total = int(guess.sum() + truth.sum())
    return 100 * 2 * both / total if total else 0.0


def matthews(predicted: ArrayLike, right: ArrayLike) -> float:
    """Matthews correlation: Pearson's of two [N] of 0 and 1."""
    return pearson(np.asarray(predicted), np.asarray(right))


def pearson(predicted: ArrayLike, right: ArrayLike) -> float:
    """Correlation of two [N]."""
    guess, truth = (np.asarray(x, np.float64) for x in (predicted, right))
    guess, truth = guess - guess.mean(), truth - truth.mean()
    scale = float(np.sqrt((guess**2).sum() * (truth**2).sum()))
    return 100 * float((guess * truth).sum()) / scale if scale else 0.0


def spearman(predicted: ArrayLike, right: ArrayLike) -> float:
    """Correlation of the ranks of two [N]; equal values share their mean rank."""
    return pearson(_ranks(np.asarray(predicted)), _ranks(np.asarray(right)))


def _ranks(values: npt.NDArray[np.generic]) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2  # of each distinct value, from 1
    return np.asarray(mean_rank[inverse], np.float64)
