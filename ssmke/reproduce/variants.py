"""The models that the published tables compare, as recipes of this framework, and what each table is made of.

A variant is a recipe and the flags by which it differs, at each scale where it can be had. One that several tables
show is trained once. Where a scale cannot have it (there is no supervised teacher of rendered scenes), the table says
so in its place; where it stands for something else there, ``differs`` says for what.

Scales:
    scenes  the embedded scenes; two CPU cores, minutes a model. Says whether an ablation points the same way.
    small   Flickr8k and real weights of a few MB; a small GPU, or a patient CPU.
    full    the published data and models, by whoever has a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from ssmke.errors import ConfigError

ScaleName = Literal["scenes", "small", "full"]
SCALES: tuple[ScaleName, ...] = get_args(ScaleName)


@dataclass(frozen=True)
class Scale:
    """Where the variants of one scale are trained and scored."""

    recipe: str
    """Recipe that all variants start from."""
    trains_on: Mapping[str, str]
    """Folders below the data folder that pretraining needs, with the command that makes each (DIR stands for it)."""
    scored_on: Mapping[str, str]
    """Folders below the data folder that models are scored on, with their names in tables."""
    split: str
    """Split of the latter that is scored."""
    size: Mapping[str, tuple[int, int]]
    """Pairs and images of the training folders, for the plan."""


@dataclass(frozen=True)
class Half:
    """A unimodal half that is distilled from the whole encoder before pretraining."""

    launcher: str
    """Script that distils it."""
    recipes: Mapping[ScaleName, str]
    """Its recipe at each scale that has one."""
    data: Mapping[ScaleName, tuple[str, str]]
    """The flag and the folder below the data folder that it learns from."""
    weights: str
    """Flag of pretraining that takes its folder."""
    made_by: str
    """What makes the folder that it learns from (DIR)."""


@dataclass(frozen=True)
class Variant:
    """A model of a table."""

    name: str
    """As the table calls it."""
    flags: Mapping[ScaleName, tuple[str, ...]]
    """How it differs from the scale's recipe ({root}: the folder of all runs, {again}: what a further seed is named
    by); a scale that is not there cannot have it."""
    differs: Mapping[ScaleName, str] = field(default_factory=dict)
    """What of the published one it is not, or why it is missing."""
    starts_from: str | None = None
    """Variant whose trained model it is finetuned from."""
    halves: tuple[str, ...] = ()
    """Keys of `HALVES` that it is built from, instead of halves cut from the pretrained models."""
    trains_on: Mapping[ScaleName, tuple[str, ...]] = field(default_factory=dict)
    """Folders below the data folder, where they are not those of the scale."""


@dataclass(frozen=True)
class Table:
    """A published table."""

    title: str
    variants: tuple[str, ...]
    """Keys of `VARIANTS`, in the order of the table."""
    says: str
    """What the published table shows, in a sentence."""
    published: str | None
    """Key of its figures in published.json; None: its figures are not published as a table."""
    zero_shot: bool = False
    """Whether its models also classify by the names of classes, at scales with such data."""
    kind: Literal["recall", "alone", "efficiency"] = "recall"
    """What it shows: recalls of ``variants``, their halves finetuned (`suites.ALONE`), or cost beside quality."""


SCALE: Mapping[ScaleName, Scale] = {
    "scenes": Scale(
        "scenes-tiny",
        {"scenes": "ssmke data make scenes --out DIR"},
        {"scenes": "scenes"},
        "test",
        {"scenes": (15_000, 3_000)},
    ),
    "small": Scale(
        "flickr8k-small",
        {"flickr8k": "ssmke data get flickr8k --out DIR"},
        {"flickr8k": "Flickr8k val"},
        "val",
        {"flickr8k": (30_000, 6_000)},
    ),
    "full": Scale(
        "ssmke-base",
        {
            "coco": "ssmke data get coco-captions --out DIR",
            "cc3m": "ssmke data get cc3m --out DIR",
            "cc12m": "ssmke data get cc12m --out DIR",
        },
        {"coco": "COCO 5K", "flickr30k": "Flickr30K 1K"},
        "test",
        {
            "coco": (566_747, 82_783),
            "cc3m": (1_516_133, 1_516_133),
            "cc12m": (1_181_988, 1_181_988),
            "flickr30k": (145_000, 29_000),
        },
    ),
}


def _everywhere(*flags: str) -> dict[ScaleName, tuple[str, ...]]:
    return dict.fromkeys(SCALES, flags)


HALVES: Mapping[str, Half] = {
    "distilled-image": Half(
        "distill_image.py",
        {"scenes": "distill-image-scenes", "full": "distill-image-base"},
        {"scenes": ("--data.shards", "scenes"), "full": ("--data.shards", "imagenet")},
        "--model.image.weights",
        "ImageNet-1K as webdataset tars, then ssmke data import tars --out DIR",
    ),
    "distilled-text": Half(
        "distill_text.py",
        {"scenes": "distill-text-scenes", "full": "distill-text-base"},
        {"scenes": ("--data.shards", "scenes"), "full": ("--data.files", "openwebtext")},
        "--model.text.weights",
        "a folder DIR of .txt or .jsonl files",
    ),
}

_LIT = "LiT locks a supervised image tower; here the pretrained half, with our shared block"

_UNTAUGHT = ("--loss.distillation", "none", "--loss.bank", "none")
_LOCKED = ("--model.image.frozen", "--targets.frozen-tokens")
_TOWERS = (*_LOCKED, "--model.text.frozen", "--targets.frozen-text", "--model.pool", "cls+mean")
_LONG = ("--optim.epochs", "20")
_SMALL_TOWERS = "the recipe's small encoders, 20 epochs on cached features"

VARIANTS: Mapping[str, Variant] = {
    "none": Variant("contrast alone, no teacher", _everywhere(*_UNTAUGHT)),
    "mse": Variant("S-SMKE, MSE", _everywhere("--loss.distillation", "mse", "--loss.bank", "none")),
    "contrastive": Variant(
        "S-SMKE, contrastive KD", _everywhere("--loss.distillation", "contrastive", "--loss.bank", "none")
    ),
    "bank": Variant("S-SMKE, contrastive KD + bank", _everywhere()),
    "shre": Variant(
        "Transformer SHRe",
        {
            "scenes": ("--model.shared.kind", "mlp", "--model.no-modality-embedding", "--loss.distillation", "mse",
                       "--loss.bank", "none"),
            "full": ("--recipe", "shre-transformer"),
        },
        {
            "scenes": "taught by the self-supervised teacher with MSE: there is no supervised one of scenes",
            "small": "needs class scores of the teacher, which these weights lack",
        },
    ),
    "no-type": Variant("without token-type embedding", _everywhere("--model.no-modality-embedding")),
    "unscaled-type": Variant(
        "token-type embedding without scale",
        _everywhere("--model.modality-scale", "1.0"),
        dict.fromkeys(SCALES, "added after the encoders as ever; the published one also moved it before them"),
    ),
    "untrained-teacher": Variant(
        "a teacher with random weights",
        dict.fromkeys(
            ("scenes", "small"), ("--teacher.weights", "none", "--targets.dir", "{root}/untrained-targets{again}")
        ),
        {"full": "not published; a control for the small scales"},
    ),
    "teacher-finetuned": Variant(
        "BEiTv2 finetuned (KL)",
        {"full": ("--recipe", "ssmke-base-kl")},
        {"scenes": "no supervised teacher of scenes", "small": "these weights give no class scores"},
    ),
    "teacher-data2vec2": Variant(
        "data2vec 2.0",
        {"full": ("--teacher.name", "data2vec2_base", "--teacher.weights", "data2vec2_base.pt")},
        {"scenes": "one teacher of scenes is there", "small": "its weights cannot be had at this scale"},
    ),
    "teacher-dino": Variant(
        "DINO ViT-B/16",
        {"full": ("--teacher.name", "vit_base_patch16_224.dino")},
        {"scenes": "one teacher of scenes is there", "small": "its weights cannot be had at this scale"},
    ),
    "locked-image": Variant(
        "locked image encoder (as LiT)",
        {
            "scenes": (*_LOCKED, *_UNTAUGHT),
            "full": (*_LOCKED, *_UNTAUGHT),
        },
        {
            "scenes": _LIT,
            "full": _LIT,
            "small": "the recipe of this scale locks its image encoder: it is \"contrast alone\" of the first table",
        },
    ),
    "frozen-towers": Variant(
        "both towers frozen, linear heads (as SAIL, ShareLock)",
        {
            "scenes": (*_TOWERS, "--model.shared.kind", "none", "--loss.pairing", "sigmoid", *_UNTAUGHT, *_LONG),
            "small": (*_TOWERS, "--model.shared.kind", "none", "--loss.pairing", "sigmoid", *_UNTAUGHT, *_LONG),
            "full": ("--recipe", "frozen-towers"),
        },
        {
            "scenes": f"{_SMALL_TOWERS}; the recipe's batch",
            "small": f"{_SMALL_TOWERS}; the recipe's batch",
            "full": "DINOv2-L and BGE-large, linear heads, our settings; their encoders, heads and rates differ",
        },
    ),
    "frozen-towers-block": Variant(
        "both towers frozen, the shared block on top",
        {
            "scenes": (*_TOWERS, *_UNTAUGHT, *_LONG),
            "small": (*_TOWERS, *_UNTAUGHT, *_LONG),
            "full": ("--recipe", "frozen-towers", "--model.shared.kind", "block", "--model.shared.heads", "16"),
        },
        {"scenes": _SMALL_TOWERS, "small": _SMALL_TOWERS},
    ),
    "frozen-towers-bank": Variant(
        "S-SMKE on two frozen towers",
        {"scenes": (*_TOWERS, *_LONG), "small": (*_TOWERS, *_LONG)},
        {
            "scenes": _SMALL_TOWERS,
            "small": _SMALL_TOWERS,
            "full": "DINOv2-L would learn from a smaller teacher",
        },
    ),
    "frozen-lower": Variant(
        "S-SMKE on frozen lower blocks",
        {
            "scenes": ("--model.image.freeze-blocks", "2", "--model.text.freeze-layers", "1"),
            "full": ("--model.image.freeze-blocks", "3", "--model.text.freeze-layers", "3"),
        },
        {
            "scenes": "two of three image blocks and one of two text layers",
            "full": "three of six on each side",
            "small": "the recipe of this scale has its image encoder locked already",
        },
    ),
    "locked-image-bank": Variant(
        "S-SMKE on a locked image encoder",
        {
            "scenes": _LOCKED,
            "full": _LOCKED,
        },
        {"small": "the recipe of this scale has its image encoder locked already"},
    ),
    "distilled-halves": Variant(
        "S-SMKE from distilled halves",
        {"scenes": (), "full": ("--model.image.name", "data2vec2_base")},
        {
            "full": "the image half is distilled from data2vec 2.0, as in the thesis' first models",
            "small": "these halves are whole small models, there is nothing to distil them from",
        },
        halves=("distilled-image", "distilled-text"),
    ),
    "finetuned-coco": Variant(
        "the same, finetuned on COCO",
        {"scenes": ("--recipe", "finetune-scenes"), "full": ("--recipe", "finetune-coco")},
        {
            "scenes": "one more epoch of contrast alone on the scenes that it was pretrained on",
            "small": "the recipe of this scale has its image encoder locked",
        },
        starts_from="bank",
        trains_on={"full": ("coco",)},
    ),
    "finetuned-flickr30k": Variant(
        "the same, finetuned on Flickr30K",
        {"full": ("--recipe", "finetune-flickr30k")},
        {"scenes": "there is one data set of scenes", "small": "the recipe of this scale has its image encoder locked"},
        starts_from="bank",
        trains_on={"full": ("flickr30k",)},
    ),
}  # fmt: skip

TABLES: Mapping[str, Table] = {
    "distillation": Table(
        "How to learn from the teacher",
        ("shre", "none", "mse", "contrastive", "bank"),
        "A shared Transformer block beats the MLP on [CLS] by far; contrast with the teacher's targets beats "
        "regression, mostly image to text; the bank adds a little.",
        "retrieval",
    ),
    "token-type": Table(
        "The token-type embedding",
        ("no-type", "unscaled-type", "bank"),
        "Added before the encoders and unscaled it costs about 0.8 points.",
        None,
    ),
    "teachers": Table(
        "Which teacher",
        ("bank", "teacher-finetuned", "teacher-data2vec2", "teacher-dino", "untrained-teacher", "none"),
        "BEiTv2 teaches retrieval best; data2vec 2.0 teaches worse than no teacher at all.",
        "teachers",
        zero_shot=True,
    ),
    "halves": Table(
        "Halves distilled from the whole encoders, or cut from them",
        ("distilled-halves", "bank"),
        "Distilled halves by themselves: ImageNet 71.1 / 76.1, GLUE 76.9. S-SMKE is built from halves cut off the "
        "pretrained models.",
        None,
    ),
    "finetuning": Table(
        "Retrieval finetuning",
        ("bank", "finetuned-coco", "finetuned-flickr30k"),
        "Five epochs of contrast on the data set that is searched: most on Flickr30K, which pretraining has not seen.",
        "retrieval",
    ),
    "cheap-peers": Table(
        "Cheap ways of others",
        (
            "frozen-towers",
            "frozen-towers-block",
            "frozen-towers-bank",
            "locked-image",
            "locked-image-bank",
            "frozen-lower",
            "bank",
        ),
        "ImageNet zero-shot of the others' own, larger models: SAIL 73.4 % (one A100, 5 hours), ShareLock 51 % (563k "
        "pairs, about one GPU-hour), Freeze-Align 76 % (20M pairs, 50 to 60 GPU-hours), S-SMKE 37 % (shorter runs).",
        None,
    ),
    "unimodal": Table(
        "What the halves can do by themselves",
        ("bank",),
        "Pretraining for retrieval costs each half some of what it could do alone, the text half most (the method's "
        "main limitation). Linear probes: ImageNet 71.1 distilled, 65.0 after pretraining.",
        "unimodal",
        kind="alone",
    ),
    "efficiency": Table(
        "What it costs and what it can do",
        ("bank",),
        "parameters, pairs, dollars and recall of S-SMKE beside far dearer models.",
        None,
        kind="efficiency",
    ),
}


def table(name: str) -> Table:
    """The table called ``name``; ConfigError lists the known ones."""
    if name not in TABLES:
        raise ConfigError(f"there is no table {name!r}: choose one of {', '.join(TABLES)}, or all")
    return TABLES[name]
