"""The halves as pretraining cuts them from the pretrained encoders, untrained, as a model that `ssmke evaluate` takes.

    python -m ssmke.reproduce.cut_halves --out FOLDER --recipe scenes-tiny

Only with ``--part encoder`` does it mean anything: its shared block is random. Other flags are those of a recipe.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ssmke.errors import SSMKEError
from ssmke.models.student import SSMKE
from ssmke.recipes import parse_recipe


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m ssmke.reproduce.cut_halves", allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True)
    found, recipe = parser.parse_known_args(argv)
    try:
        SSMKE(parse_recipe(recipe, parser.prog).model).save_pretrained(found.out)
    except SSMKEError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
