"""A whole pretraining in seconds, started as a user starts it."""

from __future__ import annotations

import io
import json
import secrets
import subprocess
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from ssmke.data.manifest import Manifest, Split
from ssmke.data.shards import Sample, write_shard
from ssmke.models.student import SSMKE
from tests.e2e.runs import ZERO2, Pretrain, Run, environment, start

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
COLOURS = {"red": (220, 40, 40), "blue": (40, 60, 220), "green": (40, 180, 60), "grass": (120, 140, 40)}


def _picture(rng: np.random.Generator, colour: str) -> bytes:
    pixels = np.full((40, 40, 3), COLOURS[colour], np.uint8) + rng.integers(
        0, 30, (40, 40, 3), dtype=np.uint8
    )
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=90)
    return out.getvalue()


def _samples(count: int, split: str) -> list[Sample]:
    rng = np.random.default_rng(len(split))
    made = []
    for i in range(count):
        colour = list(COLOURS)[i % len(COLOURS)]
        animal = "dog" if rng.random() < 0.5 else "cat"
        captions = (f"a {colour} {animal}", f"two {animal} near {colour}")
        made.append(Sample(f"{split}{i:03d}", _picture(rng, colour), captions))
    return made


@pytest.fixture(scope="session")
def pairs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 training images in two shards and 12 for validation, two captions each."""
    folder = tmp_path_factory.mktemp("pairs")
    train = _samples(64, "train")
    splits = {
        "train": Split((
            write_shard(folder / "train-00000.tar", train[:40], "train"),
            write_shard(folder / "train-00001.tar", train[40:], "train"),
        )),
        "val": Split((write_shard(folder / "val-00000.tar", _samples(12, "val"), "val"),)),
    }  # fmt: skip
    Manifest("pairs", {"fingerprint": "pairs"}, splits).save(folder)
    return folder


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a tiny ViT teacher, the same for every process."""
    torch.manual_seed(11)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_file(timm.create_model("vit_tiny_patch16_224", **VIT).state_dict(), path)
    return path


@pytest.fixture(scope="session")
def flags(pairs_dir: Path, teacher_file: Path, model_dir: Path) -> list[str]:
    """A tiny recipe on the command line: 2 epochs of 8 steps."""
    vit = [text for name, value in VIT.items() for text in (name, str(value))]
    config = json.loads((model_dir / "config.json").read_text())["student"]["text"]
    bert = model_dir.parent / "bert"
    if not bert.exists():
        # The text half as a transformers folder, so that the run loads it as it loads any BERT.
        from transformers import BertConfig, BertModel, BertTokenizerFast

        torch.manual_seed(12)
        BertModel(BertConfig(**config["architecture"]), add_pooling_layer=False).save_pretrained(bert)
        BertTokenizerFast.from_pretrained(model_dir / "tokenizer").save_pretrained(bert)
    assert isinstance(SSMKE.from_pretrained(model_dir), SSMKE)
    return [
        "--recipe", "ssmke-base", "--data.shards", str(pairs_dir), "--data.stream.workers", "0",
        "--model.image.name", "vit_tiny_patch16_224", "--model.image.depth", "None",
        "--model.image.weights", str(teacher_file), "--model.image.timm-kwargs", *vit,
        "--model.text.weights", str(bert), "--model.text.depth", "None", "--model.text.max-tokens", "16",
        "--model.shared.dim", "32", "--model.shared.heads", "2",
        "--teacher.name", "vit_tiny_patch16_224", "--teacher.weights", str(teacher_file),
        "--teacher.timm-kwargs", *vit,
        "--optim.batch-size", "16", "--optim.epochs", "2", "--optim.lr", "1e-3", "--loss.bank-size", "40",
        "--log-every", "4", "--tracking.no-enabled",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def pretrain(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Pretrain:
    """``pretrain(*more flags, config=..., ranks=2, folder=...)`` through DeepSpeed's launcher."""
    workspace = tmp_path_factory.mktemp("workspace")

    def run(
        *more: str,
        config: str | Path = ZERO2,
        ranks: int = 2,
        folder: str | None = None,
        code: int = 0,
    ) -> Run:
        path = workspace / (folder or secrets.token_hex(4))
        command = start(config, ranks, [*flags, "--run-dir", str(path), *more])
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=workspace, env=environment(), check=False
        )
        output = done.stdout + done.stderr
        assert done.returncode == code, output
        return Run(output, path)

    return run


@pytest.fixture(scope="session")
def unbroken(pretrain: Pretrain) -> Run:
    """The run that others are compared with: ZeRO-2 on two ranks, cached targets, FIFO bank."""
    return pretrain(folder="unbroken")
