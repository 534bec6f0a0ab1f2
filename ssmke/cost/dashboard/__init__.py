"""The cost dashboard: one self-contained HTML page for a run, and one for a workspace.

No script and nothing fetched, so a page works in MLflow's sandboxed artifact frame, from a disk, and in ten
years. ``run_page`` and ``workspace_page`` are data in, text out; ``page_of`` reads a folder for them;
`ssmke.tracking.standing` takes a page to MLflow. About 20 ms and 100 to 200 KB a page.
"""

from __future__ import annotations

from pathlib import Path

from ssmke.cost.dashboard.run import run_page
from ssmke.cost.dashboard.workspace import MOST_TRACKED, workspace_page
from ssmke.cost.ledger.reader import Series, read_series
from ssmke.cost.report import Report, report

FILE = "cost_dashboard.html"

__all__ = ["FILE", "is_run", "page_of", "run_page", "workspace_page"]


def page_of(folder: Path, found: Report | None = None) -> str:
    """The page of a run folder, or of a folder of run folders. ``found``: its report, if there is one already."""
    found = found or report(folder)
    if is_run(found):
        [run] = found.runs
        return run_page(run, read_series(run.path), found.baselines, found.unread)
    newest = sorted(found.runs, key=lambda r: -r.began_wall_ns)[: 2 * MOST_TRACKED]
    series: dict[str, list[Series]] = {run.lineage: read_series(run.path) for run in newest}
    return workspace_page(found, series)


def is_run(found: Report) -> bool:
    """Whether a report's root is itself a run folder."""
    return len(found.runs) == 1 and found.runs[0].path == found.root
