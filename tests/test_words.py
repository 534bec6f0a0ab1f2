"""Numbers in words are right at their edges."""

from __future__ import annotations

from ssmke.words import counted, duration, percent, printable


def test_things_shares_and_durations() -> None:
    assert [counted(n, "shard") for n in (0, 1, 9000)] == ["0 shards", "1 shard", "9,000 shards"]
    assert counted(2, "process", "processes") == "2 processes"
    assert [percent(share) for share in (0, 0.0001, 0.0005, 0.9123, 1)] == [
        "0.0 %", "<0.1 %", "0.1 %", "91.2 %", "100.0 %"
    ]  # fmt: skip
    assert [duration(s) for s in (0.2, 59, 59.7, 61, 5399, 19_000, 180_000)] == [
        "1 s", "59 s", "1 min", "1 min", "90 min", "5.3 h", "2.1 days"
    ]  # fmt: skip


def test_a_name_cannot_drive_the_terminal() -> None:
    assert printable("a\x1b[2Jb\u202ec\nd") == "a�[2Jb�c�d"
