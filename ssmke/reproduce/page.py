"""The report of reproduced tables: ours beside the published figures, with intervals, curves, and what differs.

One HTML page without scripts or external resources, and the same tables as Markdown for the docs. A model that has not
run has empty cells, never a guess. Published and own figures are of different data below the full scale, so they stand
in columns of their own and are compared by their order: that is what an ablation in small can confirm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssmke.cost.charts.axes import linear
from ssmke.cost.charts.svg import Range, legend, lines, ranges
from ssmke.cost.render.html import page as html_page
from ssmke.cost.render.html import section as html_section
from ssmke.cost.render.markdown import document
from ssmke.cost.render.parts import Column, Marks, Section
from ssmke.cost.render.parts import Table as Cells
from ssmke.cost.render.policy import without_style_attributes
from ssmke.reproduce.outcome import KS, Outcome, Score, published
from ssmke.reproduce.variants import SCALE, VARIANTS, ScaleName, Table

WINDOW_SHARE = 40
"""A curve's points are means over this part of its steps."""
STYLE = Path(__file__).with_name("page.css")


def markdown(tables: Sequence[Table], scale: ScaleName, found: Mapping[str, Outcome], facts: str) -> str:
    """The report as Markdown; ``facts``: machine, date and command in a sentence."""
    return f"{facts}\n\n" + document(section_of(table, scale, found) for table in tables)


def html(tables: Sequence[Table], scale: ScaleName, found: Mapping[str, Outcome], facts: str) -> str:
    """The report as a page; ``facts`` as in `markdown`."""
    parts = [
        html_section(Section("What was run", notes=(facts, f"Published figures: {published()['source']}.")))
    ]
    parts += [html_section(section_of(table, scale, found), _charts(table, scale, found)) for table in tables]
    body, rules = without_style_attributes("\n".join(parts))
    return html_page(f"Published tables at scale {scale}", body, STYLE.read_text(encoding="utf-8") + rules)


def section_of(table: Table, scale: ScaleName, found: Mapping[str, Outcome]) -> Section:
    """A table: published figures, ours, what it cost; marked, what a model is not."""
    figures = published()[table.published] if table.published else {"columns": [], "rows": {}}
    tests = SCALE[scale].scored_on
    columns = [Column("model", right=False)]
    columns += [Column(f"published {name}") for name in _leading(figures["columns"])]
    for name in tests.values():
        columns += [Column(f"{name} i2t R@1/5/10"), Column(f"{name} t2i R@1/5/10"), Column("mean R@1 (95 %)")]
    columns += [Column("device-hours"), Column("dollars")]
    rows, marks = [], Marks()
    for key in table.variants:
        variant, outcome = VARIANTS[key], found.get(key, Outcome())
        why = variant.differs.get(scale, "")
        if scale not in variant.flags:
            why = f"not at this scale: {why}"
        row = [f"{variant.name} {marks.of(why)}" if why else variant.name, *_published(figures, key)]
        for data in tests:
            row += [_recalls(outcome, data, way) for way in ("i2t", "t2i")]
            mean = outcome.scores.get((data, "mean_r1"))
            row.append("-" if mean is None else f"{mean.value:.2f} ({mean.low:.1f} to {mean.high:.1f})")
        row.append("-" if outcome.device_hours is None else f"{outcome.device_hours:.3f}")
        row.append("-" if outcome.usd is None else f"{outcome.usd:.4f}")
        rows.append(tuple(row))
    notes = [f"Published: {table.says}", *_order(table, scale, figures, found)]
    return Section(table.title, Cells(tuple(columns), tuple(rows)), marks.legend(), tuple(notes))


def _leading(columns: Sequence[str]) -> list[str]:
    """Of R@1/5/10 the first only: the page is wide enough as it is."""
    return [name for name in columns if not name.startswith(("R@5", "R@10"))]


def _published(figures: Mapping[str, Any], key: str) -> list[str]:
    shown = _leading(figures["columns"])
    if key not in figures["rows"]:
        return ["-"] * len(shown)
    return [
        "-" if value is None else f"{value:g}"
        for name, value in zip(figures["columns"], figures["rows"][key], strict=True)
        if name in shown
    ]


def _recalls(outcome: Outcome, data: str, way: str) -> str:
    scores = [outcome.scores.get((data, f"{way}_r{k}")) for k in KS]
    return "-" if None in scores else " / ".join(f"{score.value:.1f}" for score in scores if score)


def _order(
    table: Table, scale: ScaleName, figures: Mapping[str, Any], found: Mapping[str, Outcome]
) -> list[str]:
    """Whether the models come in the published order, and which of ours are apart by more than their intervals."""
    said = []
    for data, name in SCALE[scale].scored_on.items():
        ours = {key: found[key].scores.get((data, "mean_r1")) for key in table.variants if key in found}
        known = {key: score for key, score in ours.items() if score is not None}
        if len(known) < 2:
            continue
        ranked = sorted(known, key=lambda key: -known[key].value)
        said.append(f"{name}, by mean R@1, best first: {'; '.join(VARIANTS[key].name for key in ranked)}.")
        both = [key for key in ranked if None not in _retrieval(figures, key)]
        if len(both) > 1:
            theirs = sorted(both, key=lambda key: -sum(_retrieval(figures, key)))
            same = "the same order" if theirs == both else "another order"
            named = "; ".join(VARIANTS[key].name for key in theirs)
            said.append(f"Published, by the mean of all retrieval figures: {named}: {same}.")
        best, second = (known[key] for key in ranked[:2])
        apart = (
            "apart" if best.low > second.high else "not apart by these intervals, which are those of one seed"
        )
        said.append(f"The best two on {name} are {apart}.")
    return said


def _retrieval(figures: Mapping[str, Any], key: str) -> list[Any]:
    """Published figures of a model, zero-shot classification left out; ``[None]`` where there are none."""
    row = figures["rows"].get(key)
    if row is None:
        return [None]
    return [value for name, value in zip(figures["columns"], row, strict=True) if "zero-shot" not in name]


def _charts(table: Table, scale: ScaleName, found: Mapping[str, Outcome]) -> str:
    parts = []
    colours = {key: f"c{number % 7}" for number, key in enumerate(table.variants)}
    for data, name in SCALE[scale].scored_on.items():
        rows = [
            _range(VARIANTS[key].name, colours[key], found[key].scores[data, "mean_r1"])
            for key in table.variants
            if key in found and (data, "mean_r1") in found[key].scores
        ]
        if rows:
            high = max(row.high or 0 for row in rows)
            low = min(row.low or 0 for row in rows)
            axis = linear(high, lambda v: f"{v:g}", low=low if low > high / 2 else 0.0, count=6)
            said = f"Mean R@1 on {name}, percent, with 95 % intervals over images"
            parts.append(f"<h3>{said}</h3>\n{ranges(axis, rows, said)}")
    curves = {
        key: _smoothed(found[key].loss) for key in table.variants if key in found and len(found[key].loss) > 1
    }
    if curves:
        x = linear(max(points[-1][0] for points in curves.values()), lambda v: f"{v:g}")
        y = linear(max(b for points in curves.values() for _, b in points), lambda v: f"{v:g}")
        said = "Contrastive loss over steps, means of 1/40 of the run"
        named = [(colours[key], VARIANTS[key].name, points) for key, points in curves.items()]
        swatches = legend((kind, name, f"{points[-1][1]:.2f} at the end") for kind, name, points in named)
        parts.append(f"<h3>{said}</h3>\n{lines(x, y, named, label=said, height=240)}\n{swatches}")
    return "\n".join(parts)


def _range(name: str, kind: str, score: Score) -> Range:
    return Range(
        name,
        kind,
        f"{score.value:.2f} ({score.low:.1f} to {score.high:.1f})",
        score.value,
        score.low,
        score.high,
    )


def _smoothed(values: Sequence[float]) -> list[tuple[float, float]]:
    width = max(1, len(values) // WINDOW_SHARE)
    return [
        (
            min(start + width, len(values)),
            sum(values[start : start + width]) / len(values[start : start + width]),
        )
        for start in range(0, len(values), width)
    ]
