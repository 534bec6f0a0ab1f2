"""Beside the published runs: dollars in their price bases, and quality against dollars."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from ssmke.cost.charts.axes import logarithmic, tick_money
from ssmke.cost.charts.scatter import scatter
from ssmke.cost.charts.svg import Range, escape, ranges
from ssmke.cost.dashboard.page import section
from ssmke.cost.dashboard.words import dollars
from ssmke.cost.published.baselines import Baseline
from ssmke.cost.published.pareto import Panel, drawn, interval
from ssmke.cost.render.numbers import count, hours_span, money_span

SUB = (
    "Log scale. Point: the price that the source used, else a dated list price. Bar: from the cheapest to the dearest "
    "of three price bases (as cited, on demand, cheapest spot). All computed from devices x hours x price; "
    "the pretrained encoders and teachers that a run starts from are in none of them."
)
PARETO_SUB = (
    "Mean R@1 of both directions, percent, against dollars of training (log scale). Only models tested on the same "
    "images and captions share a panel. Hollow: finetuned on the test's data set. Line: nobody is better for less."
)


def published_section(own: Sequence[tuple[str, Decimal | None, str]], baselines: Sequence[Baseline]) -> str:
    """Own amounts (name, dollars, note) and the published runs on one axis."""
    rows: list[Range] = []
    for name, usd, note in own:
        known = usd if usd else None
        rows.append(Range(name, "own", dollars(usd), None if known is None else float(known), note=note))
    unpublished: list[str] = []
    for baseline in baselines:
        point, span = drawn(baseline), interval(baseline)
        if point is None or span is None:
            unpublished.append(baseline.label)
            continue
        rows.append(_row(baseline, point, span))
    ends = [v for row in rows for v in (row.low, row.high, row.point) if v]
    if not ends:
        return ""
    rows.sort(key=lambda row: row.point or 0.0)
    axis = logarithmic(min(ends), max(ends), tick_money)
    missing = (
        f'<p class="note">Compute not published, so no dollars: {escape("; ".join(unpublished))}.</p>'
        if unpublished
        else ""
    )
    return section(
        "Beside published runs", SUB, ranges(axis, rows, "Training cost in US dollars, log scale") + missing
    )


def _row(baseline: Baseline, point: Decimal, span: tuple[Decimal, Decimal]) -> Range:
    pairs = f"{count(baseline.pairs)} pairs" if baseline.pairs is not None else ""
    used = f"{hours_span(baseline.device_hours)} device-h" if baseline.device_hours else ""
    others = tuple(
        (
            float(usd),
            f"{basis.name}: {money_span(basis.usd)}{'' if basis.price is None else f', {basis.price.name}'}",
        )
        for basis in baseline.bases
        if basis.usd is not None
        for usd in dict.fromkeys(basis.usd)
        if usd != point
    )
    cited = baseline.usd is not None
    return Range(
        name=baseline.name,
        kind="other",
        value=money_span(baseline.estimate) if not cited else dollars(baseline.usd),
        point=float(point),
        low=float(span[0]),
        high=float(span[1]),
        note=" · ".join(part for part in (pairs, used) if part),
        others=others,
    )


def pareto_section(panels: Sequence[Panel]) -> str:
    """A chart per test set that has any point with both numbers."""
    drawn_panels = [(panel, chart) for panel in panels if (chart := scatter(panel.drawn))]
    if not drawn_panels:
        return ""
    shown = "".join(
        f'<figure class="panel"><h3>{escape(panel.test.title)} {_size(panel)}</h3>{chart}</figure>'
        for panel, chart in drawn_panels
    )
    return section("Quality against dollars", PARETO_SUB, f'<div class="panels">{shown}</div>')


def _size(panel: Panel) -> str:
    cut = panel.own - panel.drawn.own
    more = f"the {panel.drawn.own} best of {panel.own:,} runs" if cut else ""
    shown = "; ".join(part for part in (panel.test.size, more) if part)
    return f"<small>{escape(shown)}</small>" if shown else ""
