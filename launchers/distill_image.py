"""Distils a pretrained ViT into some of its blocks, as the image half that pretraining begins with.

    deepspeed launchers/distill_image.py --deepspeed_config ds_configs/zero2.json [--recipe NAME] [--field value ...]

Recipes: distill-image-scenes (the default, minutes of 2 CPU cores), distill-image-base. ``--help`` lists every field.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ssmke.training.entry import enter

if TYPE_CHECKING:
    from ssmke.training.loop import Outcome
    from ssmke.training.ranks import Placement


def prepare(argv: Sequence[str]) -> Callable[[Placement], Outcome]:
    """The run that a command line asks for."""
    from ssmke.training.unimodal.images import distil_images
    from ssmke.training.unimodal.recipes import parse_image

    invocation = parse_image(argv)
    return lambda placement: distil_images(invocation.recipe, invocation.deepspeed_config, placement)


if __name__ == "__main__":
    sys.exit(enter(prepare))
