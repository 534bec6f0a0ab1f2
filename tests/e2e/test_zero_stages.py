"""Every shipped DeepSpeed configuration starts, and ZeRO-1, 2, 3, offload and no ZeRO train alike.

Tolerance: 2e-4 relative on each of the 16 losses. The stages add gradients in different orders, and AdamW divides by
small second moments early on.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ssmke.models.student import SSMKE
from tests.e2e.runs import ROOT, ZERO2, Pretrain, Run

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(
    "name",
    [
        "zero1",
        "zero3_offload",
        *(pytest.param(n, marks=pytest.mark.long) for n in ("zero3", "zero2_offload")),
    ],
)
def test_all_stages_give_one_loss_curve(name: str, pretrain: Pretrain, unbroken: Run) -> None:
    run = pretrain(config=ROOT / "ds_configs" / f"{name}.json")
    assert len(run.losses) == 16
    assert run.losses == pytest.approx(unbroken.losses, rel=2e-4)
    ours, theirs = (SSMKE.from_pretrained(r.folder / "model") for r in (run, unbroken))
    captions = ["a red dog", "two cat near grass"]
    torch.testing.assert_close(ours.encode_text(captions), theirs.encode_text(captions), rtol=0, atol=5e-3)


def test_no_zero_gives_the_same_curve(pretrain: Pretrain, unbroken: Run, tmp_path: Path) -> None:
    document = json.loads(ZERO2.read_text())
    del document["zero_optimization"]
    path = tmp_path / "zero0.json"
    path.write_text(json.dumps(document))
    assert pretrain(config=path).losses == pytest.approx(unbroken.losses, rel=2e-4)


def test_accumulation_keeps_all_negatives(pretrain: Pretrain, unbroken: Run, tmp_path: Path) -> None:
    document = {**json.loads(ZERO2.read_text()), "gradient_accumulation_steps": 4}
    path = tmp_path / "accumulate.json"
    path.write_text(json.dumps(document))
    assert pretrain(config=path).losses == pytest.approx(unbroken.losses, rel=2e-4)


def test_one_rank_gives_the_curve_of_two(pretrain: Pretrain, unbroken: Run) -> None:
    run = pretrain(ranks=1)
    assert run.losses == pytest.approx(unbroken.losses, rel=2e-4)
    assert [line["lr"] for line in run.metrics] == [line["lr"] for line in unbroken.metrics]


def test_bf16_follows_the_curve_of_fp32(pretrain: Pretrain, unbroken: Run, tmp_path: Path) -> None:
    document = {**json.loads(ZERO2.read_text()), "bf16": {"enabled": True}}
    path = tmp_path / "bf16.json"
    path.write_text(json.dumps(document))
    run = pretrain(config=path)
    assert run.losses == pytest.approx(unbroken.losses, rel=0.05)
    assert run.losses[-1] < run.losses[0]
