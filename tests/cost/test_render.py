"""The report in every format: complete, exact, in order, and deaf to what a hostile folder name asks for."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from dataclasses import replace
from decimal import Decimal
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ssmke.cost.prices.file import load_prices
from ssmke.cost.probes.probe import Sample
from ssmke.cost.render import FORMATS, focus, html, latex, markdown, parts, render, table
from ssmke.cost.render import csv as flat
from ssmke.cost.report import Report, Unread, report
from ssmke.errors import ConfigError
from tests.cost.simulated import SECOND, Run, Training

HOSTILE = '=HYPERLINK("x")|<script>alert(1)<\\script>[bold]$x^2$\\input{a}'
LAID_OUT = ("table", "markdown", "latex", "html")


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    readings = [{"GPU-0": Sample(mj=1_500_000 * i)} for i in range(3000)]
    run = Run(tmp_path / "first")
    run.attempt("a0", [("train", 150), ("train", 150), (None, 10)], readings=readings, close=None)
    run.clock.ns += 60 * SECOND
    run.pairs = 1  # of two; resumed from the checkpoint after the first
    meter = run.attempt("a1", [("train", 120)] * 3, readings=readings, close=None)
    meter.note(parameters=117_200_000, retrieval={"i2t_r1": 50.0, "t2i_r1": 30.0}, eval_split="val")
    meter.close("finished")
    other = Run(tmp_path / "group" / HOSTILE, price="none")
    other.attempt("a0", [("train", 10)], close="failed", lineage="other")
    return tmp_path


def test_every_format_ends_with_a_newline_and_an_unknown_one_is_refused(workspace: Path) -> None:
    found = report(workspace)
    for form in FORMATS:
        assert render(found, form).endswith("\n")
    with pytest.raises(ConfigError, match="--format pdf"):
        render(found, "pdf")


def test_the_same_ledger_gives_the_same_bytes_and_copies_change_nothing(workspace: Path) -> None:
    before = {form: render(report(workspace), form) for form in FORMATS}
    for path in list((workspace / "first/cost").glob("*/*.jsonl")):
        shutil.copy(path, path.with_name("copied.jsonl"))
    assert {form: render(report(workspace), form) for form in FORMATS} == before


@pytest.mark.parametrize("form", [*LAID_OUT, "json", "csv"])
def test_the_published_numbers_are_in_every_format(workspace: Path, form: str) -> None:
    shown = render(report(workspace), form).replace("\\", "")
    exact = form in ("json", "csv")
    for dollars in ("77,414.40", "9,676.80", "356,106.24", "15.456", "68.544"):
        assert (dollars.replace(",", "") if exact else f"${dollars}") in shown
    if form != "csv":
        assert "99.84 % cheaper than VLMo, 99.98 % than CLIP" in shown
        for title in ("Unlike price bases", "Wrong label", "Hours or device-hours"):
            assert title in shown
    for name in (
        "SAIL",
        "ShareLock",
        "Freeze-Align",
        "DistilData2Vec2",
        "Transformer SHRe",
        "first",
        "unpublished",
    ):
        assert name in shown or (name == "unpublished" and exact)


def test_own_runs_come_first_and_what_is_wrong_with_others_last(workspace: Path) -> None:
    shown = render(report(workspace), "table")
    titles = ("Your runs", "Where your device time went", "Attempts", "Published runs", "six models", "whole project",
              "cheap peers", "does not add up")  # fmt: skip
    places = [shown.index(t) for t in titles]
    assert places == sorted(places)


@pytest.mark.parametrize("width", [60, 61, 72, 80, 90, 100, 140])
def test_the_table_fits_the_terminal(workspace: Path, width: int) -> None:
    Run(workspace / "実験実験実験/長い名前" / ("x" * 40)).attempt(
        "a", [(f"phase-{i}-{'long' * 3}", 1) for i in range(12)], lineage="wide"
    )
    lines = render(report(workspace), "table", width=width).splitlines()
    assert max(map(table.cells, lines)) <= width
    assert not any(line != line.rstrip() for line in lines)


def test_a_narrow_table_keeps_dollars_and_names_what_it_left_out(workspace: Path) -> None:
    shown = render(report(workspace), "table", width=80)
    [head] = [line for line in shown.splitlines() if line.startswith("run ") and "lineage" in line]
    assert "params" not in head
    [row] = [line for line in shown.splitlines() if line.startswith("first  ") and "[1]" in line]
    assert "$0.129" in row
    assert "No room for params, pairs/$: widen the terminal" in " ".join(shown.split())
    assert "No room" not in render(report(workspace), "table", width=100)


def test_what_cannot_be_narrowed_is_stacked_and_complete(workspace: Path) -> None:
    shown = " ".join(render(report(workspace), "table", width=60).split())
    assert "CLIP (ViT-L/14) params 428M pairs 400M device-h 73,728 as cited $77,414.40 [1]" in shown
    assert "cheapest spot no spot price known" in shown


def test_a_row_says_what_a_run_cost(workspace: Path) -> None:
    found = next(r for r in report(workspace).runs if r.name == "first")
    row = next(
        line
        for line in render(report(workspace), "table", width=140).splitlines()
        if line.startswith("first")
    )
    usd = Decimal("0.69") * 675 / 3600  # 310 s and one period for the killed attempt, 360 s for the other
    assert found.usage.usd == usd
    cells = re.split(r"\s{2,}", row)
    assert cells[:4] == ["first", "117.2M", "4", "0.1875"]
    assert cells[4].endswith("±5 %")
    assert cells[6] == "$0.129"
    assert cells[7] == f"{4 / float(usd):.3g}"
    assert cells[8] == f"${float(usd) / 40:.5f}"  # mean R@1 of 50 and 30
    assert cells[9] == "[1]"
    assert Decimal(cells[5].removeprefix("$")) < Decimal(cells[6].removeprefix("$"))


def test_unknown_dollars_are_a_word_and_make_the_sum_a_lower_bound(workspace: Path) -> None:
    lines = render(report(workspace), "table", width=140).splitlines()
    [project] = [line for line in lines if line.startswith("project: 2 runs")]
    assert ">= $0.129" in project
    assert any("unknown" in line for line in lines if "HYPERLINK" in line)


def test_attempts_and_waste_are_shown_where_there_are_few_runs(workspace: Path) -> None:
    shown = render(report(workspace), "table", width=140)
    assert re.search(r"first 1 +no end +0 to 2", shown)
    assert re.search(r"first 2 +finished +1 to 4", shown)
    assert "1 pair was processed again" in shown
    assert "R@1 50.0 image to text, 30.0 text to image on val" in shown


@pytest.mark.parametrize("form", LAID_OUT)
def test_nothing_wasted_is_a_dash_and_not_unknown(tmp_path: Path, form: str) -> None:
    Run(tmp_path / "clean").attempt("a", [("train", 3600)])
    lost = Run(tmp_path / "lost")
    lost.clock.ns += 10**15
    lost.attempt("a", [("train", 3600)], close="failed", lineage="lost")
    own = render(report(tmp_path), form).split("Published runs")[0].replace("\\", "")
    # A line a row; HTML has its cells between tags.
    cells = [re.sub(r"<[^>]*>|[|&]", " ", line).split() for line in own.splitlines()]
    [clean], [lost_row] = (
        [c for c in cells if c and c[0] == name and len(c) < 6] for name in ("clean", "lost")
    )
    assert clean == ["clean", "100.0", "%", "-"]
    assert lost_row == ["lost", "100.0", "%", "$0.690"]
    [lost_row] = [c for c in cells if c and c[0] == "lost" and len(c) > 6]
    assert lost_row[5:7] == ["-", "$0.690"]  # nothing of it is in a result, and that is known
    data = {r["name"]: r for r in json.loads(render(report(tmp_path), "json"))["runs"]}
    assert (data["clean"]["usd_wasted"], data["lost"]["usd_final"]) == ("0", "0")


UNREAD = (Unread(Path("runs/a\x1b[2J/1.jsonl"), "Permission denied"), Unread(Path("runs/b.jsonl"), "<torn>"))


@pytest.mark.parametrize("form", LAID_OUT)
def test_ledgers_that_could_not_be_read_are_named_and_make_the_sum_a_lower_bound(
    tmp_path: Path, form: str
) -> None:
    Run(tmp_path / "r").attempt("a", [("train", 3600)])
    found = report(tmp_path)
    assert "could not be read" not in render(found, form)
    shown = render(replace(found, unread=UNREAD), form)
    plain = unescape(" ".join(shown.replace("\\textgreater{}", ">").replace("\\", "").split()))
    assert "2 ledgers could not be read: runs/a" in plain
    assert "(Permission denied); runs/b.jsonl (" in plain
    assert "torn" in plain
    assert "<torn>" not in shown or form == "table"
    assert "\x1b" not in shown
    assert ">= $0.690" in plain.replace("$$", "$")
    assert ">= 1" in plain
    one = render(replace(found, runs=(), unread=UNREAD[1:]), form).replace("\n", " ")
    assert "1 ledger could not be read" in " ".join(one.split())
    assert "No runs with a readable cost ledger" in " ".join(one.split())


def test_json_lists_every_ledger_that_could_not_be_read(tmp_path: Path) -> None:
    Run(tmp_path / "r").attempt("a", [("train", 3600)])
    found = report(tmp_path)
    data = json.loads(render(found, "json"))
    assert (data["unread"], data["project"]["usd_is_lower_bound"]) == ([], False)
    data = json.loads(render(replace(found, unread=UNREAD), "json"))
    assert data["unread"][1] == {"path": "runs/b.jsonl", "why": "<torn>"}
    assert data["project"]["usd_is_lower_bound"] is True
    many = tuple(Unread(Path(f"{i:03}.jsonl"), "gone") for i in range(100))
    assert len(json.loads(render(replace(found, unread=many), "json"))["unread"]) == 100
    shown = render(replace(found, unread=many), "table")
    assert "100 ledgers" in shown
    assert "and 90 more" in " ".join(shown.split())
    assert "099.jsonl" in render(replace(found, unread=many), "table", full=True)


def test_of_many_runs_the_newest_are_shown_and_all_are_summed(workspace: Path) -> None:
    found = report(workspace)
    first = next(r for r in found.runs if r.name == "first")
    many = replace(
        found,
        runs=tuple(replace(first, name=f"r{i:03}", lineage=f"{i}", began_wall_ns=i) for i in range(100)),
    )
    shown = render(many, "table", width=140)
    assert "r099" in shown
    assert "r060" in shown
    assert "r059" not in shown
    assert "newest 40 of 100 runs" in shown
    assert "project: 100 runs" in shown
    assert "$12.938" in shown  # 100 x 0.69 x 675 / 3600 = 12.9375
    assert "Where your device time went" not in shown
    assert "r000" in render(many, "table", width=140, full=True)
    assert len(json.loads(render(many, "json"))["runs"]) == 100


def test_no_runs_is_said_beside_the_baselines(tmp_path: Path) -> None:
    for form in LAID_OUT:
        shown = render(report(tmp_path), form)
        assert "No runs with a cost ledger" in shown
        assert "77,414.40" in shown


def test_a_folder_that_all_runs_share_is_said_once(tmp_path: Path) -> None:
    for name in ("one", "two"):
        Run(tmp_path / "deep/er" / name).attempt("a", [("train", 1)], lineage=name)
    shown = render(report(tmp_path), "table", width=140)
    assert "all below deep/er/" in shown
    assert shown.count("deep/er") == 1
    assert "\none " in shown


def test_storage_and_transfer_are_added_to_the_project(workspace: Path, tmp_path: Path) -> None:
    prices = tmp_path / "prices.toml"
    prices.write_text(
        '[[line]]\nname = "bucket"\nkind = "transfer"\ngb = 1000\nper_gb = 0.04\nsource = "invoice"\n'
    )
    found = report(workspace, catalogue=load_prices(prices))
    shown = render(found, "table", width=140)
    assert re.search(r"with storage and transfer +.*\$40\.129", shown)
    data = json.loads(render(found, "json"))
    assert Decimal(data["project"]["lines"][0]["usd"]) == 40
    assert [r["name"] for r in csv.DictReader(io.StringIO(render(found, "csv"))) if r["kind"] == "line"] == [
        "bucket"
    ]
    [row] = [r for r in _rows(render(found, "focus")) if r["ServiceCategory"] == "Networking"]
    assert Decimal(row["BilledCost"]) == 40


def test_json_is_complete_and_exact(workspace: Path) -> None:
    data = json.loads(render(report(workspace), "json"))
    dollars = {b["name"]: b["usd"] and Decimal(b["usd"]) for b in data["baselines"]}
    assert dollars["CLIP"] == Decimal("77414.4")
    assert dollars["FLAVA"] is None
    run = next(r for r in data["runs"] if r["name"] == "first")
    assert Decimal(run["usd"]) == Decimal("0.69") * 675 / 3600
    assert Decimal(run["usd_final"]) + Decimal(run["usd_wasted"]) == pytest.approx(Decimal(run["usd"]))
    assert sum(run["phases"].values()) == pytest.approx(run["device_hours"])
    assert sum(o["device_hours"] for o in run["outcomes"].values()) == pytest.approx(run["device_hours"])
    assert next(r for r in data["runs"] if r["name"] != "first")["usd"] is None
    assert len(data["thesis"]["models"]) == 6
    assert len(data["inconsistencies"]) == 3


def test_json_takes_what_a_ledger_may_hold(workspace: Path) -> None:
    found = report(workspace)
    odd = replace(found.runs[0], facts={"loss": float("nan"), "nested": {"x": [float("inf"), Path("a")]}})
    [run] = json.loads(render(replace(found, runs=(odd,)), "json"))["runs"]
    assert run["facts"] == {"loss": None, "nested": {"x": [None, "a"]}}


def _rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_has_a_row_per_run_and_no_formulas(workspace: Path) -> None:
    shutil.move(workspace / "group" / HOSTILE, workspace / HOSTILE)
    rows = _rows(render(report(workspace), "csv"))
    kinds = [r["kind"] for r in rows]
    assert kinds == sorted(kinds, key=["run", "line", "published", "peer", "thesis_model"].index)
    assert kinds.count("run") == 2
    assert kinds.count("thesis_model") == 6
    assert {r["name"] for r in rows if r["kind"] == "run"} == {"first", "'" + HOSTILE}
    assert not any(value[:1] in "=+-@" for row in rows for value in row.values() if value)
    vlmo = next(r for r in rows if r["name"] == "VLMo, 1B pairs")
    assert (vlmo["usd"], vlmo["usd_is_lower_bound"]) == ("9676.80", "True")


@given(st.text(min_size=1))
def test_no_text_is_a_formula_or_breaks_a_row(text: str) -> None:
    safe = flat.escaped(text)
    assert safe.strip()[:1] not in ("=", "+", "-", "@") or not safe.strip()
    assert "\n" not in safe
    assert "\r" not in safe


def test_focus_rows_add_up_to_the_run_exactly(tmp_path: Path) -> None:
    run = Training(tmp_path / "r", steps=20, every=4, cache_seconds=7, price="aws/p3.2xlarge")
    run.attempt("a", 93.0, readings=[{"GPU-0": Sample(mj=1_234_567 * i)} for i in range(100)])
    run.attempt("b", None)
    found = report(tmp_path)
    rows = _rows(render(found, "focus"))
    [lineage] = found.runs
    assert lineage.usage.usd is not None
    total = sum(Decimal(r["BilledCost"]) for r in rows)
    assert abs(total - lineage.usage.usd) < Decimal("1e-11")
    assert {r["x_Outcome"] for r in rows} >= {"useful", "redone"}
    assert {r["x_Phase"] for r in rows} >= {"setup", "train", "checkpoint"}
    device_hours = sum(float(r["ConsumedQuantity"]) for r in rows)
    assert device_hours == pytest.approx(lineage.usage.device_hours)
    assert sum(float(r["x_EnergyKwh"] or 0) for r in rows) == pytest.approx(lineage.usage.energy_kwh)
    for row in rows:
        assert row["BillingCurrency"] == "USD"
        assert row["ServiceCategory"] == "AI and Machine Learning"
        assert (row["RegionId"], row["PricingCategory"]) == ("us-east-1", "Standard")
        assert row["ListCost"] == row["EffectiveCost"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", row["ChargePeriodStart"])
        assert (
            row["BillingPeriodStart"]
            <= row["ChargePeriodStart"]
            < row["ChargePeriodEnd"]
            < row["BillingPeriodEnd"]
        )


def test_focus_leaves_the_cost_of_an_unknown_price_empty(workspace: Path) -> None:
    rows = [r for r in _rows(render(report(workspace), "focus")) if r["x_LineageId"] == "other"]
    assert rows
    assert {r["BilledCost"] for r in rows} == {""}
    assert all(Decimal(r["ConsumedQuantity"]) > 0 for r in rows)
    assert set(focus.COLUMNS) == set(rows[0])


def test_control_characters_in_a_name_reach_nobody(tmp_path: Path) -> None:
    Run(tmp_path / "evil\x1b[2J\u202ename").attempt("a", [("train", 1)])
    for form in FORMATS:
        shown = render(report(tmp_path), form)
        assert "\x1b" not in shown
        assert "\u202e" not in shown


def test_markdown_escapes_names_and_keeps_its_columns(workspace: Path) -> None:
    shown = render(report(workspace), "markdown")
    assert "<script>" not in shown
    tables = re.findall(r"(?:^\|.*\n)+", shown, re.MULTILINE)
    assert len(tables) == 7
    for found in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in found.splitlines()}) == 1


@given(st.text())
@example("://")
@example("HTTPS://www.example.com")
def test_markdown_text_opens_nothing(text: str) -> None:
    left = re.sub(r"\\.|&(?:amp|lt|gt|#\d\d);", "", markdown.escaped(text))
    assert not re.search(r"[\\`*_\[\]|<>~$!#&@]", left)
    assert "://" not in left


_COMMANDS = {*latex._SPECIAL.values(), "{}"}


@given(st.text())
def test_latex_text_is_no_command(text: str) -> None:
    """What is left after our own commands are taken out is plain ASCII letters, digits and marks."""
    left = latex.escaped(text)
    for command in sorted(_COMMANDS, key=len, reverse=True):
        left = left.replace(command, "")
    assert not set(left) & set("\\{}$&#%_^~")
    assert not [c for c in left if ord(c) >= 0x180 or not c.isprintable()]


def test_latex_is_balanced(workspace: Path) -> None:
    shown = render(report(workspace), "latex")
    plain = re.sub(r"\\[{}]", "", shown)
    assert plain.count("{") == plain.count("}")
    for name in ("table", "tabularx"):
        assert shown.count(rf"\begin{{{name}}}") == shown.count(rf"\end{{{name}}}") > 0
    for body in re.findall(r"\\begin\{tabularx\}.*?\\end\{tabularx\}", shown, re.DOTALL):
        assert len({line.count(" & ") for line in body.splitlines() if line.endswith(r"\\")}) == 1
    assert r"\input{a}" not in shown


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_is_well_formed_and_has_nothing_active(workspace: Path) -> None:
    shown = render(report(workspace), "html")
    tags = _Tags()
    tags.feed(shown)
    tags.close()
    assert tags.open == []
    assert tags.seen <= {"html", "head", "meta", "title", "style", "body", "h1", "h2", "section", "div", "table",
                         "thead", "tbody", "tr", "th", "td", "ul", "li"}  # fmt: skip
    assert tags.attributes <= {"lang", "charset", "name", "content", "http-equiv", "class", "scope"}
    assert "prefers-color-scheme: dark" in shown
    assert not re.search(r"""(src|href)\s*=|url\(|@import""", shown)
    assert "default-src 'none'" in shown


@given(st.text())
def test_html_text_opens_nothing(text: str) -> None:
    assert not re.search(r"[<>\"']|&(?!(amp|lt|gt|quot|#x27);)", html.escaped(text))


_COLUMNS = (parts.Column("name", right=False), parts.Column("n"))


@given(
    st.lists(st.tuples(st.text(max_size=60), st.text("0123456789.", max_size=9)), max_size=4),
    st.integers(30, 90),
)
def test_a_table_loses_no_text_and_fits(rows: list[tuple[str, str]], width: int) -> None:
    lines = table.lines_of(parts.Table(_COLUMNS, tuple(rows)), width)
    assert all(table.cells(line) <= width for line in lines)
    shown = "".join("".join(lines[2:]).split())
    for c in table.printable("".join(a + b for a, b in rows)):
        assert c.isspace() or c in shown


def test_wide_names_still_line_up() -> None:
    rows = (("実験", "1"), ("abcd", "22"), ("é́x", "3"))
    lines = table.lines_of(parts.Table(_COLUMNS, rows), 80)[2:]
    assert {table.cells(line) for line in lines} == {table.cells(lines[0])}


def test_a_report_needs_no_heavy_library(workspace: Path) -> None:
    import subprocess
    import sys

    script = (
        "import sys; from pathlib import Path; from ssmke.cost.report import report;"
        "from ssmke.cost.render import render;"
        "found = report(Path(sys.argv[1])); [render(found, f) for f in sys.argv[2:]];"
        "print([m for m in ('torch', 'numpy', 'pandas', 'mlflow', 'rich', 'matplotlib') if m in sys.modules])"
    )
    command = [sys.executable, "-c", script, str(workspace), *FORMATS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_run_that_goes_on_says_what_it_is_expected_to_cost(workspace: Path) -> None:
    found: Report = report(workspace)
    first = next(r for r in found.runs if r.name == "first")
    open_ended = replace(first, attempts=first.attempts[:1], facts=first.facts | {"forecast": {"usd": 12.5}})
    assert "expected to cost $12.50 in all" in render(replace(found, runs=(open_ended,)), "table")
    done = replace(first, facts=first.facts | {"forecast": {"usd": 12.5}})
    assert "expected to cost" not in render(replace(found, runs=(done,)), "table")
