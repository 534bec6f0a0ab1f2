"""A download from a server that does everything wrong ends, adds up, and brings what is right.

2,000 URLs, with time and memory: ``python -m tests.faults.hostile_web --out DIR``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.hostile_web import KINDS, HostileWeb, check, download


@pytest.mark.usefixtures("img2dataset")
def test_a_list_of_300_urls_ends_and_adds_up(tmp_path: Path) -> None:
    said: list[str] = []
    with HostileWeb() as web:
        report, expected = download(
            web,
            tmp_path,
            300,
            said.append,
            processes=2,
            threads=24,
            timeout_seconds=3.0,
            seconds_per_image=6.0,
        )
        assert not web.secret_was_asked()
        asked_again = [path for path, calls in web.calls.items() if calls > 2]
    assert set(expected) == {what.outcome for what in KINDS.values()}
    assert check(report, expected, 300) == report.successes > 100
    assert asked_again == []
    assert sorted(path.name for path in report.tars.iterdir()) == [
        "00000.parquet",
        "00000.tar",
        "00000_stats.json",
        "00001.parquet",
        "00001.tar",
        "00001_stats.json",
        "urls",
    ]
