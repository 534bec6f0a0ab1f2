"""Formulas of memory and communication against two real ranks, under every shipped configuration.

Buckets are made small, so that they fill several times in a backward pass, as those of a large model do. Tolerances:
bytes of collectives 0.5 % (padding to whole shares, flags of a few bytes), but 1 % under ZeRO-3 with accumulation (0.9
% of its gathers is not explained); memory 10 % (moments in between, at which a bucket is half full and half the
activations are gone, are not modelled).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from benchmarks.scaling import run, shipped
from ssmke.planning.communication import SENT, sent

pytestmark = pytest.mark.e2e

SIZE = {"width": 64, "heads": 2, "depth": 2, "vocabulary": 2000, "image": 96, "bank": 64}
CONFIGS = ["no ZeRO", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload"]


def small_buckets() -> dict[str, dict[str, Any]]:
    found = shipped()
    for document in found.values():
        section = document.get("zero_optimization", {})
        for key in ("reduce_bucket_size", "allgather_bucket_size", "stage3_prefetch_bucket_size"):
            if key in section:
                section[key] = 150_000
        if section.get("stage") == 3:
            section["stage3_param_persistence_threshold"] = 1000
    return found


def measured(
    accumulation: int, ranks: int = 2, names: Sequence[str] = CONFIGS, **keys: Any
) -> dict[str, dict[str, Any]]:
    spec = {"size": SIZE, "micro_batch": 4, "accumulation": accumulation, "steps": 1, "threads": 1}
    configs = {name: {**document, **keys} for name, document in small_buckets().items() if name in names}
    # A first run also compiles DeepSpeed's operators, more than a minute each.
    return {row["config"]: row for row in run({**spec, "configs": configs}, ranks, timeout=840)}


@pytest.fixture(scope="module")
def fp32() -> dict[str, dict[str, Any]]:
    return measured(1)


@pytest.fixture(scope="module")
def accumulated_bf16() -> dict[str, dict[str, Any]]:
    return measured(2, bf16={"enabled": True})


def test_every_shipped_configuration_is_here(fp32: dict[str, dict[str, Any]]) -> None:
    assert sorted(fp32) == sorted(shipped()) == sorted(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_bytes_that_ranks_send(
    name: str, fp32: dict[str, dict[str, Any]], accumulated_bf16: dict[str, dict[str, Any]]
) -> None:
    for row in (fp32[name], accumulated_bf16[name]):
        tolerance = 0.01 if row is accumulated_bf16[name] and row["stage"] == 3 else 0.005
        counted = {kind: size for kind, size in row["counted"].items() if kind in SENT}
        assert sent(row["traffic"], 2) == pytest.approx(sent(counted, 2), rel=tolerance), row
        for kind, size in row["traffic"].items():
            assert counted[kind] == pytest.approx(size, rel=0.01, abs=100), (kind, row)


@pytest.mark.parametrize("name", CONFIGS)
def test_bytes_that_a_rank_allocates(
    name: str, fp32: dict[str, dict[str, Any]], accumulated_bf16: dict[str, dict[str, Any]]
) -> None:
    for row in (fp32[name], accumulated_bf16[name]):
        assert row["predicted"] == pytest.approx(row["allocated"], rel=0.1), row


def test_one_rank_gathers_and_sends_nothing() -> None:
    found = measured(1, ranks=1, names=("zero2", "zero3"))
    assert len(found) == 2
    for name, row in found.items():
        assert row["traffic"] == {}
        assert row["predicted"] == pytest.approx(row["allocated"], rel=0.1), (name, row)
