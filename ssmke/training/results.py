"""What a run shows when it ends: the closing table, and its cost page in MLflow."""

from __future__ import annotations

import logging
import shlex
from contextlib import suppress
from typing import Any

from ssmke.console import CleanConsole
from ssmke.cost.dashboard import FILE, page_of
from ssmke.evaluation.retrieval import RetrievalMetrics, retrieval_table
from ssmke.recipes import Recipe
from ssmke.screen import clean
from ssmke.tracking import Tracker
from ssmke.tracking.standing import ui_command
from ssmke.training.run_folder import RunFolder

_log = logging.getLogger(__name__)


def print_line(line: str) -> None:
    """Prints ``line`` at once; a log on a full disk loses lines, it does not end a run."""
    with suppress(OSError):
        print(clean(line), flush=True)


def closing_table(
    recipe: Recipe, run: RunFolder, tracker: Tracker, metrics: RetrievalMetrics, results: dict[str, Any]
) -> None:
    """Prints retrieval against chance, throughput, cost, where everything lies, and the next command."""
    console = CleanConsole(width=None if CleanConsole().is_terminal else 120)
    split = recipe.data.eval_split
    measured = (recipe.data.eval_places or recipe.data.places)[0]
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
        ("MLflow", ui_command(tracker.uri) if tracker.uri is not None else "off"),
        (
            "next",
            shlex.join(
                [
                    "ssmke",
                    "evaluate",
                    "retrieval",
                    "--model",
                    f"{run.model}",
                    "--data",
                    measured,
                    "--split",
                    split,
                ]
            ),
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
