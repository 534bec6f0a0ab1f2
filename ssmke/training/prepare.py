"""What a run needs before its first step: shards, teacher, cached targets, the objective, a filled bank.

Each function takes the recipe and gives the one thing; all are collective over ranks.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from ssmke.data.dataset import ImageTextShards
from ssmke.data.order import EpochOrder, Source
from ssmke.data.shards import keys_digest
from ssmke.errors import ConfigError, DataError
from ssmke.models.student import SSMKE
from ssmke.models.teachers import Teacher, build_teacher
from ssmke.objectives.bank import TargetBank
from ssmke.objectives.contrast import normalise
from ssmke.objectives.gather import world_size
from ssmke.objectives.pretraining import SSMKEPretraining
from ssmke.recipes import DataConfig, Recipe
from ssmke.targets.build import RowSource, build_targets
from ssmke.targets.cache import CacheIdentity, TargetCache
from ssmke.targets.caption_rows import CaptionRows
from ssmke.targets.frozen import FrozenText, FrozenTokens
from ssmke.targets.image_rows import ImageRows
from ssmke.training.ranks import on_all_ranks, on_rank_zero
from ssmke.training.trained import trained_student


class FromShards(Protocol):
    """A recipe that trains on shards."""

    data: DataConfig
    seed: int


Say = Callable[[str], None]
Check = Callable[[], None]
"""Raises an `SSMKEError` when the run was asked to stop."""

REMOTE_WINDOW = 16
"""Shards that pairs are shuffled among where shards are remote. Never made to fit the disk: it decides the order."""


def open_shards(recipe: FromShards, say: Say) -> ImageTextShards:
    """The training split; renders the scenes first where the recipe says so and they are missing (rank 0)."""
    data = recipe.data
    if data.make == "scenes":
        on_rank_zero(lambda: render_scenes(data.places[0], say))
    on_rank_zero(lambda: _check_splits(recipe))
    opened: list[ImageTextShards] = []

    def digest() -> str:
        opened.append(ImageTextShards.open(data.places, data.split, data.remote))
        both = (*opened[0].shards, *open_evaluation(recipe).shards)
        return keys_digest(info.sha256 for _, info, _ in both)

    digests = on_all_ranks(digest)
    other = next((number for number, found in enumerate(digests) if found != digests[0]), None)
    if other is not None:
        raise DataError(
            f"rank {other} sees other shards under {', '.join(data.shards)} than rank 0: every node needs the same "
            "data under the same path"
        )
    shards = opened[0]
    say(f"data {', '.join(data.shards)}: {shards.images:,} images, {shards.pairs:,} pairs in {data.split}")
    return shards


def open_evaluation(recipe: FromShards) -> ImageTextShards:
    """The evaluation split of the datasets that are for evaluation, or of those trained on that have it."""
    data = recipe.data
    places = data.eval_places or data.places
    try:
        return ImageTextShards.open(places, data.eval_split, data.remote, where_present=not data.eval_shards)
    except DataError as error:
        raise DataError(
            f"nothing to evaluate on: {error} See --data.eval-split and --data.eval-shards."
        ) from error.__cause__


def epoch_order(
    recipe: FromShards, shards: ImageTextShards, *, images: bool = False, reads_shards: bool = True
) -> EpochOrder:
    """Which pairs an epoch shows, in which order; or, with ``images``, which images.

    ``reads_shards``: false where steps read caches alone, so that remote shards need not be shown by windows.

    Raises:
        ConfigError: two windows of remote shards do not fit into their local copy.
    """
    stream, remote = recipe.data.stream, recipe.data.remote
    window = stream.window
    if window is None:
        window = REMOTE_WINDOW if shards.remote and reads_shards else 0
    for url, sizes in (shards.remote_sizes if reads_shards else {}).items():
        # One window is read while the next one comes; without windows every shard is read all the time.
        needed = sum(sorted(sizes, reverse=True)[: 2 * window or None]) / 1e9
        if needed > remote.cache_gigabytes:
            raise ConfigError(
                f"--data.stream.window {window} needs {needed:.3g} GB for the shards of {url}, more than "
                f"--data.remote.cache-gigabytes {remote.cache_gigabytes:g}: give more, or a smaller window"
            )
    counts, firsts = shards.pairs_by_directory, shards.first_pairs
    if images:
        found: dict[Path, int] = {}
        for path, info, _ in shards.shards:
            found[path.parent] = found.get(path.parent, 0) + info.images
        counts, firsts = (
            list(found.values()),
            np.array([*(first for *_, first in shards.shards), shards.images]),
        )
    sources = [
        Source(count, part.weight, part.name) for count, part in zip(counts, recipe.data.parts, strict=True)
    ]
    return EpochOrder(sources, recipe.seed, firsts, window)


def render_scenes(folder: str, say: Say) -> None:
    """The rendered scenes in ``folder``, made if they are missing (rank 0)."""
    if (Path(folder) / "manifest.json").exists():
        return
    from ssmke.data.sources.scenes import ScenesConfig, write_scenes

    say(f"rendering scenes into {folder}")
    write_scenes(folder, ScenesConfig(), workers=2)


def _check_splits(recipe: FromShards) -> None:
    ImageTextShards.open(recipe.data.places, recipe.data.split, recipe.data.remote)
    open_evaluation(recipe)


def load_teacher(recipe: Recipe, device: torch.device, say: Say) -> Teacher | None:
    """The frozen teacher on ``device``, None without distillation."""
    if recipe.loss.distillation == "none":
        return None
    torch.manual_seed(recipe.seed)
    teacher = build_teacher(recipe.teacher).to(device)
    say(f"teacher {teacher.name} ({teacher.output}, {teacher.dim}): {teacher.load_report}")
    return teacher


def target_rows(recipe: Recipe, teacher: Teacher) -> ImageRows:
    """What ``recipe`` caches of ``teacher``."""
    identity = CacheIdentity.of(
        teacher.describe(), teacher.image_size, recipe.targets.views, recipe.data.augmentation
    )
    return ImageRows(teacher, identity, recipe.data.augmentation, recipe.targets.batch_size)


def token_rows(recipe: Recipe, student: SSMKE) -> ImageRows:
    """What ``recipe`` caches of the student's frozen image encoder."""
    tokens = FrozenTokens(student)
    identity = CacheIdentity.of(tokens.describe(), tokens.image_size, 1, recipe.data.augmentation)
    return ImageRows(tokens, identity, recipe.data.augmentation, recipe.targets.batch_size)


def text_rows(recipe: Recipe, student: SSMKE) -> CaptionRows:
    """What ``recipe`` caches of the student's frozen text encoder."""
    return CaptionRows(FrozenText(student), recipe.targets.batch_size)


def prepare_targets(
    recipe: Recipe, shards: ImageTextShards, teacher: Teacher | None, say: Say, check: Check = lambda: None
) -> TargetCache | None:
    """Opens the target cache, after computing what is missing; None without teacher or with an online one."""
    if teacher is None or recipe.targets.mode == "online":
        return None
    return _built(recipe, shards, target_rows(recipe, teacher), say, check)


def prepare_tokens(
    recipe: Recipe, shards: ImageTextShards, student: SSMKE, say: Say, check: Check = lambda: None
) -> TargetCache | None:
    """The cached tokens of the student's frozen image encoder, where the recipe wants them."""
    if not recipe.targets.frozen_tokens:
        return None
    return _built(recipe, shards, token_rows(recipe, student), say, check)


def prepare_text(
    recipe: Recipe, shards: ImageTextShards, student: SSMKE, say: Say, check: Check = lambda: None
) -> TargetCache | None:
    """The cached features of the student's frozen text encoder, where the recipe wants them."""
    if not recipe.targets.frozen_text:
        return None
    return _built(recipe, shards, text_rows(recipe, student), say, check)


def _built(recipe: Recipe, shards: ImageTextShards, source: RowSource, say: Say, check: Check) -> TargetCache:
    identity = source.identity
    what = f"{identity.teacher['name']} {identity.teacher['output']}"
    counted = _Counted(shards.images // world_size(), what, say, check)
    report = build_targets(shards, source, recipe.targets, counted)
    if report.images:
        rows = "captions" if identity.of_captions else f"x {identity.views} views"
        say(
            f"{what}: {report.images:,} images ({rows}) in {report.seconds:.1f} device-seconds "
            f"({report.images * identity.views / report.seconds:,.0f}/s), {report.reused:,} reused, {report.bad} bad"
            + (f"; once for each of {report.disks} disks that nodes do not share" if report.disks > 1 else "")
        )
    else:
        say(f"{what}: all {report.reused:,} images cached already")
    return TargetCache.open(shards, identity, recipe.targets)


class _Counted:
    """Says every 15 seconds how far this rank's part of the target cache is."""

    def __init__(self, images: int, what: str, say: Say, check: Check) -> None:
        self.images, self.done, self.what = images, 0, what
        self._say, self._check, self._spoke = say, check, time.monotonic()

    def __call__(self, images: int) -> None:
        self.done += images
        self._check()
        if time.monotonic() - self._spoke > 15:
            self._say(f"{self.what}: {self.done:,} of about {self.images:,} images of rank 0")
            self._spoke = time.monotonic()


def build_module(
    recipe: Recipe, teacher: Teacher | None, images: int, device: torch.device, say: Say
) -> SSMKEPretraining:
    """Student and objective, initialised alike on all ranks; the bank is no larger than the data's ``images``."""
    torch.manual_seed(recipe.seed)
    wanted = recipe.model.prediction_dim
    if teacher is not None and wanted not in (None, teacher.dim):
        raise ConfigError(f"--model.prediction-dim {wanted} is not the teacher's {teacher.dim}: leave it out")
    width = teacher.dim if teacher is not None else wanted
    if recipe.init is None:
        student = SSMKE(dataclasses.replace(recipe.model, prediction_dim=width))
    else:
        student = trained_student(recipe.init, recipe.model, width)
    model = student.config
    if teacher is not None and recipe.targets.mode == "online" and teacher.image_size != student.image_size:
        raise ConfigError(
            f"the teacher sees {teacher.image_size} pixels, the student {student.image_size}: an online teacher "
            "needs the same; set --teacher.image-size, or use --targets.mode cache"
        )
    curriculum = recipe.data.curriculum
    if curriculum.active:
        student.image_encoder.check_views(curriculum.image_size or student.image_size, curriculum.patch_drop)
    if recipe.init is None:
        say(f"image encoder {model.image.name}: {student.image_encoder.load_report}")
        say(f"text encoder {model.text.name}: {student.text_encoder.load_report}")
    else:
        say(
            f"begins with {recipe.init}: {model.image.name} and {model.text.name}, {student.image_size} pixels"
        )
    learns = [
        p for name, p in student.named_parameters() if p.requires_grad and not name.startswith("modality.")
    ]
    if not learns:
        raise ConfigError(
            "nothing that embeds images or captions is trained: both encoders are frozen and nothing follows them; add "
            "--model.pool cls+mean, or a shared encoder (--model.shared.kind block)"
        )
    counts = {name: f"{n / 1e6:.2f}M" for name, n in student.parameter_table().items()}
    say("student " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    loss = dataclasses.replace(recipe.loss, bank_size=min(recipe.loss.bank_size, images))
    return SSMKEPretraining(student.to(device), loss, device)


def fill_bank(
    recipe: Recipe,
    bank: TargetBank | None,
    cache: TargetCache | None,
    shards: ImageTextShards,
    device: torch.device,
) -> None:
    """Fills the bank from the cache before step 0, with distinct images chosen by the seed."""
    if bank is None or cache is None or recipe.loss.bank != "cache":
        return
    generator = torch.Generator().manual_seed(recipe.seed)
    images = torch.randperm(shards.images, generator=generator)[: bank.size]
    rows = torch.from_numpy(cache.rows(images.numpy()).astype("float32"))
    known = rows.isfinite().all(dim=1)
    bank.push(normalise(rows[known]).to(device), images[known].to(device))
    bank.whole = len(images) == shards.images
