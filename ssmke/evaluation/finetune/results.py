"""Results over seeds: what goes into the JSON and into the table."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table

from ssmke.evaluation.finetune.loop import Scores
from ssmke.evaluation.intervals import aggregate

_NOT_SCORES = ("epoch", "images", "examples", "sentences")


def over_seeds(histories: dict[int, list[Scores]]) -> dict[str, Any]:
    """Last epoch of each seed, mean and standard deviation (n - 1; None of one seed), and all epochs."""
    last = {seed: history[-1] for seed, history in histories.items()}
    numbers = [_numbers(scores) for scores in last.values()]
    if len(numbers) > 1:
        found = aggregate(numbers)
        metrics: dict[str, dict[str, float | None]] = {
            name: {"mean": one.mean, "std": one.std} for name, one in found.items()
        }
    else:
        metrics = {name: {"mean": value, "std": None} for name, value in numbers[0].items()}
    return {
        "metrics": metrics,
        "seeds": {str(seed): scores for seed, scores in last.items()},
        "epochs": {str(seed): history for seed, history in histories.items()},
    }


def metrics_table(rows: dict[str, dict[str, Any]], title: str, baselines: dict[str, float]) -> Table:
    """A row for each result of `over_seeds`, named by its key; ``baselines``: numbers to put beside, by metric."""
    table = Table(title=escape(title), title_justify="left")
    for name, justify in (
        ("", "left"),
        ("metric", "left"),
        ("%", "right"),
        ("", "left"),
        ("chance", "right"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for row, result in rows.items():
        first = True
        for name, found in result["metrics"].items():
            if name == "loss" or name.startswith(("chance_", "majority_")):
                continue
            chance = baselines.get(name)
            table.add_row(
                row if first else "",
                name,
                f"{found['mean']:.2f}",
                _spread(name, result),
                "" if chance is None else f"{chance:.2f}",
            )
            first = False
    return table


def _spread(name: str, result: dict[str, Any]) -> str:
    """± over seeds; of one seed, the interval over samples where there is one."""
    std, seeds = result["metrics"][name]["std"], result["seeds"]
    if std is not None:
        return f"± {std:.2f} ({len(seeds)} seeds)"
    interval = next(iter(seeds.values())).get(f"{name}_interval")
    return "" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"


def _numbers(scores: Scores) -> dict[str, float]:
    return {
        name: value
        for name, value in scores.items()
        if isinstance(value, (int, float)) and name not in _NOT_SCORES
    }
