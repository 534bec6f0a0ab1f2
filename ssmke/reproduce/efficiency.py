"""Parameters, pairs, dollars and recall: published runs and our own, by the numbers of `ssmke-cost report`.

Nothing is reckoned here. Dollars of published runs are devices x hours x price (`ssmke.cost.published`), recalls are
those of ``quality.json``, our own come from the ledgers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from ssmke.cost.published.baselines import Baseline
from ssmke.cost.published.pareto import QUALITY
from ssmke.cost.published.thesis import load_thesis
from ssmke.cost.render.numbers import count, hours, hours_span, money, money_short
from ssmke.cost.render.parts import Column, Section, Table
from ssmke.cost.report import Report, RunReport

_FACTORS = (Column("parameters"), Column("pairs"), Column("device-hours"), Column("dollars"))


def published_runs(title: str, costs: Report, notes: Sequence[str]) -> Section:
    """Published models with their recalls; then published runs whose recalls are not known here."""
    data = json.loads(QUALITY.read_text(encoding="utf-8"))
    thesis = load_thesis()
    known = {("baseline", baseline.name): _published(baseline) for baseline in costs.baselines}
    for one in thesis.models:
        usd = money(thesis.usd(one)[0])
        known["thesis", one.name] = (count(one.parameters), count(one.samples), hours(one.device_hours), usd)
    rows, shown = [], set()
    for model in data["models"]:
        of = next(iter((model["cost"] or {}).items()), None)
        shown.add(of)
        recalls = [" / ".join(model["r1"].get(test["key"], ["-"])) for test in data["tests"]]
        setting = "" if model["name"].endswith(model["setting"]) else f" ({model['setting']})"
        rows.append((f"{model['name']}{setting}", *(known[of] if of else ("-",) * len(_FACTORS)), *recalls))
    for baseline in costs.baselines:
        of = ("baseline", baseline.name)
        if baseline.kind == "published" and of not in shown:
            rows.append((baseline.label, *known[of], *("-" for _ in data["tests"])))
    tests = [Column(f"{test['name']} R@1 i2t / t2i") for test in data["tests"]]
    columns = (Column("published", right=False), *_FACTORS, *tests)
    said = "Dollars: devices x hours x the price that the source cites. Pairs: in the data set, not seen in training."
    return Section(title, Table(columns, tuple(rows)), notes=(*notes, said))


def own_runs(title: str, costs: Report, notes: Sequence[str]) -> Section:
    """Every run below the folder, by what it scored."""
    runs = sorted(costs.runs, key=lambda run: (-sum(run.recall_at_1 or (0.0,)), run.name))
    rows = tuple(
        (
            run.name,
            count(run.parameters),
            count(run.pairs),
            hours(run.usage.device_hours),
            money_short(run.usage.usd, partial=run.usage.usd_partial),
            " / ".join(f"{recall:.1f}" for recall in run.recall_at_1 or ()) or "-",
            _where(run),
        )
        for run in runs
    )
    columns = (Column("run", right=False), *_FACTORS, Column("R@1 i2t / t2i"), Column("on", right=False))
    said = (
        "Pairs: seen, once for each epoch. Device-hours and dollars: with all that was redone, but of this run alone: "
        "what it begins with, another run's model or distilled halves, is on top (and such runs are not in the plot). "
        "ssmke-cost report, on the same folder, says where the time went, and at which price."
    )
    return Section(title, Table(columns, rows), notes=(*notes, said))


def _published(baseline: Baseline) -> tuple[str, str, str, str]:
    usd = money(baseline.usd)
    if baseline.usd is None and baseline.at_least is not None:
        usd = money(baseline.at_least.usd, partial=True)
    pairs = count(baseline.pairs, at_least=baseline.pairs_at_least)
    return count(baseline.parameters), pairs, hours_span(baseline.device_hours), usd


def _where(run: RunReport) -> str:
    """Data and split of its evaluation."""
    if run.recall_at_1 is None:
        return "-"
    data = run.facts.get("eval_data") or run.facts.get("recipe") or ""
    return f"{data} {run.eval_split or ''}".strip()
