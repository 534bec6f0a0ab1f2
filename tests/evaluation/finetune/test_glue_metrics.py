"""GLUE's metrics against scikit-learn and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

from ssmke.evaluation.finetune.glue_metrics import accuracy, f1, matthews, pearson, spearman


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_of_classes_as_scikit_learn(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    truth = (rng.random(200) < share).astype(int)
    guess = np.where(rng.random(200) < 0.7, truth, 1 - truth)
    assert accuracy(guess, truth) == pytest.approx(100 * reference.accuracy_score(truth, guess))
    assert f1(guess, truth) == pytest.approx(100 * reference.f1_score(truth, guess))
    assert matthews(guess, truth) == pytest.approx(100 * reference.matthews_corrcoef(truth, guess))


@pytest.mark.parametrize("seed", range(5))
def test_of_numbers_as_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 26, 150) / 5  # with many ties, as STS-B's
    guess = truth + rng.normal(0, 2, 150)
    guess[:20] = 1.5
    assert pearson(guess, truth) == pytest.approx(100 * stats.pearsonr(guess, truth)[0])
    assert spearman(guess, truth) == pytest.approx(100 * stats.spearmanr(guess, truth)[0])


def test_what_has_learned_nothing_scores_zero() -> None:
    truth = np.array([0, 1, 1, 0])
    assert matthews(np.ones(4), truth) == 0
    assert spearman(np.full(4, 2.5), truth) == 0
    assert f1(np.zeros(4), np.zeros(4)) == 0
