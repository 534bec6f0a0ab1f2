"""Taking over ledgers that were copied from other machines (`ssmke-cost import`).

Ledgers only grow, so two copies of one file are the same up to the end of the shorter one, and the longer one
holds all: importing again, or importing an older copy, changes nothing. Files that share a name and not their
content (two machines that each called themselves node 0) are both kept. Ledgers of one run find each other by
their lineage, whatever the folders are called. Only ledgers are copied, never followed through links, each
written whole or not at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ssmke.cost.ledger.reader import ledger_files, read_file
from ssmke.cost.ledger.writer import FOLDER
from ssmke.cost.report import find_runs
from ssmke.data.atomic import atomic_writer, make_folder
from ssmke.errors import DataError


@dataclass
class Imported:
    """What an import did, in files; ``runs``: where ledgers were added or grew."""

    new: int = 0
    grown: int = 0
    known: int = 0
    runs: tuple[Path, ...] = ()


def import_ledgers(sources: Iterable[Path], into: Path) -> Imported:
    """Copies the ledgers below ``sources`` into the workspace ``into``.

    DataError for a source that is missing, holds no ledger, or is the workspace itself.
    """
    homes = {segment: run for run in find_runs(into) for segment in _lineages(run)} if into.is_dir() else {}
    done = Imported()
    for source in sources:
        if not source.is_dir():
            raise DataError(f"{source}: no such folder; name a run folder or a folder of run folders")
        if source.resolve() == into.resolve() or into.resolve() in source.resolve().parents:
            raise DataError(f"{source} lies in {into} already: its runs are in the report as they are")
        runs = list(find_runs(source))
        if not runs:
            raise DataError(
                f"{source}: no ledger in it (RUN/cost/ATTEMPT/NODE.jsonl, at most four levels down)"
            )
        for run in runs:
            for lineage, files in _lineages(run).items():
                home = homes.setdefault(lineage, _home(into, source, run, lineage))
                for path in files:
                    _take(path, home / FOLDER / path.parent.name / path.name, home, done)
    return done


def _lineages(run: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in ledger_files(run):
        if path.is_symlink():
            continue
        for lineage in dict.fromkeys(s.lineage for s in read_file(path)):
            found.setdefault(lineage, []).append(path)
    return found


def _home(into: Path, source: Path, run: Path, lineage: str) -> Path:
    name = Path(run.resolve().name) if run == source else run.relative_to(source)
    home = into / name
    if not home.exists():
        return home
    mark = hashlib.sha256(lineage.encode()).hexdigest()[:8]
    return home.with_name(f"{home.name}-{mark}")


def _take(source: Path, target: Path, home: Path, done: Imported) -> None:
    data = source.read_bytes()
    present = target.read_bytes() if target.exists() else b""
    if target.exists() and present.startswith(data):
        done.known += 1
        return
    if target.exists() and not data.startswith(present):
        # Another ledger under the same name; its own name is its start, so that it is found again.
        mark = hashlib.sha256(data.split(b"\n", 1)[0]).hexdigest()[:8]
        target = target.with_name(f"{target.stem}-{mark}.jsonl")
        present = target.read_bytes() if target.exists() else b""
        if target.exists() and present.startswith(data):
            done.known += 1
            return
    if target.exists():
        done.grown += 1
    else:
        done.new += 1
    make_folder(target.parent)
    with atomic_writer(target) as file:
        file.write(data)
    done.runs = tuple(dict.fromkeys((*done.runs, home)))
