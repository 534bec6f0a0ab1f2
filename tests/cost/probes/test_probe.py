"""Probes read what is there, say what is not, and never call unknown zero."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssmke.cost.ledger.reader import read_series
from ssmke.cost.machine import Machine, boottime_ns
from ssmke.cost.probes.probe import Averager, CpuProbe, Sample, open_probe
from ssmke.cost.probes.replay import ReplayProbe
from tests.cost.simulated import GPU, MACHINE, SECOND, Clock, Run


def rapl(root: Path, package: int, uj: int, limit: int = 1000) -> Path:
    folder = root / f"intel-rapl:{package}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "energy_uj").write_text(f"{uj}\n")
    (folder / "max_energy_range_uj").write_text(f"{limit}\n")
    return folder


def test_rapl_packages_are_summed_and_unwrapped(tmp_path: Path) -> None:
    rapl(tmp_path, 0, 900_000, 1_000_000)
    rapl(tmp_path, 1, 100_000, 1_000_000)
    (tmp_path / "intel-rapl:0:0").mkdir()  # a core domain: part of package 0, not to be added
    probe = CpuProbe(MACHINE, rapl_root=tmp_path)
    [device] = probe.open()
    assert device.energy == "counter"
    first = probe.sample()[device.id].mj
    rapl(tmp_path, 0, 50_000, 1_000_000)  # wrapped: 150 mJ further
    rapl(tmp_path, 1, 300_000, 1_000_000)
    second = probe.sample()[device.id].mj
    assert first is not None
    assert second is not None
    assert second - first == 150 + 200


def test_without_readable_rapl_cpu_energy_is_unknown_and_said(tmp_path: Path) -> None:
    folder = rapl(tmp_path, 0, 1)
    (folder / "energy_uj").write_text("not a number")
    probe = CpuProbe(MACHINE, rapl_root=tmp_path)
    [device] = probe.open()
    assert device.energy is None
    assert "energy_uj cannot be read" in probe.note
    sample = probe.sample()[device.id]
    assert sample.mj is None
    assert sample.mem_mib is not None
    assert sample.mem_mib > 0


def test_a_node_without_gpu_is_one_device_named_by_a_hash() -> None:
    machine = Machine.this()
    _, devices = open_probe(machine, (), "")
    assert [d.id for d in devices] == [machine.cpu_device]
    assert devices[0].kind == "cpu"
    assert machine.cpus is not None
    assert 0 < boottime_ns() <= boottime_ns()


def test_gpus_without_driver_library_stay_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml

    def absent() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", absent)
    probe, devices = open_probe(MACHINE, ["1234-abcd", "GPU-5678"], None)
    assert [d.id for d in devices] == ["GPU-1234-abcd", "GPU-5678"]
    assert "telemetry is missing" in probe.note
    assert probe.sample() == {}
    assert {d.energy for d in devices} == {None}
    named, devices = open_probe(MACHINE, ["1234-abcd", "GPU-5678"], None, {"1234-abcd": "NVIDIA L4"})
    assert [(d.name, d.energy) for d in devices] == [("NVIDIA L4", "tdp"), ("GPU of unknown make", None)]
    assert named.sample() == {"GPU-1234-abcd": Sample(mw=72_000)}
    assert open_probe(MACHINE, (), None)[1][0].kind == "cpu"


def test_between_two_beats_power_and_utilisation_are_means_over_time() -> None:
    clock = Clock()
    averager = Averager(clock)
    averager.add({"g": Sample(mj=1, mw=0, util=0, mem_mib=10)})
    averager.take()
    for seconds, mw, util, mem in ((1, 100, 100, 50), (3, 300, 20, 40)):
        clock.ns += seconds * SECOND
        averager.add({"g": Sample(mj=mw, mw=mw, util=util, mem_mib=mem)})
    assert averager.take() == {"g": {"mj": 300, "mw": 250, "util": 40.0, "mem": 50}}
    assert averager.take() == {}


def test_a_recorded_run_replays_with_the_same_readings(tmp_path: Path) -> None:
    readings = [{"GPU-0": Sample(mj=7_000 * i, mw=1400)} for i in range(50)]
    Run(tmp_path / "first").attempt("a", [("train", 60)], readings=readings)
    [recorded] = read_series(tmp_path / "first")
    probe = ReplayProbe(recorded)
    assert [d.id for d in probe.open()] == [GPU.id]
    replayed = []
    while sample := probe.sample():
        replayed.append((sample["GPU-0"].mj, sample["GPU-0"].mw))
    assert replayed == [(r["mj"], r["mw"]) for beat in recorded.beats for r in beat.d.values()]
    assert len(replayed) > 10
    assert replayed[:3] == [(0, 1400), (7_000, 1400), (14_000, 1400)]
