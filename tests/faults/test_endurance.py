"""The measurement of endurance itself: a real run in small, and growth that it must see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.endurance import Look, endure, growth, table

CALM = Look(0, 0, 1_000_000_000, 500_000_000, 40, 12, 1, 1000, 1000, 2, 18_000_000, 1_000_000)


def looks(rss_per_step: float, files_per_attempt: int = 0) -> list[Look]:
    """Three attempts of 1,000 steps, each with 100 MB of warm-up in its first half."""
    return [
        replace(
            CALM,
            attempt=attempt,
            step=1000 * attempt + step,
            rss=CALM.rss + min(step, 400) * 250_000 + int(rss_per_step * step) + (step * 7919) % 50_000,
            files=CALM.files + attempt * files_per_attempt,
        )
        for attempt in range(3)
        for step in range(0, 1000, 25)
    ]


def test_a_leak_is_told_from_warm_up() -> None:
    assert growth(looks(0), "rss").flat
    leak = growth(looks(1000), "rss")
    assert leak.median == pytest.approx(1e6, rel=0.1)
    assert not leak.flat
    assert table(looks(0), 100).count("NOT FLAT") == 0
    [line] = [line for line in table(looks(1000), 100).splitlines() if "training process" in line]
    assert "NOT FLAT" in line
    assert table(looks(0, files_per_attempt=3), 100).count("NOT FLAT") == 1


@pytest.mark.e2e
@pytest.mark.long
def test_a_stopped_and_resumed_run_is_looked_at(tmp_path: Path) -> None:
    found = endure(tmp_path, steps=200, resumes=1, every=20)
    for attempt in (0, 1):
        # Not every look: right after the start the worker may still be on its way.
        seen = [look for look in found if look.attempt == attempt]
        assert any(
            look.rss > 1e8 and look.files > 3 and look.children == 1 and look.mlflow > 0 for look in seen
        )
    assert [look.metrics for look in found] == sorted(look.metrics for look in found)
