"""Recipes of unimodal distillation.

- ``distill-image-base``    data2vec 2.0 ViT-B/16, its first 6 blocks learn all 12 (ImageNet-1K, 10 epochs)
- ``distill-text-base``     BERT-base, every second layer learns all 12 (one pass over a large corpus)
- ``distill-image-scenes``  the embedded ViT of 6 blocks to 3, on rendered scenes: minutes of 2 CPU cores
- ``distill-text-scenes``   the embedded text encoder of 4 layers to 2, on the scenes' captions

The student is named as in pretraining (``--model.image.name``, ``.depth``, ``.weights``; ``--model.text...``): the same
flags with the result as weights then load it. The teacher is the whole of the same model.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import tyro

from ssmke import credentials
from ssmke.cost.meter import CostConfig
from ssmke.data.augmentation import AugmentationConfig
from ssmke.data.stream import StreamConfig
from ssmke.errors import ConfigError
from ssmke.models.image_encoders import ImageEncoderConfig
from ssmke.models.text_encoders import TextEncoderConfig
from ssmke.recipes import DataConfig, named
from ssmke.tracking import TrackingConfig
from ssmke.training.checkpoint import CheckpointConfig
from ssmke.training.entry import check_run, required, split_launcher_flags
from ssmke.training.faults import FaultConfig
from ssmke.training.optimizer import OptimConfig
from ssmke.training.unimodal.corpus import CorpusConfig

FEWEST_TOKENS = 24
"""Shortest row of text: with less there may not be enough words to mask."""


@dataclass
class ImageStudent:
    """The image student; the teacher is the whole of the same model."""

    image: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    """Which model, how many of its blocks, and its weights."""


@dataclass
class TextStudent:
    """The text student; the teacher is the whole of the same model."""

    text: TextEncoderConfig = field(default_factory=lambda: TextEncoderConfig(max_tokens=256))
    """Which model, how many of its layers, and its weights; max-tokens is the length of the rows of text."""


@dataclass
class BlockConfig:
    """How blocks are distilled."""

    init: Literal["first", "alternate"] = "first"
    """Which blocks of the teacher the student begins with: the first ones, or as many spread over all of them."""
    match: Literal["all", "last"] = "all"
    """Student block i of k learns the output of the teacher's block i n / k; or only its last that of the last."""

    def __post_init__(self) -> None:
        _one_of("init", self.init, ("first", "alternate"))
        _one_of("match", self.match, ("all", "last"))


@dataclass
class SoftTargetConfig:
    """How a language model is distilled (DistilBERT's losses and weights; the thesis used the first two)."""

    init: Literal["first", "alternate"] = "alternate"
    """Which layers of the teacher the student begins with: the first ones, or as many spread over all of them."""
    temperature: float = 2.0
    """Of the softmax of both sides; the loss is multiplied by its square."""
    soft: float = 5.0
    """Weight of the Kullback-Leibler divergence from the teacher's distribution over words."""
    cosine: float = 1.0
    """Weight of 1 - cosine between the last hidden states."""
    mlm: float = 0.0
    """Weight of masked language modelling itself (DistilBERT: 2)."""
    tokens: Literal["all", "masked"] = "all"
    """Where distributions over words are compared: everywhere, or where a word was masked (a seventh of the cost)."""
    masked: float = 0.15
    """Share of the tokens that are masked."""
    head_steps: int = 500
    """Steps that fit a head of masked words to a teacher that has none, before the distillation."""

    def __post_init__(self) -> None:
        _one_of("init", self.init, ("first", "alternate"))
        _one_of("tokens", self.tokens, ("all", "masked"))
        for name in ("soft", "cosine", "mlm"):
            if getattr(self, name) < 0:
                raise ConfigError(f"--distil.{name} {getattr(self, name)}: must be 0 or more")
        if self.soft + self.cosine + self.mlm <= 0:
            raise ConfigError("--distil.soft, cosine and mlm are all 0: there is nothing to learn")
        if not self.temperature > 0:
            raise ConfigError(f"--distil.temperature {self.temperature}: must be positive")
        if not 0 < self.masked <= 0.4:
            raise ConfigError(f"--distil.masked {self.masked}: must lie above 0 and be at most 0.4")
        if self.head_steps < 1:
            raise ConfigError(f"--distil.head-steps {self.head_steps}: must be at least 1")


def _one_of(flag: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"--distil.{flag} {value!r}: must be one of {', '.join(choices)}")


@dataclass
class UnimodalRecipe:
    """What both kinds have in common: optimiser, engine room and bookkeeping, as in pretraining."""

    name: str
    """Name of the recipe; runs are kept below runs-dir/name."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Batch, epochs, AdamW, schedule."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When to save."""
    faults: FaultConfig = field(default_factory=FaultConfig)
    """Hanging ranks, losses that are not numbers, preemption."""
    cost: CostConfig = field(default_factory=CostConfig)
    """Price of this machine."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""
    seed: int = 0
    """Order of the data, and what is masked."""
    runs_dir: str = "runs"
    """Where run folders are made."""
    run_dir: str | None = None
    """This run's folder; by default a new one below runs-dir/name."""
    resume: str = "none"
    """`none`: a new run. `auto`: go on with the newest unfinished run of this very recipe, if any. Or a run folder."""
    evaluate_every: int = 0
    """Measure on held-out data every so many epochs, besides at the beginning and the end."""
    log_every: int = 20
    """Steps between progress lines (every step is recorded in metrics.jsonl)."""
    stop_after: int | None = None
    """Stop cleanly after so many steps of this attempt, as SIGTERM would: for queues with short limits."""

    def __post_init__(self) -> None:
        credentials.refuse(self.resolved(), "--")
        check_run(self.seed, self.log_every, self.evaluate_every, self.stop_after)

    def resolved(self) -> dict[str, Any]:
        """The recipe as plain JSON values."""
        return dataclasses.asdict(self)


@dataclass
class ImageDistillation(UnimodalRecipe):
    """Everything that decides an image distillation, but the DeepSpeed JSON."""

    model: ImageStudent = field(default_factory=ImageStudent)
    """Student and teacher."""
    distil: BlockConfig = field(default_factory=BlockConfig)
    """What is learned."""
    data: DataConfig = field(default_factory=DataConfig)
    """Shards (captions are not used: an epoch shows every image once), stream, augmentation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data.shards:
            raise ConfigError("--data.shards is empty: give the folder of shards (see `ssmke data --help`)")
        if self.data.curriculum.active:
            raise ConfigError("--data.curriculum: whole images are distilled; leave it out")
        if self.model.image.frozen:
            raise ConfigError("--model.image.frozen: the student is what is trained; leave it out")
        if self.model.image.depth is None:
            raise ConfigError("--model.image.depth None: give the number of blocks that the student has")


@dataclass
class TextDistillation(UnimodalRecipe):
    """Everything that decides a text distillation, but the DeepSpeed JSON."""

    model: TextStudent = field(default_factory=TextStudent)
    """Student and teacher."""
    distil: SoftTargetConfig = field(default_factory=SoftTargetConfig)
    """What is learned."""
    data: CorpusConfig = field(default_factory=CorpusConfig)
    """Texts and how they are fed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model.text.frozen:
            raise ConfigError("--model.text.frozen: the student is what is trained; leave it out")
        if self.model.text.depth is None:
            raise ConfigError("--model.text.depth None: give the number of layers that the student has")
        if self.model.text.max_tokens < FEWEST_TOKENS:
            raise ConfigError(
                f"--model.text.max-tokens {self.model.text.max_tokens}: rows of text need at least {FEWEST_TOKENS}"
            )


def _image_base() -> ImageDistillation:
    return ImageDistillation(
        "distill-image-base",
        model=ImageStudent(ImageEncoderConfig("data2vec2_base")),
        data=DataConfig(shards=("data/imagenet",), augmentation=AugmentationConfig(crop_min=0.08)),
        optim=OptimConfig(batch_size=256, epochs=10, lr=1e-4),
    )


def _text_base() -> TextDistillation:
    return TextDistillation(
        "distill-text-base",
        data=CorpusConfig(files=("data/openwebtext",)),
        optim=OptimConfig(batch_size=256, epochs=1, lr=5e-4, warmup=0.01),
    )


def _image_scenes() -> ImageDistillation:
    scenes = named("scenes-tiny")
    return ImageDistillation(
        "distill-image-scenes",
        model=ImageStudent(scenes.model.image),
        data=dataclasses.replace(scenes.data, augmentation=AugmentationConfig(flip=0.0, crop_min=0.5)),
        optim=OptimConfig(batch_size=64, epochs=8, lr=1e-3),
    )


def _text_scenes() -> TextDistillation:
    scenes = named("scenes-tiny")
    return TextDistillation(
        "distill-text-scenes",
        model=TextStudent(scenes.model.text),
        data=CorpusConfig(
            shards=scenes.data.shards, make="scenes", held_out=0.02, stream=StreamConfig(workers=1)
        ),
        optim=OptimConfig(batch_size=32, epochs=12, lr=1e-3, warmup=0.05),
    )


IMAGE_RECIPES: dict[str, Callable[[], ImageDistillation]] = {
    "distill-image-base": _image_base,
    "distill-image-scenes": _image_scenes,
}
TEXT_RECIPES: dict[str, Callable[[], TextDistillation]] = {
    "distill-text-base": _text_base,
    "distill-text-scenes": _text_scenes,
}

R = TypeVar("R", ImageDistillation, TextDistillation)


@dataclass(frozen=True)
class Invocation(Generic[R]):
    """A command line of `launchers/distill_image.py` or `launchers/distill_text.py`."""

    recipe: R
    deepspeed_config: str


def parse_image(argv: Sequence[str]) -> Invocation[ImageDistillation]:
    """Reads the arguments of `launchers/distill_image.py`; errors as in `ssmke.recipes.parse`."""
    return _parse(argv, ImageDistillation, IMAGE_RECIPES, "distill-image-scenes", "distill_image.py")


def parse_text(argv: Sequence[str]) -> Invocation[TextDistillation]:
    """Reads the arguments of `launchers/distill_text.py`; errors as in `ssmke.recipes.parse`."""
    return _parse(argv, TextDistillation, TEXT_RECIPES, "distill-text-scenes", "distill_text.py")


def _parse(
    argv: Sequence[str], kind: type[R], recipes: Mapping[str, Callable[[], R]], default: str, prog: str
) -> Invocation[R]:
    deepspeed_config, rest = split_launcher_flags(argv)
    chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    chooser.add_argument("--recipe", default=default)
    known, rest = chooser.parse_known_args(rest)
    if known.recipe not in recipes:
        close = difflib.get_close_matches(known.recipe, recipes, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ConfigError(
            f"--recipe {known.recipe!r} is unknown{hint}: choose one of {', '.join(sorted(recipes))}"
        )
    recipe = tyro.cli(
        kind,
        default=recipes[known.recipe](),
        args=rest,
        prog=f"{prog} --deepspeed_config FILE --recipe {known.recipe}",
        description=f"Recipes: {', '.join(sorted(recipes))}. Defaults shown are those of {known.recipe}.",
    )
    return Invocation(recipe, required(deepspeed_config))
