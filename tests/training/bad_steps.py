"""Steps with a loss that is not a number, under every kind of engine: started by `test_nonfinite`.

    python -m tests.training.bad_steps MODEL_DIR FOLDER

Trains the small student for a good, a bad and a good step; writes what became of the weights as JSON lines.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import torch

from ssmke.data.batch import Batch
from ssmke.errors import SSMKEError
from ssmke.models.student import SSMKE, StudentConfig
from ssmke.objectives.pretraining import LossConfig, SSMKEPretraining
from ssmke.training import ds_config
from ssmke.training.engine import Engine
from ssmke.training.launch import stand_alone
from ssmke.training.nonfinite import SkippedSteps
from ssmke.training.optimizer import OptimConfig, Schedule

BATCH, TARGET, LIMIT = 8, 12, 3


def batch(seed: int, *, bad: bool) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randn(BATCH, TARGET, generator=generator)
    if bad:
        targets[3, 5] = float("inf")
    return Batch(
        images=torch.randint(0, 256, (BATCH, 3, 32, 32), generator=generator, dtype=torch.uint8),
        ids=torch.randint(5, 18, (BATCH, 9), generator=generator),
        mask=torch.ones(BATCH, 9, dtype=torch.bool),
        image_ids=torch.arange(BATCH),
        targets=targets,
        keys=[f"{seed}-{i}" for i in range(BATCH)],
    )


def weights(engine: Engine) -> torch.Tensor:
    state = engine.student_state()
    assert state is not None
    return torch.cat([value.flatten().float() for value in state.values()])


def train(model_dir: Path, file: Path, stage: int, precision: str, accumulation: int) -> dict[str, Any]:
    saved = SSMKE.from_pretrained(model_dir)
    torch.manual_seed(1)
    model = SSMKE(StudentConfig(**{**vars(saved.config), "prediction_dim": TARGET}), quiet=True)
    module = SSMKEPretraining(model, LossConfig(bank_size=16))
    document: dict[str, Any] = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": accumulation,
        "steps_per_print": 10**9,
    }
    if stage > 0:
        document["zero_optimization"] = {"stage": stage}
    if precision != "fp32":
        document[precision] = {"enabled": True}
    config = ds_config.resolve(document, "test.json", batch_size=BATCH, world_size=1, cuda=False)
    optim = OptimConfig(batch_size=BATCH, lr=1e-2)
    engine = Engine(module, config, optim, Schedule(optim, 100))
    skipped = SkippedSteps(file, LIMIT, scaled=False)
    before = [weights(engine)]
    stopped, applied = None, []
    for step, bad in enumerate([False, True, True, False, True, True, True, True], 1):
        made = batch(step, bad=bad)
        losses, _ = engine.step(made, step)
        applied.append(engine.applied)
        before.append(weights(engine))
        try:
            skipped.add(step, made, losses, applied=engine.applied)
        except SSMKEError as error:
            stopped = f"{step}: {error}"
            break
    return {
        "applied": applied,
        "moved": [not torch.equal(a, b) for a, b in itertools.pairwise(before)],
        "finite": bool(torch.isfinite(before[-1]).all()),
        "stopped": stopped,
        "count": skipped.count,
        "file": str(file),
    }


def main(model_dir: Path, folder: Path) -> None:
    import deepspeed

    torch.set_num_threads(1)
    stand_alone()
    deepspeed.init_distributed()
    cases = [(stage, "fp32", 1) for stage in (0, 1, 2, 3)] + [(0, "bf16", 1), (2, "bf16", 1), (0, "fp32", 2)]
    for stage, precision, accumulation in [*cases, (2, "fp32", 2)]:
        name = f"stage {stage} {precision} x{accumulation}"
        found = train(model_dir, folder / f"{name}.jsonl", stage, precision, accumulation)
        print(json.dumps({"case": name, **found}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
