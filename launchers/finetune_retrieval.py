r"""Finetunes a trained student for retrieval: the contrastive loss alone, on the pairs of one data set.

    deepspeed launchers/finetune_retrieval.py --deepspeed_config ds_configs/zero2.json --init RUN/model \
        [--recipe NAME] [--field value ...]

Recipes: finetune-coco (the default), finetune-flickr30k, finetune-scenes. ``--help`` lists every field of the recipe.
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
    from ssmke.recipes import parse_finetuning
    from ssmke.training.pretrain import pretrain

    invocation = parse_finetuning(argv)
    return lambda placement: pretrain(invocation.recipe, invocation.deepspeed_config, placement)


if __name__ == "__main__":
    sys.exit(enter(prepare))
