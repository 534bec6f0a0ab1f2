"""The report of reproduced tables: ours beside the published figures, with intervals, curves, and what differs.

One HTML page without scripts or external resources, and the same tables as Markdown for the docs. A model that has not
run has empty cells, never a guess. Published and own figures are of different data below the full scale, so they stand
in columns of their own and are compared by their order: that is what an ablation in small can confirm.

Two models are apart where both have three seeds or more and every seed of the one is above every seed of the other:
two equal models come out so in 1 of 10 tries of three seeds each, 1 of 35 of four. With fewer seeds they are apart
where their intervals over images do not meet, which leaves out how far another seed would have moved them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssmke.cost.charts.axes import linear
from ssmke.cost.charts.svg import Range, legend, lines, ranges
from ssmke.cost.dashboard.published import pareto_section
from ssmke.cost.published.baselines import published_saving
from ssmke.cost.published.pareto import panels
from ssmke.cost.render.html import page as html_page
from ssmke.cost.render.html import section as html_section
from ssmke.cost.render.markdown import document
from ssmke.cost.render.parts import Column, Marks, Section
from ssmke.cost.render.parts import Table as Cells
from ssmke.cost.render.policy import without_style_attributes
from ssmke.cost.report import Report
from ssmke.reproduce.efficiency import own_runs, published_runs
from ssmke.reproduce.outcome import KS, Factors, Outcome, Score, published
from ssmke.reproduce.suites import ALONE, FINETUNED, ZERO_SHOT
from ssmke.reproduce.variants import SCALE, VARIANTS, ScaleName, Table
from ssmke.words import counted

WINDOW_SHARE = 40
"""A curve's points are means over this part of its steps."""
FEWEST_SEEDS = 3
"""Below it, seeds do not decide whether two models are apart."""
_OF_ONE = " Device-hours and dollars are of one seed, on average."
STYLE = Path(__file__).with_name("page.css")


def markdown(
    tables: Sequence[Table],
    scale: ScaleName,
    found: Mapping[str, Outcome],
    facts: str,
    costs: Report | None = None,
) -> str:
    """The report as Markdown; ``facts``: machine, date and command in a sentence; ``costs``: of all runs."""
    return f"{facts}\n\n" + document(
        section for table in tables for section in sections_of(table, scale, found, costs)
    )


def html(
    tables: Sequence[Table],
    scale: ScaleName,
    found: Mapping[str, Outcome],
    facts: str,
    costs: Report | None = None,
) -> str:
    """The report as a page; the arguments as in `markdown`."""
    parts = [
        html_section(Section("What was run", notes=(facts, f"Published figures: {published()['source']}.")))
    ]
    for table in tables:
        *first, last = sections_of(table, scale, found, costs)
        parts += [*map(html_section, first), html_section(last, _charts(table, scale, found))]
        if table.kind == "efficiency" and costs is not None:
            whole = [run for run in costs.runs if _begins_with_nothing(run.name)]
            parts.append(pareto_section(panels(whole, costs.baselines)))
    body, rules = without_style_attributes("\n".join(parts))
    return html_page(f"Published tables at scale {scale}", body, STYLE.read_text(encoding="utf-8") + rules)


def sections_of(
    table: Table, scale: ScaleName, found: Mapping[str, Outcome], costs: Report | None = None
) -> list[Section]:
    """The sections of a table, at least one."""
    if table.kind == "alone":
        return [_alone(table, scale, found)]
    if table.kind == "efficiency":
        notes = (f"Published: {table.says}",)
        if costs is None:
            return [Section(table.title, notes=(*notes, "Nothing has run here yet."))]
        saving = f"{published_saving(costs.baselines)}, at the prices that they cite."
        other = "" if scale == "full" else (
            f"Recalls here are on {' and '.join(SCALE[scale].scored_on.values())}: other data, and not comparable with "
            "the published ones."
        )  # fmt: skip
        return [
            published_runs(f"{table.title}: published", costs, (*notes, saving)),
            own_runs(f"{table.title}: ours", costs, (other,) if other else ()),
        ]
    return [section_of(table, scale, found)]


def _begins_with_nothing(run: str) -> bool:
    """Whether a run's cost is all that its model cost, pretrained encoders apart."""
    variant = VARIANTS.get(re.sub(r"-seed\d+$", "", run))
    return variant is None or (variant.starts_from is None and not variant.halves)


def section_of(table: Table, scale: ScaleName, found: Mapping[str, Outcome]) -> Section:
    """A table: published figures, ours, what it cost; marked, what a model is not."""
    figures = published()[table.published] if table.published else {"columns": [], "rows": {}}
    tests = SCALE[scale].scored_on
    columns = [Column("model", right=False)]
    columns += [Column(f"published {name}") for name in _leading(figures["columns"])]
    for name in tests.values():
        columns += [Column(f"{name} i2t R@1/5/10"), Column(f"{name} t2i R@1/5/10"), Column("mean R@1 (95 %)")]
    suite = ZERO_SHOT.get(scale) if table.zero_shot else None
    columns += [Column(f"{suite.title} (95 %)")] if suite else []
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
            row.append(_cell(outcome.scores.get((data, "mean_r1"))))
        if suite:
            row.append(_cell(outcome.scores.get((suite.data, suite.number))))
        row.append("-" if outcome.device_hours is None else f"{outcome.device_hours:.3f}")
        row.append("-" if outcome.usd is None else f"{outcome.usd:.4f}")
        rows.append(tuple(row))
    notes = [f"Published: {table.says}", *_order(table, scale, figures, found)]
    ran = {key: found[key] for key in table.variants if key in found}
    notes += [*_seeds_note(list(ran.values()), _OF_ONE), *_factors_note(ran)]
    return Section(table.title, Cells(tuple(columns), tuple(rows)), marks.legend(), tuple(notes))


def _alone(table: Table, scale: ScaleName, found: Mapping[str, Outcome]) -> Section:
    """The halves by themselves: finetuned accuracies, published and ours."""
    figures, suites = published()[table.published or ""], FINETUNED.get(scale, ())
    columns = [Column("halves", right=False), *(Column(f"published {name}") for name in figures["columns"])]
    columns += [Column(f"{suite.title} (95 %)") for suite in suites]
    rows, marks = [], Marks()
    for key, alone in ALONE.items():
        why = alone.differs.get(scale, "") if suites else "not at this scale: no labelled data go with it"
        cells = [_cell(found.get(key, Outcome()).scores.get((suite.data, suite.number))) for suite in suites]
        name = f"{alone.name} {marks.of(why)}" if why else alone.name
        rows.append((name, *_published(figures, key), *cells))
    notes = [f"Published: {table.says}"]
    if suites:
        notes.append(
            "Each half is finetuned by itself, from the same seed and in the same batches. Its cost is not in the "
            "dollars of the other tables."
        )
    if scale == "scenes":
        notes.append(
            "Here: pictures of one thing in its colour and shape, some 70 classes, at places that training has not "
            "shown. Not the published data, and no GLUE: the embedded text encoder knows the words of scenes only."
        )
    notes += _seeds_note([found[key] for key in ALONE if key in found])
    return Section(table.title, Cells(tuple(columns), tuple(rows)), marks.legend(), tuple(notes))


def _cell(score: Score | None) -> str:
    """ "42.38 (40.2 to 44.8)", and of several seeds "42.38 ± 1.20 (40.2 to 44.8)"."""
    if score is None:
        return "-"
    spread = "" if score.std is None else f" ± {score.std:.2f}"
    ends = "" if score.low is None or score.high is None else f" ({score.low:.1f} to {score.high:.1f})"
    return f"{score.value:.2f}{spread}{ends}"


def _seeds_note(found: Sequence[Outcome], more: str = "") -> list[str]:
    """What ± means and how many seeds there are, and ``more``; nothing where all have one."""
    counts = [max((len(score.seeds) or 1 for score in one.scores.values()), default=0) for one in found]
    counts = [number for number in counts if number]
    if not counts or max(counts) == 1:
        return []
    low, high = min(counts), max(counts)
    many = f"{high}" if low == high else f"{low} to {high}"
    return [
        f"Means over {many} seeds, ± their standard deviation (n - 1); the interval is that over images, its ends "
        f"averaged.{more}"
    ]


def _factors_note(found: Mapping[str, Outcome]) -> list[str]:
    """How much each model has seen, those of one amount together."""
    groups: dict[Factors, list[str]] = {}
    for key, outcome in found.items():
        if outcome.factors is not None:
            groups.setdefault(outcome.factors, []).append(VARIANTS[key].name)
    said = [
        f"{saw.pairs:,} pairs in {counted(saw.steps, 'step')} of {saw.batch:,}"
        + (f" ({'; '.join(names)})" if len(groups) > 1 else "")
        for saw, names in groups.items()
    ]
    return [f"Seen in training, once for each epoch: {'; '.join(said)}."] if said else []


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
        said.append(f"The best two on {name} are {_apart(best, second)}.")
    return said


def _apart(best: Score, second: Score) -> str:
    """Whether they are, and by which rule (see the module)."""
    fewest = min(len(best.seeds), len(second.seeds))
    if fewest >= FEWEST_SEEDS:
        clear = min(value for _, value in best.seeds) > max(value for _, value in second.seeds)
        chance = math.comb(len(best.seeds) + len(second.seeds), len(best.seeds)) // 2
        if not clear:
            return "not apart: their seeds overlap"
        rare = f"(of two equal models: once in {chance} times)"
        return f"apart: every seed of the one is above every seed of the other {rare}"
    whose = "one seed" if fewest < 2 else f"{fewest} seeds, too few to judge by"
    if best.low is not None and second.high is not None and best.low > second.high:
        return f"apart by their intervals over images, with {whose}"
    return f"not apart by these intervals, which are those of {whose}"


def _retrieval(figures: Mapping[str, Any], key: str) -> list[Any]:
    """Published figures of a model, zero-shot classification left out; ``[None]`` where there are none."""
    row = figures["rows"].get(key)
    if row is None:
        return [None]
    return [value for name, value in zip(figures["columns"], row, strict=True) if "zero-shot" not in name]


def _charts(table: Table, scale: ScaleName, found: Mapping[str, Outcome]) -> str:
    if table.kind == "efficiency":
        return ""
    shown = {(data, "mean_r1"): f"Mean R@1 on {name}" for data, name in SCALE[scale].scored_on.items()}
    names = {key: VARIANTS[key].name for key in table.variants}
    if table.kind == "alone":
        shown = {(suite.data, suite.number): suite.title for suite in FINETUNED.get(scale, ())}
        names = {key: alone.name for key, alone in ALONE.items()}
    elif table.zero_shot and scale in ZERO_SHOT:
        shown[ZERO_SHOT[scale].data, ZERO_SHOT[scale].number] = ZERO_SHOT[scale].title
    parts = []
    colours = {key: f"c{number % 7}" for number, key in enumerate(names)}
    for what, title in shown.items():
        scores = {key: found[key].scores[what] for key in names if key in found and what in found[key].scores}
        rows = [_range(names[key], colours[key], score) for key, score in scores.items()]
        if rows:
            ends = [end for row in rows for end in (row.low, row.high, row.point, *dict(row.others))]
            known = [end for end in ends if end is not None]
            low, high = min(known), max(known)
            axis = linear(high, lambda v: f"{v:g}", low=low if low > high / 2 else 0.0, count=6)
            hollow = "; hollow: each seed" if any(row.others for row in rows) else ""
            said = f"{title}, percent, with 95 % intervals over images{hollow}"
            parts.append(f"<h3>{said}</h3>\n{ranges(axis, rows, said)}")
    if table.kind == "alone":
        return "\n".join(parts)
    curves = {
        key: _smoothed(found[key].loss) for key in table.variants if key in found and len(found[key].loss) > 1
    }
    if curves:
        x = linear(max(points[-1][0] for points in curves.values()), lambda v: f"{v:g}")
        y = linear(max(b for points in curves.values() for _, b in points), lambda v: f"{v:g}")
        said = "Softmax contrast over steps, means of 1/40 of the run" + (
            " and over seeds" if _seeds_note(list(found.values())) else ""
        )
        named = [(colours[key], VARIANTS[key].name, points) for key, points in curves.items()]
        swatches = legend((kind, name, f"{points[-1][1]:.2f} at the end") for kind, name, points in named)
        parts.append(f"<h3>{said}</h3>\n{lines(x, y, named, label=said, height=240)}\n{swatches}")
    return "\n".join(parts)


def _range(name: str, kind: str, score: Score) -> Range:
    others = tuple((value, f"seed {seed}: {value:.2f}") for seed, value in score.seeds)
    return Range(name, kind, _cell(score), score.value, score.low, score.high, others=others)


def _smoothed(values: Sequence[float]) -> list[tuple[float, float]]:
    width = max(1, len(values) // WINDOW_SHARE)
    return [
        (
            min(start + width, len(values)),
            sum(values[start : start + width]) / len(values[start : start + width]),
        )
        for start in range(0, len(values), width)
    ]
