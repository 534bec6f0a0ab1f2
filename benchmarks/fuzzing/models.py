"""Targets: weights, model folders, target caches, checkpoints, run folders and the DeepSpeed JSON."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from tokenizers import BertWordPieceTokenizer
from transformers import BertTokenizerFast

from benchmarks.fuzzing.guard import Target
from ssmke.data.manifest import ShardInfo
from ssmke.models.image_encoders import ImageEncoderConfig
from ssmke.models.shared import SharedConfig
from ssmke.models.student import SSMKE, StudentConfig
from ssmke.models.text_encoders import TextEncoderConfig, _from_file
from ssmke.models.weights import read_weights
from ssmke.targets.cache import (
    CacheIdentity,
    ShardTargets,
    check_identity,
    load_record,
    open_rows,
    save_identity,
)
from ssmke.tracking.outbox import keep_unsent, take_unsent
from ssmke.training import checkpoint_files, ds_config, run_folder


def _torch_files(folder: Path) -> Sequence[tuple[str, bytes]]:
    state = {"model": {"a.weight": torch.ones(2, 3), "b": torch.zeros(2, dtype=torch.float16)}, "epoch": 3}
    contents = (state, {**state, "args": argparse.Namespace(lr=0.1)}, [torch.ones(2), {"x": torch.ones(1)}])
    made = []
    for content in contents:
        for zipped in (True, False):
            out = io.BytesIO()
            torch.save(content, out, _use_new_zipfile_serialization=zipped)
            made.append(("pth", out.getvalue()))
    return made


def _read_torch(variant: str, content: bytes, folder: Path) -> None:
    path = folder / "weights.pth"
    path.write_bytes(content)
    for name, tensor in read_weights(path).items():
        str(name)
        tuple(tensor.shape)


def _safetensors(folder: Path) -> Sequence[tuple[str, bytes]]:
    tensors = {
        "a.weight": torch.ones(2, 3),
        "b": torch.zeros(2, dtype=torch.bfloat16),
        "c": torch.ones((), dtype=torch.int64),
    }
    return [("safetensors", safetensors.torch.save(tensors, {"format": "pt"}))]


def _read_safetensors(variant: str, content: bytes, folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(content)
    read_weights(path)


_FOLDER = ("student", "transformers", "weights")


def _prepare_model(folder: Path) -> None:
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog"])}
    tokenizer = BertWordPieceTokenizer(words)
    BertTokenizerFast(tokenizer_object=tokenizer._tokenizer).save_pretrained(str(folder / "tokenizer"))
    vit = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 1, "num_heads": 1}
    bert = {
        "model_type": "bert", "vocab_size": len(words), "hidden_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8, "max_position_embeddings": 8,
    }  # fmt: skip
    SSMKE(
        StudentConfig(
            image=ImageEncoderConfig("vit_tiny_patch16_224", depth=None, weights="none", timm_kwargs=dict(vit)),
            text=TextEncoderConfig(
                "bert-base-uncased", depth=None, weights="none", max_tokens=8, architecture=bert,
                tokenizer=str(folder / "tokenizer"),
            ),
            shared=SharedConfig(dim=8, heads=1),
        ),
        quiet=True,
    ).save_pretrained(folder / "model")  # fmt: skip
    for name in ("config.json", "model.safetensors"):
        (folder / f"good-{name}").write_bytes((folder / "model" / name).read_bytes())


def _model_files(folder: Path) -> Sequence[tuple[str, bytes]]:
    student = (folder / "good-config.json").read_bytes()
    architecture = json.loads(student)["student"]["text"]["architecture"]
    return [
        ("student", student),
        ("transformers", json.dumps(architecture).encode()),
        ("weights", (folder / "good-model.safetensors").read_bytes()),
    ]


def _read_model(variant: str, content: bytes, folder: Path) -> None:
    model = folder / "model"
    if variant == "transformers":
        (folder / "config.json").write_bytes(content)
        _from_file(folder / "config.json")
        return
    fuzzed = "config.json" if variant == "student" else "model.safetensors"
    for name in ("config.json", "model.safetensors"):
        (model / name).write_bytes(content if name == fuzzed else (folder / f"good-{name}").read_bytes())
    SSMKE.from_pretrained(model)


def _read_deepspeed(variant: str, content: bytes, folder: Path) -> None:
    path = folder / "zero.json"
    path.write_bytes(content)
    document = ds_config.load(path)
    for cuda in (False, True):
        engine = ds_config.resolve(document, path, batch_size=48, world_size=2, cuda=cuda)
        assert engine.micro_batch * engine.accumulation == 24
        assert engine.zero_stage in (0, 1, 2, 3)
        assert engine.dtype in ("bf16", "fp16", "fp32")
        assert engine.offloads_optimizer in (False, True)


def _deepspeed_files(folder: Path) -> Sequence[tuple[str, bytes]]:
    shipped = Path(__file__).resolve().parents[2] / "ds_configs"
    return [("json", path.read_bytes()) for path in sorted(shipped.glob("*.json"))]


_RUN = ("COMPLETE.json", "recipe.json", "lineage.json", "metrics.jsonl", "unsent.jsonl")
_RECIPE = {
    "name": "base",
    "optim": {"epochs": 2, "lr": 0.1},
    "data": {"train": ["a"], "curriculum": {}},
    "seed": 0,
}


def _prepare_run(folder: Path) -> None:
    path = folder / "checkpoints" / "step-00000004"
    path.mkdir(parents=True)
    (path / "model.pt").write_bytes(b"weights")


def _run_files(folder: Path) -> Sequence[tuple[str, bytes]]:
    path = folder / "checkpoints" / "step-00000004"
    record = {
        "progress": dataclasses.asdict(checkpoint_files.Progress(4, 96, "l" * 16, "d" * 64)),
        "zero_stage": 2,
        "world_size": 2,
        "files": checkpoint_files._digests(path),
    }
    keep_unsent(folder / "unsent.jsonl", [{"op": "metrics", "metrics": {"loss": 1.0}, "step": 3}])
    metrics = "".join(json.dumps({"step": i, "loss": 0.5}) + "\n" for i in range(6)) + '{"step": 6, "lo'
    return [
        ("COMPLETE.json", json.dumps(record).encode()),
        ("recipe.json", json.dumps(_RECIPE).encode()),
        ("lineage.json", b'{"lineage": "0123456789abcdef"}'),
        ("metrics.jsonl", metrics.encode()),
        ("unsent.jsonl", (folder / "unsent.jsonl").read_bytes()),
    ]


def _read_run(variant: str, content: bytes, folder: Path) -> None:
    if variant == "COMPLETE.json":
        path = folder / "checkpoints" / "step-00000004"
        (path / variant).write_bytes(content)
        info = checkpoint_files.read(path)
        progress = info.progress
        assert type(progress.step) is type(progress.pairs) is int
        assert type(progress.lineage) is type(progress.data) is str
        return
    path = folder / variant
    path.write_bytes(content)
    if variant == "recipe.json":
        run_folder.compare(_RECIPE, folder)
    elif variant == "lineage.json":
        assert isinstance(run_folder._go_on(folder).lineage, str)
    elif variant == "metrics.jsonl":
        run_folder.truncate_metrics(path, 4)
    else:
        take_unsent(path)


_CACHE = ("cache.json", "train-00000.json", "train-00000.npy")
_SHARD = ShardInfo("train-00000.tar", 3, 3, 10240, "0" * 64, "1" * 64)
_IDENTITY = CacheIdentity(
    {"name": "vit", "output": "features", "weights": "w", "dim": 4}, 32, 1, {"version": 1}
)


def _write_cache(folder: Path) -> None:
    save_identity(folder, _IDENTITY)
    record = ShardTargets(3, "1" * 64, "0" * 64, "2" * 64, 0.5, {"s-1": "truncated image"})
    (folder / "train-00000.json").write_text(json.dumps(dataclasses.asdict(record)))
    np.save(folder / "train-00000.npy", np.zeros((3, 1, 4), np.float16), allow_pickle=False)


def _cache_files(folder: Path) -> Sequence[tuple[str, bytes]]:
    return [(name, (folder / name).read_bytes()) for name in _CACHE]


def _read_cache(variant: str, content: bytes, folder: Path) -> None:
    _write_cache(folder)
    (folder / variant).write_bytes(content)
    check_identity(folder, _IDENTITY)
    record = load_record(folder, _SHARD, _IDENTITY)
    if record is not None:
        assert record.images == 3
        assert math.isfinite(record.seconds)
        assert all(isinstance(why, str) for why in record.bad.values())
    float(open_rows(folder / "train-00000.npy", (3, 1, 4)).astype(np.float32).sum())


TARGETS = (
    Target("weights-torch", ("pth",), lambda f: None, _torch_files, _read_torch,
           ("torch._weights_only_unpickler", "torch.serialization", "torch._utils", "zipfile")),
    Target("weights-safetensors", ("safetensors",), lambda f: None, _safetensors, _read_safetensors,
           ("safetensors.torch",)),
    Target("model-folder", _FOLDER, _prepare_model, _model_files, _read_model, ()),
    Target("deepspeed-json", ("json",), lambda f: None, _deepspeed_files, _read_deepspeed, ("json.decoder",)),
    Target("run-folder", _RUN, _prepare_run, _run_files, _read_run, ("json.decoder",)),
    Target("target-cache", _CACHE, _write_cache, _cache_files, _read_cache, ("numpy.lib.format",)),
)  # fmt: skip
