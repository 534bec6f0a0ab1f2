"""Imports of what a source makes up: what is left out, however much it is."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ssmke.data.import_state import ImportState, Skip
from ssmke.data.importing import ImportReport, ShardPlan, import_shards
from ssmke.data.manifest import Manifest
from ssmke.data.shards import Sample
from ssmke.errors import DataError


@dataclasses.dataclass(frozen=True)
class Lossy:
    """One image, and many that are left out, told in an order of no meaning."""

    image: bytes
    number: int
    losses: int
    reason: str = "no usable caption"

    def samples(self, skips: list[Skip]) -> Iterator[Sample]:
        for i in reversed(range(self.losses)):
            skips.append(
                Skip(
                    self.number,
                    f"{self.number:05d}.tar: {i:09d}.jpg",
                    "train",
                    self.reason,
                    f"{i} words",
                    i or None,
                )
            )
        yield Sample(f"s{self.number}", self.image, ("a caption",), "toy")


def run(out: Path, image: bytes, shards: int, losses: int, **options: Any) -> ImportReport:
    plans = [
        ShardPlan(f"train-{i:05d}.tar", "train", f"plan {losses}", Lossy(image, i, losses))
        for i in range(shards)
    ]
    return import_shards("toy", options.pop("plans", plans), out, {"importer": "toy"}, {}, **options)


def listed(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_left_out_is_listed_shard_by_shard(
    tmp_path: Path, encode: Callable[..., bytes], workers: int
) -> None:
    first = [Skip(7, "b", "val", "duplicate file"), Skip(3, "a", "val", "duplicate file")]
    manifest = run(tmp_path / "out", encode(), 3, 4, skips=first, workers=workers).manifest
    assert dict(manifest.skipped) == {"duplicate file": 2, "no usable caption": 12}
    lines = listed(tmp_path / "out")
    assert [(line["entry"], line["caption"]) for line in lines] == [
        (3, None), (7, None), *((shard, i or None) for shard in range(3) for i in range(4))
    ]  # fmt: skip
    # Again, all from the state; and from one that lost a shard.
    before = (tmp_path / "out" / "skipped.jsonl").read_bytes()
    assert run(tmp_path / "out", encode(), 3, 4, skips=first).reused == 3
    assert (tmp_path / "out" / "skipped.jsonl").read_bytes() == before
    (tmp_path / "out" / "train-00001.tar").unlink()
    report = run(tmp_path / "out", encode(), 3, 4, skips=first)
    assert (report.reused, report.written, report.manifest) == (2, 1, manifest)
    assert (tmp_path / "out" / "skipped.jsonl").read_bytes() == before


def test_memory_does_not_grow_with_what_is_left_out(tmp_path: Path, encode: Callable[..., bytes]) -> None:
    image, peaks = encode(), []
    for shards in (2, 16):
        for _ in range(2):  # the second time all is read from the state
            tracemalloc.start()
            run(tmp_path / str(shards), image, shards, 300)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert len(listed(tmp_path / "16")) == 4800
    assert max(peaks[2:]) < 1.3 * max(peaks[:2]), peaks  # all of it would be several times as much


def test_what_is_only_counted_is_in_the_manifest_at_once(
    tmp_path: Path, encode: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[dict[str, int]] = []
    save = Manifest.save

    def seen(self: Manifest, folder: Path) -> None:
        saved.append(dict(self.skipped))
        save(self, folder)

    monkeypatch.setattr(Manifest, "save", seen)
    report = run(tmp_path / "out", encode(), 1, 1, left_out={"other source": 5, "nothing": 0})
    assert saved == [{"no usable caption": 1, "other source": 5}]
    assert dict(report.manifest.skipped) == saved[0]
    assert len(listed(tmp_path / "out")) == 1
    with pytest.raises(DataError, match=r"nothing could be imported.*5 x other source"):
        run(tmp_path / "none", encode(), 0, 0, left_out={"other source": 5})


def test_states_of_before_are_read(tmp_path: Path, encode: Callable[..., bytes]) -> None:
    """Written by a version that kept lines as they came, and left shards with unreadable files out."""
    made = run(tmp_path / "out", encode(), 2, 3).manifest
    state = tmp_path / "out" / "import.state.jsonl"
    header, *lines = [json.loads(line) for line in state.read_text().splitlines()]
    lines = [{name: line[name] for name in ("shard", "plan", "info", "skips")} for line in lines]
    for line in lines:
        line["skips"].reverse()
    # The first shard was made twice; the last line was cut off right before its end.
    old = [header, {**lines[0], "plan": "older"}, *lines]
    state.write_text("\n".join(json.dumps(line) for line in old))
    before = (tmp_path / "out" / "skipped.jsonl").read_bytes()
    report = run(tmp_path / "out", encode(), 2, 3)
    assert (report.reused, report.manifest) == (2, made)
    assert (tmp_path / "out" / "skipped.jsonl").read_bytes() == before
    assert len(state.read_text().splitlines()) == 3


def test_a_shard_with_an_unreadable_file_is_listed_and_made_again(
    tmp_path: Path, encode: Callable[..., bytes]
) -> None:
    image = encode()
    bad = ShardPlan("train-00000.tar", "train", "p", Lossy(image, 0, 1, "unreadable file"))
    good = ShardPlan("train-00001.tar", "train", "p", Lossy(image, 1, 1))
    for _ in range(2):
        report = run(tmp_path / "out", image, 2, 1, plans=[bad, good])
        assert [line["reason"] for line in listed(tmp_path / "out")] == [
            "unreadable file",
            "no usable caption",
        ]
    assert (report.reused, report.written) == (1, 1)


def test_one_import_at_a_time(tmp_path: Path, encode: Callable[..., bytes]) -> None:
    (tmp_path / "out").mkdir()
    with (
        ImportState.open(tmp_path / "out", {"importer": "toy"}),
        pytest.raises(DataError, match="another process is importing to"),
    ):
        run(tmp_path / "out", encode(), 1, 1)
    assert run(tmp_path / "out", encode(), 1, 1).written == 1
