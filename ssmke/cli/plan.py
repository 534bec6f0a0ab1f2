"""``ssmke plan``: which DeepSpeed configuration, micro-batch and accumulation fit N GPUs, and what the run then takes.

    ssmke plan --recipe ssmke-base --gpus 2 --device H100 --pairs 3264868
    ssmke plan --recipe ssmke-base --gpus 8 --memory 24

Everything is arithmetic on the recipe's own modules, built without memory and without weights (`ssmke.planning`), so it
needs neither a GPU nor the hub. Takes some seconds, most of them to import torch.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssmke.cli.cost.folder import add_prices
from ssmke.cli.cost.forecast import (
    MOST_DEVICES,
    MOST_EPOCHS,
    MOST_PAIRS,
    TEXT_TOKENS,
    check_count,
    check_price_choice,
    epoch_size,
    price_of,
    recipe_flags,
)
from ssmke.errors import ConfigError

if TYPE_CHECKING:
    from ssmke.cost.efficiency.devices import DeviceSpec
    from ssmke.cost.estimates.estimate import Estimate
    from ssmke.planning.choose import Option
    from ssmke.planning.student import Model
    from ssmke.recipes import Recipe

GIB = 1 << 30
USABLE = 0.97
"""Share of a device's nominal memory that its driver leaves: an H100 of 80 GB shows about 78 GiB."""
NOTE = (
    "Memory counts DeepSpeed 0.19.8's allocations and the activations of this very student; the reserve for CUDA and "
    "fragmentation and all times are assumptions. torch.compile saves less than is counted here."
)


def main(argv: Sequence[str]) -> int:
    """Runs ``ssmke plan ARGV``; gives the exit code: 0 there is a choice, 1 nothing fits.

    Raises:
        SSMKEError: what the user has to change; the caller prints it.
    """
    arguments = _parser().parse_args(list(argv))
    # Before anything imports the hub's client: an architecture that is not here must not be waited for.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return _plan(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ssmke plan",
        description="Which ds_config, micro batch and accumulation fit, and what the run then takes.",
    )
    parser.add_argument("--recipe", required=True, help="name of the recipe, e.g. ssmke-base")
    parser.add_argument("--gpus", type=int, required=True, metavar="N", help="ranks, one a GPU")
    parser.add_argument(
        "--device", metavar="NAME", help="H100, A100-SXM4-80GB, RTX4090, ... as `ssmke-cost forecast`"
    )
    parser.add_argument(
        "--memory", type=float, metavar="GIB", help="memory of a GPU (default: that of --device)"
    )
    parser.add_argument(
        "--set",
        nargs=2,
        action="append",
        metavar=("FIELD", "VALUE"),
        help="a field of the recipe, as training takes it: --set optim.batch-size 4096",
    )
    parser.add_argument(
        "--pairs", type=int, metavar="N", help="image-text pairs of an epoch (default: the shards')"
    )
    parser.add_argument("--epochs", type=int, metavar="N", help="passes over them (default: the recipe's)")
    parser.add_argument(
        "--text-tokens", type=float, default=TEXT_TOKENS, metavar="N", help="mean caption (13)"
    )
    parser.add_argument(
        "--configs",
        type=Path,
        default=Path("ds_configs"),
        metavar="FOLDER",
        help="DeepSpeed JSONs (ds_configs)",
    )
    parser.add_argument(
        "--dtype", choices=("bf16", "fp16", "fp32"), default="bf16", help="number format on the GPU"
    )
    parser.add_argument("--mfu", type=float, nargs=2, metavar=("LOW", "HIGH"), help="utilisation (0.2 0.45)")
    parser.add_argument(
        "--link", choices=("nvlink4", "nvlink3", "pcie5", "pcie4"), help="between GPUs of a node"
    )
    parser.add_argument(
        "--network",
        choices=("ndr400", "hdr200", "ethernet100", "ethernet25"),
        default="hdr200",
        help="between nodes of 8 GPUs (hdr200)",
    )
    parser.add_argument("--price", metavar="SPEC", help="dollars per hour, or provider/instance/...")
    parser.add_argument("--provider", help="only prices of this provider")
    parser.add_argument("--region", help="only prices of this region")
    parser.add_argument("--tier", help="on_demand (default), spot, reserved_1y, ...")
    parser.add_argument("--format", choices=("table", "json"), default="table", dest="form")
    add_prices(parser)
    return parser


def _plan(arguments: argparse.Namespace) -> int:
    from ssmke.cost.efficiency.devices import named
    from ssmke.planning import choose

    _check(arguments)
    spec, remark = (None, "") if arguments.device is None else named(arguments.device)
    memory = arguments.memory if spec is None or arguments.memory is not None else USABLE * spec.memory_gb
    recipe = _recipe(arguments)
    batch, ranks = recipe.optim.batch_size, arguments.gpus
    if batch % ranks:
        raise ConfigError(
            f"optim.batch-size {batch} is not a multiple of --gpus {ranks}: take --set optim.batch-size "
            f"{max(1, batch // ranks) * ranks}, or another number of GPUs"
        )
    zeros = choose.configs(arguments.configs, batch_size=batch, ranks=ranks, cuda=True)
    from ssmke.planning.student import model_of

    model = model_of(recipe, dtype=arguments.dtype, cuda=True, text_tokens=arguments.text_tokens)
    room = int(memory * GIB)
    found = [
        choose.largest(name, model, zero, batch_size=batch, ranks=ranks, room=room)
        for name, zero in zeros.items()
    ]
    fitting = [option for option, fits in found if fits]
    estimates: dict[str, Estimate] = {}
    if spec is not None:
        fitting, estimates = _timed(arguments, recipe, model, spec, fitting)
    refused = [option for option, fits in found if not fits]
    chosen = choose.best(fitting) if fitting else None
    hints = (
        []
        if chosen
        else choose.advice(refused, room, checkpointing=recipe.compute.checkpointing, ranks=ranks)
    )
    title = (
        f"{recipe.name}: {batch} pairs a step on {ranks} x {spec.key if spec else 'GPU'} of {memory:.4g} GiB, "
        f"{model.dtype}, {model.parameters.trained / 1e6:.1f}M trained parameters, "
        f"{model.activations.kept.per_pair / 1e6:.1f} MB of activations a pair"
    )
    report = {
        "title": title,
        "remark": remark,
        "options": [_row(option, batch, estimates.get(option.name), fits=True) for option in fitting]
        + [_row(option, batch, None, fits=False) for option in refused],
        "chosen": None if chosen is None else chosen.name,
        "command": None if chosen is None else _command(arguments, recipe, chosen),
        "batch_keys": None if chosen is None else _keys(chosen, batch),
        "advice": hints,
        "reasons": list(estimates[chosen.name].reasons) if chosen and chosen.name in estimates else [],
        "note": NOTE,
    }
    print(json.dumps(report, indent=2) if arguments.form == "json" else "\n".join(_lines(report, arguments)))
    return 0 if chosen else 1


def _check(arguments: argparse.Namespace) -> None:
    check_price_choice(arguments)
    check_count("--gpus", arguments.gpus, MOST_DEVICES)
    for flag, most in (("pairs", MOST_PAIRS), ("epochs", MOST_EPOCHS)):
        if getattr(arguments, flag) is not None:
            check_count(f"--{flag}", getattr(arguments, flag), most)
    if arguments.gpus > 8 and arguments.gpus % 8:
        raise ConfigError(f"--gpus {arguments.gpus}: more than 8 are counted in whole nodes of 8")
    if arguments.device is None and arguments.memory is None:
        raise ConfigError(
            "--device or --memory is missing: which GPU, e.g. --device H100, or --memory 24 (GiB)"
        )
    if arguments.memory is not None and not (0 < arguments.memory < math.inf):
        raise ConfigError(f"--memory {arguments.memory:g}: must be GiB of a GPU, more than 0")
    if arguments.device is None and (
        arguments.price or arguments.provider or arguments.region or arguments.tier
    ):
        raise ConfigError("--price, --provider, --region and --tier go with --device: name the hardware")
    if arguments.device is None and arguments.mfu is not None:
        raise ConfigError("--mfu goes with --device: utilisation is a share of its peak")
    if not arguments.configs.is_dir():
        raise ConfigError(
            f"--configs {arguments.configs}: no such folder; give the ds_configs folder of the project's repository"
        )


def _recipe(arguments: argparse.Namespace) -> Recipe:
    from ssmke.recipes import parse_recipe

    return parse_recipe(
        ["--recipe", arguments.recipe, *recipe_flags(arguments.set or ())], "ssmke plan --set"
    )


def _timed(
    arguments: argparse.Namespace, recipe: Recipe, model: Model, spec: DeviceSpec, options: list[Option]
) -> tuple[list[Option], dict[str, Estimate]]:
    from ssmke.cost.estimates import plan
    from ssmke.cost.estimates.estimate import Interval
    from ssmke.planning.timing import Timing

    mfu = plan.MFU
    if arguments.mfu is not None:
        plan.check_mfu(*arguments.mfu)
        mfu = Interval.between(*arguments.mfu)
    arguments.images = None
    pairs, images, whence = epoch_size(arguments, None, recipe.name, recipe)
    timing = Timing(
        recipe,
        model,
        spec,
        gpus=arguments.gpus,
        text_tokens=arguments.text_tokens,
        link=arguments.link,
        network=arguments.network,
        mfu=mfu,
    )
    options = [replace(option, time=timing.step(option)) for option in options]
    found = timing.estimates(
        options,
        pairs=pairs,
        images=images or pairs,
        whence=whence,
        epochs=arguments.epochs or recipe.optim.epochs,
        rent=price_of(arguments, spec, arguments.gpus),
    )
    return options, found


def _row(option: Option, batch: int, estimate: Estimate | None, *, fits: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "config": option.name,
        "zero_stage": option.zero.stage,
        "offload": option.zero.offload_optimizer or option.zero.offload_param,
        "fits": fits,
        "micro_batch": option.micro_batch,
        "accumulation": option.accumulation,
        "device_bytes": option.memory.device,
        "device_total": option.memory.device_total,
        "host_bytes": option.memory.host,
        "bytes_sent_per_step": round(option.traffic.sent),
        "binds": "memory" if not fits or option.time is None else option.time.binds,
        "pairs_per_second": None,
        "estimate": None if estimate is None else estimate.to_dict(),
    }
    if option.time is not None:
        rate = option.time.total.invert() * batch
        row["pairs_per_second"] = {"low": rate.low, "point": rate.point, "high": rate.high}
    return row


def _keys(option: Option, batch: int) -> dict[str, int]:
    from ssmke.training import ds_config

    return {
        ds_config.GLOBAL: batch,
        ds_config.MICRO: option.micro_batch,
        ds_config.ACCUMULATION: option.accumulation,
    }


def _command(arguments: argparse.Namespace, recipe: Recipe, option: Option) -> str:
    import shlex

    fields = recipe_flags(arguments.set or ())
    if arguments.epochs is not None:
        fields += ["--optim.epochs", str(arguments.epochs)]
    words = [
        *("deepspeed", "--num_gpus", str(min(arguments.gpus, 8)), "launchers/pretrain.py"),
        *(
            "--deepspeed_config",
            str(arguments.configs / f"{option.name}.json"),
            "--recipe",
            recipe.name,
            *fields,
        ),
    ]
    return shlex.join(words)


def _lines(report: dict[str, Any], arguments: argparse.Namespace) -> list[str]:
    head = [
        "config",
        "fits",
        "micro x acc",
        "GPU GiB",
        "host GiB",
        "sent MB",
        "binds",
        "pairs/s",
        "hours",
        "dollars",
    ]
    rows = [head] + [_cells(row) for row in report["options"]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [report["title"], *([report["remark"]] if report["remark"] else []), ""]
    lines += ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += ["", "GiB on a GPU, by part:"]
    for row in report["options"]:
        parts = sorted(row["device_bytes"].items(), key=lambda item: -item[1])
        shown = [f"{name} {size / GIB:.2f}" for name, size in parts if size >= 0.005 * GIB]
        lines.append(f"  {row['config']}: {', '.join(shown)}")
    lines.append("")
    if report["chosen"] is None:
        return [*lines, *report["advice"], report["note"]]
    chosen = next(row for row in report["options"] if row["config"] == report["chosen"])
    lines.append(f"take {report['chosen']}:")
    lines.append(f"  {report['command']}")
    if arguments.gpus > 8:
        lines.append(f"  (started once, with --hostfile of {arguments.gpus // 8} nodes)")
    keys = ", ".join(f'"{key}": {value}' for key, value in report["batch_keys"].items())
    if arguments.dtype != "bf16":
        keys += ', "bf16": {"enabled": false}' + (
            ', "fp16": {"enabled": true}' if arguments.dtype == "fp16" else ""
        )
    lines.append(f"  in its JSON: {keys}")
    if chosen["accumulation"] > 1:
        lines.append(
            f"  accumulation {chosen['accumulation']} keeps all negatives in two passes: one more forward pass"
        )
    lines += [f"  - {reason}" for reason in report["reasons"]]
    return [*lines, report["note"]]


def _cells(row: dict[str, Any]) -> list[str]:
    rate, estimate = row["pairs_per_second"], row["estimate"]
    hours = "" if estimate is None else _interval(estimate["hours"])
    usd = "" if estimate is None else "unknown" if estimate["usd"] is None else _dollars(estimate["usd"])
    return [
        row["config"],
        "yes" if row["fits"] else "no",
        f"{row['micro_batch']} x {row['accumulation']}",
        f"{row['device_total'] / GIB:.2f}",
        f"{sum(row['host_bytes'].values()) / GIB:.2f}",
        f"{row['bytes_sent_per_step'] / 1e6:.0f}",
        row["binds"],
        "" if rate is None else _interval(rate),
        hours,
        usd,
    ]


def _interval(value: dict[str, float]) -> str:
    return (
        f"{value['low']:,.3g}-{value['high']:,.3g}"
        if value["high"] < 1000
        else (f"{value['low']:,.0f}-{value['high']:,.0f}")
    )


def _dollars(value: dict[str, str]) -> str:
    return f"{float(value['low']):,.2f}-{float(value['high']):,.2f}"
