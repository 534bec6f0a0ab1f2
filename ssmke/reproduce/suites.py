"""What models are measured by besides retrieval: zero-shot classes, and finetuning of their halves by themselves.

A suite is one sub-command of `ssmke evaluate` on one data set, and the one number of its results that a table shows.
`ALONE` are the rows of the table that finetunes halves: which folder each suite is given as ``--model``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ssmke.reproduce.variants import ScaleName

Number = Literal["top1", "finetuned-top1", "glue-mean"]


@dataclass(frozen=True)
class Suite:
    """One evaluation of a model or half."""

    title: str
    """Its column."""
    command: tuple[str, ...]
    """Sub-command of ``ssmke evaluate``, with its flags but for model, data, seed and place."""
    data: str
    """Folder below the data folder; its results are named by it."""
    made_by: str
    """What makes that folder (DIR); empty where a step does."""
    number: Number
    """What is taken of its results."""
    side: Literal["image", "text", "both"]
    """Which half it finetunes."""


@dataclass(frozen=True)
class Alone:
    """A pair of halves, each of which is finetuned by itself (``--part encoder``)."""

    name: str
    """As the table calls it."""
    image: str
    """What the image suites take as ``--model`` ({root} and {again} as in `Variant.flags`)."""
    text: str
    """The same of the text suites."""
    halves: Mapping[str, str] = field(default_factory=dict)
    """Keys of `HALVES` that have to be distilled for it, by `Suite.side`."""
    differs: Mapping[ScaleName, str] = field(default_factory=dict)
    """What of the published one it is not."""


CUT = "cut-halves"
"""Folder of the halves as they are cut from the pretrained encoders."""

_CLASSES = "ImageNet-1K as class folders, DIR/train/n01440764/... and DIR/val/n01440764/..."
_CIFAR = "the binary version, data_batch_1.bin and so on, or train.bin and test.bin, in DIR"
_GLUE = "a folder a task in DIR, CoLA/train.tsv and so on, as docs/finetuning.md says"
_CLEAN = (
    "--epochs", "12", "--lr", "2e-3", "--mixup", "0", "--cutmix", "0", "--rand-augment", "0", "--erase", "0",
    "--crop-min", "0.6",
)  # fmt: skip

ZERO_SHOT: Mapping[ScaleName, Suite] = {
    "full": Suite("ImageNet zero-shot", ("zero-shot",), "imagenet-classes", _CLASSES, "top1", "both"),
}
"""Of the models of a table with `Table.zero_shot`."""


def _images(title: str, data: str, made_by: str, *flags: str) -> Suite:
    return Suite(title, ("image-classification", *flags), data, made_by, "finetuned-top1", "image")


FINETUNED: Mapping[ScaleName, tuple[Suite, ...]] = {
    "scenes": (_images("Colour and shape of one thing", "labelled-scenes", "", *_CLEAN),),
    "full": (
        _images("ImageNet", "imagenet-classes", _CLASSES),
        _images("CIFAR-10", "cifar10", _CIFAR),
        _images("CIFAR-100", "cifar100", _CIFAR),
        Suite("GLUE mean", ("glue",), "glue", _GLUE, "glue-mean", "text"),
    ),
}
"""Of the halves in `ALONE`."""


def halves_of(alone: Alone, scale: ScaleName) -> list[str]:
    """Keys of `HALVES` that the suites of ``scale`` finetune."""
    return list(dict.fromkeys(alone.halves[suite.side] for suite in FINETUNED.get(scale, ()) if alone.halves))


_LENGTH = "finetuned with the defaults of `ssmke evaluate`: the published length is not known here"
_RUN = "{root}/runs/bank{again}/model"

ALONE: Mapping[str, Alone] = {
    "alone-cut": Alone(
        "halves cut from the pretrained encoders",
        "{root}/" + CUT,
        "{root}/" + CUT,
        differs={"full": "not published; what S-SMKE starts from"},
    ),
    "alone-distilled": Alone(
        "halves distilled from the whole encoders",
        "{root}/runs/distilled-image{again}/model",
        "transformers:{root}/runs/distilled-text{again}/model",
        {"image": "distilled-image", "text": "distilled-text"},
        {"full": f"the image half of data2vec 2.0, where the other rows' is of BEiTv2; {_LENGTH}"},
    ),
    "alone-trained": Alone(
        "S-SMKE's halves after pretraining",
        _RUN,
        _RUN,
        differs={"full": f"{_LENGTH}, nor whether the shared block went with the encoder; here it does not"},
    ),
}
"""Rows of the table of halves by themselves."""
