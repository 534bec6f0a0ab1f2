"""NLVR2, two images and a sentence: what this method cannot do, measured.

The student embeds an image or a text, never both at once: nothing in it can look at a picture with a sentence in mind.
NLVR2 asks for just that ("one of the grey boxes has exactly six objects"), and the thesis shows it as the limit of the
method. Here the three embeddings a (left), b (right) and t meet in an MLP only, beside |a - b|, a * b, a * t and b * t,
and all of it is finetuned. So the number says how far two images and a sentence get without fusion.

Chance and the majority class stand beside it. Consistency counts a unique sentence as right when all of its examples
are; intervals draw unique sentences, whose examples are no independent ones. Images are not flipped: sentences say
"left" and "right".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ssmke.data.augmentation import canonical_view, show
from ssmke.data.decode import EncodedImage
from ssmke.errors import BadSample, DataError
from ssmke.evaluation.finetune.backbones import ImageFeatures, TextFeatures
from ssmke.evaluation.finetune.loop import Scores, permutation
from ssmke.evaluation.finetune.nlvr2_data import Nlvr2Example
from ssmke.evaluation.finetune.text_batches import TokenTexts
from ssmke.evaluation.intervals import accuracy_interval, percentile_interval, resampled_ratios
from ssmke.evaluation.retrieval import EvaluationError
from ssmke.models.pixels import normalise_pixels

PairBatch = tuple[Tensor, list[int]]
"""uint8 [B, 2, 3, S, S], and numbers of the examples."""


class PairClassifier(nn.Module):
    """Two images and a sentence -> scores of false and true."""

    def __init__(
        self, images: ImageFeatures, texts: TextFeatures, hidden: int, dropout: float, frozen: bool
    ) -> None:
        super().__init__()
        self.images = images
        self.texts = texts
        width = 7 * images.dim
        self.head = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, 2),
        )
        self.frozen = frozen
        if frozen:
            self.images.requires_grad_(False)
            self.texts.requires_grad_(False)

    def forward(self, pairs: Tensor, ids: Tensor, mask: Tensor, types: Tensor) -> Tensor:
        """Scores [B, 2] of normalised images [B, 2, 3, S, S] and token ids [B, L]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            both = F.normalize(self.images(pairs.flatten(0, 1)), dim=-1)  # [2B, D]
            a, b = both.unflatten(0, (-1, 2)).unbind(1)  # [B, D] each
            t = F.normalize(self.texts(ids, mask, types), dim=-1)
        scores: Tensor = self.head(torch.cat([a, b, t, (a - b).abs(), a * b, a * t, b * t], dim=1))
        return scores

    def distances(self) -> dict[str, int]:
        """See `layer_decay`."""
        head = {f"head.{name}": 0 for name, _ in self.head.named_parameters()}
        return head | self.images.distances(1, "images.") | self.texts.distances(1, "texts.")


class PairTask:
    """NLVR2, for `finetune`."""

    shown = "accuracy"

    def __init__(
        self,
        model: PairClassifier,
        train: Sequence[Nlvr2Example],
        dev: Sequence[Nlvr2Example],
        texts: tuple[TokenTexts, TokenTexts],
        *,
        batch_size: int,
        seed: int,
        workers: int,
        device: torch.device,
    ) -> None:
        """``texts``: the sentences of ``train`` and of ``dev``."""
        self.model: PairClassifier = model.to(device)
        self.steps = -(-len(train) // batch_size)
        self.skipped: dict[str, Counter[str]] = {"train": Counter(), "evaluation": Counter()}
        """Examples with an image that cannot be used, by reason, at the last pass over each side."""
        self._train, self._dev, self._texts = train, dev, texts
        self._batch_size, self._seed, self._workers, self._device = batch_size, seed, workers, device

    def batches(self, epoch: int) -> Iterator[PairBatch]:
        """Images and numbers of examples, in an order of this epoch's own."""
        order = permutation(len(self._train), "order", self._seed, epoch).tolist()
        return self._load(self._train, order, self._batch_size, self.skipped["train"])

    def loss(self, batch: PairBatch) -> Tensor:
        """Cross-entropy of false and true."""
        labels = torch.tensor([self._train[row].label for row in batch[1]], device=self._device)
        return F.cross_entropy(self._scores(batch, self._texts[0]), labels)

    def evaluate(self) -> Scores:
        """Accuracy and consistency in percent, each with its interval, chance and majority class."""
        right: list[float] = []
        seen: list[Nlvr2Example] = []
        for batch in self._load(
            self._dev, list(range(len(self._dev))), 2 * self._batch_size, self.skipped["evaluation"]
        ):
            predicted = self._scores(batch, self._texts[1]).argmax(1).tolist()
            examples = [self._dev[row] for row in batch[1]]
            right += [float(p == e.label) for p, e in zip(predicted, examples, strict=True)]
            seen += examples
        if not seen:
            raise EvaluationError(
                f"not one evaluation example is usable ({dict(self.skipped['evaluation'])})"
            )
        majority = Counter(example.label for example in self._train).most_common(1)[0][0]
        return pair_scores(
            [example.unique_sentence for example in seen],
            np.array(right),
            np.array([float(example.label == majority) for example in seen]),
        )

    def _scores(self, batch: PairBatch, texts: TokenTexts) -> Tensor:
        pixels, rows = batch
        encoder = self.model.images.encoder
        flat = normalise_pixels(pixels.to(self._device).flatten(0, 1), encoder.mean, encoder.std)
        scores: Tensor = self.model(flat.unflatten(0, (-1, 2)), *texts.batch(rows, self._device))
        return scores.float()

    def _load(
        self, examples: Sequence[Nlvr2Example], order: list[int], batch_size: int, skipped: Counter[str]
    ) -> Iterator[PairBatch]:
        skipped.clear()
        loader = DataLoader(
            _Pairs(examples, self.model.images.encoder.image_size),
            batch_size=batch_size,
            sampler=order,
            num_workers=self._workers,
            collate_fn=list,
            generator=torch.Generator(),  # of its own: the global one must not depend on the number of workers
        )
        for samples in loader:
            for error in (sample for sample in samples if isinstance(sample, DataError)):
                raise error
            skipped.update(sample for sample in samples if isinstance(sample, str))
            good = [sample for sample in samples if not isinstance(sample, str)]
            if good:
                yield torch.stack([pair for pair, _ in good]), [row for _, row in good]


class _Pairs(Dataset[tuple[Tensor, int] | str | DataError]):
    """Both images uint8 [2, 3, S, S] and the number, or the reason why an example cannot be used.

    Errors for the user are values as well: raised in a worker, they would become a text of its traceback.
    """

    def __init__(self, examples: Sequence[Nlvr2Example], size: int) -> None:
        self._examples, self._size = examples, size

    def __getitem__(self, number: int) -> tuple[Tensor, int] | str | DataError:
        example = self._examples[number]
        views = []
        for path in (example.left, example.right):
            try:
                views.append(
                    torch.from_numpy(show(EncodedImage(path.read_bytes()), canonical_view, self._size))
                )
            except BadSample as bad:
                return bad.reason
            except OSError as error:
                return DataError(f"{path} cannot be read: {error.strerror or error}")
        return torch.stack(views), number


def pair_scores(
    sentences: Sequence[str],
    right: np.ndarray[tuple[int], np.dtype[np.float64]],
    majority: np.ndarray[tuple[int], np.dtype[np.float64]],
) -> Scores:
    """Accuracy and consistency in percent.

    Args:
        sentences: unique sentence of each example, [N].
        right: [N], 1 where the prediction is right.
        majority: [N], 1 where the training set's commonest label would be.
    """
    _, owner = np.unique(np.asarray(sentences), return_inverse=True)
    asked = np.bincount(owner).astype(np.float64)  # [G] examples of each unique sentence
    hits = np.bincount(owner, right)
    consistent = (hits == asked).astype(np.float64)
    interval = percentile_interval(100 * resampled_ratios(hits[:, None], asked[:, None])[:, 0])
    return {
        "accuracy": 100 * float(right.mean()),
        "accuracy_interval": interval.to_list(),
        "consistency": 100 * float(consistent.mean()),
        "consistency_interval": accuracy_interval(consistent).to_list(),
        "chance_accuracy": 50.0,
        "chance_consistency": 100 * float((0.5**asked).mean()),
        "majority_accuracy": 100 * float(majority.mean()),
        "majority_consistency": 100 * float((np.bincount(owner, majority) == asked).mean()),
        "examples": len(right),
        "sentences": len(asked),
    }
