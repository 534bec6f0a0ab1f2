"""What a run shows when it ends: the closing table, and its cost page in MLflow."""

from __future__ import annotations

import logging
from typing import Any

from rich.console import Console

from ssmke.cost.dashboard import FILE, page_of
from ssmke.evaluation.retrieval import RetrievalMetrics, retrieval_table
from ssmke.recipes import Recipe
from ssmke.tracking import Tracker
from ssmke.training.run_folder import RunFolder

_log = logging.getLogger(__name__)


def closing_table(
    recipe: Recipe, run: RunFolder, tracker: Tracker, metrics: RetrievalMetrics, results: dict[str, Any]
) -> None:
    """Prints retrieval against chance, throughput, cost, where everything lies, and the next command."""
    console = Console(width=None if Console().is_terminal else 120)
    split = recipe.data.eval_split
    console.print()
    console.print(
        retrieval_table(
            metrics, f"{recipe.name}: {split}, {metrics.images:,} images, {metrics.captions:,} captions"
        )
    )
    usd, wasted = results["usd"], results["usd_wasted"]
    spent = f"unknown ({results['price']})" if usd is None else f"${usd:.4f} ({results['price']})"
    if wasted:
        spent += f", ${wasted:.4f} of it lost to crashes and stops"
    for name, value in (
        (
            "pairs/s",
            f"{results['pairs_per_second']:,.0f} ({results['pairs']:,} pairs in {results['steps']:,} steps)",
        ),
        ("device-hours", f"{results['device_hours']:.4f}"),
        ("dollars", spent),
        ("run", str(run.path)),
        ("model", str(run.model)),
        ("checkpoints", str(run.checkpoints)),
        ("MLflow", f"mlflow ui --backend-store-uri {tracker.uri}" if tracker.enabled else "off"),
        (
            "next",
            f"ssmke evaluate retrieval --model {run.model} --data {recipe.data.shards[0]} --split {split}",
        ),
    ):
        # Unwrapped, so that a path or command can be copied whole.
        console.print(f"{name:<13} {value}", soft_wrap=True, highlight=False, markup=False)


def leave_dashboard(run: RunFolder, tracker: Tracker) -> None:
    """The cost page of the run so far, however it ended, as an artifact (rank 0; never a reason to fail)."""
    if not tracker.enabled:
        return
    try:
        tracker.text(FILE, page_of(run.path))
    except Exception as error:
        _log.warning("cost: the dashboard was not made: %s: %s", type(error).__name__, error)
