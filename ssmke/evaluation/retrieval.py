"""Image-text retrieval: recall, ranks and chance levels, exact over every image and every caption.

Protocols (the S-SMKE paper, section on retrieval; Karpathy splits)
- image -> text hits at k when any of the image's captions is among the top k of all captions;
- text -> image hits at k when the caption's image is among the top k of all images; every caption is a query;
- average median rank: folds of 1,000 images with one caption each, averaged over folds and captions.

Ties are settled by expectation: hit rates and mean ranks are those of a random order of equally scored
candidates, without the noise of drawing one. So a collapsed model, whose embeddings are all equal, scores
exactly chance, whatever the order of the data. Chance is computed by that same formula.

The arithmetic is float64: scores that differ by less than ``TIE`` are equal, and the order of the others does
not depend on tile sizes, TF32 or an enclosing autocast. That costs 8 CPU seconds for 5,000 x 25,010 x 768 (the
product alone 3 in float32), 5 seconds on two cores. Scores are never stored: memory is a float64 copy of the
embeddings and one block of scores (benchmarks/retrieval.py).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from ssmke.errors import SSMKEError

Array = Tensor | np.ndarray[Any, Any]

KS = (1, 5, 10)
COLUMNS = ("", "R@1", "R@5", "R@10", "median rank", "mean rank", "fold rank")
TIE = 1e-9  # on a cosine; float64 rounding of a 768-d dot product stays below 1e-13
BLOCK_BYTES = 16 * 2**20  # scores stay near the last-level cache between the product and the counting

FOLDS, FOLD_IMAGES, FOLD_CAPTIONS = 5, 1000, 5


class EvaluationError(SSMKEError):
    """Embeddings or splits that no honest number can be computed from."""


@dataclass(frozen=True)
class Ranking:
    """Where the best right candidate of each query stands. All [Q] float64.

    ``above``: wrong candidates that score strictly higher; ``tied``: wrong candidates that score the same;
    ``right``: right candidates at that same best score (at least 1).
    """

    above: Tensor
    tied: Tensor
    right: Tensor

    def mean_rank(self) -> float:
        """Mean rank of the first right candidate, from 1."""
        return float((self.above + 1 + self.tied / (self.right + 1)).mean())

    def misses(self, k: int) -> Tensor:
        """Probability [Q] that a query has no right candidate among the top k: 0 or 1 unless scores tie."""
        group = self.tied + self.right  # [Q]
        slots = torch.minimum((k - self.above).clamp(min=0), group)  # left for the tied group
        miss = torch.ones_like(group)
        for i in range(
            int(self.right.max())
        ):  # C(group - right, slots) / C(group, slots), one factor a right one
            factor = (group - slots - i).clamp(min=0) / (group - i).clamp(min=1)
            miss *= torch.where(i < self.right, factor, 1.0)
        return miss

    def hit_rate(self, k: int) -> float:
        """Share of the queries that have a right candidate among the top k."""
        return 1 - float(self.misses(k).mean())

    def median_rank(self) -> float:
        """Where the hit rate passes one half; between two ranks when it is exactly one half there."""
        ranks = range(1, int((self.above + self.tied).max()) + 2)
        below, above = (bisect_left(ranks, share, key=self.hit_rate) for share in (0.5 - 1e-9, 0.5 + 1e-9))
        return (ranks[below] + ranks[above]) / 2


@dataclass(frozen=True)
class Scores:
    """One direction of retrieval. ``recall``: percentages by k; ranks count from 1. ``ranking``: of each query."""

    recall: dict[int, float]
    median_rank: float
    mean_rank: float
    ranking: Ranking | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, ranking: Ranking) -> Scores:
        recall = {k: 100 * ranking.hit_rate(k) for k in KS}
        return cls(recall, median_rank=ranking.median_rank(), mean_rank=ranking.mean_rank(), ranking=ranking)

    @classmethod
    def of_chance(cls, right: Tensor, candidates: int) -> Scores:
        """What a model scores that cannot tell candidates apart; ``right`` [Q] of them are right."""
        right = right.double()
        return cls.of(Ranking(above=torch.zeros_like(right), tied=candidates - right, right=right))


@dataclass(frozen=True)
class FoldMedianRank:
    """Median rank on small fixed pools, comparable across data sets: ``folds`` x ``captions`` rounds of
    ``images`` images with one caption each. ``images`` below 1,000 says that the split had no more."""

    folds: int
    images: int
    captions: int
    image_to_text: float
    text_to_image: float


@dataclass(frozen=True)
class RetrievalMetrics:
    """All retrieval numbers of one split, and what chance would give on it."""

    images: int
    captions: int
    image_to_text: Scores
    text_to_image: Scores
    image_to_text_chance: Scores
    text_to_image_chance: Scores
    fold_median_rank: FoldMedianRank

    def mean_recall(self, k: int) -> float:
        """Mean of both directions at k, in percent."""
        return (self.image_to_text.recall[k] + self.text_to_image.recall[k]) / 2

    def to_dict(self) -> dict[str, float]:
        """Flat names and plain numbers, fit for JSON and for MLflow: ``i2t_r1``, ``t2i_r10_chance``, ..."""
        flat: dict[str, float] = {"images": self.images, "captions": self.captions}
        for name, scores, chance, fold_rank in self._directions("i2t", "t2i"):
            for k in KS:
                flat[f"{name}_r{k}"] = scores.recall[k]
                flat[f"{name}_r{k}_chance"] = chance.recall[k]
                flat[f"{name}_r{k}_times_chance"] = scores.recall[k] / chance.recall[k]
            flat[f"{name}_median_rank"] = scores.median_rank
            flat[f"{name}_median_rank_chance"] = chance.median_rank
            flat[f"{name}_mean_rank"] = scores.mean_rank
            flat[f"{name}_mean_rank_chance"] = chance.mean_rank
            flat[f"{name}_fold_median_rank"] = fold_rank
        fold = self.fold_median_rank
        flat |= {"folds": fold.folds, "fold_images": fold.images, "fold_captions": fold.captions}
        return flat | {f"mean_r{k}": self.mean_recall(k) for k in KS}

    def rows(self) -> list[tuple[str, ...]]:
        """The table as text, under `COLUMNS`; each direction has a row, its chance, and the ratio of both."""
        rows: list[tuple[str, ...]] = []
        for label, scores, chance, fold_rank in self._directions("image -> text", "text -> image"):
            ranks = (scores.median_rank, scores.mean_rank, fold_rank)
            chance_ranks = (chance.median_rank, chance.mean_rank, (self.fold_median_rank.images + 1) / 2)
            ratios = (f"{scores.recall[k] / chance.recall[k]:,.1f}x" for k in KS)
            rows += [
                (label, *(f"{scores.recall[k]:.2f}" for k in KS), *(f"{rank:,.1f}" for rank in ranks)),
                ("chance", *(f"{chance.recall[k]:.3f}" for k in KS), *(f"{r:,.1f}" for r in chance_ranks)),
                ("times chance", *ratios, "", "", ""),
            ]
        return rows

    def _directions(self, i2t: str, t2i: str) -> list[tuple[str, Scores, Scores, float]]:
        fold = self.fold_median_rank
        return [
            (i2t, self.image_to_text, self.image_to_text_chance, fold.image_to_text),
            (t2i, self.text_to_image, self.text_to_image_chance, fold.text_to_image),
        ]


def retrieval_table(metrics: RetrievalMetrics, title: str = "Retrieval") -> Table:
    """A table for the terminal; its caption says on what the numbers were measured."""
    fold = metrics.fold_median_rank
    table = Table(
        title=title,
        caption=f"{metrics.images:,} images, {metrics.captions:,} captions, all are queries; recall in %.\n"
        f"Fold rank: median rank over {fold.folds} x {fold.captions} rounds of {fold.images:,} images with "
        "one caption each.",
    )
    for name in COLUMNS:
        table.add_column(name, justify="right" if name else "left")
    for i, row in enumerate(metrics.rows()):
        table.add_row(*row, style="bold" if i % 3 == 0 else "dim", end_section=i % 3 == 2)
    return table


def retrieval_metrics(
    image_emb: Array,
    text_emb: Array,
    text_image: Array | Sequence[int],
) -> RetrievalMetrics:
    """All retrieval numbers of one split.

    ``image_emb`` [I, D], ``text_emb`` [T, D]: compared by cosine, so their length does not matter.
    ``text_image`` [T]: row of the image that each caption belongs to, in any order, any number per image. An
    image without captions is a candidate for text -> image and no query of image -> text.

    Raises EvaluationError for empty, NaN, infinite or all-zero embeddings and for indices out of range.
    """
    image, text, owner = checked(image_emb, text_emb, text_image)
    i2t, t2i = rankings(image, text, owner)
    per_image = torch.bincount(owner, minlength=len(image))  # [I]
    return RetrievalMetrics(
        images=len(image),
        captions=len(text),
        image_to_text=Scores.of(i2t),
        text_to_image=Scores.of(t2i),
        image_to_text_chance=Scores.of_chance(per_image[per_image > 0], candidates=len(text)),
        text_to_image_chance=Scores.of_chance(torch.ones_like(owner), candidates=len(image)),
        fold_median_rank=_fold_median_rank(image, text, owner, FOLDS, FOLD_IMAGES, FOLD_CAPTIONS),
    )


def five_fold_1k_median_rank(
    image_emb: Array,
    text_emb: Array,
    text_image: Array | Sequence[int],
    folds: int = FOLDS,
    fold_images: int = FOLD_IMAGES,
    captions: int = FOLD_CAPTIONS,
) -> FoldMedianRank:
    """Average median rank: the first ``folds`` runs of ``fold_images`` images in data set order, each image
    with its c-th caption, averaged over folds and over c < ``captions``.

    An image with fewer captions starts over with its first. A split with fewer images than a fold is one
    fold; images after the last whole fold are left out.
    """
    return _fold_median_rank(*checked(image_emb, text_emb, text_image), folds, fold_images, captions)


def rankings(image: Tensor, text: Tensor, owner: Tensor) -> tuple[Ranking, Ranking]:
    """Rankings of image -> text and text -> image from one pass over the scores, in blocks of images.

    image [I, D], text [T, D]: float64, normalised; owner [T].
    """
    images, texts = len(image), len(text)
    pairs = zip(owner.split(4096), text.split(4096), strict=True)
    own = torch.cat([torch.linalg.vecdot(image[i], t) for i, t in pairs])  # [T] score with the right image
    best = own.new_full((images,), -torch.inf).scatter_reduce(0, owner, own, "amax")  # [I]
    right_t2i = torch.ones_like(own)
    right_i2t = torch.zeros_like(best).index_add(0, owner, (own >= best[owner] - TIE).double())

    # Everything at or above the best right score, right ones included: what is right is taken off at the end.
    at_least_t, higher_t = own.new_zeros(texts), own.new_zeros(texts)
    at_least_i, higher_i = torch.empty_like(best), torch.empty_like(best)
    rows = max(1, BLOCK_BYTES // (8 * texts))
    buffer = own.new_empty((min(rows, images), texts))
    for start in range(0, images, rows):
        block = slice(start, min(start + rows, images))
        scores = torch.mm(image[block], text.T, out=buffer[: block.stop - start])  # [R, T]
        at_least_t += (scores >= own - TIE).sum(0, dtype=torch.int32)
        higher_t += (scores > own + TIE).sum(0, dtype=torch.int32)
        at_least_i[block] = (scores >= best[block, None] - TIE).sum(1, dtype=torch.int32).double()
        higher_i[block] = (scores > best[block, None] + TIE).sum(1, dtype=torch.int32).double()
    asks = torch.bincount(owner, minlength=images) > 0
    i2t = Ranking(higher_i, at_least_i - higher_i - right_i2t, right_i2t)
    return (
        Ranking(i2t.above[asks], i2t.tied[asks], i2t.right[asks]),
        Ranking(higher_t, at_least_t - higher_t - right_t2i, right_t2i),
    )


def _fold_median_rank(
    image: Tensor, text: Tensor, owner: Tensor, folds: int, fold_images: int, captions: int
) -> FoldMedianRank:
    if min(folds, fold_images, captions) < 1:
        raise EvaluationError("average median rank: folds, fold_images and captions must be at least 1.")
    counts = torch.bincount(owner, minlength=len(image))
    by_image = torch.argsort(owner, stable=True)  # captions in data set order within their image
    first = torch.cumsum(counts, 0) - counts  # [I] into by_image
    asked = torch.nonzero(counts).flatten()
    fold_images = min(fold_images, len(asked))
    folds = min(folds, len(asked) // fold_images)
    captions = min(captions, int(counts.max()))
    medians: list[tuple[float, float]] = []
    for fold in range(folds):
        chosen = asked[fold * fold_images : (fold + 1) * fold_images]
        for c in range(captions):
            caption = by_image[first[chosen] + c % counts[chosen]]
            i2t, t2i = rankings(image[chosen], text[caption], torch.arange(fold_images, device=owner.device))
            medians.append((i2t.median_rank(), t2i.median_rank()))
    i2t_mean, t2i_mean = np.mean(medians, axis=0)
    return FoldMedianRank(folds, fold_images, captions, float(i2t_mean), float(t2i_mean))


def checked(
    image_emb: Array,
    text_emb: Array,
    text_image: Array | Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised float64 embeddings [I, D] and [T, D] and int64 owners [T], on one device.

    Raises EvaluationError as `retrieval_metrics`.
    """
    image, text = torch.as_tensor(image_emb).detach(), torch.as_tensor(text_emb).detach()
    if image.device.type == "mps":  # has no float64
        image = image.cpu()
    text = text.to(image.device)
    owner = torch.as_tensor(text_image).to(image.device)
    if image.ndim != 2 or text.ndim != 2 or image.shape[1] != text.shape[1]:
        raise EvaluationError(
            "Retrieval needs embeddings [images, D] and [captions, D], "
            f"got {list(image.shape)} and {list(text.shape)}."
        )
    if not len(image) or not len(text):
        raise EvaluationError(f"Nothing to evaluate: {len(image)} images and {len(text)} captions.")
    if owner.shape != (len(text),) or owner.is_floating_point():
        raise EvaluationError(
            f"text_image must hold one image row (an integer) per caption: expected [{len(text)}], "
            f"got {list(owner.shape)} {str(owner.dtype).removeprefix('torch.')}."
        )
    if int(owner.min()) < 0 or int(owner.max()) >= len(image):
        raise EvaluationError(
            f"text_image names image rows {int(owner.min())} to {int(owner.max())}, "
            f"but there are rows 0 to {len(image) - 1}."
        )
    return _normalised(image, "image"), _normalised(text, "caption"), owner.long()


def _normalised(embeddings: Tensor, what: str) -> Tensor:
    embeddings = embeddings.to(torch.float64, copy=True)
    norm = embeddings.norm(dim=1, keepdim=True)  # [N, 1]
    for bad, problem in ((~norm.isfinite(), "NaN or infinite"), (norm == 0, "all zero")):
        if bad.any():
            first = int(bad.flatten().nonzero()[0])
            raise EvaluationError(
                f"{int(bad.sum()):,} of {len(embeddings):,} {what} embeddings are {problem} (the first: row "
                f"{first}): the model has diverged or its weights are damaged; try an earlier checkpoint."
            )
    return embeddings.div_(norm)
