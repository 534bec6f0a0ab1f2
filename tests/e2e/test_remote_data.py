"""Training from shards behind a web server that misbehaves, and on several sources."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ssmke.data.manifest import Manifest
from tests.data.remote.server import MisbehavingServer, at_random
from tests.e2e.runs import Pretrain

pytestmark = pytest.mark.e2e


def test_a_run_on_remote_shards_is_the_run_on_local_ones(
    pretrain: Pretrain, pairs_dir: Path, tmp_path: Path
) -> None:
    """Stopped and resumed on top, with targets cached per shard, beside the same data on the disk."""
    window = ("--data.stream.window", "1", "--data.stream.workers", "1")
    near = pretrain(*window)
    with MisbehavingServer(pairs_dir, at_random(3, 0.2, ("cut", "500", "page", "whole"))) as server:
        far = (
            *("--data.shards", server.url, "--data.remote.cache-dir", str(tmp_path / "cache")),
            *("--data.remote.timeout-seconds", "2", "--data.remote.retries", "12", *window),
        )
        stopped = pretrain(*far, "--stop-after", "5", folder="remote")
        run = pretrain(*far, "--resume", "auto", folder="remote")
        assert server.faults.total() > server.faults[""]
    assert "all 64 images cached already" in run.output
    assert "all 64 images cached already" not in stopped.output
    for key in ("step", "keys", "lr", "loss"):
        assert [line[key] for line in run.metrics] == [line[key] for line in near.metrics], key


def test_sources_are_mixed_by_weight(pretrain: Pretrain, pairs_dir: Path, tmp_path: Path) -> None:
    """A second source, without a split for evaluation, of whose pairs half are shown in each epoch."""
    other = tmp_path / "other"
    other.mkdir()
    for path in pairs_dir.glob("val-00000.*"):
        shutil.copy(path, other)
    split = Manifest.load(pairs_dir).splits["val"]
    Manifest("other", {"fingerprint": "other"}, {"train": split}).save(other)
    run = pretrain("--data.shards", f"pairs={pairs_dir}", f"other={other}*0.5")
    assert "2 epochs of 140 pairs" in run.output
    assert len(run.metrics) == 2 * (140 // 16)
