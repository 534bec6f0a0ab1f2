"""Recipes: a whole run as one typed value.

Each part of a recipe is the configuration class of its owner; a recipe only composes them. It is read once, at
the edge (`parse`), and passed down. Named recipes:

- ``scenes-tiny``    rendered scenes with weights that ship in the package: the embedded default, for 2 CPU cores
- ``flickr8k-small`` real photos, MobileNetV2 (frozen) and MiniLM: an hour of 2 CPU cores
- ``ssmke-base``     the published recipe: half BEiTv2, half BERT, 117.2M parameters
- ``ssmke-base-mse``, ``ssmke-base-kl``, ``ssmke-base-no-kd``, ``ssmke-base-no-bank``, ``shre-transformer``:
  the thesis' ablations of it
- ``finetune-coco``, ``finetune-flickr30k``, ``finetune-scenes``: contrast alone, from a trained student (``--init``)

Any field can be set from the command line: ``--optim.lr 2e-4 --loss.bank cache``.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import tyro

from ssmke import credentials
from ssmke.cost.meter import CostConfig
from ssmke.data.augmentation import AugmentationConfig
from ssmke.data.curriculum import CurriculumConfig
from ssmke.data.mixture import Part, parse_mixture
from ssmke.data.remote.fetch import RemoteConfig, is_remote
from ssmke.data.remote.sources import has_secret, shown, without_secrets
from ssmke.data.stream import StreamConfig
from ssmke.errors import ConfigError
from ssmke.models.image_encoders import ImageEncoderConfig
from ssmke.models.shared import SharedConfig
from ssmke.models.student import StudentConfig
from ssmke.models.teachers import TeacherConfig
from ssmke.models.text_encoders import TextEncoderConfig
from ssmke.objectives.pretraining import LossConfig
from ssmke.targets.cache import TargetsConfig
from ssmke.tracking import TrackingConfig
from ssmke.training.checkpoint import CheckpointConfig
from ssmke.training.compute import ComputeConfig
from ssmke.training.entry import check_run, required, split_launcher_flags
from ssmke.training.faults import FaultConfig
from ssmke.training.optimizer import OptimConfig

DEFAULT = "scenes-tiny"


@dataclass
class DataConfig:
    """Image-text shards and how they are fed."""

    shards: tuple[str, ...] = ()
    """Dataset folders (made by `ssmke data make|import|get`) or addresses (s3://, gs://, hf://, https://), each as
    [NAME=]PLACE[*WEIGHT]. An epoch shows all pairs of all of them once; with *0.5 half of that one's, with *2 each
    twice."""
    split: str = "train"
    """Split that is trained on."""
    eval_split: str = "val"
    """Split that is evaluated at the end and after every `evaluate_every` epochs."""
    eval_shards: tuple[str, ...] = ()
    """Datasets that are evaluated on, as one; by default those of `shards` that have the split."""
    make: Literal["nothing", "scenes"] = "nothing"
    """What to render into the shard folder when it is missing."""
    stream: StreamConfig = field(default_factory=StreamConfig)
    """Workers and tolerance."""
    remote: RemoteConfig = field(default_factory=RemoteConfig)
    """How addresses are read."""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    """Crops and flips."""
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    """Fewer patches or smaller images at first."""

    def __post_init__(self) -> None:
        # Before anything else is said of them: messages quote them.
        _check_secrets("shards", self.shards)
        _check_secrets("eval-shards", self.eval_shards)
        if self.make == "scenes" and (len(self.parts) != 1 or is_remote(self.places[0])):
            raise ConfigError(
                f"--data.make scenes needs exactly one folder in --data.shards, not {' '.join(self.shards)}: to train "
                "on what is there, add --data.make nothing"
            )

        for flag, parts in (("shards", self.parts), ("eval-shards", parse_mixture(self.eval_shards))):
            _check_places(flag, [part.place for part in parts])
        for part in parse_mixture(self.eval_shards):
            if part.weight != 1:
                raise ConfigError(f"--data.eval-shards {part.place}: weights are for --data.shards only")

    @property
    def parts(self) -> tuple[Part, ...]:
        """The datasets that `shards` names."""
        return parse_mixture(self.shards)

    @property
    def places(self) -> tuple[str, ...]:
        """Their folders and addresses."""
        return tuple(part.place for part in self.parts)

    @property
    def eval_places(self) -> tuple[str, ...]:
        """Folders and addresses of `eval_shards`."""
        return tuple(part.place for part in parse_mixture(self.eval_shards))


def _check_secrets(flag: str, words: Sequence[str]) -> None:
    for word in words:
        # As it was typed, so that a name or weight around the address, or a slip in it, hides nothing.
        whole = is_remote(word)
        plain = shown(word) if whole else without_secrets(word)
        if has_secret(word) if whole else _has_secret_within(word):
            raise ConfigError(
                f"--data.{flag} {plain}: an address may hold no password, key or query, because recipes are "
                "kept in run folders and MLflow; give credentials as its store wants them (environment, profile)"
            )


def _has_secret_within(word: str) -> bool:
    found = re.search(r"[A-Za-z][A-Za-z0-9+.-]*://.*", word)
    return credentials.holds(word) or (found is not None and has_secret(found[0]))


def _check_places(flag: str, places: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for place in places:
        same = place.rstrip("/") if is_remote(place) else os.path.realpath(place)
        if same in seen:
            raise ConfigError(f"--data.{flag} names {place} twice: give a weight instead, {place}*2")
        seen[same] = place


@dataclass
class Recipe:
    """Everything that decides a run, but the DeepSpeed JSON."""

    name: str
    """Name of the recipe; runs are kept below runs-dir/name."""
    model: StudentConfig = field(default_factory=StudentConfig)
    """The student. With --init it is that of the folder; what else is asked for here must agree with it, but what is
    frozen is decided here."""
    init: str | None = None
    """Folder of a trained student (RUN/model) whose architecture and weights are taken."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    """The frozen image teacher (not loaded with --loss.distillation none)."""
    targets: TargetsConfig = field(default_factory=TargetsConfig)
    """Cache or online teacher."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Contrast and distillation."""
    data: DataConfig = field(default_factory=DataConfig)
    """Shards, stream, augmentation."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Batch, epochs, AdamW, schedule."""
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    """Packed captions, compilation, activation checkpointing."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When to save."""
    faults: FaultConfig = field(default_factory=FaultConfig)
    """Hanging ranks, losses that are not numbers, preemption."""
    cost: CostConfig = field(default_factory=CostConfig)
    """Price of this machine."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""
    seed: int = 0
    """Order of the data and initial weights."""
    runs_dir: str = "runs"
    """Where run folders are made."""
    run_dir: str | None = None
    """This run's folder; by default a new one below runs-dir/name."""
    resume: str = "none"
    """`none`: a new run. `auto`: go on with the newest unfinished run of this very recipe, if any. Or a run folder."""
    evaluate_every: int = 0
    """Evaluate retrieval every so many epochs, besides at the end."""
    log_every: int = 20
    """Steps between progress lines (every step is recorded in metrics.jsonl)."""
    stop_after: int | None = None
    """Stop cleanly after so many steps of this attempt, as SIGTERM would: for queues with short limits."""

    def __post_init__(self) -> None:
        credentials.refuse(self.resolved(), "--")
        check_run(self.seed, self.log_every, self.evaluate_every, self.stop_after)
        if not self.data.shards:
            raise ConfigError("--data.shards is empty: give the folder of shards (see `ssmke data --help`)")
        distillation = self.loss.distillation
        if distillation == "kl" and self.teacher.output != "logits":
            raise ConfigError(
                "--loss.distillation kl needs class scores: add --teacher.output logits and a supervised teacher"
            )
        if distillation in ("mse", "contrastive") and self.teacher.output != "features":
            raise ConfigError(
                f"--loss.distillation {distillation} needs features: add --teacher.output features, or use kl"
            )
        if self.loss.uses_bank and self.loss.bank == "cache" and self.targets.mode != "cache":
            raise ConfigError(
                "--loss.bank cache fills the bank from cached targets: add --targets.mode cache, or --loss.bank fifo"
            )
        if self.targets.frozen_tokens and not self.model.image.frozen:
            raise ConfigError(
                "--targets.frozen-tokens needs an image encoder that is not trained: --model.image.frozen"
            )
        if self.targets.frozen_tokens and self.targets.mode == "online" and distillation != "none":
            raise ConfigError(
                "--targets.frozen-tokens shows no pixels to an online teacher: use --targets.mode cache"
            )
        if self.targets.frozen_text:
            self._check_frozen_text()
        curriculum = self.data.curriculum
        if self.targets.frozen_tokens and curriculum.active:
            raise ConfigError(
                "--targets.frozen-tokens are those of whole images: leave out --data.curriculum.*, or add "
                "--targets.no-frozen-tokens"
            )
        if curriculum.image_size is not None and self.targets.mode == "online" and distillation != "none":
            raise ConfigError(
                f"--data.curriculum.image-size {curriculum.image_size} shows the online teacher smaller images than it "
                "takes: use --targets.mode cache, or --data.curriculum.patch-drop alone (the teacher sees all patches)"
            )

    def _check_frozen_text(self) -> None:
        """Whether batches can be rows of caches alone."""
        if not self.model.text.frozen:
            raise ConfigError(
                "--targets.frozen-text needs a text encoder that is not trained: --model.text.frozen"
            )
        if self.model.pool == "none":
            raise ConfigError(
                "--targets.frozen-text caches one vector a caption: say which, --model.pool cls+mean (or cls, mean)"
            )
        if not self.targets.frozen_tokens:
            raise ConfigError(
                "--targets.frozen-text needs the images' tokens cached too: --targets.frozen-tokens"
            )
        if self.targets.views > 1:
            raise ConfigError(
                f"--targets.views {self.targets.views}: frozen towers see the canonical view alone; leave it at 1"
            )

    def resolved(self) -> dict[str, Any]:
        """The recipe as plain JSON values."""
        return dataclasses.asdict(self)


def _ssmke_base(name: str = "ssmke-base") -> Recipe:
    return Recipe(name, data=DataConfig(shards=("data/pairs",)))


def _ssmke_base_mse() -> Recipe:
    return dataclasses.replace(
        _ssmke_base("ssmke-base-mse"), loss=LossConfig(distillation="mse", bank="none")
    )


def _ssmke_base_kl() -> Recipe:
    return dataclasses.replace(
        _ssmke_base("ssmke-base-kl"),
        loss=LossConfig(distillation="kl", bank="none"),
        teacher=TeacherConfig(name="beitv2_base_patch16_224.in1k_ft_in1k", output="logits"),
    )


def _ssmke_base_no_kd() -> Recipe:
    return dataclasses.replace(
        _ssmke_base("ssmke-base-no-kd"), loss=LossConfig(distillation="none", bank="none")
    )


def _ssmke_base_no_bank() -> Recipe:
    return dataclasses.replace(_ssmke_base("ssmke-base-no-bank"), loss=LossConfig(bank="none"))


def _shre_transformer() -> Recipe:
    return dataclasses.replace(
        _ssmke_base("shre-transformer"),
        model=StudentConfig(
            image=ImageEncoderConfig(name="data2vec2_base"),
            shared=SharedConfig(kind="mlp"),
            modality_embedding=False,
        ),
        loss=LossConfig(distillation="kl", bank="none"),
        teacher=TeacherConfig(name="resnet50.a1_in1k", output="logits"),
    )


def _frozen_towers() -> Recipe:
    return Recipe(
        "frozen-towers",
        model=StudentConfig(
            image=ImageEncoderConfig(
                "vit_large_patch14_dinov2.lvd142m", depth=None, frozen=True, image_size=224
            ),
            text=TextEncoderConfig("BAAI/bge-large-en-v1.5", depth=None, frozen=True),
            pool="cls+mean",
            modality_embedding=False,
            shared=SharedConfig("none", dim=1024),
        ),
        targets=TargetsConfig(frozen_tokens=True, frozen_text=True),
        loss=LossConfig(distillation="none", bank="none", pairing="sigmoid"),
        # A batch is 268 MB in shared memory, and gathered faster than it is used.
        data=DataConfig(shards=("data/pairs",), stream=StreamConfig(workers=1, prefetch=2)),
        optim=OptimConfig(batch_size=32_768, epochs=50, lr=1e-3),
    )


def _flickr8k_small() -> Recipe:
    return Recipe(
        "flickr8k-small",
        model=StudentConfig(
            image=ImageEncoderConfig(name="mobilenetv2_100", depth=None, frozen=True),
            text=TextEncoderConfig(name="sentence-transformers/all-MiniLM-L6-v2", depth=None),
            shared=SharedConfig(dim=384, heads=6),
        ),
        teacher=TeacherConfig(name="mobilenetv2_100"),
        targets=TargetsConfig(frozen_tokens=True),
        loss=LossConfig(bank="cache"),
        data=DataConfig(shards=("data/flickr8k",)),
        optim=OptimConfig(batch_size=128, epochs=2, lr=5e-4, encoder_lr=5e-5),
    )


def _scenes_tiny() -> Recipe:
    vit = {"img_size": 64, "embed_dim": 128, "depth": 6, "num_heads": 4}
    half = (0.5, 0.5, 0.5)
    weights = "package:scenes_vit.safetensors"
    return Recipe(
        "scenes-tiny",
        model=StudentConfig(
            image=ImageEncoderConfig(
                "vit_tiny_patch16_224", 3, weights, timm_kwargs={**vit}, mean=half, std=half
            ),
            text=TextEncoderConfig("scenes", depth=2, weights="package:scenes_text_encoder"),
            shared=SharedConfig(dim=128, heads=4),
        ),
        teacher=TeacherConfig("vit_tiny_patch16_224", weights, timm_kwargs={**vit}, mean=half, std=half),
        loss=LossConfig(bank="cache", bank_size=4096),
        data=DataConfig(
            shards=("data/scenes",),
            eval_split="test",
            make="scenes",
            stream=StreamConfig(workers=1),
            # A flip would make "left of" wrong.
            augmentation=AugmentationConfig(flip=0.0, crop_min=0.9, ratio=1.1),
        ),
        optim=OptimConfig(batch_size=128, epochs=3, lr=1e-3),
    )


def _finetune(name: str, shards: str) -> Recipe:
    return Recipe(
        name,
        loss=LossConfig(distillation="none", bank="none"),
        data=DataConfig(shards=(shards,), augmentation=AugmentationConfig(crop_min=0.5)),
        optim=OptimConfig(batch_size=1024, epochs=5, lr=3e-5),
    )


def _finetune_scenes() -> Recipe:
    scenes = _scenes_tiny()
    return dataclasses.replace(
        _finetune("finetune-scenes", "data/scenes"),
        data=scenes.data,
        optim=OptimConfig(batch_size=128, epochs=1, lr=1e-4),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "scenes-tiny": _scenes_tiny,
    "flickr8k-small": _flickr8k_small,
    "ssmke-base": _ssmke_base,
    "ssmke-base-mse": _ssmke_base_mse,
    "ssmke-base-kl": _ssmke_base_kl,
    "ssmke-base-no-kd": _ssmke_base_no_kd,
    "ssmke-base-no-bank": _ssmke_base_no_bank,
    "shre-transformer": _shre_transformer,
    "frozen-towers": _frozen_towers,
    "finetune-coco": lambda: _finetune("finetune-coco", "data/coco"),
    "finetune-flickr30k": lambda: _finetune("finetune-flickr30k", "data/flickr30k"),
    "finetune-scenes": _finetune_scenes,
}


def named(name: str) -> Recipe:
    """The recipe called ``name``; an unknown name is a `ConfigError` that lists the known ones."""
    if name not in RECIPES:
        close = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ConfigError(f"--recipe {name!r} is unknown{hint}: choose one of {', '.join(sorted(RECIPES))}")
    return RECIPES[name]()


@dataclass(frozen=True)
class Invocation:
    """A command line of `launchers/pretrain.py` or `launchers/finetune_retrieval.py`."""

    recipe: Recipe
    deepspeed_config: str


def parse(argv: Sequence[str]) -> Invocation:
    """Reads a launcher's arguments: ``--deepspeed_config FILE [--recipe NAME] [--field value ...]``.

    ``--local_rank`` and ``--deepspeed``, which DeepSpeed's launcher may add, are accepted. Wrong values are
    `ConfigError`; an unknown flag ends the program with tyro's message and exit code 2.
    """
    deepspeed_config, rest = split_launcher_flags(argv)
    recipe = parse_recipe(rest, "pretrain.py --deepspeed_config FILE")
    return Invocation(recipe, required(deepspeed_config))


def parse_finetuning(argv: Sequence[str]) -> Invocation:
    """The same for retrieval finetuning: by default ``finetune-coco``, and ``--init RUN/model`` is needed."""
    deepspeed_config, rest = split_launcher_flags(argv)
    recipe = parse_recipe(rest, "finetune_retrieval.py --deepspeed_config FILE", "finetune-coco")
    if recipe.init is None:
        raise ConfigError("--init is missing: give the folder of the trained student to finetune, RUN/model")
    return Invocation(recipe, required(deepspeed_config))


def parse_recipe(argv: Sequence[str], prog: str, default: str = DEFAULT) -> Recipe:
    """Reads ``[--recipe NAME] [--field value ...]``; ``prog`` is what help and errors call the program."""
    chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    chooser.add_argument("--recipe", default=default)
    known, rest = chooser.parse_known_args(list(argv))
    return tyro.cli(
        Recipe,
        default=named(known.recipe),
        args=rest,
        prog=f"{prog} --recipe {known.recipe}",
        description=f"Recipes: {', '.join(sorted(RECIPES))}. Defaults shown are those of {known.recipe}.",
    )
