"""``ssmke-cost plot``: quality against dollars, own runs beside the published models, as a figure."""

from __future__ import annotations

import argparse
from pathlib import Path

from ssmke.cli.cost.folder import add_folder, add_prices
from ssmke.errors import ConfigError


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser("plot", help="quality against dollars, with the published models")
    add_folder(parser)
    add_prices(parser)
    parser.add_argument(
        "--reprice", metavar="PRICE", help="price the runs anew, as --cost.price would (nothing is stored)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("quality_per_dollar.png"),
        metavar="FILE",
        help="a .png, .pdf or .svg",
    )
    parser.add_argument(
        "--test", metavar="NAME", help="only the test sets whose name contains this (coco, flickr30k, ...)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Writes the figure and says which points are on the front; exit code 0."""
    from ssmke.cli.cost.report import read
    from ssmke.cli.cost.terminal import say
    from ssmke.cost.charts.plot import check_format, plot
    from ssmke.cost.published.pareto import panels
    from ssmke.cost.render.numbers import money

    check_format(arguments.out)
    found = read(arguments)
    known = panels(found.runs, found.baselines)
    shown = [p for p in known if arguments.test is None or arguments.test.lower() in p.test.title.lower()]
    if not shown:
        raise ConfigError(
            f"--test {arguments.test!r} fits none of the test sets here: {', '.join(p.test.title for p in known)}"
        )
    plot(shown, arguments.out)
    lines = [f"{arguments.out.resolve()}"]
    for panel in shown:
        front = ", ".join(f"{p.name} ({money(p.usd, partial=p.lower_bound)})" for p in panel.front)
        lines.append(
            f"{panel.test.title}: nobody is better for less than {front or 'none with both numbers known'}"
        )
    for line in lines:
        say(line)
    return 0
