"""`ssmke reproduce`: run a published table again, and put ours beside it.

    ssmke reproduce distillation --scale scenes --plan    # which runs, hours and dollars; nothing is started
    ssmke reproduce all --scale scenes                    # plan, run or go on, report
    ssmke reproduce all --scale scenes --seeds 3          # two more of everything that learns

Everything lies below `--out`: run folders, logs, scores, report.html and report.md. Models that several tables share
are trained once, and the target cache of a data set is built once.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ssmke.errors import ConfigError

if TYPE_CHECKING:
    from ssmke.cost.estimates.estimate import Estimate
    from ssmke.reproduce.steps import Places, Step
    from ssmke.reproduce.variants import ScaleName, Table

MEASURED = Path(__file__).parents[1] / "reproduce" / "measured.json"


def main(argv: Sequence[str]) -> int:
    """Runs ``ssmke reproduce ARGV``; gives the exit code.

    Raises:
        SSMKEError: what the user has to change; the caller prints it.
    """
    from ssmke.reproduce.steps import Places, require_data, steps_of
    from ssmke.reproduce.variants import SCALES, TABLES, table

    parser = argparse.ArgumentParser(prog="ssmke reproduce", description="Run published tables again.")
    known = "; ".join(f"{name}: {found.title.lower()}" for name, found in TABLES.items())
    parser.add_argument("table", help=f"all, or one of {known}")
    parser.add_argument(
        "--scale", choices=SCALES, default="scenes", help="what it is run on (default: scenes)"
    )
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help="folder of the data folders (default: data)"
    )
    parser.add_argument("--out", type=Path, help="folder for runs and report (default: runs/reproduce-SCALE)")
    parser.add_argument(
        "--plan", action="store_true", help="say what would run, how long and for how much; run nothing"
    )
    parser.add_argument("--report", action="store_true", help="only write the report of what has run")
    parser.add_argument("--device", help="for the plan: hardware to reckon with, e.g. RTX4090")
    parser.add_argument("--devices", type=int, default=1, help="for the plan: how many of them (default: 1)")
    parser.add_argument("--ranks", type=int, help="processes of a run (default: every GPU, or 2 on a CPU)")
    parser.add_argument("--seed", type=int, default=0, help="first seed of all runs (default: 0)")
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N",
        help="train everything with N seeds, --seed and those after it; the report gives mean and deviation of all "
        "that --out holds (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--set", nargs=2, action="append", default=[], metavar=("FIELD", "VALUE"),
        help="a field of every recipe, as training takes it: --set optim.epochs 1",
    )  # fmt: skip
    arguments = parser.parse_args(list(argv))
    chosen = list(TABLES.values()) if arguments.table == "all" else [table(arguments.table)]
    scale: ScaleName = arguments.scale
    if arguments.seeds < 1:
        raise ConfigError(f"--seeds {arguments.seeds}: must be at least 1")
    if arguments.seed < 0:
        raise ConfigError(f"--seed {arguments.seed}: must be 0 or more")
    seeds = tuple(range(arguments.seed, arguments.seed + arguments.seeds))
    places = Places(arguments.out or Path("runs") / f"reproduce-{scale}", arguments.data, seeds)
    from ssmke.cli.cost.forecast import recipe_flags

    more = recipe_flags(arguments.set)
    steps = steps_of(chosen, scale, places, more)
    ranks = _ranks(arguments.ranks)
    if not arguments.report:
        _print_plan(steps, scale, places, arguments)
        if arguments.plan:
            return 0
        from ssmke.reproduce.running import SEEDS, keep_settings, run_steps
        from ssmke.training.prepare import render_scenes

        data = str(places.data.resolve())
        settings = {"--scale": scale, "--seed": arguments.seed, "--set": arguments.set, "--data": data}
        keep_settings(places.root, {**settings, SEEDS: arguments.seeds})
        _on_sigterm()
        if scale == "scenes":
            render_scenes(str(places.data / "scenes"), _say)
        require_data(chosen, scale, places)
        run_steps(steps, places.root, ranks, _say)
    command = f"ssmke reproduce {shlex.join(argv)}"
    _write_report(chosen, scale, places, command)
    return 0


def _print_plan(
    steps: Sequence[Step], scale: ScaleName, places: Places, arguments: argparse.Namespace
) -> None:
    from ssmke.reproduce.variants import HALVES, VARIANTS

    trainings = [step for step in steps if step.launches]
    done = sum(step.result.exists() for step in steps)
    scorings = sum(step.command[0] == "evaluate" for step in steps)
    seeds = f", seeds {places.seeds[0]} to {places.seeds[-1]}" if len(places.seeds) > 1 else ""
    _say(f"{len(trainings)} trainings and {scorings} evaluations at scale {scale}{seeds}; {done} done before")
    left = [step for step in trainings if not step.result.exists()]
    if arguments.device is None:
        _say(_measured(steps, scale))
        return
    times = Counter(step.variant for step in left if step.variant in VARIANTS)
    estimates = {key: _forecast(key, scale, arguments) for key in times}
    for key, found in estimates.items():
        name = VARIANTS[key].name + (f" ({times[key]} seeds)" if times[key] > 1 else "")
        low, high = (getattr(found.hours, end) * times[key] for end in ("low", "high"))
        _say(f"  {name:<50} {low:8.2f} to {high:8.2f} h   {_dollars([found] * times[key])}")
    every = [estimates[key] for key in times.elements()]
    low, high = (sum(getattr(found.hours, end) for found in every) for end in ("low", "high"))
    _say(f"  {'these together':<50} {low:8.2f} to {high:8.2f} h   {_dollars(every)}")
    halves = list(dict.fromkeys(step.variant for step in left if step.variant in HALVES))
    finetuned = any(step.command[1] in ("image-classification", "glue") for step in steps)
    among = " (the finetuning of halves by themselves among them)" if finetuned else ""
    without = f"Not in it: evaluations{among}{''.join(f', {name}' for name in halves)}"
    _say(f"{without}. Each with a target cache of its own: what is shared makes it less.")


def _forecast(key: str, scale: ScaleName, arguments: argparse.Namespace) -> Estimate:
    from ssmke.cli.cost import forecast
    from ssmke.cli.cost.forecast import recipe_flags as set_flags
    from ssmke.reproduce.steps import recipe_flags, trains_on
    from ssmke.reproduce.variants import SCALE

    flags = recipe_flags(key, scale, set_flags(arguments.set))
    at = flags.index("--recipe")
    sizes = [SCALE[scale].size[folder] for folder in trains_on(key, scale)]
    pairs, images = (sum(size[i] for size in sizes) for i in (0, 1))
    chooser = argparse.ArgumentParser()
    forecast.add(chooser.add_subparsers())
    return forecast.forecast(
        chooser.parse_args(
            ["forecast", "--recipe", flags[at + 1], *_as_sets([*flags[:at], *flags[at + 2 :]]),
             "--pairs", str(pairs), "--images", str(images), "--device", arguments.device,
             "--devices", str(arguments.devices)]
        )
    )  # fmt: skip


def _dollars(estimates: Sequence[Estimate]) -> str:
    known = [found.usd for found in estimates if found.usd is not None]
    if len(known) < len(estimates):
        return "no price known"
    return f"${sum(usd[0] for usd in known):,.2f} to ${sum(usd[2] for usd in known):,.2f}"


def _measured(steps: Sequence[Step], scale: ScaleName) -> str:
    known = json.loads(MEASURED.read_text(encoding="utf-8")).get(scale) if MEASURED.exists() else None
    if known is None:
        return "how long: give --device NAME to reckon with hardware; nobody has measured this scale yet"
    seconds = [known["seconds"].get(step.timed_as or step.name) for step in steps if not step.result.exists()]
    missing = sum(value is None for value in seconds)
    total = sum(value for value in seconds if value is not None)
    lacks = f", {missing} steps without a measured time not counted" if missing else ""
    return (
        f"about {total / 60:.0f} minutes as measured on {known['machine']}{lacks}; "
        f"${total / 3600 * known['usd_per_hour']:.2f} at {known['price']}"
    )


def _as_sets(flags: Sequence[str]) -> list[str]:
    """Flags of a recipe as ``--set FIELD VALUE`` of the forecast."""
    found: list[str] = []
    values = list(flags)
    while values:
        name, words = values.pop(0).removeprefix("--"), []
        while values and not values[0].startswith("--"):
            words.append(values.pop(0))
        if words:
            found += ["--set", name, shlex.join(words)]
        elif ".no-" in name:
            found += ["--set", name.replace(".no-", "."), "false"]
        else:
            found += ["--set", name, "true"]
    return found


def _on_sigterm() -> None:
    """SIGTERM ends the step in work as it would end a training: with a checkpoint, and nothing left running."""
    import signal

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)


def _ranks(asked: int | None) -> int | None:
    if asked is not None:
        if asked < 1:
            raise ConfigError(f"--ranks {asked}: must be at least 1")
        return asked
    import torch

    return None if torch.cuda.is_available() else 2


def _write_report(chosen: Sequence[Table], scale: ScaleName, places: Places, command: str) -> None:
    import datetime as dt

    from ssmke.cost.machine import Machine
    from ssmke.data.atomic import atomic_writer
    from ssmke.reproduce.outcome import costs_of, outcomes
    from ssmke.reproduce.page import html, markdown
    from ssmke.reproduce.running import kept_seeds, seconds_of

    places = replace(places, seeds=kept_seeds(places.root) or places.seeds)
    costs = costs_of(places)
    found = outcomes(chosen, scale, places, costs)
    minutes = sum(seconds_of(places.root).values()) / 60
    machine = Machine.this()
    hardware = f"{machine.cpus} cores of {machine.cpu_name or 'an unknown processor'}"
    facts = f"{command}: {hardware}, {dt.date.today().isoformat()}: {minutes:.0f} minutes in all."
    for name, text in (
        ("report.html", html(chosen, scale, found, facts, costs)),
        ("report.md", markdown(chosen, scale, found, facts, costs)),
    ):
        with atomic_writer(places.root / name) as out:
            out.write(text.encode())
    _say(f"report: {places.root / 'report.html'} and report.md")


def _say(line: str) -> None:
    from ssmke.screen import clean

    print("\n".join(map(clean, line.split("\n"))), file=sys.stdout, flush=True)
