"""One rank of `benchmarks.scaling`: trains a student under DeepSpeed and writes what it took.

    python -m benchmarks.scaling_rank SPEC.json    (with RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT)

For each configuration: steps on the clock, then one step that is followed allocation by allocation and collective by
collective. Prediction and measurement are made of the same module in the same process.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import json
import logging
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ssmke.data.batch import Batch
from ssmke.data.packing import pack
from ssmke.models.image_encoders import ImageEncoderConfig
from ssmke.models.shapes import shapes_of
from ssmke.models.shared import SharedConfig
from ssmke.models.student import SSMKE, StudentConfig
from ssmke.models.teachers import TeacherConfig
from ssmke.models.text_encoders import KNOWN_ARCHITECTURES, TextEncoderConfig
from ssmke.objectives.pretraining import LossConfig, SSMKEPretraining
from ssmke.planning.communication import communication
from ssmke.planning.live import LiveBytes
from ssmke.planning.memory import Zero, memory
from ssmke.planning.recorder import CollectiveRecorder
from ssmke.planning.steptime import flops_of_pair
from ssmke.planning.student import Model, model_of
from ssmke.recipes import Recipe, named
from ssmke.training import ds_config
from ssmke.training.engine import Engine
from ssmke.training.optimizer import OptimConfig, Schedule

TOKENS = 13


def recipe_of(size: dict[str, int], batch_size: int) -> Recipe:
    """ssmke-base with other widths and depths; targets cached, no weights."""
    width, heads = size["width"], size["heads"]
    vit: dict[str, int | float | bool | str] = {"embed_dim": width, "num_heads": heads}
    bert = {
        **KNOWN_ARCHITECTURES["bert-base-uncased"],
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "vocab_size": size["vocabulary"],
    }
    base = named("ssmke-base")
    base.model = StudentConfig(
        image=ImageEncoderConfig(
            "vit_tiny_patch16_224", size["depth"], "none", image_size=size["image"], timm_kwargs=vit
        ),
        text=TextEncoderConfig(depth=size["depth"], weights="none", architecture=bert),
        shared=SharedConfig(dim=width, heads=heads),
        prediction_dim=width,
    )
    base.teacher = TeacherConfig("vit_tiny_patch16_224", "none", timm_kwargs={**vit, "depth": 1})
    base.loss = LossConfig(bank_size=size["bank"])
    base.optim = OptimConfig(batch_size=batch_size)
    return base


def batch_of(recipe: Recipe, local: int, parts: int, rank: int) -> Batch:
    """Random pairs with captions of 13 tokens, packed."""
    generator = torch.Generator().manual_seed(rank)
    side = recipe.model.image.image_size or 224
    lengths = [TOKENS] * (local // parts)
    return Batch(
        images=torch.randint(0, 256, (local, 3, side, side), generator=generator, dtype=torch.uint8),
        ids=torch.randint(5, 500, (local, 2 * TOKENS), generator=generator),
        mask=(torch.arange(2 * TOKENS) < TOKENS).expand(local, -1),
        image_ids=torch.arange(local) + local * rank,
        targets=torch.randn(local, recipe.model.prediction_dim or 1, generator=generator),
        packing=tuple(pack(lengths, 2 * TOKENS, 64) for _ in range(parts)),
    )


def measure(
    name: str, document: dict[str, Any], spec: dict[str, Any], rank: int, ranks: int
) -> dict[str, Any]:
    """Predicts and measures one configuration."""
    micro, parts = spec["micro_batch"], spec.get("accumulation", 1)
    local = micro * parts
    recipe = recipe_of(spec["size"], local * ranks)
    document = {**document, ds_config.ACCUMULATION: parts}
    config = ds_config.resolve(document, name, batch_size=local * ranks, world_size=ranks, cuda=False)
    zero = Zero.of(config)
    model = _model(json.dumps(spec["size"]), local * ranks, config.dtype)
    shape = {"micro_batch": micro, "accumulation": parts, "ranks": ranks}
    predicted = memory(model, zero, **shape)
    traffic = communication(model, zero, **shape)
    gc.collect()
    # What the prediction freed goes back to the kernel, or the model would be built in it unseen.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = _resident("VmRSS")
    torch.manual_seed(0)
    live = LiveBytes()
    with live:
        module = SSMKEPretraining(SSMKE(recipe.model, quiet=True), recipe.loss)
        shapes = shapes_of(
            module, None, distillation=True, online_teacher=False, max_tokens=64, batch_size=local * ranks
        )
        engine = Engine(module, config, recipe.optim, Schedule(recipe.optim, 1000))
        batch = batch_of(recipe, local, parts, rank)
    _reset_peak()
    seconds = []
    for step in range(spec["steps"] + 1):
        dist.barrier()
        begin = time.perf_counter()
        engine.step(batch, step)
        seconds.append(time.perf_counter() - begin)
    resident = _resident("VmHWM") - before
    # What the first steps allocated outside of the count: optimiser states and what ZeRO-3 keeps whole.
    gc.collect()
    with live:
        engine.step(batch, spec["steps"] + 1)
        live.hold(_states(engine))
        live.peak = live.live
        with CollectiveRecorder() as recorder:
            engine.step(batch, spec["steps"] + 2)
    found = {
        "config": name,
        "ranks": ranks,
        "stage": zero.stage,
        "dtype": config.dtype,
        "parameters": model.parameters.trained,
        "predicted": predicted.total,
        "parts": {"device": predicted.device, "host": predicted.host},
        "allocated": live.peak,
        "resident": resident,
        "seconds": statistics.median(seconds[1:]),
        "counted": dict(recorder.bytes),
        "calls": dict(recorder.calls),
        "traffic": traffic.buffers(),
        "flops": local * flops_of_pair(shapes, float(TOKENS), accumulation=parts, checkpointing=False),
    }
    engine.deepspeed.destroy()
    return found


@functools.lru_cache
def _model(size: str, batch_size: int, dtype: str) -> Model:
    return model_of(recipe_of(json.loads(size), batch_size), dtype=dtype, cuda=False, text_tokens=TOKENS)


def _states(engine: Engine) -> list[torch.Tensor]:
    inner = getattr(engine.deepspeed.optimizer, "optimizer", engine.deepspeed.optimizer)
    return [t for state in inner.state.values() for t in state.values() if isinstance(t, torch.Tensor)] + [
        p.data for p in engine.module.parameters()
    ]


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


def _reset_peak() -> None:
    """Sets VmHWM back to what is resident now, where the kernel allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def main(argv: list[str]) -> int:
    """Measures what the spec asks for; rank 0 writes the result beside it."""
    import deepspeed
    from deepspeed.utils import logger

    from ssmke.training.launch import unlink_shared_buffers
    from ssmke.training.ranks import Placement

    logger.setLevel(logging.ERROR)
    path = Path(argv[0])
    spec = json.loads(path.read_text(encoding="utf-8"))
    torch.set_num_threads(spec["threads"])
    deepspeed.init_distributed()
    unlink_shared_buffers(Placement.of(os.environ))
    rank, ranks = dist.get_rank(), dist.get_world_size()
    found = [measure(name, document, spec, rank, ranks) for name, document in spec["configs"].items()]
    if rank == 0:
        path.with_suffix(".out").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
