"""Zero-shot classification: each class is the mean of its prompts, each image goes to the nearest class.

CLIP's protocol (Radford et al. 2021, section 3.1): the name of a class is put into every prompt, the embeddings of the
prompts are normalised, averaged and normalised again; an image is scored against all classes by cosine. Top-1, top-5,
and the mean over classes of the share of each class' images that are right, which small classes count in as much as
large ones.

Classes that score the same within 1e-9 count by expectation over their order, as in retrieval: a collapsed model
scores exactly chance. Two classes of one name tie always, where an argmax would give all to the first. Costs: classes x
prompts captions once, sorted by length (80,000 for ImageNet), then one matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ssmke.evaluation.embed import embed_texts
from ssmke.evaluation.intervals import Interval, accuracy_interval, class_mean_interval
from ssmke.evaluation.retrieval import TIE, EvaluationError, Ranking
from ssmke.models.dual_encoder import DualEncoder

BLOCK = 4096
"""Images scored at a time."""


def class_embeddings(
    model: DualEncoder,
    names: Sequence[str],
    templates: Sequence[str],
    *,
    batch_size: int = 256,
    progress: bool = False,
) -> Tensor:
    """One embedding [C, D] a class, float64, L2-normalised; ``templates`` have ``{}`` for its name."""
    prompts = [template.replace("{}", name) for name in names for template in templates]
    distinct = list(dict.fromkeys(prompts))
    row = {prompt: i for i, prompt in enumerate(distinct)}
    embedded = embed_texts(model, distinct, batch_size=batch_size, progress=progress).double()
    each = F.normalize(embedded, dim=-1)[torch.tensor([row[prompt] for prompt in prompts])]
    return F.normalize(each.view(len(names), len(templates), -1).mean(1), dim=-1)  # [C, P, D] -> [C, D]


@dataclass(frozen=True)
class Confusion:
    """A class that is often missed, and what its images are taken for."""

    name: str
    images: int
    recall: float
    """Percent of its images that are right."""
    taken_for: list[tuple[str, float]]
    """The commonest wrong answers, with the percentage of the class' images."""


@dataclass(frozen=True)
class Classification:
    """Accuracies in percent, with intervals over images."""

    images: int
    classes: int
    """Classes that an image could be given."""
    top1: float
    top5: float
    class_mean: float
    """Mean over the classes that have images of each one's top-1."""
    intervals: dict[str, Interval]
    worst: list[Confusion]

    def to_dict(self) -> dict[str, float]:
        """Flat names for JSON and MLflow."""
        flat: dict[str, float] = {
            "images": self.images,
            "classes": self.classes,
            "top1": self.top1,
            "top5": self.top5,
            "mean_per_class_recall": self.class_mean,
            "top1_chance": 100 / self.classes,
            "top5_chance": 100 * min(1, 5 / self.classes),
        }
        return flat

    def details(self) -> dict[str, Any]:
        """What does not fit into flat numbers, for JSON."""
        return {
            "intervals": {name: interval.to_list() for name, interval in self.intervals.items()},
            "worst_classes": [vars(confusion) for confusion in self.worst],
        }


def classify(
    image_emb: Tensor,
    class_emb: Tensor,
    labels: npt.NDArray[np.int64],
    names: Sequence[str],
    *,
    seed: int = 0,
) -> Classification:
    """Scores images [N, D] of classes ``labels`` [N] against classes [C, D]; both are compared by cosine.

    Raises:
        EvaluationError: an embedding is not finite, or nothing is there to score.
    """
    if not len(image_emb):
        raise EvaluationError("Nothing to classify: not one image could be used.")
    for what, embeddings in (("image", image_emb), ("class", class_emb)):
        if not bool(embeddings.isfinite().all()):
            raise EvaluationError(
                f"Some {what} embeddings are NaN or infinite: the model has diverged or its weights are damaged."
            )
    classes = F.normalize(class_emb.double(), dim=-1)
    owner = torch.as_tensor(labels)
    scores = (F.normalize(block.double(), dim=-1) @ classes.T for block in image_emb.split(BLOCK))
    return score_classes(scores, owner, names, seed=seed)


def score_classes(scores: Any, labels: Tensor, names: Sequence[str], *, seed: int = 0) -> Classification:
    """`Classification` of blocks of ``scores`` [B, C], whose rows together have the classes ``labels`` [N]."""
    above, tied, guesses = [], [], []
    done = 0
    for block in scores:  # [B, C]
        own = block.gather(1, labels[done : done + len(block), None])  # [B, 1]
        higher = (block > own + TIE).sum(1)
        above.append(higher)
        tied.append((block >= own - TIE).sum(1) - higher - 1)
        guesses.append(block.argmax(1))
        done += len(block)
    right = torch.ones(len(labels), dtype=torch.float64)
    ranking = Ranking(torch.cat(above).double(), torch.cat(tied).double(), right)
    hits = {k: 1 - ranking.misses(k).numpy() for k in (1, 5)}
    owner = labels.numpy()
    counts = np.bincount(owner, minlength=len(names))
    present = np.flatnonzero(counts)
    recall = np.bincount(owner, hits[1], minlength=len(names))[present] / counts[present]
    return Classification(
        images=len(owner),
        classes=len(names),
        top1=100 * float(hits[1].mean()),
        top5=100 * float(hits[5].mean()),
        class_mean=100 * float(recall.mean()),
        intervals={
            "top1": accuracy_interval(hits[1], seed=seed),
            "top5": accuracy_interval(hits[5], seed=seed),
            "mean_per_class_recall": class_mean_interval(hits[1], owner, seed=seed),
        },
        worst=_worst(owner, torch.cat(guesses).numpy(), present, recall, counts, names),
    )


def _worst(
    owner: npt.NDArray[np.int64],
    guesses: npt.NDArray[np.int64],
    present: npt.NDArray[np.int64],
    recall: npt.NDArray[np.float64],
    counts: npt.NDArray[np.int64],
    names: Sequence[str],
    worst: int = 10,
    answers: int = 3,
) -> list[Confusion]:
    found = []
    for place in np.argsort(recall, kind="stable")[:worst]:
        label = int(present[place])
        wrong = guesses[(owner == label) & (guesses != label)]
        times = np.bincount(wrong, minlength=len(names))
        common = [int(i) for i in np.argsort(-times, kind="stable")[:answers] if times[i]]
        found.append(
            Confusion(
                names[label],
                int(counts[label]),
                100 * float(recall[place]),
                [(names[i], 100 * float(times[i]) / int(counts[label])) for i in common],
            )
        )
    return found
