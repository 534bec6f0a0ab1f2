"""What a finished (or broken off) run says about its model, read from its folder; None where it says nothing.

The files may come from elsewhere, so a value of another kind counts as missing: a card must never show a number that
nobody measured. Dollars, hours and energy are those of the ledger, all attempts and their waste included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssmke import foreign_json
from ssmke.cost.report import RunReport, report
from ssmke.data.manifest import Manifest
from ssmke.data.mixture import parse_mixture
from ssmke.errors import DataError, SSMKEError


@dataclass(frozen=True)
class DataFacts:
    """One dataset that was trained on."""

    name: str
    """As its manifest calls it; where that cannot be read, the last part of its address."""
    images: int | None
    """Images of the split that was trained on."""
    captions: int | None
    """Captions of them."""
    weight: float
    """How often each pair came an epoch."""


@dataclass(frozen=True)
class RunFacts:
    """What is known of a run."""

    recipe: Mapping[str, Any]
    """The resolved recipe, nested dictionaries."""
    results: Mapping[str, Any] | None
    """results.json; None: the run did not end."""
    data: tuple[DataFacts, ...]
    """What it was trained on."""
    cost: RunReport | None
    """Its ledger's report; None: no ledger."""

    def setting(self, name: str) -> Any:
        """A field of the recipe by its dotted name; None if there is none."""
        value: Any = self.recipe
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def result(self, name: str) -> Any:
        """An entry of results.json; None if there is none."""
        return None if self.results is None else self.results.get(name)

    def score(self, name: str) -> float | None:
        """One number of the retrieval scores."""
        scores = self.result("retrieval")
        value = scores.get(name) if isinstance(scores, Mapping) else None
        return float(value) if isinstance(value, (int, float)) and value == value else None


def read_run(run: Path) -> RunFacts:
    """What the folder of a training run says.

    Raises:
        DataError: there is no run in the folder, or one of its JSON files is damaged.
    """
    recipe = _object(run / "recipe.json")
    if recipe is None:
        raise DataError(f"{run} has no recipe.json: name the folder of a training run (--run RUN)")
    costs = report(run).runs
    facts = RunFacts(recipe, _object(run / "results.json"), (), costs[0] if len(costs) == 1 else None)
    words, split = facts.setting("data.shards"), facts.setting("data.split")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        return facts
    try:
        parts = parse_mixture(words)
    except SSMKEError:
        return facts
    data = tuple(_dataset(part.place, str(split), part.weight) for part in parts)
    return RunFacts(facts.recipe, facts.results, data, facts.cost)


def _dataset(place: str, split: str, weight: float) -> DataFacts:
    try:
        manifest = Manifest.load(Path(place))
        return DataFacts(
            manifest.name, manifest.splits[split].images, manifest.splits[split].captions, weight
        )
    except (SSMKEError, OSError, KeyError):  # moved, remote, or another split
        return DataFacts(place.rstrip("/").rsplit("/", 1)[-1], None, None, weight)


def _object(file: Path) -> dict[str, Any] | None:
    try:
        value = foreign_json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error}): restore it, or train again") from None
    if not isinstance(value, dict):
        raise DataError(f"{file} is no JSON object: restore it, or train again")
    return value
