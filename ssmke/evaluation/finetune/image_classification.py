"""Finetuning of the image side on labelled images, with BEiTv2's recipe.

Mixup or CutMix of whole batches, RandAugment, random erasing, label smoothing, layer-wise learning rates, stochastic
depth, AdamW, warm-up and cosine: torchvision's and timm's own implementations where they have one. BEiTv2-base on
ImageNet-1K: 100 epochs, batch 1,024, lr 5e-4, layer decay 0.65, weight decay 0.05, mixup 0.8, CutMix 1, drop path 0.1.
The defaults keep these and shorten the schedule; few classes and few epochs learn more without mixup and CutMix
(``--mixup 0 --cutmix 0``).

Evaluation: the canonical view (short side to S, centre), top-1 and top-5, and a bootstrap interval of top-1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from ssmke.data.augmentation import AugmentationConfig
from ssmke.evaluation.finetune.backbones import ImageFeatures
from ssmke.evaluation.finetune.config import AugmentConfig
from ssmke.evaluation.finetune.labelled_images import Augmented, ImageClasses, LabelledViews, batches
from ssmke.evaluation.finetune.loop import Scores, permutation
from ssmke.evaluation.intervals import accuracy_interval
from ssmke.evaluation.retrieval import EvaluationError
from ssmke.models.image_encoders import Channels
from ssmke.models.pixels import normalise_pixels


def pixel_transform(config: AugmentConfig, mean: Channels) -> v2.Compose:
    """RandAugment and erasing of one image, uint8 [3, S, S] to the same; draws from the global generator."""
    grey = [round(255 * channel) for channel in mean]
    steps: list[nn.Module] = [nn.Identity()]
    if config.rand_augment:
        steps.append(
            v2.RandAugment(
                config.rand_augment, config.magnitude, interpolation=InterpolationMode.BILINEAR, fill=grey
            )
        )
    if config.erase:
        steps.append(v2.RandomErasing(config.erase, value=grey))
    return v2.Compose(steps)


def mix(config: AugmentConfig, images: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Mixup or CutMix of a batch: images [B, 3, S, S] floating point, and targets [B, C] that sum to one.

    Each image is mixed with its neighbour, so the batch has to be shuffled. Draws from the global generator.
    """
    kinds = [
        kind(alpha=float(alpha), num_classes=classes)
        for kind, alpha in ((v2.MixUp, config.mixup), (v2.CutMix, config.cutmix))
        if alpha
    ]
    if not kinds:
        return images, F.one_hot(labels, classes).float()
    chosen = kinds[int(torch.randint(len(kinds), ()))]
    mixed, targets = chosen(images, labels)
    return mixed, targets


@dataclass
class Skipped:
    """Images that could not be used, by reason, at the last pass over each side."""

    train: Counter[str] = field(default_factory=Counter)
    val: Counter[str] = field(default_factory=Counter)


class ImageClassifier(nn.Module):
    """Features, LayerNorm and a linear head (BEiTv2's, on mean-pooled patches)."""

    def __init__(self, features: ImageFeatures, classes: int) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Sequential(nn.LayerNorm(features.dim, eps=1e-6), nn.Linear(features.dim, classes))
        # Small, so that the first steps do not throw the pretrained weights about.
        nn.init.trunc_normal_(self.head[1].weight, std=0.002)  # type: ignore[arg-type]
        nn.init.zeros_(self.head[1].bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """Scores [B, C] of normalised images [B, 3, S, S]."""
        scores: Tensor = self.head(self.features(images))
        return scores

    def distances(self) -> dict[str, int]:
        """See `layer_decay`."""
        head = {f"head.{name}": 0 for name, _ in self.head.named_parameters()}
        return head | self.features.distances(1, "features.")


class ImageTask:
    """Image classification, for `finetune`."""

    shown = "top1"

    def __init__(
        self,
        model: ImageClassifier,
        data: ImageClasses,
        augment: AugmentConfig,
        *,
        batch_size: int,
        seed: int,
        workers: int,
        device: torch.device,
    ) -> None:
        self.model: ImageClassifier = model.to(device)
        self.steps = -(-data.train.images // batch_size)
        self.skipped = Skipped()
        encoder = model.features.encoder
        self._mean, self._std, self._size = encoder.mean, encoder.std, encoder.image_size
        crops = AugmentationConfig(flip=augment.flip, crop_min=augment.crop_min)
        self._shown = Augmented(crops, pixel_transform(augment, encoder.mean), seed)
        self._data, self._augment, self._seed = data, augment, seed
        self._batch_size, self._workers, self._device = batch_size, workers, device

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """uint8 [B, 3, S, S] and labels [B]."""
        self.skipped.train.clear()
        images = LabelledViews(self._data.train, self._size, self._shown, epoch)
        order = permutation(len(images), "order", self._seed, epoch).tolist()
        return batches(images, order, self._batch_size, self._workers, self.skipped.train)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Cross-entropy against mixed, smoothed targets."""
        pixels, labels = self._normalised(batch[0]), batch[1].to(self._device)
        images, targets = mix(self._augment, pixels, labels, len(self._data.names))
        return F.cross_entropy(self.model(images).float(), targets, label_smoothing=self._augment.smoothing)

    def evaluate(self) -> Scores:
        """top1 and top5 in percent, the 95 % interval of top1, and the number of images."""
        self.skipped.val.clear()
        images = LabelledViews(self._data.val, self._size, None)
        found = batches(
            images, list(range(len(images))), 2 * self._batch_size, self._workers, self.skipped.val
        )
        ranks = [
            _ranks(self.model(self._normalised(pixels)).float(), labels.to(self._device)).cpu()
            for pixels, labels in found
        ]
        if not ranks:
            raise EvaluationError(
                f"not one evaluation image is usable ({dict(self.skipped.val)}): check --data"
            )
        rank = torch.cat(ranks).numpy()
        right = (rank < 1).astype(np.float64)
        return {
            "top1": 100 * float(right.mean()),
            "top5": 100 * float((rank < 5).mean()),
            "top1_interval": accuracy_interval(right).to_list(),
            "images": len(rank),
        }

    def _normalised(self, pixels: Tensor) -> Tensor:
        return normalise_pixels(pixels.to(self._device, non_blocking=True), self._mean, self._std)


def _ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """Number of classes [B] that score at least as high as the right one: ties count against the model."""
    right = scores.gather(1, labels[:, None])
    return (scores >= right).sum(1) - 1
