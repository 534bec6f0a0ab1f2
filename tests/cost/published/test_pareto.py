"""The front is what nobody beats; unlike tests never share an axis; the published points are computed."""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssmke.cost.charts.scatter import scatter
from ssmke.cost.published.baselines import load
from ssmke.cost.published.pareto import EvalSet, Point, eval_set_of, front, panels
from ssmke.cost.report import RunReport, report
from tests.cost.simulated import Run


def point(usd: int | None, quality: int | None) -> Point:
    return Point(
        "p", None if usd is None else Decimal(usd), None if quality is None else float(quality), own=True
    )


@given(
    st.lists(st.tuples(st.none() | st.integers(1, 20), st.none() | st.integers(0, 20)), max_size=20).map(
        lambda rows: [point(*row) for row in rows]
    )
)
def test_the_front_is_exactly_what_no_point_dominates(points: list[Point]) -> None:
    known = [(p.usd, p.quality) for p in points if p.usd is not None and p.quality is not None]
    beaten = {(u, q) for u, q in known if any((v <= u and r >= q) and (v, r) != (u, q) for v, r in known)}
    found = [(p.usd, p.quality) for p in front(points)]
    assert found == sorted(set(known) - beaten)


@pytest.fixture
def run(tmp_path: Path) -> RunReport:
    simulated = Run(tmp_path / "run")
    meter = simulated.attempt("a", [("train", 3600)], close=None)
    scores = {"i2t_r1": 60.0, "t2i_r1": 40.0, "images": 1000, "captions": 5000}
    meter.note(recipe="small", eval_split="test", retrieval=scores)
    meter.close("finished")
    [found] = report(tmp_path / "run").runs
    return found


def evaluated(run: RunReport, **facts: object) -> RunReport:
    return dataclasses.replace(run, facts={**run.facts, **facts})


def test_a_run_joins_the_published_models_of_its_own_test_only(run: RunReport) -> None:
    flickr = evaluated(run, eval_data="flickr30k")
    names = {p.test.title: [q.name for q in p.points if q.own] for p in panels([run, flickr], load())}
    assert names == {"Flickr30K 1K test": ["run"], "small test": ["run"], "COCO 5K test": []}


@pytest.mark.parametrize(
    "facts",
    [
        {"eval_split": "val"},
        {"retrieval": {"i2t_r1": 60.0, "t2i_r1": 40.0, "images": 999, "captions": 5000}},
        {"eval_data": "flickr8k"},
    ],
)
def test_another_split_size_or_data_set_is_another_test(run: RunReport, facts: dict[str, object]) -> None:
    mine = evaluated(run, **{"eval_data": "flickr30k", **facts})
    shared = [p for p in panels([mine], load()) if p.own and len(p.points) > 1]
    assert shared == []


def test_a_run_without_an_evaluation_is_on_no_panel(run: RunReport) -> None:
    assert eval_set_of(evaluated(run, retrieval=None)) is None
    assert sum(p.own for p in panels([evaluated(run, retrieval=None)], load())) == 0


def test_published_points_have_dollars_from_factors_or_none() -> None:
    [coco] = [p for p in panels([], load()) if p.test == EvalSet("coco", "test", 5000, 25010)]
    points = {p.name: p for p in coco.points}
    assert points["CLIP"].usd == Decimal("77414.4")
    assert points["SHRe-T"].usd == Decimal("10.626")  # 2 x 7.7 h x 0.69
    assert points["S-SMKE"].usd == Decimal("15.456")
    assert points["S-SMKE"].quality == pytest.approx((53.54 + 35.65) / 2)
    assert points["BEiT-3"].usd is None
    assert points["S-SMKE, finetuned"].usd is None
    assert [p.name for p in coco.front] == ["SHRe-T", "S-SMKE, MSE", "S-SMKE", "CLIP"]


def test_what_is_unknown_is_drawn_off_the_axes_and_named() -> None:
    [coco] = [p for p in panels([], load()) if p.test.dataset == "coco"]
    chart = scatter(coco)
    assert "cost unknown</text>" in chart
    assert "BEiT-3; R@1 image to text 84.8, text to image 67.2; cost unknown" in chart
    assert scatter(dataclasses.replace(coco, points=tuple(p for p in coco.points if p.usd is None))) == ""
