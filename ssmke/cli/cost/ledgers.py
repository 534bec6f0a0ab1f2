"""``ssmke-cost reconcile`` and ``ssmke-cost import``: dead attempts closed, ledgers of other machines taken over."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from ssmke.cli.cost.folder import add_folder, folder_of
from ssmke.cli.cost.terminal import say


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds both commands."""
    one = commands.add_parser(
        "reconcile",
        help="closes the ledgers and MLflow runs of attempts whose process died",
        description="Closes the ledgers and MLflow runs of attempts whose process died. No total changes: what was "
        "paid ends one heartbeat after the last record, closed or not.",
    )
    add_folder(one)
    one.add_argument(
        "--tracking-uri",
        help="MLflow store of the runs (default: what they logged to, else mlflow.db beside them)",
    )
    one.add_argument("--dry-run", action="store_true", help="says what would be closed, and closes nothing")
    one.set_defaults(run=_reconcile)
    other = commands.add_parser(
        "import",
        help="takes over ledgers that were copied from other machines",
        description="Copies the ledgers of run folders from other machines into this workspace. Ledgers of a run that "
        "is here already join it; importing again changes nothing.",
    )
    other.add_argument("sources", nargs="+", type=Path, help="run folders, or folders of run folders")
    other.add_argument("--into", type=Path, help="the workspace (default: runs, else .)")
    other.set_defaults(run=_import)


def _reconcile(arguments: argparse.Namespace) -> int:
    from ssmke.cost.ledger.reconcile import close, find_open
    from ssmke.cost.machine import Machine

    root = folder_of(arguments)
    found = find_open(root, machine=Machine.this(), now_wall_ns=time.time_ns())
    closed = failed = 0
    for ledger in found:
        name = f"{ledger.path.relative_to(root)}"
        if not ledger.dead:
            say(f"{name}: open, {ledger.why}")
            continue
        step = "before its first step" if ledger.segment.step is None else f"at step {ledger.segment.step:,}"
        if arguments.dry_run:
            say(f"{name}: would be closed, {ledger.why}; it died {step}")
            continue
        try:
            closed += close(ledger)
        except OSError as error:
            failed += 1
            say(f"{name}: cannot be closed: {error.strerror}")
        else:
            say(f"{name}: closed as killed, {ledger.why}; it died {step}")
    if not arguments.dry_run:
        failed += _close_in_mlflow(root, arguments.tracking_uri)
    say(f"{closed} closed, {sum(not ledger.dead for ledger in found)} still open")
    return 1 if failed else 0


def _close_in_mlflow(root: Path, uri: str | None) -> int:
    """Closes MLflow's runs of all trainings whose last attempt is known to be dead, now or since an earlier call."""
    from ssmke.cost.ledger.reconcile import dead_runs
    from ssmke.errors import ConfigError
    from ssmke.tracking.closing import close_run

    failed = 0
    for run_dir, ended_wall_ns in dead_runs(root):
        try:
            told = close_run(run_dir, ended_wall_ns=ended_wall_ns, uri=uri)
        except ConfigError as error:
            failed += 1
            told = f"{error}"
        if told:
            say(f"{run_dir.relative_to(root)}: {told}")
    return failed


def _import(arguments: argparse.Namespace) -> int:
    from ssmke.cost.ledger.collect import import_ledgers

    into = arguments.into or (Path("runs") if Path("runs").is_dir() else Path())
    done = import_ledgers(arguments.sources, into)
    for run in done.runs:
        say(f"{run}")
    say(
        f"{done.new} ledgers are new, {done.grown} have grown, {done.known} were here already; see `ssmke-cost report`"
    )
    return 0
