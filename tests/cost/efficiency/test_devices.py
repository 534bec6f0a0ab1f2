"""Peaks are found for the device that is there, never for one that is like it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from ssmke.cost.efficiency.devices import DEVICES, DTYPES, find, mfu, named, read, table
from ssmke.cost.prices.catalogue import shipped
from ssmke.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "H100-SXM"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA H100 NVL", "H100-NVL"),
        ("NVIDIA H200", "H200-SXM"),
        ("NVIDIA A100-SXM4-40GB", "A100-SXM4-40GB"),
        ("A100-SXM-80GB", "A100-SXM4-80GB"),
        ("Tesla V100-SXM3-32GB", None),
        ("NVIDIA A100 80GB PCIe", "A100-PCIe-80GB"),
        ("Tesla V100-SXM2-16GB", "V100-SXM2-16GB"),
        ("Tesla T4", "T4"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX6000-Ada"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA H100 80GB HBM3e Super", None),
        ("AMD EPYC x 2", None),
        ("", None),
    ],
)
def test_an_nvml_name_is_known_whole_or_not_at_all(name: str, key: str | None) -> None:
    found = find(name)
    assert (None if found is None else found.key) == key


def test_no_two_devices_claim_a_name_and_all_have_a_source() -> None:
    assert len({spec.key for spec in table()}) == len(table())
    assert all(spec.source and spec.memory_gb for spec in table())
    for spec in table():
        assert named(spec.key)[0] is spec


def test_tensor_peaks_are_dense() -> None:
    """Data sheets print sparse peaks, twice as high, in one column or the other: then the ratio would not be 2."""
    for spec in table():
        if spec.bf16 is not None and spec.tf32 is not None:
            assert spec.bf16 == pytest.approx(2 * spec.tf32, rel=0.03), spec.key
        assert spec.bf16 is None or spec.bf16 == spec.fp16


def test_every_gpu_of_the_price_list_can_be_estimated() -> None:
    known = {spec.accelerator for spec in table()}
    sold = {
        price.accelerator
        for price in shipped().prices
        if price.gpus and not price.accelerator.startswith("TPU")
    }
    assert sold <= known


def test_a_bare_accelerator_is_the_first_of_its_kind_and_says_so() -> None:
    spec, remark = named("h100")
    assert spec.key == "H100-SXM"
    assert "H100-PCIe" in remark
    assert named("rtx 4090")[1] == ""
    with pytest.raises(ConfigError, match="H100-SXM"):
        named("H900")


def test_utilisation_is_work_over_peak_or_unknown_with_a_reason() -> None:
    found = mfu(98.9e12, "NVIDIA H100 80GB HBM3", "bf16")
    assert found.mfu == pytest.approx(0.1)
    assert "datasheet" in found.reason
    for rate, name, dtype, why in (
        (1e12, "AMD EPYC x 2", "fp32", "no peak is known"),
        (1e12, "Tesla V100-SXM2-16GB", "bf16", "no bf16 peak"),
        (1e12, "Tesla T4", "int8", "none of"),
        (2e15, "NVIDIA H100 80GB HBM3", "bf16", "above"),
        (float("nan"), "NVIDIA H100 80GB HBM3", "bf16", "no rate"),
    ):
        unknown = mfu(rate, name, dtype)
        assert unknown.mfu is None
        assert why in unknown.reason


def test_dtypes_are_those_of_the_peaks() -> None:
    for spec in table():
        assert [spec.peak(dtype) for dtype in DTYPES] == [spec.fp32, spec.tf32, spec.fp16, spec.bf16]


@pytest.mark.parametrize(
    ("column", "value"), [("bf16_tflops", "0"), ("tdp_w", "hot"), ("nvml", "H100 ("), ("source", "")]
)
def test_a_wrong_row_is_named(tmp_path: Path, column: str, value: str) -> None:
    with DEVICES.open(newline="") as file:
        rows = list(csv.DictReader(file))
    next(row for row in rows if row["key"] == "H100-SXM")[column] = value
    path = tmp_path / "devices.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(ConfigError, match=r"devices\.csv: device 'H100-SXM'"):
        read(path)
