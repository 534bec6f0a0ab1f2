"""Labelled images for finetuning: two splits, or one split in two from a seed; crops and batches that a seed decides.

What can be read is what `ssmke.evaluation.labelled` reads: class folders, CIFAR's binary files, Tiny ImageNet's zip.
Images are read, decoded and cropped when they are needed, by the data loader's workers. A crop is a pure function of
(seed, image, epoch), as in pretraining (`ssmke.data.augmentation.view_box`), and what else is drawn for an image comes
from a generator seeded with the same: results do not depend on the number of workers. A picture that cannot be decoded
is left out and counted by its reason.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ssmke.data.augmentation import AugmentationConfig, canonical_view, show, view_box
from ssmke.data.decode import EncodedImage
from ssmke.data.sources.image_files import close_archives
from ssmke.errors import BadSample, DataError
from ssmke.evaluation.finetune.loop import permutation, seed_of
from ssmke.evaluation.labelled import Labelled, open_labelled, splits_of


@dataclass(frozen=True)
class ImageClasses:
    """What is trained on and what is measured on."""

    names: tuple[str, ...]
    """Classes, as the data calls them; a label is a number in here."""
    train: Labelled
    val: Labelled
    digest: str
    """SHA-256 over classes, and keys and labels of both sides."""


def read_image_classes(root: Path, val_share: float, split_seed: int) -> ImageClasses:
    """Lists the data.

    Args:
        root: what `open_labelled` reads.
        val_share: share of each class that is held out where the data have no splits.
        split_seed: which images those are.

    Raises:
        DataError: nothing that can be read, a split is missing, the splits differ in their classes, a class cannot be
            split, or there are fewer than two.
    """
    if there := splits_of(root):
        side = next((name for name in ("val", "validation", "test") if name in there), None)
        if side is None or "train" not in there:
            raise DataError(
                f"--data {root} has only {', '.join(there)}: finetuning needs train and val or test"
            )
        train, val = open_labelled(root, "train"), open_labelled(root, side)
        if alone := sorted(set(train.folders) ^ set(val.folders)):
            raise DataError(
                f"--data {root}: train and {side} differ in their classes ({', '.join(alone[:5])})"
            )
    else:
        whole = open_labelled(root)
        held = np.zeros(whole.images, dtype=bool)
        for label, folder in enumerate(whole.folders):
            rows = np.flatnonzero(whole.labels == label)
            count = round(val_share * len(rows))
            if not 0 < count < len(rows):
                raise DataError(
                    f"--data {root}: {len(rows)} images of {folder} cannot be split with --val-share {val_share:g}, as "
                    "both sides need one"
                )
            held[rows[permutation(len(rows), "split", split_seed, folder)[:count].numpy()]] = True
        train, val = whole.subset(np.flatnonzero(~held)), whole.subset(np.flatnonzero(held))
    if len(train.folders) < 2:
        raise DataError(
            f"--data {root}: classification needs at least two classes, found {len(train.folders)}"
        )
    digest = hashlib.sha256(repr(train.folders).encode())
    for part in (train, val):
        digest.update(repr(list(zip(part.keys, part.labels.tolist(), strict=True))).encode())
    return ImageClasses(tuple(train.folders), train, val, digest.hexdigest())


@dataclass(frozen=True)
class Augmented:
    """How training images are shown: cropped, flipped, then ``transform`` on uint8 [3, S, S]."""

    crops: AugmentationConfig
    """Crops and flips."""
    transform: Callable[[Tensor], Tensor]
    """May draw from the global CPU generator."""
    seed: int
    """Of the run."""


class LabelledViews(Dataset[tuple[Tensor, int] | str | DataError]):
    """uint8 [3, S, S] and label by number, or the reason why an image cannot be used.

    Errors for the user are values as well: raised in a worker, they would become a text of its traceback.
    """

    def __init__(self, images: Labelled, size: int, shown: Augmented | None, epoch: int = 0) -> None:
        """``shown`` None: the canonical view, for evaluation."""
        self._images, self._size, self._shown, self._epoch = images, size, shown, epoch

    def __len__(self) -> int:
        return self._images.images

    def __getitem__(self, number: int) -> tuple[Tensor, int] | str | DataError:
        label = int(self._images.labels[number])
        try:
            image = EncodedImage(self._images.load(number))
            if self._shown is None:
                return torch.from_numpy(show(image, canonical_view, self._size)), label
            key, crops = f"{self._shown.seed}/{self._images.keys[number]}", self._shown.crops
            view = show(image, lambda w, h: view_box(key, self._epoch, crops, w, h), self._size)
        except BadSample as bad:
            return bad.reason
        except DataError as error:
            return error
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_of("image", key, self._epoch))
            return self._shown.transform(torch.from_numpy(view)), label


def batches(
    images: LabelledViews, order: list[int], batch_size: int, workers: int, skipped: Counter[str]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches uint8 [B, 3, S, S] and labels [B] in ``order``; what cannot be used is counted in ``skipped``.

    A batch of which nothing is left is left out.

    Raises:
        DataError: an image file is there and cannot be read.
    """
    loader = DataLoader(
        images,
        batch_size=batch_size,
        sampler=order,
        num_workers=workers,
        collate_fn=_collate,
        # A generator of its own: asking the global one for the workers' seed would depend on their number.
        generator=torch.Generator(),
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=_own_archives,
    )
    for batch in loader:
        if isinstance(batch, DataError):
            raise batch
        pixels, labels, reasons = batch
        skipped.update(reasons)
        if len(labels):
            yield pixels, labels


def _own_archives(_: int) -> None:
    """Workers that were forked share the position in an open archive; each opens its own."""
    close_archives()


def _collate(
    samples: list[tuple[Tensor, int] | str | DataError],
) -> tuple[Tensor, Tensor, list[str]] | DataError:
    for error in (sample for sample in samples if isinstance(sample, DataError)):
        return error
    good = [sample for sample in samples if isinstance(sample, tuple)]
    reasons = [sample for sample in samples if isinstance(sample, str)]
    if not good:
        return torch.empty(0), torch.empty(0, dtype=torch.int64), reasons
    return torch.stack([image for image, _ in good]), torch.tensor([label for _, label in good]), reasons
