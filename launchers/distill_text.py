"""Distils a pretrained BERT into some of its layers, as the text half that pretraining begins with.

    deepspeed launchers/distill_text.py --deepspeed_config ds_configs/zero2.json [--recipe NAME] [--field value ...]

Recipes: distill-text-scenes (the default, minutes of 2 CPU cores), distill-text-base. ``--help`` lists every field.
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
    from ssmke.training.unimodal.recipes import parse_text
    from ssmke.training.unimodal.texts import distil_texts

    invocation = parse_text(argv)
    return lambda placement: distil_texts(invocation.recipe, invocation.deepspeed_config, placement)


if __name__ == "__main__":
    sys.exit(enter(prepare))
