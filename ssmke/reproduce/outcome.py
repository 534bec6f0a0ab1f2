"""What came out of a table's steps, read from their files: scores with intervals, cost, learning curves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssmke.cost.report import Report, report
from ssmke.errors import DataError
from ssmke.reproduce.steps import Places
from ssmke.reproduce.variants import SCALE, VARIANTS, ScaleName, Table

KS = (1, 5, 10)
PUBLISHED = Path(__file__).with_name("published.json")


@dataclass(frozen=True)
class Score:
    """A number in percent, with the 95 % interval over images."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Outcome:
    """What is known of a variant; empty where it has not run."""

    scores: dict[tuple[str, str], Score] = field(default_factory=dict)
    """By (data folder, name): "i2t_r1", ..., "mean_r1"."""
    loss: tuple[float, ...] = ()
    """Of the contrastive part, a step each: what all variants have in common."""
    device_hours: float | None = None
    """Of its training and the distillation of its halves; not of the model that it is finetuned from."""
    usd: float | None = None


def outcomes(tables: Sequence[Table], scale: ScaleName, places: Places) -> dict[str, Outcome]:
    """What there is of every variant of ``tables``; DataError for a result file that is damaged."""
    costs = report(places.root / "runs") if (places.root / "runs").exists() else None
    return {
        key: _outcome(key, scale, places, costs)
        for key in dict.fromkeys(key for table in tables for key in table.variants)
        if scale in VARIANTS[key].flags
    }


def published() -> dict[str, Any]:
    """The published figures and their source."""
    found: dict[str, Any] = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    return found


def _outcome(key: str, scale: ScaleName, places: Places, costs: Report | None) -> Outcome:
    scores: dict[tuple[str, str], Score] = {}
    for data in SCALE[scale].scored_on:
        path = places.result(key, data)
        if path.exists():
            scores |= {(data, name): score for name, score in _scores(path).items()}
    names = (key, *VARIANTS[key].halves)
    own = [run.usage for run in costs.runs if run.name in names] if costs is not None else []
    known = [float(usage.usd) for usage in own if usage.usd is not None]
    return Outcome(
        scores,
        _curve(places.run(key) / "metrics.jsonl"),
        sum(usage.device_hours for usage in own) if own else None,
        sum(known) if own and len(known) == len(own) else None,
    )


def _scores(path: Path) -> dict[str, Score]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        metrics, intervals = found["metrics"], found["intervals"]
        return {
            name: Score(float(metrics[name]), *map(float, ends))
            for name, ends in intervals.items()
            if isinstance(ends, list)
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is damaged ({type(error).__name__}: {error}): remove it, and the same command scores again"
        ) from None


def _curve(path: Path) -> tuple[float, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ()
    values = []
    for line in lines:
        try:
            values.append(float(json.loads(line)["contrast"]))
        except (ValueError, KeyError, TypeError):  # a line cut short by a kill
            continue
    return tuple(values)
