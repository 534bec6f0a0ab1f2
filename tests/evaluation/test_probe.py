"""k-NN and linear probe against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from ssmke.evaluation.knn import knn, knn_votes
from ssmke.evaluation.linear import choose_c, fit, held_out, linear
from ssmke.evaluation.retrieval import EvaluationError


def blobs(count: int, classes: int, spread: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    centres = torch.randn(classes, 12, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    return centres[labels] + spread * torch.randn(count, 12, generator=generator), labels


@pytest.mark.parametrize(("k", "temperature"), [(20, 0.07), (1, 0.07), (5, 1.0)])
def test_votes_are_scikit_learns(k: int, temperature: float) -> None:
    x, y = blobs(500, 6, 1.5, seed=0)
    queries, _ = blobs(150, 6, 1.5, seed=1)
    # On the unit sphere the squared distance is 2 - 2 cosine.
    reference = KNeighborsClassifier(
        k, weights=lambda d: np.exp((1 - d**2 / 2) / temperature), algorithm="brute"
    ).fit(torch.nn.functional.normalize(x.double()).numpy(), y.numpy())
    theirs = reference.predict_proba(torch.nn.functional.normalize(queries.double()).numpy())
    ours = knn_votes(x, y, queries, 6, neighbours=k, temperature=temperature)
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-5)


def test_knn_is_scored_and_k_is_cut_to_what_there_is() -> None:
    x, y = blobs(90, 3, 0.3, seed=0)
    queries, answers = blobs(60, 3, 0.3, seed=1)
    names = ["a", "b", "c"]
    assert knn(x, y, queries, answers, names).top1 == 100
    assert knn(x[:5], y[:5], queries, answers, names, neighbours=50).images == 60
    with pytest.raises(EvaluationError, match="k >= 1"):
        knn(x, y, queries, answers, names, neighbours=0)


@pytest.mark.parametrize("c", [0.01, 1.0, 100.0])
def test_fit_is_scikit_learns_logistic_regression(c: float) -> None:
    x, y = blobs(400, 5, 1.5, seed=2)
    ours = fit(x.double(), y, 5, c)
    theirs = LogisticRegression(C=c, max_iter=5000, tol=1e-8).fit(x.double().numpy(), y.numpy())
    np.testing.assert_allclose(ours.weight.numpy(), theirs.coef_, atol=2e-3 * np.abs(theirs.coef_).max())
    probabilities = ours.scores(x).softmax(1).numpy()
    np.testing.assert_allclose(probabilities, theirs.predict_proba(x.double().numpy()), atol=2e-3)


def test_float32_finds_the_same_minimum() -> None:
    x, y = blobs(400, 5, 1.5, seed=2)
    single, double = (
        fit(x.to(dtype), y, 5, 1.0).scores(x).softmax(1) for dtype in (torch.float32, torch.float64)
    )
    torch.testing.assert_close(single.double(), double, atol=5e-3, rtol=0)


def test_the_penalty_is_chosen_on_held_out_training_images_only() -> None:
    x, y = blobs(300, 4, 1.6, seed=3)
    c, tried = choose_c(x.double(), y, 4)
    out = held_out(y)
    assert len(tried) > 7
    assert tried[c] == max(tried.values())
    reference = LogisticRegression(C=c, max_iter=5000, tol=1e-8).fit(x[~out].numpy(), y[~out].numpy())
    assert tried[c] == pytest.approx(
        100 * reference.score(x[out].numpy(), y[out].numpy()), abs=3.4
    )  # an image
    assert min(tried) == pytest.approx(1e-6)
    test, answers = blobs(200, 4, 1.6, seed=4)
    first, chosen = linear(x, y, test, answers, list("abcd"))
    second, same = linear(x, y, test, torch.zeros_like(answers), list("abcd"))
    assert chosen == same, "the answers of the test must not matter to the penalty"
    assert first.top1 > 60
    assert second.top1 != first.top1


def test_held_out_takes_a_tenth_of_each_class() -> None:
    labels = torch.tensor([0] * 100 + [1] * 20 + [2])
    out = held_out(labels)
    assert [int(out[labels == c].sum()) for c in range(3)] == [10, 2, 0]
    assert torch.equal(out, held_out(labels))
    assert not torch.equal(out, held_out(labels, seed=1))
    with pytest.raises(EvaluationError, match="at least two training images"):
        choose_c(torch.randn(3, 4), torch.arange(3), 3)
