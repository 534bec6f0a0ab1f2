"""The step's model against its own formula, worked out by hand."""

from __future__ import annotations

import dataclasses

import pytest

from ssmke.cost.estimates.estimate import Interval
from ssmke.planning.communication import communication, sent
from ssmke.planning.memory import Zero
from ssmke.planning.steptime import Hardware, step_time
from tests.planning.test_choose import BASE, zeros

GPU = Hardware(peak=1e15, memory=3e12, ring=400e9)
MFU = Interval(0.2, 0.4, 0.5)


def seconds(zero: Zero, ranks: int = 64, hardware: Hardware = GPU):  # type: ignore[no-untyped-def]
    traffic = communication(BASE, zero, micro_batch=256, accumulation=1, ranks=ranks)
    return traffic, step_time(BASE, zero, traffic, hardware, flops=66e9, pairs=256, mfu=MFU)


def test_compute_and_optimiser_are_what_the_formula_says() -> None:
    _, time = seconds(zeros(512, 2)["zero1"], ranks=2)
    assert time.compute.point == pytest.approx(66e9 * 256 / 1e15 / 0.4)
    assert time.optimiser == pytest.approx(30 * BASE.parameters.trained / 2 / (3e12 * 0.8))
    assert time.total.low < time.total.point < time.total.high


def test_a_ring_all_reduce_sends_twice_what_a_reduce_scatter_sends() -> None:
    assert sent({"all-reduce": 100}, 4) == 150
    assert sent({"reduce-scatter": 100}, 4) == sent({"all-gather": 100}, 4) == 75
    assert sent({"all-reduce": 100}, 1) == 0


def test_stages_send_what_deepspeed_makes_them_send() -> None:
    configs, weights = zeros(64 * 64, 64), 2 * BASE.parameters.trained
    found = {
        name: communication(BASE, zero, micro_batch=64, accumulation=1, ranks=64)
        for name, zero in configs.items()
    }
    share = 63 / 64
    assert sent(found["zero2"].weights_and_gradients, 64) == pytest.approx(3 * weights * share)
    assert sent(found["zero3"].weights_and_gradients, 64) == pytest.approx(2 * weights * share)
    # Both modalities at both levels, forward and backward, fp32; two gathers of targets.
    rows = 64 * 64
    both = rows * 4 * 2 * (768 + 3072)
    assert found["zero2"].losses["reduce-scatter"] == both
    assert found["zero2"].losses["all-gather"] == both + rows * (2 * 8 + 2 * (4 * 768 + 8))


def test_more_accumulation_sends_more_where_gradients_are_shared_out() -> None:
    configs = zeros(4096, 2)
    for name, times in (("zero1", 1), ("zero2", 4), ("zero3", 4)):
        found = communication(BASE, configs[name], micro_batch=8, accumulation=4, ranks=2)
        kind = "reduce-scatter" if name == "zero3" else "all-reduce"
        assert found.weights_and_gradients[kind] == times * 2 * BASE.parameters.trained


def test_overlap_hides_no_more_than_the_backward_pass() -> None:
    zero = zeros(64 * 256, 64)["zero2"]
    slow = dataclasses.replace(GPU, ring=1e9)
    traffic, time = seconds(zero, hardware=slow)
    rate = 1 / (1e9 * 0.75)
    hidden = min(2 * 2 * BASE.parameters.trained * 63 / 64 * rate, 2 / 3 * time.compute.point)
    assert time.exposed.point == pytest.approx(traffic.sent * rate - hidden)
    assert time.binds == "network"
    _, without = seconds(dataclasses.replace(zero, overlap=False), hardware=slow)
    assert without.exposed.point == pytest.approx(traffic.sent * rate)


def test_offload_costs_pcie_and_the_hosts_memory() -> None:
    configs = zeros(512, 2)
    _, time = seconds(configs["zero2_offload"], ranks=2)
    share = BASE.parameters.trained / 2
    assert time.offload == pytest.approx(4 * share / 31.5e9 + 30 * share / 20e9)
    assert time.optimiser == 0
