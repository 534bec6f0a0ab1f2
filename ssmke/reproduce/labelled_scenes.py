"""A small labelled image folder of rendered scenes: what scale scenes has for finetuning a classifier.

    python -m ssmke.reproduce.labelled_scenes --out DIR      # DIR/train/red-circle/0.png, DIR/val/red-circle/0.png

A class is the look (colour and shape) of the one thing in a picture; its size, place and background are drawn. The
splits are those of the scenes (`scene_plan.split_of`): what trains here is a place of that look that may be in train
there, what is measured is none, so the halves have never seen a picture of the same composition. About 70 of the 80
looks have places in both; the others are left out. Takes four seconds of a core.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ssmke.data.sources.scene_plan import Scene, draw_scene, split_of
from ssmke.data.sources.scene_render import render_scene

IMAGES = {"train": 1600, "val": 800}


def write_labelled_scenes(folder: Path, images: Mapping[str, int] = IMAGES, seed: int = 0) -> None:
    """``images`` pictures a side (less those of looks that the other lacks); replaces what was there."""
    rng = np.random.default_rng([seed, len("labelled")])
    sides: dict[str, list[Scene]] = {side: [] for side in images}
    while any(len(sides[side]) < images[side] for side in images):
        scene = draw_scene(rng)
        side = "train" if split_of(scene.key) == "train" else "val"
        if scene.kind == "one" and len(sides[side]) < images[side]:
            sides[side].append(scene)
    both = set.intersection(*({_look(scene) for scene in scenes} for scenes in sides.values()))
    part = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(part, ignore_errors=True)
    for side, scenes in sides.items():
        for name in both:
            (part / side / name).mkdir(parents=True)
        for number, scene in enumerate(scenes):
            if (name := _look(scene)) in both:
                render_scene(scene).save(part / side / name / f"{number}.png")
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def _look(scene: Scene) -> str:
    return scene.groups[0][0].kind.replace(" ", "-")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m ssmke.reproduce.labelled_scenes")
    parser.add_argument("--out", type=Path, required=True)
    write_labelled_scenes(parser.parse_args(argv).out)


if __name__ == "__main__":
    main()
