"""Fuzzes every reader of foreign files under coverage guidance: any bytes give a result or one of our errors.

    python -m benchmarks.fuzz [--seconds 60] [--target NAME ...] [--out benchmarks/results/fuzz-cpu.md] [--keep DIR]

Needs atheris (`pip install 'ssmke[fuzz]'`). Each target runs in a process of its own, from real files, with changes
that keep the form of a file (`fuzzing.mutations`) beside libFuzzer's own. What breaks the property (`fuzzing.guard`) is
counted once for each place that it comes from, its input is kept below ``--keep``, and the run goes on; a process that
dies or hangs in C is a finding too, and ends its target. Exit code 1 if anything was found.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
import types
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_GROUPS = ("data", "sources", "models", "money")
_STARTS_S = 180
"""Seconds that a target may take to start and to end on a busy machine."""
_HANGS_S = 60
"""Seconds after which libFuzzer gives up on one input."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--target", nargs="*", default=[])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--keep", type=Path, help="folder for inputs that break the property")
    parser.add_argument("--child", nargs=2, metavar=("TARGET", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        sys.exit("error: coverage-guided fuzzing needs atheris: pip install atheris (or 'ssmke[fuzz]')")
    if arguments.child is not None:
        _fuzz(arguments.child[0], Path(arguments.child[1]), arguments.seconds)
        return
    from benchmarks.fuzzing.targets import TARGETS
    from benchmarks.machine import describe, publish

    wanted = arguments.target or list(TARGETS)
    if unknown := sorted(set(wanted) - set(TARGETS)):
        sys.exit(f"error: --target {unknown[0]}: there is {', '.join(TARGETS)}")
    rows, found = [], 0
    with contextlib.ExitStack() as stack:
        keep = arguments.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in wanted:
            row = _campaign(name, arguments.seconds, keep / name)
            found += len(row["findings"])
            rows.append(row)
            print(f"{name}: {row['executions']:,} executions, {len(row['findings'])} findings", flush=True)
    text = (
        f"# Readers of foreign files under fuzzing\n\nMeasured with `python -m benchmarks.fuzz --seconds "
        f"{arguments.seconds:g}` on {describe()}; one process a target, "
        f"load {os.getloadavg()[0]:.1f} at the end.\n\n{table(rows)}"
    )
    publish(text, arguments.out)
    sys.exit(1 if found else 0)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: what was run, how fast, and what it found."""
    lines = [
        "| target | executions | executions/s | seconds | read | edges | findings |",
        "| --- | --: | --: | --: | --: | --: | --- |",
    ]
    for row in rows:
        count, seconds = row["executions"], row["seconds"]
        findings = "; ".join(row["findings"]).replace("|", "\\|") or "none"
        lines.append(
            f"| {row['target']} | {count:,} | {count / max(seconds, 0.001):,.0f} | {seconds:.0f} | "
            f"{row['results'] / max(count, 1):.0%} | {row['edges']} | {findings} |"
        )
    return "\n".join(lines) + "\n"


def _campaign(name: str, seconds: float, folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "benchmarks.fuzz",
        "--seconds",
        str(seconds),
        "--child",
        name,
        str(folder),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    with (folder / "output.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            code: int | str = process.wait(seconds + _STARTS_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = "none, it had to be killed"
    log_text = (folder / "output.log").read_text(errors="replace")
    row: dict[str, Any] = {"target": name, "executions": 0, "seconds": 0.0, "results": 0, "findings": []}
    if report.exists():
        row |= json.loads(report.read_text())
    coverage = [line.split(" cov: ")[1].split()[0] for line in log_text.splitlines() if " cov: " in line]
    row["edges"] = coverage[-1] if coverage else "?"
    if code != 0:
        last = (log_text.strip().splitlines() or ["no output"])[-1]
        row["findings"].append(f"the process ended with code {code}: {last[:120]}")
    return row


def _fuzz(name: str, folder: Path, seconds: float) -> None:
    """Fuzzes one target in this process, and ends it."""
    atheris = importlib.import_module("atheris")

    with atheris.instrument_imports(include=["ssmke"], enable_loader_override=False):
        targets = importlib.import_module("benchmarks.fuzzing.targets")
    guard = importlib.import_module("benchmarks.fuzzing.guard")
    mutations = importlib.import_module("benchmarks.fuzzing.mutations")
    target = targets.TARGETS[name]
    for module in target.modules:
        with contextlib.suppress(ImportError):  # Python 3.10 has no tomllib
            _follow(importlib.import_module(module))
    state: dict[str, Any] = {"target": name, "executions": 0, "results": 0, "seconds": 0.0, "findings": []}
    seen: set[str] = set()
    begin = time.monotonic()
    written = [begin]

    with guard.scratch() as scratch:
        target.prepare(scratch)
        corpus = scratch.with_name(f"{scratch.name}-corpus")
        corpus.mkdir()
        for number, (variant, content) in enumerate(target.seeds(scratch)):
            (corpus / f"seed-{number}").write_bytes(target.join(variant, content))

        def one(data: bytes) -> None:
            try:
                state["results"] += guard.examine(target, data, scratch)
            except BaseException as error:
                if isinstance(error, (KeyboardInterrupt, SystemExit)):
                    raise
                place = _place(error)
                if place not in seen:
                    seen.add(place)
                    state["findings"].append(place)
                    (folder / f"finding-{len(seen)}").write_bytes(data)
                    (folder / f"finding-{len(seen)}.txt").write_text(
                        "".join(traceback.format_exception(error))[-8000:], errors="backslashreplace"
                    )
            state["executions"] += 1
            now = time.monotonic()
            if now - written[0] > 1 or now - begin > seconds:
                written[0] = now
                state["seconds"] = now - begin
                (folder / "report.json").write_text(json.dumps(state))
            if now - begin > seconds:
                import shutil

                shutil.rmtree(corpus, ignore_errors=True)
                shutil.rmtree(scratch, ignore_errors=True)
                os._exit(0)

        def changed(data: bytes, most: int, seed: int) -> bytes:
            head = b"" if len(target.variants) == 1 else data[:1]
            if seed % 3:
                return (head + mutations.mutate(data[len(head) :], random.Random(seed)))[:most]
            return bytes(atheris.Mutate(data, most))

        options = [
            f"-max_len={mutations.MOST}",
            f"-timeout={_HANGS_S}",
            "-rss_limit_mb=0",
            "-verbosity=1",
            "-len_control=0",
        ]
        options.append(f"-artifact_prefix={folder}/")
        atheris.Setup([sys.argv[0], *options, str(corpus)], one, custom_mutator=changed)
        begin = time.monotonic()
        atheris.Fuzz()


def _follow(module: types.ModuleType) -> None:
    """Counts branches in all functions of a module of others, which is imported already."""
    atheris = importlib.import_module("atheris")

    for holder in (
        module,
        *(v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__),
    ):
        for value in list(vars(holder).values()):
            function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
            if isinstance(function, types.FunctionType) and function.__module__ == module.__name__:
                atheris.instrument_func(function)


def _place(error: BaseException) -> str:
    """What broke and where: the kind of error and the innermost line of ours."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [
        f for f in frames if f"{os.sep}ssmke{os.sep}" in f.filename and "fuzzing" not in f.filename
    ] or frames
    last = ours[-1]
    words = "" if isinstance(error, MemoryError) else (str(error).splitlines() or [""])[0][:60]
    if type(error).__name__ != "Broken":
        words = ""
    where = f"{last.filename.rpartition('ssmke/')[2] or last.filename}:{last.lineno}"
    return f"{type(error).__name__} at {where}{f' ({words})' if words else ''}"


if __name__ == "__main__":
    main()
