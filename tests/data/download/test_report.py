"""Reasons are few and stable, and reports add up."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ssmke.data.download.report import NOT_FINISHED, ShardFiles, make_report, reason_of
from ssmke.data.download.url_list import ListParts


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("HTTP Error 404: Not Found", "HTTP 404"),
        ("HTTP Error 503: private address timed out", "HTTP 503"),
        ("<urlopen error timed out>", "timed out"),
        ("The read operation timed out", "timed out"),
        ("timed out: not whole at its deadline", "timed out"),
        ("<urlopen error [Errno -2] Name or service not known>", "name not resolved"),
        ("<urlopen error [Errno -3] Temporary failure in name resolution>", "name not resolved"),
        ("<urlopen error [Errno 111] Connection refused>", "connection refused"),
        ("<urlopen error [Errno 113] No route to host>", "host not reachable"),
        ("[Errno 104] Connection reset by peer", "connection cut"),
        ("Remote end closed connection without response", "connection cut"),
        ("IncompleteRead(17 bytes read)", "connection cut"),
        ("<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed>", "TLS error"),
        (
            "HTTP Error 302: The HTTP server returned a redirect error that would lead to an infinite loop.\n"
            "The last 30x error message was:\nFound",
            "redirect loop",
        ),
        ("OpenCV(4.14.0) loadsave.cpp:79: error: (-215) pixels <= CV_IO_MAX_IMAGE_PIXELS", "too many pixels"),
        ("Image decoding error", "image decoding failed"),
        ("unknown url type: 'nonsense'", "invalid URL"),
        ("private address: 10.0.0.1 is 10.0.0.1", "private address"),
        ("not an image: Content-Type text/html", "not an image"),
        ("image too small", "too small"),
        ("", "other"),
        (None, "other"),
        ("something that nobody foresaw", "other"),
    ],
)
def test_reasons(message: str | None, reason: str) -> None:
    assert reason_of(message) == reason


def shard(
    folder: Path, number: int, statuses: list[tuple[str, str | None]], begin: float, end: float
) -> ShardFiles:
    """The files that img2dataset writes of a shard."""
    files = ShardFiles(folder, number)
    status, message = zip(*statuses, strict=True)
    schema = pa.schema([("status", pa.string()), ("error_message", pa.string())])
    pq.write_table(pa.table([list(status), list(message)], schema=schema), files.rows)
    files.tar.write_bytes(bytes(10240))
    files.statistics.write_text(json.dumps({"count": len(statuses), "start_time": begin, "end_time": end}))
    return files


def test_a_report_adds_up_over_bad_rows_failures_and_missing_shards(tmp_path: Path) -> None:
    ok, lost = ("success", None), ("failed_to_download", "HTTP Error 404: Not Found")
    shard(tmp_path, 0, [ok, ok, lost, ("failed_to_resize", "image too small")], 100, 110)
    shard(tmp_path, 2, [lost], 105, 120)
    parts = ListParts(tmp_path, rows=9, shard_urls=4, bad={"no URL": 3})
    report = make_report(parts, tmp_path, [0, 2])
    assert report.asked == 12 == report.successes + sum(report.failures.values())
    assert report.successes == 2
    assert report.failures == {NOT_FINISHED: 4, "no URL": 3, "HTTP 404": 2, "too small": 1}
    assert list(report.failures) == [NOT_FINISHED, "no URL", "HTTP 404", "too small"]
    assert report.seconds == 20  # shards run beside each other
    assert report.bytes == 2 * 10240
    assert "2 of 12 images (16.7 %)" in report.text()
    assert "HTTP 404" in report.text()


def test_nothing_finished_is_a_report_too(tmp_path: Path) -> None:
    report = make_report(ListParts(tmp_path, 5, 5, {}), tmp_path, [])
    assert (report.asked, report.successes, report.failures) == (5, 0, {NOT_FINISHED: 5})
    assert report.text().startswith("0 of 5 images (0.0 %)")


def test_what_a_crash_leaves_is_not_finished(tmp_path: Path) -> None:
    rows: list[tuple[str, str | None]] = [("success", None)] * 3
    assert shard(tmp_path, 0, rows, 0, 1).is_finished(3)
    assert not ShardFiles(tmp_path, 0).is_finished(4)

    half_statistics = shard(tmp_path, 1, rows, 0, 1)
    half_statistics.statistics.write_text('{"count": 3, "succ')
    cut_tar = shard(tmp_path, 2, rows, 0, 1)
    cut_tar.tar.write_bytes(bytes(512) + b"\1" * 512)
    no_tar = shard(tmp_path, 3, rows, 0, 1)
    no_tar.tar.unlink()
    lost_rows = shard(tmp_path, 4, rows, 0, 1)
    shard(tmp_path, 4, rows[:2], 0, 1)
    lost_rows.statistics.write_text(json.dumps({"count": 3, "start_time": 0, "end_time": 1}))
    half_rows = shard(tmp_path, 5, rows, 0, 1)
    half_rows.rows.write_bytes(half_rows.rows.read_bytes()[:40])
    no_statistics = shard(tmp_path, 6, rows, 0, 1)
    no_statistics.statistics.unlink()
    for files in (half_statistics, cut_tar, no_tar, lost_rows, half_rows, no_statistics):
        assert not files.is_finished(3), files.number
        files.remove()
    assert {path.name[:5] for path in tmp_path.iterdir()} == {"00000"}
