"""The figure is written in the format that its name asks for, whatever a run is called."""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from pathlib import Path

import pytest

from ssmke.cost.charts.plot import plot
from ssmke.cost.published.baselines import load
from ssmke.cost.published.pareto import Panel, Point, panels
from ssmke.errors import ConfigError, DataError

HOSTILE = "$\\frac{1}$ <b>&amp;\x1b[2J %s"


@pytest.fixture
def coco() -> Panel:
    [found] = [p for p in panels([], load()) if p.test.dataset == "coco"]
    mine = Point(HOSTILE, Decimal("3"), 50.0, own=True)
    return dataclasses.replace(found, points=(*found.points, mine))


@pytest.mark.parametrize(("suffix", "begins"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_each_format_and_the_same_bytes_twice(
    coco: Panel, tmp_path: Path, suffix: str, begins: bytes
) -> None:
    first, second = tmp_path / f"new/a.{suffix}", tmp_path / f"b.{suffix}"
    plot([coco], first)
    plot([coco], second)
    assert first.read_bytes().startswith(begins)
    assert first.read_bytes() == second.read_bytes()


def test_published_names_are_in_the_figure(coco: Panel, tmp_path: Path) -> None:
    plot([coco], tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert all(name in text for name in ("CLIP", "BEiT-3", "cost unknown", "COCO 5K test"))


def test_another_suffix_and_nothing_to_draw_are_clear_errors(coco: Panel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--out .*a\.gif: call it \.png, \.pdf or \.svg"):
        plot([coco], tmp_path / "a.gif")
    with pytest.raises(DataError, match="nothing to plot"):
        plot([dataclasses.replace(coco, points=())], tmp_path / "a.png")
