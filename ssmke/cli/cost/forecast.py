"""``ssmke-cost forecast``: what a recipe will cost, before it starts (see `ssmke.cost.estimates.plan`).

The operations of a recipe are counted on its modules, so this command imports torch when it runs; with
``--pairs-per-second``, or ``--like`` without ``--recipe``, it does not.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ssmke.cli.cost.folder import add_prices, catalogue_of
from ssmke.errors import ConfigError

if TYPE_CHECKING:
    from ssmke.cost.efficiency.devices import DeviceSpec
    from ssmke.cost.estimates.estimate import Estimate
    from ssmke.cost.estimates.plan import Work
    from ssmke.cost.prices.rent import Rent
    from ssmke.cost.report import RunReport
    from ssmke.recipes import Recipe

PUBLISHED_PAIRS = 3_264_868
"""Pairs of an epoch of the published run, for a hint only."""
MOST_PAIRS, MOST_EPOCHS, MOST_DEVICES = 1e15, 1e6, 1e5
"""What no run comes near: larger numbers are mistakes, and would overflow."""
TEXT_TOKENS = 13.0
"""Mean caption of the published pairs, as the specification of the model counts it."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser("forecast", help="what a recipe will cost on a device, before it starts")
    parser.add_argument("--recipe", help="name of the recipe (default: what --like ran)")
    parser.add_argument(
        "--set",
        nargs=2,
        action="append",
        metavar=("FIELD", "VALUE"),
        help="a field of the recipe, as training takes it: --set targets.mode online",
    )
    parser.add_argument(
        "--pairs",
        type=int,
        metavar="N",
        help="image-text pairs of an epoch (default: those of --like or the shards)",
    )
    parser.add_argument("--epochs", type=int, metavar="N", help="passes over them (default: the recipe's)")
    parser.add_argument(
        "--images", type=int, metavar="N", help="images that a target cache is made of (default: one a pair)"
    )
    parser.add_argument(
        "--text-tokens",
        type=float,
        metavar="N",
        help=f"mean length of a caption, [CLS] and [SEP] included (default: as --like had, else {TEXT_TOKENS:g})",
    )
    parser.add_argument(
        "--like", type=Path, metavar="RUN", help="a measured run, finished or not, to learn from"
    )
    parser.add_argument(
        "--pairs-per-second", type=float, metavar="N", help="measured rate, all devices together"
    )
    parser.add_argument(
        "--mfu",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="utilisation of the peak (default: 0.2 0.45)",
    )
    add_target(parser, "--device")
    parser.set_defaults(run=run)


def add_target(parser: argparse.ArgumentParser, device: str) -> None:
    """Which hardware, at which price; shared with ``whatif``."""
    parser.add_argument(
        device,
        dest="device",
        metavar="NAME",
        help="H100, A100-SXM4-80GB, RTX4090, ... or NVML's product name",
    )
    parser.add_argument("--devices", type=int, metavar="N", help="how many of them")
    parser.add_argument(
        "--dtype", choices=("bf16", "fp16", "tf32", "fp32"), help="number format of the arithmetic"
    )
    parser.add_argument(
        "--price", metavar="SPEC", help="as for --cost.price: dollars per hour, or provider/instance/..."
    )
    parser.add_argument("--provider", help="only prices of this provider")
    parser.add_argument("--region", help="only prices of this region")
    parser.add_argument("--tier", help="on_demand (default), spot, reserved_1y, ...")
    parser.add_argument("--format", choices=("table", "json"), default="table", dest="form")
    add_prices(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints the forecast."""
    show(forecast(arguments), arguments.form)
    return 0


def show(estimate: Estimate, form: str) -> None:
    """Prints an estimate as text or JSON."""
    print(json.dumps(estimate.to_dict(), indent=2) if form == "json" else "\n".join(estimate.lines()))


def forecast(arguments: argparse.Namespace) -> Estimate:
    """The estimate that the arguments ask for; ConfigError for what they lack."""
    from ssmke.cost.efficiency.devices import named
    from ssmke.cost.estimates import plan
    from ssmke.cost.estimates.estimate import Interval
    from ssmke.cost.estimates.whatif import devices_of

    check_price_choice(arguments)
    like = None if arguments.like is None else one_run(arguments.like)
    work = _work(arguments, like)
    devices = arguments.devices
    if devices is None:
        devices = 1 if like is None else devices_of(like)
    check_count("--devices", devices, MOST_DEVICES)
    if arguments.device is None:
        if like is not None and arguments.pairs_per_second is not None:
            raise ConfigError(
                "--device is missing: on which hardware was --pairs-per-second measured? e.g. --device H100 (or leave "
                f"out --pairs-per-second: {like.name} has a rate of its own)"
            )
        if like is None:
            raise ConfigError(
                "--device is missing: name the hardware, e.g. --device H100 (or --like a measured run)"
            )
        if arguments.price or arguments.provider or arguments.region or arguments.tier:
            raise ConfigError("--price, --provider, --region and --tier go with --device: name the hardware")
        return plan.like(work, like, None, devices, plan.rent_of(like, devices), dtype=arguments.dtype)
    spec, remark = named(arguments.device)
    work = _noting(work, remark)
    if is_spot(arguments):
        work = _noting(work, "interruptions of a spot instance are not in it")
    price = price_of(arguments, spec, devices)
    if arguments.pairs_per_second is not None:
        return plan.at_rate(work, arguments.pairs_per_second, spec, devices, price)
    if like is not None:
        return plan.like(work, like, spec, devices, price, dtype=arguments.dtype)
    mfu = plan.MFU
    if arguments.mfu is not None:
        low, high = arguments.mfu
        plan.check_mfu(low, high)
        mfu = Interval.between(low, high)
    return plan.at_peak(work, spec, devices, price, dtype=arguments.dtype or "bf16", mfu=mfu)


def price_of(arguments: argparse.Namespace, spec: DeviceSpec, devices: int) -> Rent:
    """The hourly price that the arguments ask for; shared with ``whatif``."""
    from ssmke.cost.prices.rent import rent

    return rent(
        catalogue_of(arguments),
        spec,
        devices,
        price=arguments.price,
        provider=arguments.provider,
        region=arguments.region,
        tier=arguments.tier or "on_demand",
    )


def check_price_choice(arguments: argparse.Namespace) -> None:
    """ConfigError if a price is both chosen and looked for."""
    chosen = (arguments.price or "auto").strip() != "auto"
    if chosen and (arguments.provider or arguments.region or arguments.tier):
        raise ConfigError(
            "--price says all; leave out --provider, --region and --tier (or write them into it)"
        )


def check_count(name: str, number: int, most: float) -> None:
    """ConfigError for a number of things that cannot be; ``name`` says which."""
    if not 1 <= number <= most:
        digits = str(number)
        shown = digits if len(digits) <= 20 else f"{digits[:6]}... ({len(digits)} digits)"
        raise ConfigError(f"{name} {shown}: must be at least 1, and at most {most:g}")


def is_spot(arguments: argparse.Namespace) -> bool:
    """Whether the price that was asked for is one of hardware that can be taken away."""
    return arguments.tier == "spot" or (arguments.price or "").strip().endswith("/spot")


def one_run(folder: Path) -> RunReport:
    """The one run in a folder; ConfigError if there is none, or more."""
    from ssmke.cost.report import report

    runs = report(folder).runs
    if not runs:
        raise ConfigError(f"{folder}: no run with a cost ledger; name a run folder")
    if len(runs) > 1:
        names = ", ".join(run.name for run in runs[:5])
        raise ConfigError(
            f"{folder} holds {len(runs)} runs ({names}{', ...' if len(runs) > 5 else ''}): name one of them"
        )
    return runs[0]


def _work(arguments: argparse.Namespace, like: RunReport | None) -> Work:
    from ssmke.cost.estimates.plan import Work
    from ssmke.words import counted

    for flag, most in (("pairs", MOST_PAIRS), ("epochs", MOST_EPOCHS), ("images", MOST_PAIRS)):
        value = getattr(arguments, flag)
        if value is not None:
            check_count(f"--{flag}", value, most)
    if arguments.text_tokens is not None and not 0 <= arguments.text_tokens < math.inf:
        raise ConfigError(f"--text-tokens {arguments.text_tokens:g}: must be a number, 0 or more")
    if arguments.recipe is not None:
        return _recipe_work(arguments, like)
    if like is None:
        raise ConfigError(
            "--recipe is missing: name one, e.g. --recipe ssmke-base (or --like a measured run)"
        )
    if arguments.set:
        raise ConfigError("--set changes a recipe: name it with --recipe")
    name = str(like.facts.get("recipe") or like.name)
    pairs, _, whence = epoch_size(arguments, like, name, None)
    epochs = arguments.epochs or _epochs_of(like)
    return Work(
        name, pairs * epochs, reasons=(f"{counted(epochs, 'epoch')} of {counted(pairs, 'pair')} ({whence})",)
    )


def _recipe_work(arguments: argparse.Namespace, like: RunReport | None) -> Work:
    from ssmke.cost.efficiency.flops import per_pair
    from ssmke.cost.estimates.plan import Work
    from ssmke.models.shapes import shapes_of_recipe
    from ssmke.recipes import parse_recipe
    from ssmke.words import counted

    fields = recipe_flags(arguments.set or ())
    recipe = parse_recipe(["--recipe", arguments.recipe, *fields], "ssmke-cost forecast --set")
    pairs, images, whence = epoch_size(arguments, like, recipe.name, recipe)
    epochs = arguments.epochs or recipe.optim.epochs
    check_count("optim.epochs", epochs, MOST_EPOCHS)
    reasons = [f"{counted(epochs, 'epoch')} of {counted(pairs, 'pair')} ({whence})"]
    if arguments.pairs_per_second is not None:
        return Work(recipe.name, pairs * epochs, reasons=tuple(reasons))
    shapes = shapes_of_recipe(recipe)
    tokens, of_whom = _text_tokens(arguments, like)
    try:
        flops = per_pair(shapes, tokens)
    except ValueError as error:
        raise ConfigError(f"--text-tokens: {error}") from None
    padded = per_pair(shapes, shapes.max_tokens).total
    passes = f" + teacher {flops.teacher / 1e9:.3g}" if flops.teacher else ""
    reasons.append(
        f"{flops.total / 1e9:.3g} GFLOP a pair: student forward and backward {flops.student / 1e9:.3g}{passes}, "
        f"captions of {tokens:.3g} tokens{of_whom} ({padded / 1e9:.3g} if all were padded to {shapes.max_tokens})"
    )
    views = recipe.targets.views
    check_count("targets.views", views, MOST_EPOCHS)
    cache = shapes.caching(images=images or pairs, pairs=pairs, views=views, text_tokens=tokens)
    if shapes.cached_image:
        text = sum(part.forward(tokens) for part in shapes.cached_text)
        reasons.append(
            f"frozen encoders, once: {shapes.cached_image / 1e9:.3g} GFLOP an image"
            + (f", {text / 1e9:.3g} a caption" if text else "")
        )
    if shapes.cached_teacher:
        reasons.append(
            f"the target cache takes {shapes.cached_teacher / 1e9:.3g} GFLOP for each of "
            f"{counted(images or pairs, 'image')} x {counted(recipe.targets.views, 'view')}"
            f"{'' if images else ' (an image a pair at most)'}"
        )
    return Work(recipe.name, pairs * epochs, flops.total, cache, tuple(reasons))


def recipe_flags(fields: Sequence[Sequence[str]]) -> list[str]:
    """``--set`` pairs of field and value as training takes them: True and False are switches there, and a value of
    several words is several values ("0.5 0.5 0.5"; quotes within it keep words together)."""
    flags: list[str] = []
    for field, value in fields:
        name = field.lstrip("-").replace("_", "-")
        if value in ("True", "true"):
            flags.append(f"--{name}")
        elif value in ("False", "false"):
            above, _, last = name.rpartition(".")
            flags.append(f"--{above}.no-{last}" if above else f"--no-{last}")
        else:
            flags += [f"--{name}", *_words(field, value)]
    return flags


def _words(field: str, value: str) -> list[str]:
    try:
        return shlex.split(value) or [value]
    except ValueError as error:
        raise ConfigError(f"--set {field} {value}: {error}") from None


def epoch_size(
    arguments: argparse.Namespace, like: RunReport | None, name: str, recipe: Recipe | None
) -> tuple[int, int | None, str]:
    """(pairs of an epoch, images if known, who says so)."""
    if arguments.pairs is not None:
        return arguments.pairs, arguments.images, "--pairs"
    noted = None if like is None else like.facts.get("pairs_per_epoch")
    if like is not None and isinstance(noted, int) and 0 < noted <= MOST_PAIRS:
        return noted, arguments.images, f"as {like.name} had"
    if recipe is not None and all(Path(folder).is_dir() for folder in recipe.data.places):
        from ssmke.data.dataset import ImageTextShards
        from ssmke.training.prepare import epoch_order

        shards = ImageTextShards.open(recipe.data.places, recipe.data.split)
        pairs = epoch_order(recipe, shards).pairs
        return pairs, arguments.images or shards.images, f"in {', '.join(recipe.data.shards)}"
    raise ConfigError(
        f"--pairs is missing: how many image-text pairs is an epoch of {name}? "
        f"(the published recipe: {PUBLISHED_PAIRS})"
    )


def _text_tokens(arguments: argparse.Namespace, like: RunReport | None) -> tuple[float, str]:
    from ssmke.cost.estimates.whatif import positive

    if arguments.text_tokens is not None:
        return arguments.text_tokens, ""
    noted = {} if like is None else like.facts.get("efficiency")
    value = positive(noted.get("text_tokens_per_pair")) if isinstance(noted, dict) else None
    if like is not None and value is not None:
        return value, f" as in {like.name}"
    return TEXT_TOKENS, ""


def _epochs_of(like: RunReport) -> int:
    """What the run's own recipe says, which training keeps beside its ledger."""
    try:
        epochs = json.loads((like.path / "recipe.json").read_text(encoding="utf-8"))["optim"]["epochs"]
    except (OSError, ValueError, KeyError, TypeError):
        epochs = None
    if not isinstance(epochs, int) or not 1 <= epochs <= MOST_EPOCHS:
        raise ConfigError(f"--epochs is missing, and {like.path / 'recipe.json'} does not tell")
    return epochs


def _noting(work: Work, remark: str) -> Work:
    import dataclasses

    return dataclasses.replace(work, reasons=(*work.reasons, remark)) if remark else work
