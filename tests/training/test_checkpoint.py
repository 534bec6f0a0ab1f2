"""Checkpoints are whole or absent, and a disk that is too small is known before anything is written."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ssmke.data.shards import file_sha256
from ssmke.errors import CheckpointError, ConfigError
from ssmke.models.student import SSMKE
from ssmke.objectives.pretraining import LossConfig, SSMKEPretraining
from ssmke.training import checkpoint
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
    checkpoint._remove_from(tmp_path, 9)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000005"]


def test_only_the_newest_complete_ones_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step)
    write(tmp_path, 2_000, complete=False)
    checkpoint._prune(tmp_path, keep=2)
    assert [path.name for path in sorted(tmp_path.glob("step-*"))] == ["step-00000002", "step-00000003"]


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
