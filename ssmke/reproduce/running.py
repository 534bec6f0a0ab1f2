"""Runs the steps of a table, one after the other, and goes on where it was stopped.

A step whose result is there is not run again, one that was interrupted goes on (`--resume auto`), and one that fails
ends all with its last lines and the command that repeats it: the models before it stay. What a step prints goes to
``logs/NAME.log``; the terminal shows a line a step. Seconds of each step are kept in ``times.json``.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ssmke.data.atomic import write_json
from ssmke.errors import ConfigError, SSMKEError
from ssmke.reproduce.steps import Step

Say = Callable[[str], None]
REPOSITORY = Path(__file__).resolve().parents[2]
TAIL_LINES = 12
SEEDS = "--seeds"


class StepFailed(SSMKEError):
    """A step ended with an error."""


def run_steps(steps: Sequence[Step], root: Path, ranks: int | None, say: Say) -> None:
    """Runs what is not done yet; ``ranks``: processes of a launcher, None for every GPU.

    Raises:
        StepFailed: a step ended with an error; its message holds the end of its log.
        ConfigError: the launchers are not beside the package.
    """
    for folder in ("logs", "results", "runs"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    times = dict(seconds_of(root))
    for number, step in enumerate(steps, 1):
        name = f"{number}/{len(steps)} {step.name}"
        if step.result.exists():
            say(f"{name}: done before")
            continue
        say(f"{name} ...")
        began = time.monotonic()
        try:
            _run(step, ranks, root / "logs" / f"{step.name}.log")
        finally:  # the parts of an interrupted step add up
            times[step.name] = times.get(step.name, 0.0) + time.monotonic() - began
            write_json(root / "times.json", times)
        say(f"{name}: {times[step.name]:.0f} s")


def keep_settings(root: Path, settings: Mapping[str, object]) -> None:
    """Notes what the results in ``root`` are results of; ConfigError where they are of something else.

    ``--seeds``, how many, may be another: those that are there stay, and the largest number is noted.
    """
    path = root / "settings.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        changed = [name for name in settings if name != SEEDS and found.get(name) != settings[name]]
        seeds = max(_number(found), _number(settings))
    except FileNotFoundError:
        root.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)
        return
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): give another --out") from None
    if changed:
        changes = ", ".join(f"{name} {found.get(name)}" for name in changed)
        raise ConfigError(
            f"--out {root} holds results of {changes}: what is done would not be done again; give another --out, or "
            "the same flags as before"
        )
    if seeds != _number(found):
        write_json(path, {**found, SEEDS: seeds})


def kept_seeds(root: Path) -> tuple[int, ...] | None:
    """Seeds that the results in ``root`` are of; None where it says nothing."""
    try:
        found = json.loads((root / "settings.json").read_text(encoding="utf-8"))
        first = int(found["--seed"])
        return tuple(range(first, first + _number(found)))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _number(settings: Mapping[str, object]) -> int:
    number = settings.get(SEEDS, 1)  # folders of before there were several lack it
    return number if isinstance(number, int) else 1


def seconds_of(root: Path) -> Mapping[str, float]:
    """Seconds that each step has taken so far."""
    try:
        times = json.loads((root / "times.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(times, dict):
        return {}
    return {str(name): float(seconds) for name, seconds in times.items() if isinstance(seconds, int | float)}


def command_of(step: Step, ranks: int | None) -> list[str]:
    """What is executed; ConfigError where the launchers are not beside the package."""
    scripts = Path(sys.executable).parent
    if step.command[0] == "-m":
        return [sys.executable, *step.command]
    if not step.launches:
        return [str(scripts / "ssmke"), *step.command]
    launcher, rest = REPOSITORY / "launchers" / step.command[0], list(step.command[1:])
    if not launcher.exists():
        raise ConfigError(
            f"{launcher} is not there: `ssmke reproduce` starts the launchers of a checkout; clone the repository and "
            "install it with pip install --editable"
        )
    at = rest.index("--deepspeed_config") + 1
    rest[at] = str(REPOSITORY / "ds_configs" / rest[at])
    number = [] if ranks is None else ["--num_gpus", str(ranks)]
    return [str(scripts / "deepspeed"), *number, "--master_port", str(_free_port()), str(launcher), *rest]


def _free_port() -> int:
    """A port for the ranks to meet at: DeepSpeed's own is the same for all runs of a machine."""
    with socket.socket() as found:
        found.bind(("", 0))
        return int(found.getsockname()[1])


def _run(step: Step, ranks: int | None, log: Path) -> None:
    command = command_of(step, ranks)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    with log.open("a", encoding="utf-8") as out:
        out.write(f"$ {shlex.join(command)}\n")
        out.flush()
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        try:
            code = process.wait()
        except BaseException as left:
            if not isinstance(left, KeyboardInterrupt):  # that one it got too, and saves what it has
                process.terminate()
            process.wait()
            raise
    if code != 0 or not step.result.exists():
        end = "\n  ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:])
        why = f"ended with code {code}" if code else f"left no {step.result}"
        raise StepFailed(
            f"{step.name} {why}; what is finished is kept, the same command goes on. The end of {log}:\n  {end}"
        )
