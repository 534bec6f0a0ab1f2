"""What `--data.shards` says: dataset folders or addresses, each with an optional name and weight.

data/coco                                   one folder
coco=data/coco cc3m=s3://bucket/cc3m*0.5    two; an epoch shows half of the second one's pairs
coco=data/coco,cc3m=data/cc3m*0.5           the same in one word
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ssmke.errors import ConfigError

_NAMED = re.compile(r"([A-Za-z0-9_.-]+)=(.+)", re.DOTALL)
_WEIGHTED = re.compile(r"(.+)\*([^*/]*)", re.DOTALL)
_NEXT = re.compile(r",(?=[A-Za-z0-9_.-]+=)")

MOST = 1000
"""Larger weights are slips: an epoch would show nothing else."""


@dataclass(frozen=True)
class Part:
    """One dataset of a mixture."""

    place: str
    """Folder or address."""
    weight: float = 1.0
    """How often an epoch shows each of its pairs."""
    name: str = ""
    """For messages; by default the last part of the place."""


def parse_mixture(items: Sequence[str]) -> tuple[Part, ...]:
    """Parts of a mixture.

    Raises:
        ConfigError: a part without a place, or with a weight that is no positive number.
    """
    return tuple(_part(word) for item in items for word in _NEXT.split(item))


def _part(word: str) -> Part:
    place, name, weight = word, "", 1.0
    if named := _NAMED.fullmatch(place):
        name, place = named.groups()
    if weighted := _WEIGHTED.fullmatch(place):
        place, text = weighted.groups()
        try:
            weight = float(text)
        except ValueError:
            weight = 0.0
        if not 0 < weight <= MOST:
            also = "; after a comma, a dataset needs a name (NAME=PLACE)" if "," in text else ""
            raise ConfigError(
                f"--data.shards {word}: the weight {text!r} must be a positive number of at most {MOST}, such as "
                f"{place}*0.5{also}"
            )
    if not place.strip():
        raise ConfigError(f"--data.shards {word!r}: no folder or address")
    return Part(place, weight, name or place.rstrip("/").rpartition("/")[2])
