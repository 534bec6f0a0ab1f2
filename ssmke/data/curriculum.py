"""A cheaper first part of training: fewer patches of an image (FLIP), smaller images, or both.

Li et al. 2023 (arXiv:2212.00794) leave half or more of the patches out of the image encoder and end with a short time
on whole images. Smaller images first is the same trade: most steps see less of more pairs, the last ones see what
evaluation shows. Both are one curriculum here: it lasts for a share of all steps, then whole images follow at full
size.

Which patches a pair keeps is a pure function of its key and a number (the epoch), as its crop is
(`augmentation.view_box`), and the size one of the step. So nothing is drawn from a generator, nothing has to be saved,
and ranks, workers, accumulation and resuming change nothing. Every pair of a step has the same size and the same
number of patches: the shapes of a run change once.

The teacher's target stays that of the whole image. Cost: a hash of 8 bytes a patch, 15 us for 196 patches.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ssmke.errors import ConfigError


@dataclass(frozen=True)
class Phase:
    """A share of all steps, and what the student sees of an image in it."""

    share: float
    """Share of all steps, 0..1."""
    side: int
    """Side of the image in pixels."""
    drop: float
    """Share of its patches that are left out."""


@dataclass
class CurriculumConfig:
    """What the student sees of images at first; by default all of them at full size."""

    image_size: int | None = None
    """Side of the image in pixels while the curriculum lasts. None: the full size."""
    patch_drop: float = 0.0
    """Share of patches that the student is not shown while the curriculum lasts (FLIP)."""
    share: float = 0.8
    """Share of all steps that the curriculum lasts; the rest shows whole images at full size."""

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 1:
            raise ConfigError(f"--data.curriculum.image-size {self.image_size}: must be positive")
        if not 0 <= self.patch_drop < 1:
            raise ConfigError(f"--data.curriculum.patch-drop {self.patch_drop}: must be 0 <= patch-drop < 1")
        if not 0 <= self.share <= 1:
            raise ConfigError(f"--data.curriculum.share {self.share}: must lie in 0..1")

    @property
    def active(self) -> bool:
        """Whether there is a curriculum at all."""
        return self.share > 0 and (self.image_size is not None or self.patch_drop > 0)

    def phases(self, full_size: int) -> tuple[Phase, ...]:
        """The parts of a run in order, for a student whose images have ``full_size`` pixels a side."""
        if not self.active:
            return (Phase(1.0, full_size, 0.0),)
        first = Phase(self.share, self.image_size or full_size, self.patch_drop)
        return (first,) if self.share == 1 else (first, Phase(1 - self.share, full_size, 0.0))


def side_at(config: CurriculumConfig, full_size: int, step: int, steps: int) -> int:
    """Side in pixels of the images of ``step`` (from 0) of ``steps``."""
    return config.image_size if config.image_size is not None and lasts(config, step, steps) else full_size


def lasts(config: CurriculumConfig, step: int, steps: int) -> bool:
    """Whether ``step`` (from 0) of ``steps`` still belongs to the curriculum."""
    return step < round(config.share * steps)


def kept_count(patches: int, drop: float) -> int:
    """How many of ``patches`` are shown when a share of ``drop`` is left out; at least one."""
    return max(1, patches - round(patches * drop))


def kept_patches(key: str, number: int, patches: int, drop: float) -> npt.NDArray[np.int64]:
    """The patches that ``key`` shows for ``number``: int64 [K], ascending, of 0..patches-1.

    Every set of K patches is as likely as any other. ``key`` says whose patches they are, ``number`` which drawing of
    them; the same of both, of ``patches`` and of ``drop`` give the same patches in every process.
    """
    text = f"patches\n{key}\n{number}"  # not the hash that `augmentation.view_box` takes the crop from
    ranks = np.frombuffer(hashlib.shake_128(text.encode()).digest(8 * patches), dtype="<u8")
    first = np.argsort(ranks, kind="stable")[: kept_count(patches, drop)]
    return np.sort(first).astype(np.int64)


@dataclass(frozen=True)
class Curriculum:
    """A curriculum for a student and a length of training at hand: what the stream asks at each step."""

    config: CurriculumConfig
    full_size: int
    """Side of whole images in pixels."""
    patch_size: int | None
    """Side of a patch in pixels; None for an image encoder that is not made of patches."""
    steps: int
    """Steps of the whole run."""

    def side(self, step: int) -> int:
        """Side in pixels of the images of ``step`` (from 0)."""
        return side_at(self.config, self.full_size, step, self.steps)

    def kept(self, step: int, key: str, number: int) -> npt.NDArray[np.int64] | None:
        """Patches that ``key`` shows at ``step``, int64 [K], for its drawing ``number``; None: all of them."""
        if not self.config.patch_drop or not lasts(self.config, step, self.steps):
            return None
        assert self.patch_size is not None
        patches = (self.side(step) // self.patch_size) ** 2
        return kept_patches(key, number, patches, self.config.patch_drop)

    def __str__(self) -> str:
        if not self.config.active:
            return "whole images at full size"
        side, drop = self.side(0), self.config.patch_drop
        last = round(self.config.share * self.steps)
        patches = f", {drop:.0%} of the patches left out" if drop else ""
        return f"steps 1 to {last} of {self.steps}: {side} of {self.full_size} pixels a side{patches}"
