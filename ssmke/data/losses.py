"""What a dataset lost on its way: links that gave no image, and what its import left out, by reason.

Counted where it happened and kept beside the manifest, so that it can be told as long as the dataset lives. The
manifest has the counts, ``skipped.jsonl`` what they were in each split, ``downloads.json`` the links.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ssmke.data.importing import SKIPPED_NAME
from ssmke.data.manifest import Manifest

DOWNLOADS_NAME = "downloads.json"
"""What a download brought and lost, beside the manifest."""


def left_out(manifests: Mapping[Path, Manifest], split: str) -> dict[str, Counter[str]]:
    """What imports left out, by split and reason; "" where the split is not known. All splits, or ``split`` alone."""
    losses: dict[str, Counter[str]] = {}
    for directory, manifest in manifests.items():
        unknown = Counter(manifest.skipped)
        for name, reason in _skips(directory / SKIPPED_NAME):
            # The list may be of another run than the manifest, which has the last word.
            if unknown[reason] > 0:
                unknown[reason] -= 1
                losses.setdefault(name, Counter())[reason] += 1
        if +unknown:
            losses.setdefault("", Counter()).update(+unknown)
    return {name: found for name, found in losses.items() if not split or name == split}


def dead_links(directories: Sequence[Path]) -> Counter[str]:
    """What `ssmke data get` noted of the links that it asked."""
    failures: Counter[str] = Counter()
    for directory in directories:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            noted = json.loads((directory / DOWNLOADS_NAME).read_bytes())["links"]["failures"]
            failures.update({reason: n for reason, n in noted.items() if type(n) is int and n >= 0})
    return failures


def _skips(path: Path) -> Iterator[tuple[str, str]]:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    record = json.loads(line)
                    yield str(record["split"]), str(record["reason"])
                except (ValueError, TypeError, KeyError, RecursionError):
                    continue
    except OSError:
        return
