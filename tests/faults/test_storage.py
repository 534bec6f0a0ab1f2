"""Storage that stalls: how long a rank waits, and for what, is said aloud, and what comes back is used."""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from ssmke.data.augmentation import AugmentationConfig
from ssmke.data.dataset import ImageTextShards
from ssmke.data.order import EpochOrder
from ssmke.data.remote.fetch import RemoteConfig, fetch_file
from ssmke.data.remote.room import make_room
from ssmke.data.shards import Sample
from ssmke.data.stream import BatchStream, PairBatches, StreamConfig, StreamPlan
from ssmke.data.waiting import WaitWatch, places
from ssmke.models.student import SSMKE
from tests.data.remote.server import MisbehavingServer


def test_a_wait_is_said_again_and_again_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    watch = WaitWatch(lambda: "the batch of step 7: data worker 0 is at /data/x.tar", after=0.1)
    with watch.running():
        with watch.waiting():
            while len(caplog.records) < 2:
                time.sleep(0.01)
        with watch.waiting():
            pass  # this one is quick
    said = [record.getMessage() for record in caplog.records]
    assert all("s for the batch of step 7: data worker 0 is at /data/x.tar" in line for line in said[:2])
    assert [line for line in said if "the batch came after" in line] == said[2:]
    assert len(said) == 3


def test_places_are_shared_with_workers() -> None:
    notes = places(2)
    child = os.fork()
    if child == 0:
        notes[1] = 42
        os._exit(0)
    os.waitpid(child, 0)
    assert notes.tolist() == [-1, 42]


def test_a_shard_on_storage_that_hangs_is_named(
    shards: ImageTextShards,
    model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A worker that stands still within a read, as on a network file system whose server is gone for a while."""
    read = ImageTextShards.read

    def hanging(self: ImageTextShards, image: int) -> Sample:
        if image == 20:
            os.kill(os.getpid(), signal.SIGSTOP)
        return read(self, image)

    monkeypatch.setattr(ImageTextShards, "read", hanging)
    plan = StreamPlan(EpochOrder.once(shards.pairs, 5), 6, 1, 0, 1)
    tokenizer = SSMKE.from_pretrained(model_dir).tokenizer()
    batches = PairBatches(shards, plan, tokenizer, 16, 32, AugmentationConfig())
    seen = 0
    with closing(iter(BatchStream(batches, StreamConfig(workers=1), 0, pin=False, say_after=1.0))) as stream:
        ends = threading.Event()
        watcher = threading.Thread(target=_continue_when_said, args=(caplog, ends))
        watcher.start()
        seen = sum(1 for _ in stream)
        ends.set()
        watcher.join()
    assert seen == plan.steps
    said = [record.getMessage() for record in caplog.records]
    where = str(shards.shards[shards.shard_of(20)[0]][0])
    assert any(
        re.fullmatch(rf"waiting \d+ s for the batch of step \d+ of rank 0: data worker 0 is at {where}", s)
        for s in said
    )
    assert any("the batch came after" in line for line in said)


def _continue_when_said(caplog: pytest.LogCaptureFixture, ends: threading.Event) -> None:
    """Lets workers go on once it was said that they stand still."""
    while not ends.wait(0.05):
        for child in psutil.Process().children():
            if child.status() == psutil.STATUS_STOPPED and any(
                "waiting" in r.getMessage() for r in caplog.records
            ):
                child.send_signal(signal.SIGCONT)


def test_a_clock_that_was_set_back_does_not_pin_old_shards(tmp_path: Path) -> None:
    """What was used before is used "in the future": were it newest, new shards would push out each other for ever."""
    (tmp_path / ".locks").mkdir()
    future = time.time_ns() + 5 * 86_400 * 10**9
    for name, used in (("old.tar", future), ("new.tar", time.time_ns())):
        (tmp_path / name).write_bytes(bytes(1000))
        os.utime(tmp_path / name, ns=(used, used))
    assert make_room(tmp_path / ".next.tar.1000.01234567.partial", 1000, 2000)
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == ["new.tar"]


def test_a_server_that_stalls_is_named_each_time_and_used_when_it_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = bytes(range(256)) * 4096
    (tmp_path / "x.tar").write_bytes(content)
    config = RemoteConfig(timeout_seconds=0.3, retries=4)
    stalls = lambda name, number: "stall halfway" if number < 2 else ""  # noqa: E731
    with MisbehavingServer(tmp_path, stalls) as server:
        fetch_file(f"{server.url}/x.tar", tmp_path / "copy/x.tar", config, size=len(content))
    assert (tmp_path / "copy/x.tar").read_bytes() == content
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 2
    for number, line in enumerate(said, 1):
        assert f"x.tar: too little came within 0.3 s; asked again ({number} of 4)" in line
