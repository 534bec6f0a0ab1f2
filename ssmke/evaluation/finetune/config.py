"""Settings of the finetuning suites. Nothing heavy is imported here, so that the command line starts at once."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ssmke.errors import ConfigError

Part = Literal["encoder", "full"]
Pool = Literal["mean", "cls"]


@dataclass
class LoopConfig:
    """Length, batch and optimiser."""

    epochs: int = 30
    """Passes over the training data."""
    batch_size: int = 64
    """Samples per step."""
    lr: float = 5e-4
    """Peak learning rate of the new head."""
    layer_decay: float = 1.0
    """Each layer further from the head learns with the rate of the one above it times this."""
    weight_decay: float = 0.05
    """AdamW's decoupled decay of matrices; none for biases, norms, embeddings, positions."""
    warmup: float = 0.1
    """Share of all steps with linearly rising rate; a cosine to 0 follows."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's averaging factors."""
    eps: float = 1e-8
    """AdamW's denominator offset."""
    clip_norm: float | None = None
    """Longest gradient; longer ones are scaled down to it."""

    def __post_init__(self) -> None:
        for flag, value in (("epochs", self.epochs), ("batch-size", self.batch_size)):
            if value < 1:
                raise ConfigError(f"--{flag} {value}: must be at least 1")
        for flag, number in (("lr", self.lr), ("eps", self.eps)):
            if not (number > 0 and math.isfinite(number)):
                raise ConfigError(f"--{flag} {number}: must be a positive number")
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise ConfigError(f"--weight-decay {self.weight_decay}: must be a number of at least 0")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"--layer-decay {self.layer_decay}: must be above 0 and at most 1")
        if not 0 <= self.warmup <= 1:
            raise ConfigError(f"--warmup {self.warmup}: must lie in 0..1")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"--betas {self.betas}: both must lie in 0..1, 1 excluded")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ConfigError(f"--clip-norm {self.clip_norm}: must be positive")


@dataclass
class AugmentConfig:
    """How training images are changed."""

    mixup: float = 0.8
    """Mixup's Beta parameter; 0: none."""
    cutmix: float = 1.0
    """CutMix's Beta parameter; 0: none. With both, each batch gets one of them, at even odds."""
    rand_augment: int = 2
    """Operations that RandAugment applies to each image; 0: none."""
    magnitude: int = 9
    """Their strength, 0..30."""
    erase: float = 0.25
    """Probability that a rectangle of an image is erased, to the mean colour."""
    smoothing: float = 0.1
    """Label smoothing."""
    crop_min: float = 0.08
    """Smallest share of the image's area in a crop; the largest is all of it."""
    flip: float = 0.5
    """Probability of a horizontal flip."""

    def __post_init__(self) -> None:
        for flag, value in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if not value >= 0:
                raise ConfigError(f"--{flag} {value}: must be at least 0")
        for flag, value in (("erase", self.erase), ("smoothing", self.smoothing), ("flip", self.flip)):
            if not 0 <= value <= 1:
                raise ConfigError(f"--{flag} {value}: must lie in 0..1")
        if not 0 < self.crop_min <= 1:
            raise ConfigError(f"--crop-min {self.crop_min}: must be above 0 and at most 1")
        if self.rand_augment < 0 or not 0 <= self.magnitude <= 30:
            raise ConfigError(
                f"--rand-augment {self.rand_augment} --magnitude {self.magnitude}: the first must be at least 0, the "
                "second lie in 0..30"
            )


@dataclass
class RunConfig:
    """Where a suite runs, how often, and where it keeps its state."""

    seed: tuple[int, ...] = (0,)
    """One run for each; several give mean and standard deviation."""
    work: Path | None = None
    """Folder for a checkpoint after each epoch; the same command goes on from it."""
    out: Path | None = None
    """JSON file to write the numbers to."""
    mlflow: bool = False
    """Log the numbers, into the run of the model where it lies in a run folder, else into a new run."""
    tracking_uri: str | None = None
    """MLflow store, instead of that of the run; implies --mlflow."""
    experiment: str | None = None
    """MLflow experiment, instead of that of the run."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    workers: int | None = None
    """Processes that read and decode images; None: the cores, at most 8; 0: none. No number depends on it."""

    def __post_init__(self) -> None:
        if not self.seed or len(set(self.seed)) != len(self.seed):
            raise ConfigError(
                f"--seed {' '.join(map(str, self.seed))}: give one or several different numbers"
            )
        if self.workers is not None and self.workers < 0:
            raise ConfigError(f"--workers {self.workers}: must be 0 or more")


@dataclass
class ImageClassificationConfig:
    """Finetuning of the image side on a labelled image folder."""

    model: str
    """Folder of a trained model or of a distilled image encoder, or timm:NAME."""
    data: Path
    """Folder with train/CLASS/ and val/CLASS/, or with CLASS/; CIFAR's binary files; Tiny ImageNet's zip."""
    part: Part = "full"
    """encoder: the image encoder alone; full: with the shared encoder, at its [CLS]."""
    pool: Pool = "mean"
    """What of the encoder's tokens the head sees with --part encoder: the mean of the patches, or the [CLS]."""
    weights: str = "hub"
    """Of timm:NAME: hub, a file, or none for random ones."""
    image_size: int | None = None
    """Of timm:NAME: side of the square input in pixels; None: the model's own."""
    val_share: float = 0.2
    """Share of each class that is held out where the data have no splits."""
    split_seed: int = 0
    """Which images those are."""
    drop_path: float = 0.1
    """Stochastic depth at the top block, rising to it from 0; encoders without it go without."""
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(layer_decay=0.65, warmup=0.2))
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if not 0 < self.val_share < 1:
            raise ConfigError(f"--val-share {self.val_share}: must lie between 0 and 1")
        if not 0 <= self.drop_path < 1:
            raise ConfigError(f"--drop-path {self.drop_path}: must be at least 0 and less than 1")

    def identity(self) -> dict[str, Any]:
        """What a checkpoint depends on beside model and data."""
        return _without_places(self)


@dataclass
class GlueConfig:
    """Finetuning of the text half on GLUE."""

    model: str
    """Folder of a trained model, or transformers:FOLDER."""
    data: Path
    """Folder with CoLA/, SST-2/, ... (TSV) or cola/, sst2/, ... (parquet)."""
    part: Part = "full"
    """encoder: the text encoder alone; full: with the shared encoder, at its [CLS]."""
    tasks: tuple[str, ...] = ("CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI", "QNLI", "RTE", "WNLI")
    """Which of the nine."""
    epochs: int | None = None
    """Passes over the training data; None: the task's usual, 3 or 5."""
    batch_size: int | None = None
    """Samples per step; None: the task's usual, 16 or 32."""
    lr: float | None = None
    """Peak learning rate of the head; None: the task's usual, 2e-5 or 3e-5."""
    layer_decay: float = 1.0
    """Each layer further from the head learns with the rate of the one above it times this."""
    weight_decay: float = 0.01
    """AdamW's decoupled decay of matrices."""
    warmup: float = 0.1
    """Share of all steps with linearly rising rate; a cosine to 0 follows."""
    clip_norm: float | None = 1.0
    """Longest gradient; longer ones are scaled down to it."""
    dropout: float = 0.1
    """Dropout in the head."""
    max_tokens: int | None = None
    """Longest sentence or pair, in tokens; None: 128, or what the encoder has positions for."""
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        _check_dropout(self.dropout)
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise ConfigError("--tasks: give one or several different tasks")
        if self.max_tokens is not None and self.max_tokens < 5:
            raise ConfigError(
                f"--max-tokens {self.max_tokens}: must be at least 5 ([CLS], a, [SEP], b, [SEP])"
            )
        self.loop(3, 32, 3e-5)

    def loop(self, epochs: int, batch_size: int, lr: float) -> LoopConfig:
        """The loop of a task whose usual values are given."""
        return LoopConfig(
            epochs=epochs if self.epochs is None else self.epochs,
            batch_size=batch_size if self.batch_size is None else self.batch_size,
            lr=lr if self.lr is None else self.lr,
            layer_decay=self.layer_decay,
            weight_decay=self.weight_decay,
            warmup=self.warmup,
            clip_norm=self.clip_norm,
        )

    def identity(self) -> dict[str, Any]:
        """What a checkpoint depends on beside model, data and task."""
        return {name: value for name, value in _without_places(self).items() if name != "tasks"}


@dataclass
class Nlvr2Config:
    """Finetuning on NLVR2: two images and a sentence."""

    model: str
    """Folder of a trained model."""
    data: Path
    """Folder with train.json and dev.json of the release."""
    images: Path | None = None
    """Folder of the images; None: images/ in the data folder."""
    split: str = "dev"
    """Split to evaluate on: dev, test1, ..."""
    allow_missing: bool = False
    """Leave out examples whose images are missing, and count them."""
    frozen: bool = False
    """Train the MLP alone, on the embeddings as they are."""
    hidden: int = 1024
    """Width of the MLP's hidden layer."""
    dropout: float = 0.1
    """Dropout in the MLP."""
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            epochs=10, batch_size=32, lr=1e-4, layer_decay=0.9, weight_decay=0.01, clip_norm=1.0
        )
    )
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        _check_dropout(self.dropout)
        if self.hidden < 1:
            raise ConfigError(f"--hidden {self.hidden}: must be at least 1")
        if self.split == "train" or not self.split.isalnum():
            raise ConfigError(
                f"--split {self.split}: give dev, test1 or another split that is not trained on"
            )

    def identity(self) -> dict[str, Any]:
        """What a checkpoint depends on beside model and data."""
        return _without_places(self)


def _check_dropout(dropout: float) -> None:
    if not 0 <= dropout < 1:
        raise ConfigError(f"--dropout {dropout}: must be at least 0 and less than 1")


def _without_places(config: ImageClassificationConfig | GlueConfig | Nlvr2Config) -> dict[str, Any]:
    return {
        name: value
        for name, value in asdict(config).items()
        if name not in ("model", "data", "images", "allow_missing", "run")
    }
