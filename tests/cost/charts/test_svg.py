"""Axes end on round numbers and keep order; charts stay inside their plot, escape their text, and thin nothing away."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssmke.cost.charts import axes
from ssmke.cost.charts.labels import place
from ssmke.cost.charts.svg import Band, Mark, Part, Range, bar, escape, profile, ranges, shorten, stacked

NS_PER_DAY = 86_400 * 10**9
amounts = st.floats(min_value=1e-7, max_value=1e7)


def linear(high: float) -> axes.Axis:
    return axes.linear(high, str)


@given(amounts)
def test_a_linear_axis_holds_its_values_and_has_few_ticks(high: float) -> None:
    axis = linear(high)
    values = [v for v, _ in axis.ticks]
    assert axis.low == 0
    assert axis.high >= high * (1 - 1e-6)
    assert axis.high <= 2 * high + 1e-9
    assert 2 <= len(values) <= 7
    assert values == sorted(set(values))


@given(amounts, st.floats(min_value=1, max_value=1e6))
def test_a_log_axis_holds_both_ends_and_has_labels_for_them(low: float, factor: float) -> None:
    axis = axes.logarithmic(low, low * factor, axes.tick_money)
    assert axis.low <= low * (1 + 1e-6)
    assert axis.high >= low * factor * (1 - 1e-6)
    assert 2 <= len(axis.ticks) <= 9
    middle = math.sqrt(axis.low * axis.high)
    assert axis.at(middle) == pytest.approx(0.5)


@given(st.floats(min_value=1e-6, max_value=1e6))
def test_a_duration_axis_ends_where_the_time_ends(hours: float) -> None:
    axis = axes.duration(hours)
    assert axis.high == pytest.approx(max(hours, 1e-3 / 3600))
    assert all(0 <= axis.at(v) <= 1 for v, _ in axis.ticks)
    assert len(axis.ticks) <= 8


@given(st.integers(0, 20_000), st.floats(min_value=0, max_value=4000))
def test_calendar_ticks_lie_inside_and_in_order(day: int, days: float) -> None:
    begin = day * NS_PER_DAY + 12_345
    axis = axes.calendar(begin, begin + int(days * NS_PER_DAY))
    values = [v for v, _ in axis.ticks]
    assert len(values) <= 14
    assert all(axis.low - 1e9 <= v <= axis.high + 1e9 for v in values)
    assert all(a < b for a, b in pairwise(values))


@pytest.mark.parametrize(
    ("usd", "shown"), [(0, "$0"), (0.05, "$0.05"), (1e-6, "$0.000001"), (2, "$2"), (5e3, "$5k"), (1e6, "$1M")]
)
def test_money_on_an_axis(usd: float, shown: str) -> None:
    assert axes.tick_money(usd) == shown


def test_a_stacked_chart_is_well_formed_and_its_top_edge_is_the_sum() -> None:
    bands = [Band("train", "tr<ai>n", (0.0, 2.0, 4.0)), Band("idle", "idle", (0.0, 1.0, 4.0))]
    svg = stacked(
        axes.duration(2.0),
        linear(8.0),
        (0.0, 1.0, 2.0),
        bands,
        label='a "chart"',
        marks=[Mark(1.0, "<b>")],
        hover=str,
    )
    root = ET.fromstring(svg)  # a stray < or " would not parse
    paths = [p.get("d") or "" for p in root.iter("path")]
    tops = [[float(y) for _, y in re.findall(r"([\d.]+) ([\d.]+)", d)][:3] for d in paths]
    assert tops == [[1000.0, 750.0, 500.0], [1000.0, 625.0, 0.0]]
    assert {t.text for t in root.iter("title")} >= {"tr<ai>n", "0", "2"}


def test_a_profile_breaks_where_nothing_was_read() -> None:
    svg = profile(
        axes.duration(4.0),
        linear(100.0),
        (0.0, 1.0, 2.0, 3.0, 4.0),
        (50.0, 50.0, None, 80.0, 80.0),
        kind="busy",
        label="",
        height=40,
    )
    assert svg.count('class="line busy"') == 2


def test_a_bar_leaves_out_nothing_that_was_there() -> None:
    pieces = ET.fromstring(bar([Part("a", 0.9999, "x"), Part("b", 0.0001, "y"), Part("c", 0.0, "z")], "all"))
    assert [i.get("class") for i in pieces] == ["a", "b"]


def test_ranges_say_unknown_without_a_point() -> None:
    axis = axes.logarithmic(1, 1000, axes.tick_money)
    rows = [Range("known", "other", "$10", 10.0, 5.0, 50.0), Range("not", "own", "unknown", None)]
    root = ET.fromstring(ranges(axis, rows, "money"))
    dots = [c.get("cx") for c in root.iter("circle")]
    assert dots == ["33.33%"]
    assert "unknown" in "".join(root.itertext())


def test_text_that_acts_on_a_page_is_made_harmless() -> None:
    assert escape(
        "<a b='c\"'>&\x1b\u202e"
    ) == "&lt;a b=&#x27;c&quot;&#x27;&gt;&amp;\N{REPLACEMENT CHARACTER}" * 1 + ("\N{REPLACEMENT CHARACTER}")


@given(st.text(max_size=80), st.integers(3, 40))
def test_shortening_keeps_both_ends(text: str, length: int) -> None:
    short = shorten(text, length)
    assert len(short) <= max(length, 0)
    if len(text) > length:
        assert short[0] == text[0]
        assert short[-1] == text[-1]


@given(
    st.lists(
        st.tuples(st.floats(0, 400), st.floats(0, 300), st.text("abc", min_size=1, max_size=20)), max_size=12
    )
)
def test_names_never_lie_on_each_other_or_leave_the_plot(points: list[tuple[float, float, str]]) -> None:
    boxes = []
    for (x, y, name), spot in zip(points, place(points, 400, 300), strict=True):
        if spot is None:
            continue
        long = len(name) * 6.4
        left = x + spot.dx - {"start": 0, "middle": long / 2, "end": long}[spot.anchor]
        top = y + spot.dy - 11
        assert left >= -6
        assert left + long <= 404
        assert top >= -8
        assert top + 14 <= 300
        boxes.append((left, top, left + long, top + 14))
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
