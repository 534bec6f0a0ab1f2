"""Checkpoints are whole or absent, and a disk that is too small is known before anything is written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ssmke.data.shards import file_sha256
from ssmke.errors import CheckpointError, ConfigError
from ssmke.models.student import SSMKE
from ssmke.objectives.pretraining import LossConfig, SSMKEPretraining
from ssmke.training import checkpoint, checkpoint_files
from ssmke.training.checkpoint import COMPLETE, CheckpointConfig, Progress


def write(folder: Path, step: int, complete: bool = True) -> Path:
    path = folder / f"step-{step:08d}"
    path.mkdir(parents=True)
    (path / "weights.pt").write_bytes(bytes([step % 256]) * 100)
    if complete:
        record = {
            "progress": asdict(Progress(step, step * 10, "lineage")),
            "zero_stage": 2,
            "world_size": 1,
            "files": {"weights.pt": file_sha256(path / "weights.pt")},
        }
        (path / COMPLETE).write_text(json.dumps(record))
    return path


def test_the_newest_complete_one_is_found(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    for step in (5, 20, 100):
        write(tmp_path, step)
    write(tmp_path, 120, complete=False)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.progress == Progress(100, 1000, "lineage")


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "record"])
def test_damage_is_said_and_the_one_before_is_used(damage: str, tmp_path: Path) -> None:
    write(tmp_path, 5)
    path = write(tmp_path, 9)
    weights = path / "weights.pt"
    content = weights.read_bytes()
    if damage == "flip":
        weights.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    elif damage == "cut":
        weights.write_bytes(content[:-1])
    elif damage == "missing":
        weights.unlink()
    else:
        (path / COMPLETE).write_text("{")
    with pytest.warns(UserWarning, match="step-00000009"):
        found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.progress.step == 5


def test_what_lies_after_the_step_that_a_run_went_back_to_is_removed(tmp_path: Path) -> None:
    for step in (5, 9, 20):
        write(tmp_path, step)
    checkpoint_files.remove_from(tmp_path, 9)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000005"]


def test_only_the_newest_complete_ones_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step)
    write(tmp_path, 2_000, complete=False)
    left = tmp_path / ".step-00000002.converted"
    left.mkdir()
    checkpoint_files.prune(tmp_path, keep=2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000002", "step-00000003"]


def test_going_on_removes_what_a_kill_before_pruning_left(tmp_path: Path) -> None:
    for step in (4, 8, 12, 16):
        completed(tmp_path, step)
    checkpoint_files.prune(tmp_path, 2, newest=tmp_path / "step-00000012")
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "step-00000008",
        "step-00000012",
        "step-00000016",
    ]


def completed(folder: Path, step: int) -> Path:
    """A checkpoint with the mark as it is written today."""
    path = write(folder, step, complete=False)
    checkpoint_files.complete(
        path, Progress(step, step * 10, "lineage"), zero_stage=2, world_size=2, optimizer="AdamW"
    )
    return path


def test_any_changed_byte_of_the_mark_itself_is_found(tmp_path: Path) -> None:
    path = completed(tmp_path, 9)
    whole = (path / COMPLETE).read_bytes()
    assert checkpoint.read(path).optimizer == "AdamW"
    for position, byte in enumerate(whole):
        (path / COMPLETE).write_bytes(whole[:position] + bytes([byte ^ 1]) + whole[position + 1 :])
        if not whole[position : position + 1].isspace():
            with pytest.raises(CheckpointError, match="step-00000009"):
                checkpoint.read(path)


@pytest.mark.parametrize("damage", ["cut", "missing", "empty folder", "record"])
def test_a_damaged_one_takes_no_place_of_a_whole_one(damage: str, tmp_path: Path) -> None:
    completed(tmp_path, 4)
    path = completed(tmp_path, 8)
    completed(tmp_path, 12)
    if damage == "cut":
        (path / "weights.pt").write_bytes((path / "weights.pt").read_bytes()[:-1])
    elif damage == "missing":
        (path / "weights.pt").unlink()
    elif damage == "empty folder":
        for file in path.iterdir():
            file.unlink()
    else:
        (path / COMPLETE).write_bytes(b"{}")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        checkpoint_files.prune(tmp_path, keep=2)
    assert [path.name for path in sorted(tmp_path.glob("step-*"))] == ["step-00000004", "step-00000012"]
    assert damage == "empty folder" or "step-00000008 is damaged" in str(said[0].message)


def test_one_that_was_found_damaged_takes_no_place_either(tmp_path: Path) -> None:
    completed(tmp_path, 4)
    path = completed(tmp_path, 8)
    (path / "weights.pt").write_bytes(bytes(100))  # same size: only its digest tells
    with pytest.warns(UserWarning, match="step-00000008 is damaged"):
        found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.progress.step == 4
    completed(tmp_path, 12)
    checkpoint_files.prune(tmp_path, keep=2)
    assert [path.name for path in sorted(tmp_path.glob("step-*"))] == ["step-00000004", "step-00000012"]


def test_where_all_are_damaged_nothing_is_begun_again_nor_removed(tmp_path: Path) -> None:
    for step in (4, 8):
        (completed(tmp_path, step) / "weights.pt").unlink()
    for _ in range(2):  # the second attempt finds them set aside
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(CheckpointError, match=r"all checkpoints are damaged .*remove the folder"):
                checkpoint.newest(tmp_path)
    checkpoint_files.prune(tmp_path, keep=1)
    assert len(list(tmp_path.glob("step-*"))) == 2


def test_a_read_that_fails_stops_and_does_not_go_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    completed(tmp_path, 4)
    completed(tmp_path, 8)

    def fails(path: Path) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(checkpoint_files, "file_sha256", fails)
    with pytest.raises(CheckpointError, match=r"step-00000008 cannot be read .*Input/output error"):
        checkpoint.newest(tmp_path)
    monkeypatch.undo()
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.progress.step == 8


class Usage(NamedTuple):
    total: int
    used: int
    free: int


class NeverSaves:
    """Stands for an engine that must not be reached."""

    def save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        raise AssertionError("nothing may be written")


def test_a_full_disk_is_an_error_before_anything_is_written(
    model: SSMKE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = write(tmp_path, 5)
    module = SSMKEPretraining(model, LossConfig(distillation="none", bank="none"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 1000))
    with pytest.raises(CheckpointError, match=r"needs .* GB.*free space.*--resume auto"):
        checkpoint.save(NeverSaves(), module, tmp_path, Progress(9, 90, "x"), CheckpointConfig(), 2)
    assert checkpoint.read(earlier).progress.step == 5
    assert not (tmp_path / "step-00000009").exists()


def test_a_folder_that_cannot_be_made_is_named(model: SSMKE, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    module = SSMKEPretraining(model, LossConfig(distillation="none", bank="none"))
    with pytest.raises(CheckpointError, match="file"):
        checkpoint.save(
            NeverSaves(), module, tmp_path / "file" / "x", Progress(9, 90, "x"), CheckpointConfig(), 2
        )


@pytest.mark.parametrize(("values", "flag"), [({"minutes": -1.0}, "minutes"), ({"keep": 0}, "keep")])
def test_impossible_settings_are_refused_by_flag(values: dict[str, float], flag: str) -> None:
    with pytest.raises(ConfigError, match=rf"--checkpoint\.{flag}"):
        CheckpointConfig(**values)  # type: ignore[arg-type]
