"""GLUE finetuning of the text half, with DistilBERT's head, lengths and rates.

Each task is finetuned alone from the same weights and scored on its dev set. Its one number, which goes into the mean:
Matthews correlation for CoLA, F1 for MRPC and QQP, Spearman for STS-B, accuracy for the others, for MNLI the mean of
matched and mismatched. "mean" is the plain mean of the nine. (The thesis prints one number per task and a mean, and
does not say which of two metrics it took; its nine numbers average 62.8, not the 61.3 that it prints.) "glue_average"
is the benchmark's own: a task with two metrics counts with their mean.

The encoder has no dropout, as everywhere in ssmke; the head has 0.1. The rate follows a cosine, where BERT's falls
linearly. Peers go through the same code, so like is compared with like, but not with numbers printed elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmke.errors import ConfigError
from ssmke.evaluation.finetune.backbones import TextFeatures
from ssmke.evaluation.finetune.glue_data import Example, GlueData, GlueTask
from ssmke.evaluation.finetune.loop import Scores, permutation
from ssmke.evaluation.finetune.text_batches import TokenTexts, tokenize_texts
from ssmke.evaluation.intervals import accuracy_interval

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

USUAL_TOKENS = 128
"""Longest sequence where nothing else is asked for."""

TextBatch = tuple[Tensor, Tensor, Tensor, Tensor]


class TextClassifier(nn.Module):
    """Features at the [CLS], then linear, ReLU, dropout, linear (DistilBERT's head)."""

    def __init__(self, features: TextFeatures, outputs: int, dropout: float) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Sequential(
            nn.Linear(features.dim, features.dim),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(features.dim, outputs),
        )
        for layer in self.head:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor) -> Tensor:
        """Scores [B, outputs] of token ids [B, L]."""
        scores: Tensor = self.head(self.features(ids, mask, types))
        return scores

    def distances(self) -> dict[str, int]:
        """See `layer_decay`."""
        head = {f"head.{name}": 0 for name, _ in self.head.named_parameters()}
        return head | self.features.distances(1, "features.")


def checked_tokens(features: TextFeatures, wanted: int | None) -> int:
    """Longest sequence: what is wanted, else 128 or what the encoder has positions for.

    Raises:
        ConfigError: the encoder has fewer positions than wanted.
    """
    limit = features.positions()
    if wanted is None:
        return min(USUAL_TOKENS, limit)
    if wanted > limit:
        raise ConfigError(f"--max-tokens {wanted}: the text encoder has only {limit} positions")
    return wanted


class GlueFinetuning:
    """One GLUE task, for `finetune`."""

    def __init__(
        self,
        model: TextClassifier,
        tokenizer: PreTrainedTokenizerBase,
        data: GlueData,
        task: GlueTask,
        *,
        batch_size: int,
        max_tokens: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.model: TextClassifier = model.to(device)
        self.steps = -(-len(data.train) // batch_size)
        self.shown = next(iter(task.metrics))
        self._task, self._seed, self._batch_size, self._device = task, seed, batch_size, device
        self._train = _Part(tokenizer, data.train, max_tokens, task)
        self._dev = {name: _Part(tokenizer, rows, max_tokens, task) for name, rows in data.dev.items()}

    def batches(self, epoch: int) -> Iterator[TextBatch]:
        """ids, mask, types [B, L] and labels [B]."""
        order = permutation(len(self._train.labels), "order", self._seed, epoch)
        for rows in order.split(self._batch_size):
            ids, mask, types = self._train.texts.batch(rows.tolist(), self._device)
            yield ids, mask, types, self._train.labels[rows].to(self._device)

    def loss(self, batch: TextBatch) -> Tensor:
        """Cross-entropy, or the squared error of STS-B."""
        *tokens, labels = batch
        scores = self.model(*tokens).float()  # [B, outputs]
        if self._task.classes:
            return F.cross_entropy(scores, labels)
        return F.mse_loss(scores[:, 0], labels)

    def evaluate(self) -> Scores:
        """The task's metrics, in percent, on its dev set; of MNLI's two, the means of both and each by its name."""
        found: dict[str, dict[str, float]] = {}
        right = []
        for name, part in self._dev.items():
            predicted, labels = self._predict(part), part.labels.numpy()
            found[name] = {key: metric(predicted, labels) for key, metric in self._task.metrics.items()}
            right.append(predicted == labels)
        scores: Scores = {
            key: float(np.mean([values[key] for values in found.values()])) for key in self._task.metrics
        }
        if len(found) > 1:
            scores |= {
                f"{key}_{name}": value for name, values in found.items() for key, value in values.items()
            }
        if self._task.classes:
            scores["accuracy_interval"] = accuracy_interval(np.concatenate(right)).to_list()
        return {**scores, "examples": sum(len(part.labels) for part in self._dev.values())}

    def _predict(self, part: _Part) -> np.ndarray[tuple[int], np.dtype[np.generic]]:
        """Class or number of each example, [N]."""
        shortest_first = sorted(range(len(part.labels)), key=lambda row: len(part.texts.ids[row]))
        found = torch.empty(len(part.labels), self._task.outputs)
        for start in range(0, len(shortest_first), 128):
            rows = shortest_first[start : start + 128]
            found[rows] = self.model(*part.texts.batch(rows, self._device)).float().cpu()
        predicted = found.argmax(1) if self._task.classes else found[:, 0]
        return predicted.numpy()


class _Part:
    """Tokenised examples with their labels [N]."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        examples: list[Example],
        max_tokens: int,
        task: GlueTask,
    ) -> None:
        second = [two or "" for _, two, _ in examples] if len(task.columns) == 2 else None
        self.texts: TokenTexts = tokenize_texts(
            tokenizer, [one for one, _, _ in examples], second, max_tokens
        )
        kind = torch.int64 if task.classes else torch.float32
        self.labels = torch.tensor([label for _, _, label in examples], dtype=kind)


def glue_means(scores: dict[str, Scores], tasks: dict[str, GlueTask]) -> dict[str, float]:
    """ "mean" of each task's one number, and "glue_average", over the tasks that ``scores`` has."""
    one = [scores[name][next(iter(tasks[name].metrics))] for name in scores]
    official = []
    for name, found in scores.items():
        keys = ["matthews"] if name == "CoLA" else list(tasks[name].metrics)
        official.append(float(np.mean([found[key] for key in keys])))
    return {"mean": float(np.mean(one)), "glue_average": float(np.mean(official))}
