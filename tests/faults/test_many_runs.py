"""A workspace of ten thousand runs."""

from __future__ import annotations

from pathlib import Path

from benchmarks.workspace import workspace
from ssmke.cost.dashboard import page_of
from ssmke.cost.render import FORMATS, render
from ssmke.cost.report import report


def test_ten_thousand_runs_are_summed_and_shown(tmp_path: Path) -> None:
    root = workspace(tmp_path, 10_000, 60)
    found = report(root)
    assert len(found.runs) == 10_000
    assert found.project.node_ns == 10_000 * 60 * 10**9
    assert found.project.energy_mj == 10_000 * 12 * 3_500_000
    assert len(render(found, "table").splitlines()) < 300
    assert len(page_of(root, found)) < 1_000_000
    for form in FORMATS:
        assert render(found, form)
