"""Quality against dollars, one panel per test set, and the front of what nobody beats on both.

R@1 on one test set says nothing about another, so points share a panel only where data set, split, number of
images and number of captions are the same. A run's are what its evaluation noted (``eval_data``, or else its
recipe; ``eval_split``; images and captions of ``retrieval``); the published ones are in ``data/quality.json``
with their source, and their dollars are computed by ``baselines`` and ``thesis`` from factors.

A model whose cost or quality is unknown stays in its panel, off the axis: it is neither free nor bad. The
front takes dollars as they are drawn (as cited, else on demand); only known points can be on it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from ssmke.cost.published.baselines import Baseline, Span
from ssmke.cost.published.thesis import Thesis, load_thesis
from ssmke.cost.report import RunReport

QUALITY = Path(__file__).parents[1] / "data" / "quality.json"
MOST_OWN = 40


@dataclass(frozen=True)
class EvalSet:
    """What quality was measured on: equal ones may share an axis."""

    dataset: str
    split: str
    images: int | None
    captions: int | None
    name: str = field(default="", compare=False)

    @property
    def title(self) -> str:
        return self.name or f"{self.dataset} {self.split}"

    @property
    def size(self) -> str:
        """ "1,000 images, 5,000 captions"."""
        parts = [(self.images, "images"), (self.captions, "captions")]
        return ", ".join(f"{n:,} {what}" for n, what in parts if n is not None)


@dataclass(frozen=True)
class Point:
    """A model on a test. ``quality``: mean R@1 of both directions, percent. None: unknown.

    ``span``: dollars over the price bases that are known. ``lower_bound``: some time had no price.
    """

    name: str
    usd: Decimal | None
    quality: float | None
    own: bool
    setting: str = ""
    recall: tuple[float, float] | None = None
    span: Span | None = None
    lower_bound: bool = False
    note: str = ""


@dataclass(frozen=True)
class Panel:
    """All that may be compared with each other."""

    test: EvalSet
    points: tuple[Point, ...]

    @property
    def front(self) -> tuple[Point, ...]:
        """Points that no other equals for less or beats for the same, cheapest first."""
        return front(self.points)

    @property
    def own(self) -> int:
        """How many of them are runs of one's own."""
        return sum(p.own for p in self.points)

    @property
    def drawn(self) -> Panel:
        """The panel as it can be read: the front, all published models, and of one's own runs the best few."""
        if self.own <= MOST_OWN:
            return self
        best = {id(p) for p in self.front if p.own}
        order = sorted(
            (p for p in self.points if p.own), key=lambda p: (id(p) not in best, -(p.quality or 0.0))
        )
        kept = {id(p) for p in order[: max(MOST_OWN, len(best))]}
        return Panel(self.test, tuple(p for p in self.points if not p.own or id(p) in kept))


def front(points: Iterable[Point]) -> tuple[Point, ...]:
    """The Pareto front, in n log n: dollars and quality both rise strictly along it."""
    known = [(p.usd, -p.quality, p.name, p) for p in points if p.usd is not None and p.quality is not None]
    best: list[Point] = []
    for _, _, _, point in sorted(known, key=lambda k: k[:3]):
        if not best or (point.quality or 0.0) > (best[-1].quality or 0.0):
            best.append(point)
    return tuple(best)


def panels(
    runs: Sequence[RunReport],
    baselines: Sequence[Baseline],
    *,
    thesis: Thesis | None = None,
    path: Path = QUALITY,
) -> tuple[Panel, ...]:
    """A panel per test: those with runs of one's own first, then the published ones."""
    found: dict[EvalSet, list[Point]] = {}
    for run in runs:
        test = eval_set_of(run)
        if test is not None:
            found.setdefault(test, []).append(_own(run))
    mine = list(found)
    for test, points in _published(baselines, thesis or load_thesis(), path).items():
        # The published test's name, even where a run came first.
        known = found.pop(test, [])
        found[test] = [*known, *points]
    order = sorted(found, key=lambda t: (t not in mine, not t.name, t.title))
    return tuple(Panel(test, tuple(found[test])) for test in order)


def eval_set_of(run: RunReport) -> EvalSet | None:
    """What a run was evaluated on; None if it was not, or did not say which split."""
    scores = run.facts.get("retrieval")
    if run.recall_at_1 is None or run.eval_split is None or not isinstance(scores, dict):
        return None
    data = run.facts.get("eval_data") or run.facts.get("recipe") or "unnamed data"
    return EvalSet(str(data), run.eval_split, _whole(scores.get("images")), _whole(scores.get("captions")))


def _own(run: RunReport) -> Point:
    recall = run.recall_at_1
    usd = run.usage.usd
    return Point(
        name=run.name,
        usd=usd if usd else None,
        quality=None if recall is None else sum(recall) / 2,
        own=True,
        recall=recall,
        lower_bound=run.usage.usd_partial,
        note="the lineage: every attempt, waste included",
    )


def _published(baselines: Sequence[Baseline], thesis: Thesis, path: Path) -> Mapping[EvalSet, list[Point]]:
    data = json.loads(path.read_text(encoding="utf-8"))
    costs = _Costs(baselines, thesis)
    found: dict[EvalSet, list[Point]] = {}
    for entry in data["tests"]:
        test = EvalSet(entry["dataset"], entry["split"], entry["images"], entry["captions"], entry["name"])
        found[test] = [
            _point(model, model["r1"][entry["key"]], costs)
            for model in data["models"]
            if entry["key"] in model["r1"]
        ]
    return found


def _point(model: Mapping[str, Any], r1: Sequence[str], costs: _Costs) -> Point:
    recall = (float(r1[0]), float(r1[1]))
    usd, span = costs.of(model["cost"])
    return Point(
        name=model["name"],
        usd=usd,
        quality=sum(recall) / 2,
        own=False,
        setting=model["setting"],
        recall=recall,
        span=span,
        note=model["note"],
    )


class _Costs:
    """Dollars of published models: the one to draw, and the interval over all bases."""

    def __init__(self, baselines: Sequence[Baseline], thesis: Thesis) -> None:
        self._baselines = {b.name: b for b in baselines}
        self._thesis = thesis
        self._models = {m.name: m for m in thesis.models}

    def of(self, cost: Mapping[str, str] | None) -> tuple[Decimal | None, Span | None]:
        if cost is None:
            return None, None
        if "thesis" in cost:
            here, there = self._thesis.usd(self._models[cost["thesis"]])
            return here, (min(here, there), max(here, there))
        baseline = self._baselines.get(cost["baseline"])
        return (None, None) if baseline is None else (drawn(baseline), interval(baseline))


def drawn(baseline: Baseline) -> Decimal | None:
    """The dollars to draw a baseline at: as cited, else the middle of its estimate."""
    span = baseline.estimate
    return baseline.usd if baseline.usd is not None or span is None else (span[0] + span[1]) / 2


def interval(baseline: Baseline) -> Span | None:
    """From the cheapest to the dearest of a baseline's bases."""
    spans = [basis.usd for basis in baseline.bases if basis.usd is not None]
    if not spans:
        return None
    return min(s[0] for s in spans), max(s[1] for s in spans)


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
