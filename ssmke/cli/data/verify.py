"""`ssmke data verify`: read everything again, list what is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table
from tyro.conf import Positional

from ssmke.cli.data.terminal import CORES, console, print_dataset, progress
from ssmke.errors import ConfigError

if TYPE_CHECKING:
    from ssmke.data.verify import VerifyReport


def verify(directory: Positional[str], workers: int = CORES, limit: int = 50) -> int:
    """Read a whole dataset again and list all that is wrong with it; exit code 1 if anything is.

    Args:
        directory: folder or address of the dataset.
        workers: processes.
        limit: problems to print; 0 prints all.
    """
    from ssmke.data.verify import verify as check

    if limit < 0:
        raise ConfigError(f"--limit {limit}: must be 0 (all) or more")
    with progress("verifying") as (on_total, on_items):
        report = check(directory, workers, on_total, on_items)
    print_dataset(directory, report.manifest)
    _print_problems(report, limit)
    return 0 if report.ok else 1


def _print_problems(report: VerifyReport, limit: int) -> None:
    out = console()
    if report.ok:
        out.print(f"[green]all is well[/]: everything was read again in {report.seconds:.1f} s.")
        return
    shown = report.problems[: limit or None]
    table = Table(title=f"{len(report.problems):,} problems", title_justify="left", title_style="bold red")
    for name in ("file", "sample", "what is wrong"):
        table.add_column(name, overflow="fold")
    for problem in shown:
        table.add_row(escape(problem.file), escape(problem.sample), escape(problem.what))
    out.print(table)
    if len(shown) < len(report.problems):
        out.print(f"... and {len(report.problems) - len(shown):,} more: --limit 0 prints all.")
