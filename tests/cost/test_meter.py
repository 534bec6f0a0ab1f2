"""The meter counts what happened, and whatever breaks around it never reaches training."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from decimal import Decimal
from pathlib import Path

import pytest

from ssmke.cost import CostConfig, CostMeter
from ssmke.cost.ledger.reader import parse, read_run
from ssmke.cost.ledger.usage import total
from ssmke.cost.prices.catalogue import Catalogue
from ssmke.cost.probes.probe import Sample
from ssmke.cost.probes.replay import FakeProbe
from ssmke.errors import ConfigError
from tests.cost.simulated import GPU, MACHINE, SECOND, Clock, Run


def test_live_totals_are_the_report_s_totals(tmp_path: Path) -> None:
    readings = [{"GPU-0": Sample(mj=2_000_000 * i, util=90.0, mem_mib=100)} for i in range(100)]
    run = Run(tmp_path)
    run.attempt("a", [("setup", 10), ("train", 100)], readings=readings, close=None)
    run.clock.ns += 3600 * SECOND  # the first attempt was killed; the machine stood still
    meter = run.attempt("b", [("train", 70), (None, 20)], readings=readings)
    live, used = meter.totals(), total(read_run(tmp_path))
    assert live.device_hours == used.device_hours
    assert live.usd == pytest.approx(float(used.usd or 0))
    assert live.energy_kwh == used.energy_kwh
    assert live.attempts == 2
    assert live.phase_hours == {name: ns / 3600 / SECOND for name, ns in sorted(used.phases.items())}
    # Killed after 110 s: at most one period is paid on top, and the hour in between is not.
    assert 200 * SECOND <= used.node_ns <= 205 * SECOND


def test_nested_phases_count_for_the_innermost(tmp_path: Path) -> None:
    clock = Clock()
    meter = CostMeter(
        tmp_path, lineage="l", attempt="a", config=CostConfig(price="1"), probe=FakeProbe([GPU]),
        machine=MACHINE, clock=clock, wall=clock.wall, heartbeat=False,
    )  # fmt: skip
    meter.start()
    with meter.phase("train"):
        clock.ns += 3 * SECOND
        with meter.phase("checkpoint"):
            clock.ns += 2 * SECOND
        with contextlib.suppress(KeyError), meter.phase("evaluation"):
            clock.ns += 4 * SECOND
            raise KeyError
        clock.ns += SECOND
    clock.ns += 5 * SECOND
    meter.close()
    hours = {name: h * 3600 for name, h in meter.totals().phase_hours.items() if h}
    assert hours == pytest.approx({"train": 4, "checkpoint": 2, "evaluation": 4, "idle": 5})


def test_a_probe_that_fails_is_said_once_and_loses_only_its_readings(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    readings: list[dict[str, Sample] | Exception] = [{"GPU-0": Sample(mj=0)}, RuntimeError("GPU is lost")]
    Run(tmp_path).attempt("a", [("train", 60)], readings=readings)
    assert [r.getMessage() for r in caplog.records] == [
        "cost: meter._sample: RuntimeError: GPU is lost; training goes on"
    ]
    used = total(read_run(tmp_path))
    assert used.device_ns == 60 * SECOND
    assert used.energy_mj is None


def test_a_run_folder_that_cannot_be_written_does_not_stop_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cost").write_text("a file where the folder should be")
    run = Run(tmp_path)
    meter = run.attempt("a", [("train", 3600)])
    assert meter.totals().usd == pytest.approx(0.69)
    assert len(caplog.records) == 1
    assert "ledger" in caplog.text


def test_a_disk_that_comes_back_gets_all_that_was_missed(tmp_path: Path) -> None:
    blocked = tmp_path / "cost"
    blocked.write_text("in the way")
    run = Run(tmp_path)
    meter = run.attempt("a", [("train", 60)], close=None)
    blocked.unlink()
    run.clock.ns += 10 * SECOND
    meter.close()
    [segment] = read_run(tmp_path)
    assert segment.reason == "finished"
    assert segment.end_ns - segment.begin_ns == 70 * SECOND
    assert segment.records > 12


def test_a_broken_price_list_makes_dollars_unknown_and_counts_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Catalogue):
        def find(self, **_: object) -> list:  # type: ignore[type-arg, override]
            raise OSError("stale file handle")

    clock = Clock()
    meter = CostMeter(
        tmp_path, lineage="l", attempt="a", probe=FakeProbe([GPU]), catalogue=Broken([]), machine=MACHINE,
        clock=clock, wall=clock.wall, heartbeat=False,
    )  # fmt: skip
    meter.start()
    clock.ns += 3600 * SECOND
    totals = meter.totals()
    assert totals.usd is None
    assert totals.device_hours == 1
    assert "unknown" in totals.price
    assert "stale file handle" in caplog.text


def test_a_fact_that_json_cannot_hold_costs_only_itself(tmp_path: Path) -> None:
    run = Run(tmp_path)
    meter = run.attempt("a", [("train", 10)], close=None)
    meter.note(recall=float("nan"))
    meter.note(parameters=117_200_000)
    meter.close()
    [segment] = read_run(tmp_path)
    assert segment.facts == {"parameters": 117_200_000}
    assert segment.reason == "finished"


def test_other_local_ranks_write_nothing(tmp_path: Path) -> None:
    meter = CostMeter(tmp_path, lineage="l", attempt="a", local_rank=1)
    meter.start()
    with meter.phase("train"):
        meter.progress(1, 2)
    meter.note(x=1)
    meter.close()
    assert meter.totals().price == "not measured on this rank"
    assert list(tmp_path.iterdir()) == []


def test_other_lineages_in_the_folder_are_not_ours(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.attempt("a", [("train", 3600)], lineage="someone else's, copied")
    assert run.attempt("b", [("train", 1800)]).totals().device_hours == 0.5


def test_totals_stand_for_all_nodes(tmp_path: Path) -> None:
    clock = Clock()
    meter = CostMeter(
        tmp_path, lineage="l", attempt="a", nodes=4, config=CostConfig(price="10"),
        probe=FakeProbe([GPU, GPU]), machine=MACHINE, clock=clock, wall=clock.wall, heartbeat=False,
    )  # fmt: skip
    meter.start()
    clock.ns += 3600 * SECOND
    totals = meter.totals()
    assert (totals.device_hours, totals.node_hours, totals.usd, totals.usd_per_hour) == (8, 4, 40, 40)


def test_a_fork_of_the_process_does_not_write(tmp_path: Path) -> None:
    meter = CostMeter(tmp_path, lineage="l", attempt="a", visible="", config=CostConfig(heartbeat_seconds=60))
    meter.start()
    child = os.fork()
    if child == 0:
        with meter.phase("data_wait"):
            meter.note(worker=True)
        meter.close("failed")
        os._exit(0)
    os.waitpid(child, 0)
    meter.close()
    [path] = tmp_path.glob("cost/a/*")
    assert [r["reason"] for r in parse(path.read_bytes()) if r["t"] == "end"] == ["finished"]


def test_the_heartbeat_beats_and_the_real_node_is_described(tmp_path: Path) -> None:
    before = threading.active_count()
    meter = CostMeter(
        tmp_path, lineage="l", attempt="a", visible="", config=CostConfig(price="auto", heartbeat_seconds=0.1)
    )
    meter.start()
    with meter.phase("train"):
        time.sleep(0.55)
    meter.close("preempted")
    assert threading.active_count() == before
    [segment] = read_run(tmp_path)
    assert segment.reason == "preempted"
    assert segment.records >= 6
    assert segment.devices[0][0].startswith("cpu:")
    assert segment.phases["train"] >= 0.5 * SECOND
    assert segment.price is not None
    assert segment.price["guessed"] is True


def test_a_disk_that_hangs_does_not_hold_up_phases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meter = CostMeter(
        tmp_path, lineage="l", attempt="a", visible="", config=CostConfig(heartbeat_seconds=0.1)
    )
    meter.start()
    released = threading.Event()
    monkeypatch.setattr(
        "ssmke.cost.ledger.writer.os.write", lambda file, data: released.wait(30) and len(data)
    )
    time.sleep(0.3)
    began = time.perf_counter()
    for step in range(1000):
        with meter.phase("train"):
            meter.progress(step, step)
        meter.totals()
    assert time.perf_counter() - began < 1.0
    released.set()
    meter.close()


def test_accounting_costs_microseconds_per_step(tmp_path: Path) -> None:
    meter = CostMeter(tmp_path, lineage="l", attempt="a", visible="")
    meter.start()
    began = time.perf_counter()
    for step in range(2000):
        with meter.phase("data_wait"):
            pass
        with meter.phase("train"):
            meter.progress(step, step)
    each = (time.perf_counter() - began) / 2000
    meter.close()
    assert each < 0.5e-3  # of a step of 100 ms that is 0.5 %; measured 10 us alone on a core


def test_what_cannot_work_is_refused_before_the_run() -> None:
    with pytest.raises(ConfigError, match=r"--cost\.heartbeat_seconds"):
        CostConfig(heartbeat_seconds=0)
    with pytest.raises(ConfigError, match=r"--cost\.price.*aws/p5\.48xlarge"):
        CostConfig(price="aws/p5.48xlarg")
    with pytest.raises(ValueError, match="attempt"):
        CostMeter(Path(), lineage="l", attempt="../elsewhere")


def test_the_guess_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        meter = Run(tmp_path, price="auto").attempt("a", [("train", 1)])
    assert "price guessed" in caplog.text
    assert "1 x NVIDIA H100 80GB HBM3" in caplog.text
    assert meter.quote.guessed
    assert meter.quote.usd_per_hour == Decimal("6.88")
