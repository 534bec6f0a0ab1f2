"""Which layers of a teacher a shorter student begins with, and which it learns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor


def chosen_layers(count: int, kept: int, how: Literal["first", "alternate"]) -> list[int]:
    """Numbers, from 0, of the ``kept`` of ``count`` layers that a student begins with.

    alternate: spread from the first to the last; of 12 to 6 DistilBERT's 0, 2, 4, 7, 9, 11.
    """
    if how == "first":
        return list(range(kept))
    return [count - 1] if kept == 1 else [round(i * (count - 1) / (kept - 1)) for i in range(kept)]


def matched_layers(count: int, kept: int) -> list[int]:
    """For each of ``kept`` layers the one of ``count``, from 0, whose output it is to give; the last for the last."""
    return [round((i + 1) * count / kept) - 1 for i in range(kept)]


def with_layers(state: Mapping[str, Tensor], pattern: str, taken: Sequence[int]) -> dict[str, Tensor]:
    """``state`` with the layers ``taken`` alone, renumbered; ``pattern`` finds a layer's number in a name."""
    place = {number: new for new, number in enumerate(taken)}
    kept: dict[str, Tensor] = {}
    for name, tensor in state.items():
        found = re.search(pattern, name)
        if found is None:
            kept[name] = tensor
        elif int(found[1]) in place:
            kept[f"{name[: found.start(1)]}{place[int(found[1])]}{name[found.end(1) :]}"] = tensor
    return kept
