"""Trains S-SMKE: parse, build, run.

    deepspeed launchers/pretrain.py --deepspeed_config ds_configs/zero2.json [--recipe NAME] [--field value ...]

Without ``--recipe`` it runs the embedded default, scenes-tiny. ``--help`` lists every field of the recipe.
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
    from ssmke.recipes import parse
    from ssmke.training.pretrain import pretrain

    invocation = parse(argv)
    return lambda placement: pretrain(invocation.recipe, invocation.deepspeed_config, placement)


if __name__ == "__main__":
    sys.exit(enter(prepare))
