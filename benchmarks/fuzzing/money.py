"""Targets: ledgers with the reports made of them, price files, and other projects' price lists."""

from __future__ import annotations

import contextlib
import datetime as dt
import zlib
from collections.abc import Sequence
from pathlib import Path

from benchmarks.fuzzing.guard import Target
from ssmke.cost import audit
from ssmke.cost.config import CostConfig
from ssmke.cost.ledger.collect import import_ledgers
from ssmke.cost.ledger.reader import closing_record, read_file, read_series
from ssmke.cost.machine import Machine
from ssmke.cost.meter import CostMeter
from ssmke.cost.prices.catalogue import shipped
from ssmke.cost.prices.file import load_prices, read_prices
from ssmke.cost.prices.imports import import_prices, write_merged
from ssmke.cost.prices.rows import COLUMNS
from ssmke.cost.probes.probe import Device, Sample
from ssmke.cost.probes.replay import FakeProbe
from ssmke.cost.render import FORMATS, render
from ssmke.cost.report import report
from ssmke.errors import SSMKEError

_LEDGER = Path("runs") / "base" / "cost" / "a"
_SECOND = 1_000_000_000
_DAY = dt.date(2026, 9, 8)


def _ledger(folder: Path, *, closed: bool) -> bytes:
    now = [1_000 * _SECOND]
    meter = CostMeter(
        folder,
        lineage="lineage",
        attempt="a",
        node_rank=0,
        config=CostConfig(price="3.6"),
        probe=FakeProbe(
            [Device(id="GPU-0", name="NVIDIA H100 80GB HBM3", memory_mib=81559, energy="counter")],
            [{"GPU-0": Sample(mj=1000 * i, mw=300_000, util=90.0, mem_mib=1000)} for i in range(12)],
        ),
        machine=Machine(
            host="h" * 16, boot="b" * 16, cpu_vendor="amd", cpu_name="EPYC", cpus=2, memory_bytes=1 << 34
        ),
        clock=lambda: now[0],
        wall=lambda: now[0] + 1_700_000_000 * _SECOND,
        heartbeat=False,
    )
    meter.start()
    for phase in ("setup", "train", "evaluation"):
        with meter.phase(phase):
            now[0] += 6 * _SECOND
            meter.beat()
        meter.progress(4, 96)
    if closed:
        meter.close("finished")
    return next((folder / "cost" / "a").glob("*.jsonl")).read_bytes()


def _ledgers(folder: Path) -> Sequence[tuple[str, bytes]]:
    return [
        ("ledger", _ledger(folder / "one", closed=True)),
        ("ledger", _ledger(folder / "two", closed=False)),
    ]


def _read_ledger(variant: str, content: bytes, folder: Path) -> None:
    path = folder / _LEDGER / "node0000.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    read_file(path)
    read_series(folder / "runs" / "base")
    closing_record(path)
    found = report(folder / "runs")
    audit.of_report(found)
    for run in found.runs:
        audit.of_run(run)
    render(found, FORMATS[zlib.crc32(content) % len(FORMATS)])  # one of them: together they take 30 ms
    with contextlib.suppress(SSMKEError):
        import_ledgers([folder / "runs"], folder / "taken")


_PRICES = ("prices.toml", "prices.csv")


def _price_files(folder: Path) -> Sequence[tuple[str, bytes]]:
    docs = (Path(__file__).resolve().parents[2] / "docs" / "prices.md").read_text(encoding="utf-8")
    example = docs.partition("```toml\n")[2].partition("```")[0]
    rows = (Path(audit.__file__).parent / "data" / "prices.csv").read_text(encoding="utf-8").splitlines(True)
    return [
        ("prices.toml", example.encode()),
        ("prices.toml", example.removeprefix("# ").replace("imported_prices.csv", "prices.csv").encode()),
        ("prices.csv", "".join(rows[:6]).encode()),
    ]


def _prepare_prices(folder: Path) -> None:
    (folder / "prices.csv").write_text(",".join(COLUMNS) + "\n")


def _read_price_file(variant: str, content: bytes, folder: Path) -> None:
    path = folder / variant
    path.write_bytes(content)
    with contextlib.suppress(SSMKEError):
        load_prices(path, today=_DAY)
    catalogue, problems = read_prices(path, today=_DAY)
    "; ".join(problems)
    for own in catalogue.own:
        assert own.usd_per_hour(_DAY) is not None
        assert own.interval(_DAY)
        assert own.assumptions(_DAY)
        assert own.usd_per_kwh >= 0
    for line in catalogue.lines:
        closed = line.closed(_DAY)
        assert closed.label
        assert closed.usd_per_unit >= 0
        assert closed.usd is None or closed.usd >= 0
    if not problems and catalogue.prices:
        write_merged(folder / "merged.csv", catalogue.prices)
        read_prices(folder / "merged.csv")
        (folder / "merged.csv").unlink()


_IMPORTS = ("skypilot", "gpuhunt")


def _catalogues(folder: Path) -> Sequence[tuple[str, bytes]]:
    skypilot = (
        "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,AvailabilityZone\n"
        "p5.48xlarge,H100,8.0,192.0,2048.0,\"{'Gpus': [{'MemoryInfo': {'SizeInMiB': 81920}}]}\",55.04,20.1,us-east-1,"
        "us-east-1a\n"
        "g6.xlarge,L4,1.0,4.0,16.0,\"{'SizeInMiB': 22888}\",0.8048,0.3,us-east-1,us-east-1b\n"
        "m7i.large,,,2,8,,0.1,,us-east-1,\n"
    )
    gpuhunt = (
        "instance_name,location,price,cpu,memory,gpu_count,gpu_name,gpu_memory,spot\n"
        "g2-standard-4,us-central1,0.71,4,16,1,L4,24,False\ng2-standard-4,us-central1,0.28,4,16,1,L4,24,True\n"
    )
    return [("skypilot", skypilot.encode()), ("gpuhunt", gpuhunt.encode())]


def _import(variant: str, content: bytes, folder: Path) -> None:
    path = folder / "list.csv"
    path.write_bytes(content)
    found = import_prices(
        path, variant, provider="aws" if variant == "skypilot" else "gcp", as_of=_DAY, known=shipped()
    )
    if found.prices:
        write_merged(folder / "merged.csv", found.prices)
        read_prices(folder / "merged.csv")
        (folder / "merged.csv").unlink()


TARGETS = (
    Target("ledger", ("ledger",), lambda f: None, _ledgers, _read_ledger, ("json.decoder",)),
    Target("prices", _PRICES, _prepare_prices, _price_files, _read_price_file, ("tomllib._parser", "csv")),
    Target("price-import", _IMPORTS, lambda f: None, _catalogues, _import, ("csv",)),
)
