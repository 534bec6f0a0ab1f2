"""What the report shows, in the order in which a user wants to see it.

Own runs first, then the published ones in three price bases, the thesis' tables, today's cheap peers, and what
does not add up in the published numbers. Plain text without layout or escapes: those are the formats' business.
Prices are marked [1], [2], ... and spelled out once below their table, so that rows stay short.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ssmke.cost.prices.catalogue import Price
from ssmke.cost.published.baselines import BASES, Baseline, published_saving
from ssmke.cost.published.thesis import Thesis, inconsistencies, load_thesis, per_device
from ssmke.cost.render.numbers import AT_LEAST, count, hours, hours_span, money, money_span, rate
from ssmke.cost.render.own import own_runs
from ssmke.cost.render.parts import Column, Marks, Section, Table
from ssmke.words import percent

if TYPE_CHECKING:
    from ssmke.cost.report import Report


def sections(report: Report, *, full: bool = False) -> tuple[Section, ...]:
    """The whole report; beyond MOST_RUNS runs the newest of them, unless ``full``."""
    thesis = load_thesis()
    return (
        *own_runs(report, full=full),
        _published(report.baselines),
        *_thesis(thesis),
        _peers(report.baselines),
        _inconsistencies(thesis, report.baselines),
    )


def _published(baselines: Sequence[Baseline]) -> Section:
    found = [b for b in baselines if b.kind == "published"]
    marks = Marks()
    ranges = "; ".join(
        f"{b.name} {money_span(b.listed)}"
        for b in found
        if b.listed is not None and b.listed[0] != b.listed[1]
    )
    left_out: dict[str, list[str]] = {}
    for b in found:
        if not b.unpublished:
            left_out.setdefault(b.excludes, []).append(b.name)
    notes = [
        f"{published_saving(found)}, as cited. pairs: in the data set, not seen in training.",
        f"At the lowest to the highest list price of the same kind of device: {ranges}.",
        *(f"{' and '.join(names)} left out: {text}." for text, names in left_out.items()),
    ]
    columns = (
        Column("published run", right=False),
        Column("params", spare=2),
        Column("pairs", spare=1),
        *(Column(t) for t in ("device-h", *BASES)),
    )
    rows = tuple(_baseline_row(b, marks) for b in found)
    return Section(
        "Published runs: devices x hours x price, in three bases",
        Table(columns, rows),
        marks.legend(),
        tuple(notes),
    )


def _baseline_row(b: Baseline, marks: Marks) -> tuple[str, ...]:
    return (
        b.label,
        count(b.parameters),
        count(b.pairs, at_least=b.pairs_at_least),
        "unpublished" if b.device_hours is None else hours_span(b.device_hours),
        *_bases(b, marks),
    )


def _bases(b: Baseline, marks: Marks) -> list[str]:
    cells = []
    floors = b.at_least.bases if b.at_least is not None else b.bases
    for basis, floor in zip(b.bases, floors, strict=True):
        if basis.usd is not None and basis.price is not None:
            cells.append(f"{money_span(basis.usd)} {marks.of(price_text(basis.price))}")
        elif basis is not floor and floor.usd is not None and floor.price is not None:
            cells.append(f"{AT_LEAST}{money(floor.usd[0])} {marks.of(price_text(floor.price))}")
        else:
            cells.append(basis.why)
    return cells


def price_text(price: Price) -> str:
    """A catalogue row in words: dollars for a device-hour, key, date, confidence."""
    when = "undated" if price.as_of is None else price.as_of_text[:10]
    return f"{rate(per_device(price))} per device-h: {price.name}, {when}, grade {price.confidence}"


def _peers(baselines: Sequence[Baseline]) -> Section:
    found = [b for b in baselines if b.kind == "peer"]
    marks = Marks()
    columns = (
        Column("peer", right=False),
        Column("pairs", spare=1),
        *(Column(t) for t in ("device-h", *BASES[1:], "list prices")),
    )
    rows = tuple(
        (b.label, count(b.pairs), hours_span(b.device_hours), *_bases(b, marks)[1:], money_span(b.listed))
        for b in found
    )
    notes = [f"{b.name}: {b.source}. Left out: {b.excludes}; {b.note}." for b in found]
    return Section("Today's cheap peers, priced by us", Table(columns, rows), marks.legend(), tuple(notes))


def _thesis(thesis: Thesis) -> tuple[Section, Section]:
    here, there = (f"{p.provider} {rate(per_device(p))}" for p in (thesis.here, thesis.there))
    columns = (
        Column("thesis model", right=False),
        Column("params", spare=3),
        Column("samples", spare=2),
        Column("hours", spare=1),
        *(Column(t) for t in ("device-h", here, "printed", there, "printed")),
    )
    rows = []
    for m in thesis.models:
        paid, compared = thesis.usd(m)
        hardware = f"{m.devices} x {hours(m.hours)}"
        numbers = (hardware, hours(m.device_hours), money(paid), m.printed[0], money(compared), m.printed[1])
        rows.append((m.name, count(m.parameters), count(m.samples), *numbers))
    final = thesis.usd(thesis.models[-1])[0]
    prices = tuple(f"{price_text(p)} ({p.accelerator})" for p in (thesis.here, thesis.there))
    models = Section("The thesis' six models", Table(columns, tuple(rows)), prices)
    columns = (
        Column("thesis project", right=False),
        Column("amount", spare=1),
        *(Column(t) for t in ("paid", f"at {here}", "AWS, printed", f"at {there}")),
    )
    lines = []
    for line in thesis.project:
        computed = thesis.line_usd(line)
        lines.append(
            (
                line.name,
                line.amount,
                money(line.printed[0]),
                "no factors" if computed is None else money(computed[0]),
                "-" if line.printed[1] is None else money(line.printed[1]),
                "no factors" if computed is None else money(computed[1]),
            )
        )
    total = ("total", "", money(thesis.paid), "", f"> {money(thesis.printed_total[1])}", "")
    note = (
        f"The final run ({money(final)}) is {percent(float(final / thesis.paid))} of the project: the whole cost "
        f"{float(thesis.paid / final):.0f} times as much."
    )
    table = Table(columns, (*lines, total), rule=len(lines))
    return models, Section("The thesis' whole project", table, notes=(note,))


def _inconsistencies(thesis: Thesis, baselines: Sequence[Baseline]) -> Section:
    found = inconsistencies(thesis, baselines)
    return Section(
        "What does not add up in the published numbers",
        notes=tuple(f"{number}. {i.title}. {i.text}" for number, i in enumerate(found, 1)),
    )
