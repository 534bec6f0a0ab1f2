"""How sure a number is: bootstrap intervals over images, and mean and spread over seeds.

An interval says how far a recall or accuracy might have been off with other images of the same kind: images are drawn
with replacement, as many as there are, 2,000 times, and the middle 95 % of the results is the interval (percentile
bootstrap). The image is the unit that is drawn: its captions come with it, all of them, because five captions of one
photo are no five independent queries. Treating them as such makes text -> image intervals too narrow.

What is drawn are the hits of each query, found once; nothing is ranked again. That is exact for accuracies. For
recalls it means that the candidates stay as they are: the interval is that of this gallery, and says nothing about
larger or smaller ones. Two more limits. It knows nothing of training: another seed may well fall outside, so train
several and give them all (`aggregate`). And where every query hits, or none does, it has no width: below some 20 hits
or misses do not trust it.

Costs: 2,000 random numbers an image, and one matrix product. All in float64, seeded: same input, same interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ssmke.evaluation.retrieval import KS, EvaluationError, RetrievalMetrics

Floats = npt.NDArray[np.float64]

RESAMPLES = 2000
CONFIDENCE = 0.95
_CHUNK = 1 << 22  # numbers drawn at a time: 32 MB


@dataclass(frozen=True)
class Interval:
    """The middle `CONFIDENCE` of what other images might have given."""

    low: float
    high: float

    def to_list(self) -> list[float]:
        """``[low, high]``, as it goes into JSON."""
        return [self.low, self.high]

    def __str__(self) -> str:
        return f"{self.low:.1f} to {self.high:.1f}"


@dataclass(frozen=True)
class Aggregate:
    """One number over several seeds."""

    mean: float
    std: float
    """Standard deviation of the sample (divided by n - 1)."""
    values: list[float]

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.std:.2f}"


def resampled_ratios(
    hits: npt.ArrayLike, queries: npt.ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> Floats:
    """Draws of ``sum(hits) / sum(queries)`` for images drawn with replacement, ``[resamples, M]``.

    ``hits`` [N, M]: hits among the queries of each of N images, for M numbers that are drawn together;
    ``queries`` [N, M]: how many queries each image has. A draw that has no queries at all gives NaN.

    Raises:
        EvaluationError: there are no images, or the shapes differ.
    """
    numerators, denominators = np.asarray(hits, np.float64), np.asarray(queries, np.float64)
    if numerators.ndim != 2 or numerators.shape != denominators.shape or not len(numerators):
        raise EvaluationError(
            f"intervals need hits and queries [images, numbers] of at least one image: got "
            f"{list(numerators.shape)} and {list(denominators.shape)}."
        )
    rng = np.random.default_rng(seed)
    images = len(numerators)
    both = np.concatenate([numerators, denominators], 1)  # [N, 2M]
    draws = np.empty((resamples, both.shape[1]))
    at_once = max(1, _CHUNK // images)
    for start in range(0, resamples, at_once):
        stop = min(start + at_once, resamples)
        drawn = rng.integers(images, size=(stop - start, images))
        drawn += np.arange(stop - start)[:, None] * images
        times = np.bincount(drawn.ravel(), minlength=(stop - start) * images)
        draws[start:stop] = times.reshape(-1, images).astype(np.float64) @ both
    total, per = np.split(draws, 2, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios: Floats = total / per
    return ratios


def percentile_interval(draws: npt.ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """The middle ``confidence`` of ``draws`` [B]; NaN among them is left out."""
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(np.asarray(draws, np.float64), [tail, 1 - tail])
    return Interval(float(low), float(high))


def accuracy_interval(hits: npt.ArrayLike, *, seed: int = 0) -> Interval:
    """Interval, in percent, of the mean of ``hits`` [N] (0 to 1, one an image)."""
    column = np.asarray(hits, np.float64)[:, None]
    return percentile_interval(100 * resampled_ratios(column, np.ones_like(column), seed=seed)[:, 0])


def class_mean_interval(
    hits: npt.ArrayLike, labels: npt.ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Interval, in percent, of the mean over classes of the mean of ``hits`` [N] in each; drawn within classes."""
    values, owner = np.asarray(hits, np.float64), np.asarray(labels)
    rng = np.random.default_rng(seed)
    classes = np.unique(owner)
    total = np.zeros(resamples)
    for label in classes:
        own = values[owner == label]
        rows = max(1, _CHUNK // len(own))
        for start in range(0, resamples, rows):
            stop = min(start + rows, resamples)
            total[start:stop] += own[rng.integers(len(own), size=(stop - start, len(own)))].mean(1)
    return percentile_interval(100 * total / len(classes))


def retrieval_intervals(
    metrics: RetrievalMetrics, text_image: npt.ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Interval]:
    """Intervals of all recalls of ``metrics``, in percent, by its flat names: ``i2t_r1``, ``t2i_r10``, ``mean_r5``.

    ``text_image`` [T]: the image of each caption, as `retrieval_metrics` was given it. Both directions are drawn
    together, so that the interval of their mean is right.
    """
    owner = np.asarray(text_image)
    captions = np.bincount(owner, minlength=metrics.images).astype(np.float64)  # [I]
    asks = captions > 0
    hits, queries = [], []
    for k in KS:
        i2t = np.zeros(metrics.images)
        i2t[asks] = _hits(metrics.image_to_text.ranking, k)
        t2i = np.bincount(owner, _hits(metrics.text_to_image.ranking, k), minlength=metrics.images)
        hits += [i2t, t2i]
        queries += [asks.astype(np.float64), captions]
    draws = 100 * resampled_ratios(np.stack(hits, 1), np.stack(queries, 1), resamples=resamples, seed=seed)
    found: dict[str, Interval] = {}
    for i, k in enumerate(KS):
        i2t_draws, t2i_draws = draws[:, 2 * i], draws[:, 2 * i + 1]
        found[f"i2t_r{k}"] = percentile_interval(i2t_draws)
        found[f"t2i_r{k}"] = percentile_interval(t2i_draws)
        found[f"mean_r{k}"] = percentile_interval((i2t_draws + t2i_draws) / 2)
    return found


def _hits(ranking: Any, k: int) -> Floats:
    if ranking is None:
        raise EvaluationError(
            "these retrieval metrics were made without the ranks of each query: use retrieval_metrics"
        )
    hits: Floats = 1 - ranking.misses(k).cpu().numpy()
    return hits


def aggregate(runs: Sequence[Mapping[str, float]]) -> dict[str, Aggregate]:
    """Mean and standard deviation over seeds of each number that all ``runs`` have.

    Raises:
        EvaluationError: fewer than two runs, of which there is no spread.
    """
    if len(runs) < 2:
        raise EvaluationError(f"a spread over seeds needs at least two results, got {len(runs)}.")
    shared = [name for name in runs[0] if all(name in run for run in runs)]
    found = {}
    for name in shared:
        values = [float(run[name]) for run in runs]
        found[name] = Aggregate(float(np.mean(values)), float(np.std(values, ddof=1)), values)
    return found
