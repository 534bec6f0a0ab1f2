"""The choice fits, is the largest that does, and never shrinks when memory grows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmke.errors import ConfigError
from ssmke.planning import choose
from ssmke.planning.activations import Activations, Line, Peak
from ssmke.planning.memory import GIB, Zero, memory
from ssmke.planning.steptime import ring_rate
from ssmke.planning.student import Losses, Model, Parameters

SHIPPED = Path(__file__).parents[2] / "ds_configs"
BASE = Model(
    dtype="bf16",
    cuda=True,
    parameters=Parameters(((23_000_000, 700_000), (60_000_000, 33_000_000), (1, 1)), ()),
    buffers=1000,
    activations=Activations(
        Line(5e6, 36.7e6),
        Line(5e6, 37e6),
        Peak((Line(2e7, 36.8e6),)),
        Peak((Line(2e8, 36.8e6), Line(2.4e8, 30e6))),
        outputs=36_000,
    ),
    losses=Losses((768, 3072), 768, 65_536, 1 << 25),
    target=768,
    input_bytes=153_842,
)


def zeros(batch: int, ranks: int) -> dict[str, Zero]:
    return choose.configs(SHIPPED, batch_size=batch, ranks=ranks, cuda=True)


@settings(deadline=None)
@given(
    room=st.integers(1 * GIB, 100 * GIB),
    ranks=st.sampled_from([1, 2, 3, 8]),
    local=st.sampled_from([1, 7, 12, 64, 256, 4096]),
)
def test_the_choice_fits_and_the_next_larger_does_not(room: int, ranks: int, local: int) -> None:
    for name, zero in zeros(local * ranks, ranks).items():
        option, fits = choose.largest(name, BASE, zero, batch_size=local * ranks, ranks=ranks, room=room)
        assert option.micro_batch * option.accumulation == local
        assert fits == (option.memory.device_total <= room)
        larger = [n for n in choose.divisors(local) if n > option.micro_batch]
        for micro in larger:
            needed = memory(BASE, zero, micro_batch=micro, accumulation=local // micro, ranks=ranks)
            assert needed.device_total > room


@settings(deadline=None)
@given(room=st.integers(2 * GIB, 80 * GIB), more=st.integers(0, 20 * GIB))
def test_more_memory_never_gives_a_smaller_micro_batch(room: int, more: int) -> None:
    for name, zero in zeros(2048, 2).items():
        small, large = (
            choose.largest(name, BASE, zero, batch_size=2048, ranks=2, room=r)[0] for r in (room, room + more)
        )
        assert small.micro_batch <= large.micro_batch


def test_sharding_and_offload_take_from_the_gpu_what_they_say() -> None:
    shape = {"micro_batch": 8, "accumulation": 1, "ranks": 8}
    found = {name: memory(BASE, zero, **shape) for name, zero in zeros(64, 8).items()}
    trained = BASE.parameters.trained
    assert found["zero2"].device["weights"] == 2 * trained
    assert found["zero2"].device["moments"] == pytest.approx(trained, rel=1e-6)
    assert found["zero3"].device["weights"] == pytest.approx(trained / 4, rel=1e-6)
    assert "moments" not in found["zero2_offload"].device
    assert found["zero2_offload"].host["moments"] == pytest.approx(trained, rel=1e-6)
    assert found["zero3_offload"].host["weights"] == found["zero3"].device["weights"]
    assert found["zero2_offload"].device_total < found["zero2"].device_total


def test_a_large_batch_and_bank_fit_beside_the_model_in_24_gib() -> None:
    """Global batch 32,768 with a bank of 65,536 on 64 GPUs of 24 GiB: accounting, not measurement."""
    option, fits = choose.largest(
        "zero2", BASE, zeros(32_768, 64)["zero2"], batch_size=32_768, ranks=64, room=24 * GIB
    )
    assert fits
    assert option.micro_batch >= 256


def test_batch_keys_in_a_json_do_not_disturb_and_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no DeepSpeed JSON there"):
        choose.configs(tmp_path, batch_size=8, ranks=2, cuda=True)
    document = {"train_micro_batch_size_per_gpu": 999, "zero_optimization": {"stage": 2}}
    (tmp_path / "mine.json").write_text(json.dumps(document))
    assert choose.configs(tmp_path, batch_size=8, ranks=2, cuda=True)["mine"].bucket == 500_000_000
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ConfigError, match=r"broken\.json: not JSON"):
        choose.configs(tmp_path, batch_size=8, ranks=2, cuda=True)


def test_advice_names_what_takes_the_room() -> None:
    refused = [
        choose.largest(name, BASE, zero, batch_size=8, ranks=2, room=GIB)[0]
        for name, zero in zeros(8, 2).items()
    ]
    lines = "\n".join(choose.advice(refused, GIB, checkpointing=False, ranks=2))
    assert "nothing fits into 1 GiB" in lines
    assert "compute.checkpointing" in lines
    assert "more GPUs than 2" in lines


def test_a_ring_is_as_fast_as_its_slowest_link() -> None:
    assert ring_rate(8, "nvlink4", "ethernet25") == 450e9
    assert ring_rate(64, "nvlink4", "ndr400") == 400e9
    assert ring_rate(64, "pcie4", "hdr200") == 31.5e9
    assert ring_rate(512, "nvlink4", "ethernet25") == 3.125e9
