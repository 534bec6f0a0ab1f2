"""What a download brought, and why the rest was lost.

Read from the parquet file that img2dataset writes beside each tar: one row a URL, with its status and the
message of the failure. So the report is the same whether a download ran through or was stopped and resumed, and it adds
up: each row of the list is a success or has a reason. Messages are whatever Python, a server or OpenCV said;
they are mapped to a small set of reasons, and stay in the parquet files in full.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ssmke.data.download.url_list import ListParts
from ssmke.words import percent

NOT_FINISHED = "shard not finished"

_REASONS = [
    (re.compile(pattern, re.IGNORECASE), reason)
    for pattern, reason in (
        (r"^redirect to another scheme", "redirect to another scheme"),
        (r"^too many bytes", "too many bytes"),
        (r"^private address", "private address"),
        (r"^empty body", "empty body"),
        (r"^not an image", "not an image"),
        (r"^unsupported format", "unsupported format"),
        (r"^too many pixels|MAX_IMAGE_PIXELS", "too many pixels"),
        (r"^image too small", "too small"),
        (r"image decoding (failed|error)|^OpenCV", "image decoding failed"),
        (r"image encoding failed", "image encoding failed"),
        (r"^bad HTTP answer", "bad HTTP answer"),
        (r"^damaged body", "damaged body"),
        (r"disallowed by X-Robots-Tag", "disallowed by X-Robots-Tag"),
        (r"certificate|\bSSL\b|TLS", "TLS error"),
        (r"timed out", "timed out"),
        (
            r"name not resolved|name or service not known|name resolution|no address associated",
            "name not resolved",
        ),
        (r"connection refused", "connection refused"),
        (r"unreachable|no route to host", "host not reachable"),
        (
            r"connection (cut|reset|aborted)|remote end closed|IncompleteRead|broken pipe|EOF occurred",
            "connection cut",
        ),
        (
            r"invalid URL|unknown url type|no host given|nonnumeric port|URL can't contain|IPv6|port out of range",
            "invalid URL",
        ),
    )
]
_HTTP = re.compile(r"HTTP Error (\d{3})")


def reason_of(message: str | None) -> str:
    """The stable reason for a message of img2dataset.

    >>> reason_of("HTTP Error 404: Not Found")
    'HTTP 404'
    """
    text = (message or "").removeprefix("<urlopen error ").strip()
    # First, because what follows the status is the server's own text.
    if status := _HTTP.match(text):
        if "infinite loop" in text:
            return "redirect loop"
        return "redirect to another scheme" if "is not allowed" in text else f"HTTP {status[1]}"
    return next((reason for pattern, reason in _REASONS if pattern.search(text)), "other")


@dataclasses.dataclass(frozen=True)
class DownloadReport:
    """What became of a list."""

    asked: int
    """Rows of the list, unusable ones included."""
    successes: int
    """Images in the tars."""
    failures: dict[str, int]
    """All other rows, by reason, most first; `NOT_FINISHED` are worth another run."""
    bytes: int
    """Size of the tars."""
    seconds: float
    """In which something was downloaded, over all runs."""
    tars: Path
    """Their folder; the parquet files beside them tell of every single URL."""

    def text(self) -> str:
        """Some lines for people."""
        whole = self.asked or 1
        lines = [
            f"{self.successes:,} of {self.asked:,} images ({percent(self.successes / whole)}), "
            f"{self.bytes / 1e6:,.1f} MB in {self.tars}, {self.seconds:,.0f} s"
        ]
        width = max((len(reason) for reason in self.failures), default=0)
        for reason, count in self.failures.items():
            lines.append(f"  {reason:<{width}}  {count:>11,}  {percent(count / whole):>6}")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class ShardFiles:
    """What img2dataset writes of one shard; its statistics come last, so with them it is finished."""

    folder: Path
    number: int

    @property
    def tar(self) -> Path:
        return self.folder / f"{self.number:05d}.tar"

    @property
    def rows(self) -> Path:
        return self.folder / f"{self.number:05d}.parquet"

    @property
    def statistics(self) -> Path:
        return self.folder / f"{self.number:05d}_stats.json"

    def is_finished(self, rows: int) -> bool:
        """Whether all its files are there and whole, and tell of ``rows`` URLs."""
        try:
            stats = json.loads(self.statistics.read_bytes())
            if stats["count"] != rows or pq.read_metadata(self.rows).num_rows != rows:
                return False
            # img2dataset goes on after a failed write; a tar that ended well ends in two empty blocks.
            with self.tar.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - 1024))
                return size % 512 == 0 and file.read() == bytes(1024)
        except (OSError, ValueError, KeyError, TypeError, RecursionError, pa.ArrowException):
            return False

    def remove(self) -> None:
        """Delete what there is of it, the statistics first."""
        for path in (self.statistics, self.tar, self.rows):
            path.unlink(missing_ok=True)


def make_report(parts: ListParts, tars: Path, finished: Iterable[int]) -> DownloadReport:
    """The report of all ``finished`` shards of a list; rows of the others are `NOT_FINISHED`."""
    failures: Counter[str] = Counter(parts.bad)
    successes = size = rows = 0
    spans: list[tuple[float, float]] = []
    for number in finished:
        shard = ShardFiles(tars, number)
        table = pq.read_table(shard.rows, columns=["status", "error_message"])
        succeeded, failed = _count(table)
        successes += succeeded
        failures.update(failed)
        rows += table.num_rows
        size += shard.tar.stat().st_size
        stats = json.loads(shard.statistics.read_bytes())
        spans.append((stats["start_time"], stats["end_time"]))
    usable = parts.rows
    if usable > rows:
        failures[NOT_FINISHED] += usable - rows
    return DownloadReport(
        asked=usable + sum(parts.bad.values()),
        successes=successes,
        failures=dict(sorted(failures.items(), key=lambda item: (-item[1], item[0]))),
        bytes=size,
        seconds=_covered(spans),
        tars=tars,
    )


def _count(table: Any) -> tuple[int, Counter[str]]:
    succeeded = pc.equal(table["status"], "success")
    failed: Counter[str] = Counter()
    messages = table["error_message"].filter(pc.invert(succeeded))
    for item in messages.value_counts():
        failed[reason_of(item["values"].as_py())] += item["counts"].as_py()
    return pc.sum(succeeded).as_py() or 0, failed


def _covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of intervals: shards overlap, and pauses between runs do not count."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total
