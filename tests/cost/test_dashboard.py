"""The pages show the report's numbers, fetch and run nothing, survive hostile names, and stay small."""

from __future__ import annotations

import dataclasses
import itertools
import re
import shutil
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ssmke.cost.charts.timeline import timeline
from ssmke.cost.dashboard import page_of, run_page, workspace_page
from ssmke.cost.dashboard.spending import spending
from ssmke.cost.ledger.reader import read_series
from ssmke.cost.probes.probe import Sample
from ssmke.cost.report import Report, RunReport, Unread, report
from tests.cost.simulated import SECOND, Run

HOSTILE = '<script>alert(1)<\\script>"onmouseover="x()\'&lt;=cmd'
VOID = {"meta", "link", "br", "img", "hr", "input"}
SVG_LEAVES = {"line", "path", "circle", "rect"}


class Checked(HTMLParser):
    """Parses a page; fails on anything that could run or load, and on tags that do not close."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "iframe", "object", "embed", "link", "img", "base", "form", "a")
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            assert name not in ("href", "src", "srcset", "xlink:href", "action")
            assert "url(" not in (value or "") or name in ("title", "aria-label")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    readings = [
        {"GPU-0": Sample(mj=2_500_000 * i, mw=500_000, util=80.0, mem_mib=40_000)} for i in range(3000)
    ]
    first = Run(tmp_path / "first")
    first.attempt("a0", [("setup", 20), ("train", 280), (None, 10)], readings=readings, close=None)
    first.clock.ns += 3600 * SECOND
    meter = first.attempt("a1", [("train", 180), ("evaluation", 60)], readings=readings, close=None)
    scores = {"i2t_r1": 20.0, "t2i_r1": 10.0, "images": 100, "captions": 500}
    meter.note(recipe="small", eval_split="val", retrieval=scores, parameters=1000)
    meter.close("finished")
    Run(tmp_path / "group" / HOSTILE, price="none").attempt(
        "a0", [("train", 10)], close="failed", lineage="other"
    )
    return tmp_path


@pytest.fixture
def found(workspace: Path) -> Report:
    return report(workspace)


@pytest.fixture
def first(found: Report) -> RunReport:
    return next(r for r in found.runs if r.name == "first")


def test_a_run_page_shows_its_numbers(found: Report, first: RunReport) -> None:
    page = Checked(run_page(first, read_series(first.path), found.baselines))
    for expected in (
        "$0.1064",  # 555 s x 0.69: the killed attempt up to one period after its last beat
        "20.0 / 10.0",
        "energy counters",
        "$77,414.40",
        "attempt 2",
        "no end: killed, or running",
        "80 %",
        "500 W",
    ):
        assert expected in page.text, expected


def test_a_workspace_page_shows_all_runs_and_says_that_it_is_a_lower_bound(workspace: Path) -> None:
    page = Checked(page_of(workspace))
    for expected in ("≥ $0.1064", "first", "alert(1)", "all runs", "1 of 2 runs", "small val", "S-SMKE"):
        assert expected in page.text, expected
    assert "unknown" in page.text


def test_ledgers_that_could_not_be_read_make_every_sum_a_lower_bound(workspace: Path) -> None:
    other = next(p for p in workspace.iterdir() if p.name == "group")
    shutil.rmtree(other)
    whole = report(workspace)
    assert "could not be read" not in Checked(page_of(workspace, whole)).text
    assert "≥" not in Checked(page_of(workspace, whole)).text.split("Beside published")[0]
    partly = dataclasses.replace(whole, unread=(Unread(Path("x/<b>.jsonl"), "Permission denied"),))
    page = Checked(page_of(workspace, partly))
    assert "1 ledger could not be read: x/<b>.jsonl (Permission denied)" in page.text
    assert "≥ $0.1064" in page.text
    alone = Checked(page_of(workspace / "first", dataclasses.replace(partly, root=workspace / "first")))
    assert "1 ledger could not be read" in alone.text
    assert "≥ $0.1064" in alone.text
    none = Checked(page_of(workspace, dataclasses.replace(partly, runs=())))
    assert "No readable run" in none.text
    assert "1 ledger could not be read" in none.text


def test_the_sums_below_the_runs_are_lower_bounds_too(found: Report) -> None:
    first = next(r for r in found.runs if r.name == "first")
    twice = (first, dataclasses.replace(first, name="second", lineage="second"))
    unread = (Unread(Path("x"), "gone"),)
    foot = workspace_page(dataclasses.replace(found, runs=twice, unread=unread)).split("<tfoot>")[1]
    assert Checked("<table><tfoot>" + foot.split("</table>")[0] + "</table>").text.count("≥") == 4


def test_hostile_names_stay_text_and_stay_readable(found: Report) -> None:
    run = next(r for r in found.runs if r.name != "first")
    page = run_page(run, read_series(run.path), found.baselines)
    assert f"group/{HOSTILE}" in Checked(page).text
    assert "<script" not in page
    assert "No price is known" in page
    assert "device-h" in page


def test_nothing_is_allowed_to_load(workspace: Path) -> None:
    assert "default-src 'none'" in page_of(workspace)


def test_an_empty_workspace_still_shows_the_published_runs(tmp_path: Path) -> None:
    page = Checked(page_of(tmp_path))
    assert "No runs yet" in page.text
    assert "$9,676.80" in page.text


def test_a_run_folder_has_a_run_page(workspace: Path) -> None:
    assert "What this run cost" in page_of(workspace / "first")
    assert "What training cost" in page_of(workspace)


def test_a_chart_ends_where_the_report_ends(first: RunReport) -> None:
    for series in (read_series(first.path), []):
        over = timeline(first, series)
        total = sum(values[-1] for values in over.spent.values())
        assert total == pytest.approx(float(first.usage.usd or 0))
        for name, values in over.spent.items():
            assert list(values) == sorted(values), name
        whole = first.usage.device_ns
        for name, ns in first.usage.phases.items():
            assert over.spent[name][-1] == pytest.approx(total * ns / whole, rel=1e-3)


def test_the_gap_between_attempts_is_left_out(first: RunReport) -> None:
    over = timeline(first, read_series(first.path))
    assert [name for _, name in over.begins] == ["a0", "a1"]
    assert over.total_hours == pytest.approx(550 / 3600, rel=0.02)


def test_devices_show_time_weighted_means(first: RunReport) -> None:
    [track] = timeline(first, read_series(first.path)).tracks
    assert track.mean_busy == pytest.approx(80.0)
    assert track.mean_watts == pytest.approx(500.0, rel=1e-6)
    assert track.peak_memory_mib == 40_000


def test_a_long_run_is_thinned_and_keeps_its_end(tmp_path: Path) -> None:
    readings = [{"GPU-0": Sample(mj=1_000_000 * i, util=50.0)} for i in range(9000)]
    Run(tmp_path / "long").attempt("a", [("train", 12_000)], readings=readings)
    [run] = report(tmp_path).runs
    series = read_series(run.path)
    assert len(series[0].beats) > 2_000
    over = timeline(run, series)
    assert len(over.hours) <= 402
    assert len(over.edges) <= 400
    assert sum(v[-1] for v in over.spent.values()) == pytest.approx(float(run.usage.usd or 0))
    assert len(run_page(run, series, ())) < 250_000


def test_projection_is_drawn_only_while_a_run_goes_on(found: Report, first: RunReport) -> None:
    facts = {**first.facts, "forecast": {"usd": "0.5", "low": "0.4", "high": "0.7"}}
    finished = dataclasses.replace(first, facts=facts)
    last = dataclasses.replace(first.attempts[-1], outcome="no end")
    going = dataclasses.replace(finished, attempts=(*first.attempts[:-1], last))
    assert 'class="beyond"' not in run_page(finished, [], ())
    shown = run_page(going, [], ())
    assert 'class="beyond"' in shown
    assert "$0.4000 to $0.7000" in shown


def test_spending_of_all_runs_ends_at_their_sum_and_never_falls(found: Report) -> None:
    over = spending(found.runs)
    assert sum(v[-1] for v in over.spent.values()) == pytest.approx(float(found.project.usd or 0))
    for values in over.spent.values():
        assert all(b >= a - 1e-12 for a, b in itertools.pairwise(values))


def test_ten_thousand_runs_make_a_small_page(found: Report, first: RunReport) -> None:
    many = tuple(
        dataclasses.replace(first, name=f"run-{i}", lineage=str(i), began_wall_ns=first.began_wall_ns + i)
        for i in range(10_000)
    )
    page = workspace_page(dataclasses.replace(found, runs=many))
    assert len(page) < 400_000
    assert "The 40 newest of 10,000 runs" in page
    assert "the 40 best of 10,000 runs" in page
    total = (first.usage.usd or Decimal(0)) * 10_000
    assert f"${total:,.2f}" in page
