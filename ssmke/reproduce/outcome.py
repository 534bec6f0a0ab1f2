"""What came out of a table's steps, read from their files: scores with intervals, cost, learning curves.

Of several seeds, what `ssmke evaluate` gives of several models of one recipe: mean and standard deviation (n - 1,
`ssmke.evaluation.intervals.aggregate`). Which seeds are there decides, not which were asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssmke.cost.report import Report, RunReport, report
from ssmke.errors import DataError
from ssmke.evaluation.intervals import aggregate
from ssmke.reproduce.steps import Places, zero_shot_of
from ssmke.reproduce.suites import ALONE, FINETUNED, ZERO_SHOT, Number
from ssmke.reproduce.variants import SCALE, VARIANTS, ScaleName, Table

KS = (1, 5, 10)
PUBLISHED = Path(__file__).with_name("published.json")


@dataclass(frozen=True)
class Score:
    """A number in percent: of one seed, or the mean over several."""

    value: float
    low: float | None
    high: float | None
    """Ends of the 95 % interval over images; of several seeds, means of the ends. None: it has none."""
    std: float | None = None
    """Standard deviation over seeds (n - 1); None of one."""
    seeds: tuple[tuple[int, float], ...] = ()
    """Each seed's number, where there are several."""


@dataclass(frozen=True)
class Factors:
    """How much a training saw."""

    pairs: int
    steps: int
    batch: int


@dataclass(frozen=True)
class Outcome:
    """What is known of a variant; empty where it has not run."""

    scores: dict[tuple[str, str], Score] = field(default_factory=dict)
    """By (data folder, name): "i2t_r1", ..., "mean_r1"; of a suite, its `Number`."""
    loss: tuple[float, ...] = ()
    """Of the softmax contrast, a step each: what nearly all variants have in common. The mean over seeds."""
    device_hours: float | None = None
    """Of its training and the distillation of its halves, the mean over seeds; not of the model that it is finetuned
    from."""
    usd: float | None = None
    factors: Factors | None = None


def costs_of(places: Places) -> Report | None:
    """What all runs cost; None where there are none."""
    return report(places.root / "runs") if (places.root / "runs").exists() else None


def outcomes(
    tables: Sequence[Table], scale: ScaleName, places: Places, costs: Report | None = None
) -> dict[str, Outcome]:
    """What there is of every variant and row of ``tables``; DataError for a result file that is damaged."""
    costs = costs or costs_of(places)
    named = zero_shot_of(tables, scale)
    found = {
        key: _outcome(key, scale, places, costs, key in named)
        for key in dict.fromkeys(key for table in tables for key in table.variants)
        if scale in VARIANTS[key].flags
    }
    if any(table.kind == "alone" for table in tables):
        suites = [(suite.data, suite.number) for suite in FINETUNED.get(scale, ())]
        found |= {key: Outcome(_suite_scores(key, suites, places)) for key in ALONE}
    return found


def published() -> dict[str, Any]:
    """The published figures and their source."""
    found: dict[str, Any] = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    return found


def _outcome(key: str, scale: ScaleName, places: Places, costs: Report | None, zero_shot: bool) -> Outcome:
    scores: dict[tuple[str, str], Score] = {}
    for data in SCALE[scale].scored_on:
        files = {seed: places.result(key, data, seed) for seed in places.seeds}
        each = {seed: _retrieval(path) for seed, path in files.items() if path.exists()}
        for name in dict.fromkeys(name for one in each.values() for name in one):
            scores[data, name] = _over_seeds({seed: one[name] for seed, one in each.items() if name in one})
    if zero_shot:
        scores |= _suite_scores(key, [(ZERO_SHOT[scale].data, ZERO_SHOT[scale].number)], places)
    trained = [seed for seed in places.seeds if (places.run(key, seed) / "results.json").exists()]
    curves = [_curve(places.run(key, seed) / "metrics.jsonl") for seed in trained or places.seeds[:1]]
    paid = [_paid(key, seed, places, costs) for seed in trained or places.seeds[:1]]
    hours = [sum(run.usage.device_hours for run in runs) for runs in paid if runs]
    usd = [[run.usage.usd for run in runs] for runs in paid if runs]
    known = [sum(float(amount) for amount in run if amount is not None) for run in usd if None not in run]
    return Outcome(
        scores,
        tuple(sum(step) / len(curves) for step in zip(*curves, strict=False)),
        sum(hours) / len(hours) if hours else None,
        sum(known) / len(known) if known and len(known) == len(usd) else None,
        _factors(places.run(key)),
    )


def _over_seeds(found: Mapping[int, Score]) -> Score:
    """One score of those of the seeds."""
    if len(found) == 1:
        return next(iter(found.values()))
    together = aggregate([{"value": score.value} for score in found.values()])["value"]
    lows, highs = (
        [end for score in found.values() if (end := getattr(score, name)) is not None]
        for name in ("low", "high")
    )
    return Score(
        together.mean,
        sum(lows) / len(lows) if lows else None,
        sum(highs) / len(highs) if highs else None,
        together.std,
        tuple((seed, score.value) for seed, score in found.items()),
    )


def _suite_scores(
    key: str, suites: Sequence[tuple[str, Number]], places: Places
) -> dict[tuple[str, str], Score]:
    scores: dict[tuple[str, str], Score] = {}
    for data, number in suites:
        files = {seed: places.result(key, data, seed) for seed in places.seeds}
        each = {seed: _suite_score(path, number) for seed, path in files.items() if path.exists()}
        if each:
            scores[data, number] = _over_seeds(each)
    return scores


def _paid(key: str, seed: int, places: Places, costs: Report | None) -> list[RunReport]:
    names = {places.run(part, seed).name for part in (key, *VARIANTS[key].halves)}
    return [] if costs is None else [run for run in costs.runs if run.name in names]


def _retrieval(path: Path) -> dict[str, Score]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        metrics, intervals = found["metrics"], found["intervals"]
        return {
            name: _score(metrics[name], ends) for name, ends in intervals.items() if isinstance(ends, list)
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from None


def _suite_score(path: Path, number: Number) -> Score:
    """The number of a suite's results: `ssmke evaluate` was given one model and one seed."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if number == "glue-mean":
            return Score(float(found["means"]["mean"]["mean"]), None, None)
        if number == "top1":
            return _score(found["metrics"]["top1"], found["intervals"]["top1"])
        [seed] = found["seeds"].values()
        return _score(seed["top1"], seed["top1_interval"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from None


def _score(value: Any, interval: Any) -> Score:
    low, high = interval
    return Score(float(value), float(low), float(high))


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} is damaged ({type(error).__name__}: {error}): remove it, and the same command scores again"
    )


def _factors(run: Path) -> Factors | None:
    """None where the run has not ended, or notes none."""
    try:
        results, recipe = (
            json.loads((run / name).read_text(encoding="utf-8")) for name in ("results.json", "recipe.json")
        )
        return Factors(int(results["pairs"]), int(results["steps"]), int(recipe["optim"]["batch_size"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _curve(path: Path) -> tuple[float, ...]:
    """The softmax contrast of each step; nothing of a sigmoid, whose sum over captions is another quantity."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ()
    values = []
    for line in lines:
        try:
            step = json.loads(line)
            if "bias.output" in step:
                return ()
            values.append(float(step["contrast"]))
        except (ValueError, KeyError, TypeError):  # a line cut short by a kill
            continue
    return tuple(values)
