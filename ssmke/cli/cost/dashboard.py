"""``ssmke-cost dashboard``: the cost page of a workspace or a run, as a file and in MLflow.

MLflow is imported only where there is a store to log to: its import takes seconds, the page a fraction of one.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ssmke.cli.cost.folder import add_folder, add_prices, folder_of
from ssmke.errors import ConfigError

if TYPE_CHECKING:
    from ssmke.cost.report import Report

DATABASE = "mlflow.db"
EXPERIMENT = "ssmke"
_LEVELS = 3


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser("dashboard", help="the cost page, as a file and in MLflow")
    add_folder(parser)
    add_prices(parser)
    parser.add_argument(
        "--reprice", metavar="PRICE", help="price the runs anew, as --cost.price would (nothing is stored)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: cost_dashboard.html in the folder")
    parser.add_argument(
        "--tracking-uri",
        metavar="URI",
        help=f"MLflow store to log the page to (default: {DATABASE} in or above the folder, if there is one)",
    )
    parser.add_argument(
        "--experiment",
        default=EXPERIMENT,
        help=f"MLflow experiment of the standing run (default: {EXPERIMENT})",
    )
    parser.add_argument("--no-tracking", action="store_true", help="write the file only")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Writes the page, logs it where there is a store, and says how to look at it; exit code 0."""
    from ssmke.cli.cost.report import read
    from ssmke.cli.cost.terminal import say
    from ssmke.cost.dashboard import FILE, page_of
    from ssmke.words import counted

    if arguments.no_tracking and arguments.tracking_uri:
        raise ConfigError("--no-tracking and --tracking-uri contradict each other: give one of them")
    folder = folder_of(arguments)
    out: Path = arguments.out or folder / FILE
    if out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out {out}: the page is HTML, so call it .html")
    uri = None if arguments.no_tracking else _uri(arguments.tracking_uri, folder)
    found = read(arguments)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page_of(folder, found), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written: {error.strerror}") from error
    say(f"page        {out.resolve()} ({counted(len(found.runs), 'run')})")
    if uri is not None:
        _publish(arguments, folder, found, out, uri)
    elif not arguments.no_tracking:
        say(f"MLflow      no {DATABASE} in or above {folder}: give --tracking-uri to log the page there too")
    return 0


def _publish(arguments: argparse.Namespace, folder: Path, found: Report, page: Path, uri: str) -> None:
    from ssmke.cli.cost.terminal import say
    from ssmke.cost.dashboard import is_run
    from ssmke.tracking.standing import publish_run, publish_workspace

    known = folder / "mlflow_run_id"
    if is_run(found) and known.is_file():
        where = publish_run(page, known.read_text(encoding="utf-8").strip(), uri=uri)
    else:
        metrics = {"cost/device_hours": found.project.device_hours}
        if found.project_usd is not None:
            metrics["cost/usd_total"] = float(found.project_usd)
        where = publish_workspace(
            page, uri=uri, experiment=arguments.experiment, artifacts=folder / "mlartifacts", metrics=metrics
        )
    say(f"MLflow      logged to run {where.run_id} of experiment {where.experiment_id}")
    if where.command is not None:
        say(f"to look     {where.command}")
    say(f"            {where.address}")


def _uri(given: str | None, folder: Path) -> str | None:
    """The store's address, absolute where it is a local database."""
    if given is not None:
        from ssmke.tracking.tracker import TrackingConfig

        if not re.match(r"[a-z+]+:", given):
            raise ConfigError(
                f"--tracking-uri {given!r}: give sqlite:///path/to/{DATABASE} or https://server"
            )
        return TrackingConfig(uri=given).resolved_uri(Path.cwd())
    here = folder.resolve()
    for place in (here, *here.parents[:_LEVELS]):
        if (place / DATABASE).is_file():
            return f"sqlite:///{place / DATABASE}"
    return None
