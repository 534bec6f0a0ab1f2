"""Whether a run that was hurt ended as the run that nobody disturbed, bit for bit (two CPU ranks are deterministic)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.faults.moments import complete
from ssmke.errors import CheckpointError
from ssmke.training.checkpoint import read


def differences(hurt: Path, unbroken: Path, keep: int) -> list[str]:
    """Between two folders with ``run`` and ``targets``: steps, weights, scores, target cache, checkpoints."""
    if not (hurt / "run/results.json").exists():
        return ["the run did not end"]
    return [
        *_steps(metrics(hurt / "run"), metrics(unbroken / "run")),
        *_files(hurt / "run/model", unbroken / "run/model"),
        *_files(hurt / "targets", unbroken / "targets"),
        *(["the scores differ"] if _scores(hurt / "run") != _scores(unbroken / "run") else []),
        *damaged(hurt / "run"),
        *_kept(hurt / "run", complete(unbroken / "run")[-1].name, keep),
    ]


def metrics(run: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl."""
    try:
        text = (run / "metrics.jsonl").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    lines = []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def damaged(run: Path) -> list[str]:
    """Checkpoints that say that they are complete, and are not."""
    problems = []
    for path in complete(run):
        try:
            read(path)
        except CheckpointError as error:
            problems.append(str(error))
    return problems


def _steps(here: list[dict[str, Any]], there: list[dict[str, Any]]) -> list[str]:
    if len(here) != len(there):
        return [f"{len(here)} steps in metrics.jsonl, not {len(there)}"]
    for one, other in zip(here, there, strict=True):
        if one != other:
            names = ", ".join(name for name in other if one.get(name) != other[name])
            return [f"step {other['step']} differs in {names}"]
    return []


def _files(here: Path, there: Path) -> list[str]:
    wanted = {path.relative_to(there) for path in there.rglob("*") if path.is_file()}
    have = {
        path.relative_to(here) for path in here.rglob("*") if path.is_file() and path.suffix != ".partial"
    }
    problems = [f"{path} is only in one of the runs" for path in sorted(wanted ^ have)]
    problems += [
        f"{path} differs" for path in sorted(wanted & have) if _content(here / path) != _content(there / path)
    ]
    return problems


def _content(path: Path) -> object:
    if path.suffix != ".json":
        return path.read_bytes()
    record = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(record, dict):
        record.pop("seconds", None)  # what a shard of the target cache took
    return record


def _scores(run: Path) -> object:
    return json.loads((run / "results.json").read_text(encoding="utf-8"))["retrieval"]


def _kept(run: Path, last: str, keep: int) -> list[str]:
    names, whole = sorted(p.name for p in (run / "checkpoints").glob("step-*")), complete(run)
    if len(names) > keep or len(whole) != len(names) or last not in names:
        return [f"checkpoints {', '.join(names)}, {len(whole)} of them complete; --checkpoint.keep is {keep}"]
    return []
