"""Makes the weights of the embedded default anew: `python -m ssmke.assets.make_scenes_assets`.

    scenes_vit.safetensors   teacher (whole) and student's image encoder (first half), see scenes_vision.py
    scenes_text_encoder/     BERT-like text encoder and tokenizer, see scenes_language.py

Both learn from scenes of seed 9001, train-split compositions only, images without captions and captions without
images. One core needs about 15 minutes; the same machine and torch give the same bytes (README.md says what made
the shipped ones). `--out` writes elsewhere, `--quick` runs every step in a few seconds to see that it works. Prints
linear probes at the end (scenes_probe.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor

from ssmke.assets.scenes_language import (
    build_tokenizer,
    pretrain_text_encoder,
    save_text_encoder,
    unlabelled_captions,
)
from ssmke.assets.scenes_probe import probe
from ssmke.assets.scenes_vision import TIMM_KWARGS, pretrain_vit, save_vit, unlabelled_images, visual_words
from ssmke.data.sources.scene_plan import Scene, plan_scenes
from ssmke.data.sources.scene_render import render_scene
from ssmke.models.teachers import Teacher, TeacherConfig, build_teacher

SEED = 9001
VIT = "scenes_vit.safetensors"
TEXT = "scenes_text_encoder"
VIT_NAME = "vit_tiny_patch16_224"


@dataclass
class Options:
    """What to make and how thoroughly."""

    out: Path = Path(__file__).parent
    """Folder that receives the files."""
    images: int = 30_000
    """Unlabelled images for the ViT."""
    image_steps: int = 2800
    """Steps of 64 images."""
    caption_scenes: int = 12_000
    """Scenes whose captions the text encoder reads, five each."""
    text_steps: int = 900
    """Steps of 128 captions."""
    quick: bool = False
    """A few seconds' run of everything with tiny numbers; the weights are of no use."""
    parts: tuple[str, ...] = ("image", "text", "probe")
    """Which parts to run."""


def make(options: Options) -> None:
    """Trains and writes the parts that are asked for."""
    if options.quick:
        options.images, options.image_steps, options.caption_scenes, options.text_steps = 600, 5, 100, 5
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # the result must not depend on the number of cores
    if "image" in options.parts:
        torch.manual_seed(SEED)
        images = unlabelled_images(SEED, options.images)
        save_vit(options.out / VIT, pretrain_vit(images, visual_words(images), options.image_steps))
    if "text" in options.parts:
        torch.manual_seed(SEED)
        tokenizer = build_tokenizer()
        captions = unlabelled_captions(SEED, options.caption_scenes)
        encoder = pretrain_text_encoder(captions, tokenizer, options.text_steps)
        save_text_encoder(options.out / TEXT, encoder, tokenizer)
    if "probe" in options.parts:
        report(options.out / VIT, 300 if options.quick else 6000)


def report(weights: Path, count: int) -> None:
    """Prints probes of a random ViT, of the shipped one's first half and of the whole."""
    train, test = plan_scenes(0, "train", count), plan_scenes(0, "test", min(count, 1000))
    whole: dict[str, int | float | bool | str] = {**TIMM_KWARGS}
    half = {**whole, "depth": TIMM_KWARGS["depth"] // 2}
    rows = {
        "random ViT": TeacherConfig(VIT_NAME, "none", timm_kwargs=whole),
        "first half (student's image encoder)": TeacherConfig(VIT_NAME, str(weights), timm_kwargs=half),
        "whole (teacher)": TeacherConfig(VIT_NAME, str(weights), timm_kwargs=whole),
    }
    for name, config in rows.items():
        teacher = build_teacher(config, quiet=True)
        scores = probe(features(teacher, train), train, features(teacher, test), test)
        print(
            f"{name}: " + ", ".join(f"{family} {score:.1f}" for family, score in scores.items()), flush=True
        )


def features(teacher: Teacher, scenes: list[Scene]) -> Tensor:
    """Targets [N, D] of rendered scenes."""
    rows = []
    for start in range(0, len(scenes), 500):
        images = np.stack([np.asarray(render_scene(scene)) for scene in scenes[start : start + 500]])
        rows.append(teacher(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()))
    return torch.cat(rows)


if __name__ == "__main__":
    make(tyro.cli(Options, description=__doc__))
