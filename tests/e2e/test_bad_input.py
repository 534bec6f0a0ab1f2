"""Each mistake ends with one clear error before step 0, and without a traceback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ssmke.cli.main import main
from tests.e2e.runs import ZERO2, Pretrain

pytestmark = pytest.mark.e2e


def fails(pretrain: Pretrain, *flags: str, says: tuple[str, ...], config: Path = ZERO2) -> None:
    run = pretrain(*flags, config=config, ranks=0, code=2)
    errors = [line for line in run.output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, run.output
    assert "Traceback" not in run.output
    for word in says:
        assert word in run.output, run.output
    assert not (run.folder / "metrics.jsonl").exists() or not run.metrics


def test_missing_shards(pretrain: Pretrain, tmp_path: Path) -> None:
    fails(pretrain, "--data.shards", str(tmp_path / "none"), says=(str(tmp_path / "none"),))


def test_a_shard_that_is_gone_and_one_cut_short(pretrain: Pretrain, pairs_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "pairs"
    shutil.copytree(pairs_dir, copy, ignore=shutil.ignore_patterns("targets"))
    shard = copy / "train-00001.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    fails(pretrain, "--data.shards", str(copy), says=("train-00001.tar",))
    shard.unlink()
    fails(pretrain, "--data.shards", str(copy), says=("train-00001.tar",))


def test_an_unknown_split(pretrain: Pretrain) -> None:
    fails(pretrain, "--data.split", "trian", says=("trian", "train"))


def test_a_batch_larger_than_the_data(pretrain: Pretrain) -> None:
    fails(pretrain, "--optim.batch-size", "4096", says=("--optim.batch-size 4096", "128 pairs"))


def test_an_unknown_teacher(pretrain: Pretrain) -> None:
    fails(pretrain, "--teacher.name", "vit_tinny_patch16_224", says=("vit_tinny_patch16_224",))


def test_weights_that_are_missing_or_of_another_model(pretrain: Pretrain, tmp_path: Path) -> None:
    fails(pretrain, "--teacher.weights", str(tmp_path / "no.pth"), says=(str(tmp_path / "no.pth"),))
    wide = ["--teacher.timm-kwargs", "img_size", "32", "patch_size", "8", "embed_dim", "64", "depth", "2"]
    fails(pretrain, *wide, "num_heads", "2", says=("teacher.safetensors",))


def test_a_json_that_contradicts_the_recipe(pretrain: Pretrain, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(json.dumps({**json.loads(ZERO2.read_text()), "train_batch_size": 64}))
    fails(pretrain, says=(str(path), "--optim.batch-size is 16"), config=path)


def test_a_run_folder_that_cannot_be_made(pretrain: Pretrain, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    fails(pretrain, "--run-dir", str(tmp_path / "file" / "run"), says=(str(tmp_path / "file"),))


def test_a_cache_of_another_teacher_or_of_other_shards(
    pretrain: Pretrain, pairs_dir: Path, flags: list[str], tmp_path: Path
) -> None:
    copy = tmp_path / "pairs"
    shutil.copytree(pairs_dir, copy, ignore=shutil.ignore_patterns("targets"))
    shards = ("--data.shards", str(copy))
    assert main(["targets", "build", *flags, *shards]) == 0
    cache = copy / "targets" / "vit_tiny_patch16_224-features-v1"
    assert main(["targets", "show", str(cache)]) == 0
    assert main(["targets", "verify", *flags, *shards]) == 0
    assert main(["targets", "build", *flags, *shards, "--targets.mode", "online"]) != 0

    identity = json.loads((cache / "cache.json").read_text())
    identity["identity"]["teacher"]["digest"] = "0" * 64
    (cache / "cache.json").write_text(json.dumps(identity))
    fails(pretrain, *shards, says=("teacher.digest", "0" * 64, "--targets.dir"))

    shutil.rmtree(cache)
    assert main(["targets", "build", *flags, *shards]) == 0
    record = json.loads((cache / "train-00000.json").read_text())
    (cache / "train-00000.json").write_text(json.dumps({**record, "keys_sha256": "f" * 64}))
    fails(pretrain, *shards, says=("train-00000", "shards were changed"))
