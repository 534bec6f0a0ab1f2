"""What a node costs: as the user says, else a guess that is never silent, else unknown."""

from __future__ import annotations

import dataclasses
import json
from decimal import Decimal

import pytest

from ssmke.cost.machine import Machine
from ssmke.cost.prices.catalogue import Catalogue, PriceError, shipped
from ssmke.cost.prices.quote import Quote, accelerator, check_spec, quote
from ssmke.cost.probes.probe import Device
from tests.cost.simulated import GPU, MACHINE


def ask(spec: str, *devices: Device, machine: Machine | None = MACHINE) -> Quote:
    return quote(spec, shipped(), devices=devices, machine=machine)


def gpus(name: str, number: int, mib: int | None) -> list[Device]:
    return [Device(id=f"GPU-{i}", name=name, memory_mib=mib) for i in range(number)]


@pytest.mark.parametrize(
    ("spec", "usd"),
    [
        ("0.69", "0.69"),
        (" 12 ", "12"),
        ("0", "0"),
        ("aws/p5.48xlarge", "55.04"),
        ("runpod/1x RTX4090 on-demand", "0.69"),
        ("runpod/1x rtx4090 spot", "0.35"),
        ("gcp/a2-highgpu-8g/us-central1/spot", "15.4242"),
        ("azure/Standard_ND96isr_H100_v5/westeurope", "127.816"),
        ("aws/c7a.large", "0.10264"),
    ],
)
def test_what_the_user_says_is_taken_and_is_no_guess(spec: str, usd: str) -> None:
    answer = ask(spec)
    assert answer.usd_per_hour == Decimal(usd)
    assert not answer.guessed


@pytest.mark.parametrize(
    "spec", ["", "cheap", "aws", "aws/", "/p5", "a/b/c/d/e", "-1", "nan", "inf", "1e999999", "aws/nothing"]
)
def test_a_price_that_names_nothing_is_refused_with_the_flag(spec: str) -> None:
    with pytest.raises(PriceError, match=r"--cost\.price"):
        check_spec(spec, shipped())


@pytest.mark.parametrize("spec", ["cheap", "-1", "own", "own/nothing", "aws/nothing"])
@pytest.mark.parametrize("flag", ["--price", "--reprice"])
def test_errors_and_reasons_name_the_flag_that_was_used(spec: str, flag: str) -> None:
    with pytest.raises(PriceError, match=rf"^{flag}\b") as refused:
        check_spec(spec, shipped(), flag=flag)
    assert "--cost.price " not in str(refused.value)
    for good in ("2", "none", "aws/p5.48xlarge"):
        found = quote(good, shipped(), devices=(), machine=None, flag=flag)
        assert flag in f"{found.label} {found.why}"
        assert "--cost.price" not in f"{found.label} {found.why} {found.assumptions}"
    strange = quote("auto", shipped(), devices=gpus("Quantum", 1, 1), machine=None, flag=flag)
    assert f"set {flag}" in strange.label


def test_none_and_unknown_hardware_are_unknown_not_free() -> None:
    assert ask("none").usd_per_hour is None
    strange = ask("auto", *gpus("NVIDIA Quantum 9000", 2, 1000))
    assert strange.usd_per_hour is None
    assert "Quantum 9000" in strange.why
    assert strange.label.startswith("unknown")
    assert ask("auto", machine=None).usd_per_hour is None
    assert ask("auto", machine=dataclasses.replace(MACHINE, cpus=4096)).usd_per_hour is None


@pytest.mark.parametrize(
    ("name", "number", "mib", "usd", "instance"),
    [
        ("NVIDIA H100 80GB HBM3", 8, 81559, "55.04", "p5.48xlarge"),
        ("NVIDIA A100-SXM4-40GB", 8, 40960, "21.957642", "p4d.24xlarge"),
        ("NVIDIA A100-SXM4-80GB", 8, 81920, "27.44705", "p4de.24xlarge"),
        ("NVIDIA A100 80GB PCIe", 1, 81920, "3.673", "Standard_NC24ads_A100_v4"),
        ("Tesla V100-SXM2-32GB", 8, 32768, "22.032", "Standard_ND40rs_v2"),
        ("Tesla T4", 1, 15360, "0.526", "Standard_NC4as_T4_v3"),
        ("NVIDIA L4", 1, 23034, "0.7068", "g2-standard-4"),
        ("NVIDIA GeForce RTX 4090", 1, 24564, "0.69", "1x RTX4090 on-demand"),
        ("NVIDIA GeForce RTX 4090", 2, 24564, "1.38", "1x RTX4090 on-demand"),
    ],
)
def test_the_guess_fits_name_memory_form_and_number(
    name: str, number: int, mib: int, usd: str, instance: str
) -> None:
    answer = ask("auto", *gpus(name, number, mib))
    assert answer.price is not None
    if instance != "Standard_NC4as_T4_v3":  # two providers ask the same for one T4
        assert answer.price.instance == instance
    assert answer.usd_per_hour == Decimal(usd)
    assert answer.guessed
    assert "guessed" in answer.label
    assert f"{number} x {name}" in answer.why


def test_a_guess_says_that_the_form_is_another_one() -> None:
    assert "none is known for PCIe" in ask("auto", *gpus("NVIDIA H100 PCIe", 1, 81559)).why
    assert "another form" not in ask("auto", *gpus("NVIDIA H100 80GB HBM3", 1, 81559)).why


def test_a_guess_shows_between_which_prices_lies_what_else_would_fit() -> None:
    two = ask("auto", *gpus("NVIDIA GeForce RTX 4090", 2, 24564))
    # 2 x vast at 0.40, 2 x runpod at 0.69; a machine of eight does not come in parts.
    assert (two.low, two.usd_per_hour, two.high) == (Decimal("0.8"), Decimal("1.38"), Decimal("1.38"))
    assert "$0.8 to $1.38 would fit" in two.label
    eight = ask("auto", *gpus("NVIDIA H100 80GB HBM3", 8, 81559))
    assert (eight.low, eight.high) == (Decimal("14.4"), Decimal("127.816"))
    cpu = ask("auto", Device(id="cpu:h", name="CPU", kind="cpu"))
    assert cpu.low is not None
    assert cpu.high is not None
    assert cpu.low < (cpu.usd_per_hour or 0) <= cpu.high
    chosen = ask("aws/p5.48xlarge")
    assert (chosen.low, chosen.high) == (None, None)


@pytest.mark.parametrize("name", ["NVIDIA A100 80GB PCIe", "Tesla T4", "NVIDIA H100 80GB HBM3", "NVIDIA L4"])
@pytest.mark.parametrize("number", [1, 2, 3, 4, 8])
def test_the_guess_lies_within_its_interval_and_holds_all_gpus(name: str, number: int) -> None:
    answer = ask("auto", *gpus(name, number, None))
    assert answer.price is not None
    assert answer.price.gpus * answer.quantity >= number
    assert (answer.low or 0) <= (answer.usd_per_hour or 0) <= (answer.high or 0)


def test_names_that_only_look_alike_are_not_mixed_up() -> None:
    assert accelerator("NVIDIA L40S") == "L40S"
    assert accelerator("NVIDIA L40") == "L40"
    assert accelerator("NVIDIA A100-SXM4-40GB MIG 1g.5gb") is None
    assert accelerator("NVIDIA GeForce RTX 4090 Laptop GPU") is None
    assert accelerator("NVIDIA H100 NVL") == "H100-NVL"
    assert accelerator("NVIDIA GH200 480GB") == "GH200"


def test_a_whole_instance_is_charged_even_if_fewer_gpus_are_used() -> None:
    assert ask("aws/p5.48xlarge", *gpus(GPU.name, 2, None)).usd_per_hour == Decimal("55.04")
    two = ask("runpod/1x RTX4090 on-demand", *gpus("NVIDIA GeForce RTX 4090", 2, None))
    assert (two.usd_per_hour, two.quantity) == (Decimal("1.38"), 2)
    assert "2 x runpod" in two.label


@pytest.mark.parametrize(
    ("vendor", "cpus", "gib", "instance"),
    [
        ("amd", 2, 4, "c7a.large"),
        ("amd", 2, 8, "m7a.large"),
        ("intel", 16, 32, "c7i.4xlarge"),
        ("arm", 4, 16, "m7g.xlarge"),
        ("amd", 3, 16, "m7a.xlarge"),
        ("intel", 2, 500, "r7i.large"),
    ],
)
def test_a_cpu_node_is_matched_by_vendor_cpus_and_memory(
    vendor: str, cpus: int, gib: int, instance: str
) -> None:
    machine = Machine(host="h", boot="b", cpu_vendor=vendor, cpus=cpus, memory_bytes=gib << 30)
    answer = ask("auto", Device(id="cpu:h", name="CPU", kind="cpu"), machine=machine)
    assert answer.price is not None
    assert answer.price.instance == instance
    assert f"{cpus} {vendor} CPUs, {gib}.0 GiB" in answer.why


def test_the_snapshot_says_all_that_a_report_needs() -> None:
    kept = json.loads(json.dumps(ask("aws/p5.48xlarge").snapshot()))
    assert kept["usd_per_hour"] == "55.04"
    assert kept["as_of"].startswith("2026-07-20")
    assert kept["source"].startswith("https://github.com/aws/")
    assert kept["confidence"] == "A"
    assert kept["usd_per_kwh"] is None  # the hourly price includes it
    assert kept["assumptions"]["basis"] == "1 whole instance, on_demand, energy included"
    guessed = json.loads(json.dumps(ask("auto", *gpus("Tesla T4", 1, 15360)).snapshot()))
    assert guessed["guessed"]
    assert "on-demand entries that fit" in guessed["assumptions"]["guess"]
    assert Decimal(guessed["usd_per_hour_low"]) <= Decimal(guessed["usd_per_hour_high"])


def test_one_of_a_thing_is_not_several() -> None:
    machine = Machine(host="h", boot="b", cpu_vendor="amd", cpus=1, memory_bytes=4 << 30)
    answer = ask("auto", Device(id="cpu:h", name="CPU", kind="cpu"), machine=machine)
    assert "the node has 1 amd CPU, 4.0 GiB" in answer.why
    alone = ask("auto", *gpus("NVIDIA L4", 1, 23034))
    others = [p for p in shipped().find(accelerator="L4") if p.instance == "g2-standard-4"][:1]
    only = quote("auto", Catalogue(others), devices=gpus("NVIDIA L4", 1, 23034), machine=None)
    assert "the only on-demand entry that fits" in only.assumptions["guess"]
    assert alone.assumptions["guess"]
