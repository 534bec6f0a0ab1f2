"""Other projects' catalogues are read row by row; each fault they are known for is refused with line and reason."""

from __future__ import annotations

import csv
import datetime as dt
import hashlib
from decimal import Decimal
from pathlib import Path

import pytest

from ssmke.cost.prices.catalogue import PriceError, shipped
from ssmke.cost.prices.file import load_prices
from ssmke.cost.prices.imports import Imported, import_prices, write_merged

SKYPILOT = (
    "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,"
    "Price,SpotPrice,Region,AvailabilityZone"
)
GPUHUNT = "instance_name,location,price,cpu,memory,gpu_count,gpu_name,gpu_memory,spot"
DAY = dt.date(2026, 7, 25)


def info(mib: int) -> str:
    return (
        f"\"{{'Gpus': [{{'Name': 'X', 'MemoryInfo': {{'SizeInMiB': {mib}}}}}], 'TotalGpuMemoryInMiB': 1}}\""
    )


def skypilot(folder: Path, *rows: str, provider: str = "gcp", as_of: dt.date | None = DAY) -> Imported:
    path = folder / "vms.csv"
    path.write_text("\n".join([SKYPILOT, *rows]) + "\n", encoding="utf-8")
    return import_prices(path, "skypilot", provider=provider, as_of=as_of, known=shipped())


def gpuhunt(folder: Path, *rows: str, provider: str = "gcp", as_of: dt.date | None = DAY) -> Imported:
    path = folder / "rows.csv"
    path.write_text("\n".join([GPUHUNT, *rows]) + "\n", encoding="utf-8")
    return import_prices(path, "gpuhunt", provider=provider, as_of=as_of, known=shipped())


def test_a_good_row_becomes_two_prices_with_their_source(tmp_path: Path) -> None:
    found = skypilot(
        tmp_path,
        f"a2-highgpu-2g,A100,2,24.0,170.0,{info(40960)},7.35,3.86,europe-west4,europe-west4-a",
        f"a2-highgpu-2g,A100,2,24.0,170.0,{info(40960)},7.35,3.90,europe-west4,europe-west4-b",
        "n2-standard-8,,,8.0,32.0,,0.39,0.09,europe-west4,europe-west4-a",
    )
    assert found.rejected == ()
    assert (found.skipped, found.repeated) == (1, 1)
    assert {p.name: p.usd_per_hour for p in found.prices} == {
        "gcp/a2-highgpu-2g/europe-west4/on_demand": Decimal("7.35"),
        "gcp/a2-highgpu-2g/europe-west4-a/spot": Decimal("3.86"),
        "gcp/a2-highgpu-2g/europe-west4-b/spot": Decimal("3.90"),
    }
    price = found.prices[0]
    assert (price.gpus, price.gpu_mem_gib, price.as_of, price.confidence) == (2, Decimal(40), DAY, "B")
    digest = hashlib.sha256((tmp_path / "vms.csv").read_bytes()).hexdigest()
    assert price.source_ref == f"sha256 {digest}"
    assert "currency not stated" in price.note


@pytest.mark.parametrize(
    ("row", "provider", "says"),
    [
        # What the catalogues were found to say, and why it is not so.
        (
            f"gpu_8x_h200,H200,8,1,1,{info(81920)},30,,all,",
            "lambda",
            "H200 with 80, 10 GiB, but it comes with 141",
        ),
        (
            f"gpu_8x_b200,B200,8,1,1,{info(81920)},50,,all,",
            "lambda",
            "B200 with 80, 10 GiB, but it comes with 180",
        ),
        (f"1x-RTX_4090,RTX4090,1,32,64,{info(49140)},0.40,,Asia,", "vast", "RTX4090 with 48 GiB"),
        (f"2x-A100_SXM4,A100,2,32,64,{info(81920)},1.49,,Europe,", "vast", "more than one"),
        ("1x-A100_SXM4,A100,1,32,64,,0.76,,Europe,", "vast", "A100 comes with 40, 80 GiB"),
        (
            f"Standard_ND96isr_H100_v5,H100,12,96,1900,{info(81920)},98,,eastus,",
            "azure",
            "this instance has 8",
        ),
        (f"Standard_New,H100,12,96,1900,{info(81920)},98,,eastus,", "azure", "12 GPUs: no such machine"),
        (f"Standard_NV6,A10,0.167,6,55,{info(24576)},0.45,,eastus,", "azure", "a share of a GPU"),
        (f"Standard_ND96isr_H100_v5,H100,8,96,1900,{info(81920)},,,eastus2,", "azure", "no price"),
        (
            f"Standard_ND96isr_H100_v5,H100,8,96,1900,{info(81920)},0,,eastus2,",
            "azure",
            "unknown, written as",
        ),
        (f"x,H100,8,96,1900,{info(81920)},cheap,,eastus2,", "azure", "is no number"),
        ("a2-highgpu-1g,,,12.0,85.0,,0.94803,,asia-northeast1,asia-northeast1-a", "gcp", "the host's alone"),
        ("a3-edgegpu-8g,,,208.0,1872.0,,9.46,,us-east4,us-east4-a", "gcp", "the host's alone"),
        (",V100,1,,,,2.48,,us-central1,us-central1-a", "gcp", "without the machine"),
        (f"a2-highgpu-4g,A100,4,48,340,{info(40960)},2.95,,us-east1,", "gcp", "less than a third"),
        (f"a2-highgpu-1g,A100,1,12,85,{info(40960)},1.102,,us-central1,", "gcp", "said 3.6734 (2026-07-30)"),
        (f"x,A100,1,12,85,{info(40960)},3.6,,us/central1,", "gcp", "slash"),
        (f"x,A100,1,12,85,{info(40960)},60,,us-central1,", "gcp", "not credible"),
        ("x,NewGPU,2,12,85,,60,,us-central1,", "gcp", "not told"),
    ],
)
def test_a_row_that_cannot_be_true_is_refused_and_the_good_one_kept(
    tmp_path: Path, row: str, provider: str, says: str
) -> None:
    good = f"8x-good,RTX6000-Ada,8,64,512,{info(49152)},9.6,,somewhere,"
    found = skypilot(tmp_path, good, row, provider=provider)
    assert [p.instance for p in found.prices] == ["8x-good"]
    (rejection,) = found.rejected
    assert rejection.line == 3
    assert says in rejection.reason


def test_a_spot_price_of_zero_is_unknown_and_the_on_demand_price_stands(tmp_path: Path) -> None:
    found = skypilot(tmp_path, f"1x-L40S,L40S,1,32,64,{info(46068)},0.60,0.00,Asia,", provider="vast")
    assert [(p.tier, p.confidence) for p in found.prices] == [("marketplace_median", "C")]
    (rejection,) = found.rejected
    assert (rejection.line, rejection.name) == (2, "1x-L40S spot")


def test_spot_above_on_demand_is_refused_in_one_row_and_in_two(tmp_path: Path) -> None:
    one = skypilot(tmp_path, f"g,L4,1,8,32,{info(23034)},0.80,0.90,us-east1,us-east1-b")
    two = gpuhunt(
        tmp_path,
        "v4-8,us-central2-b,3.22,0,0,1,TPUv4,32,False",
        "v4-8,us-central2-b,3.686,0,0,1,TPUv4,32,True",
    )
    for found, line in ((one, 2), (two, 3)):
        assert [p.tier for p in found.prices] == ["on_demand"]
        assert [(r.line, r.reason) for r in found.rejected] == [(line, "spot above on demand")]


def test_a_spot_column_that_copies_the_price_is_refused_as_a_whole(tmp_path: Path) -> None:
    rows = [
        f"{n}x_A100-80GB_SECURE,A100-80GB,{n}.0,8.0,117.0,{info(80)},{n * 1.39:.2f},{n * 1.39:.2f},IN,AP-IN-1"
        for n in (1, 2)
    ]
    copied = skypilot(tmp_path, *rows, provider="runpod")
    assert [(p.tier, p.gpu_mem_gib) for p in copied.prices] == [("on_demand_secure", Decimal(80))] * 2
    assert [r.line for r in copied.rejected] == [2, 3]
    both = gpuhunt(tmp_path, "a,r,1.2,8,32,1,L4,24,False", "a,r,1.2,8,32,1,L4,24,True")
    assert [r.line for r in both.rejected] == [3]
    # One that differs shows that the column is a spot price: then equal ones are true.
    real = skypilot(tmp_path, *rows, f"x,L4,1,8,8,{info(23034)},0.43,0.22,IN,AP-IN-1", provider="runpod")
    assert real.rejected == ()
    assert sum(p.tier == "spot" for p in real.prices) == 3


def test_two_sizes_or_two_prices_under_one_name_are_all_refused(tmp_path: Path) -> None:
    sizes = skypilot(
        tmp_path,
        f"1x-A100_SXM4,A100,1,32,64,{info(40960)},0.76,,Georgia,",
        f"1x-A100_SXM4,A100,1,32,64,{info(81920)},0.76,,Bavaria,",
        provider="vast",
    )
    asked = gpuhunt(
        tmp_path, "a,r1,1.2,8,32,1,L4,24,False", "a,r1,1.3,8,32,1,L4,24,False", "a,r2,1.3,8,32,1,L4,24,False"
    )
    assert (len(sizes.prices), [r.line for r in sizes.rejected]) == (0, [2, 3])
    assert ([p.region for p in asked.prices], [r.line for r in asked.rejected]) == (["r2"], [2, 3])


@pytest.mark.parametrize(
    ("name", "count", "mib", "accelerator", "gib", "form"),
    [
        ("4x-H100_SXM-32-65536", 4, 326236, "H100", 80, "SXM"),  # all GPUs' memory in the field
        ("gpu_8x_v100_n", 8, 16384, "V100", 16, ""),  # one GPU's
        ("8x-H200-32-65536", 8, 1150168, "H200", 141, ""),
        ("1x-H100_NVL-32-65536", 1, 95830, "H100-NVL", 94, ""),
        ("gpu_1x_a6000", 1, 49152, "RTXA6000", 48, ""),
    ],
)
def test_memory_is_read_as_the_provider_meant_it(
    tmp_path: Path, name: str, count: int, mib: int, accelerator: str, gib: int, form: str
) -> None:
    asked = {"H100-NVL": "H100", "RTXA6000": "A6000"}.get(accelerator, accelerator)
    found = skypilot(tmp_path, f"{name},{asked},{count},8,32,{info(mib)},{count * 2},,x,", provider="vast")
    (price,) = found.prices
    assert (price.accelerator, price.gpu_mem_gib, price.form) == (accelerator, gib, form)


def test_an_undated_catalogue_is_graded_so(tmp_path: Path) -> None:
    (price,) = gpuhunt(tmp_path, "a,r1,1.2,8,32,1,L4,24,False", as_of=None).prices
    assert (price.as_of, price.as_of_text, price.confidence) == (None, "unknown", "C")


@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b"\xff\xfe\x00", b"", None])
def test_a_file_of_another_form_is_one_clear_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "other.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(
        PriceError, match=r"other\.csv.*((no|a) skypilot catalogue|cannot be read: No such file)"
    ):
        import_prices(path, "skypilot", provider="aws", as_of=None, known=shipped())


def test_what_was_imported_is_merged_and_read_back(tmp_path: Path) -> None:
    out = tmp_path / "imported.csv"
    first = gpuhunt(tmp_path, "a,r1,1.2,8,32,1,L4,24,False", "b,r1,2.2,8,32,2,L4,24,False")
    assert write_merged(out, first.prices) == 0
    second = gpuhunt(tmp_path, "a,r1,1.5,8,32,1,L4,24,False")
    assert write_merged(out, second.prices) == 1
    prices = load_prices(out)
    assert prices.lookup("gcp", "a").usd_per_hour == Decimal("1.5")
    assert prices.lookup("gcp", "b").usd_per_hour == Decimal("2.2")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    later = gpuhunt(tmp_path, "a,r1,1.7,8,32,1,L4,24,False", as_of=dt.date(2026, 9, 1))
    assert write_merged(out, later.prices) == 0
    assert load_prices(out).lookup("gcp", "a", on=DAY).usd_per_hour == Decimal("1.5")


def test_a_faulty_list_is_not_added_to(tmp_path: Path) -> None:
    out = tmp_path / "imported.csv"
    found = gpuhunt(tmp_path, "a,r1,1.2,8,32,1,L4,24,False")
    write_merged(out, found.prices)
    with out.open(newline="") as file:
        rows = list(csv.reader(file))
    before = out.read_text().replace(",USD,", ",,")
    out.write_text(before)
    with pytest.raises(PriceError, match="nothing was added"):
        write_merged(out, found.prices)
    assert out.read_text() == before
    assert len(rows) == 2


@pytest.mark.parametrize("place", ["file/x.csv", "absent/x.csv", "folder.csv", f"{'long' * 100}.csv"])
def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "folder.csv").mkdir()
    found = gpuhunt(tmp_path, "a,r1,1.2,8,32,1,L4,24,False")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(PriceError, match=r"x\.csv|folder\.csv|long\.csv"):
        write_merged(tmp_path / place, found.prices)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.timeout(20)
def test_a_catalogue_that_never_ends_is_not_read() -> None:
    with pytest.raises(PriceError, match="/dev/zero: cannot be read: it is no regular file"):
        import_prices(Path("/dev/zero"), "gpuhunt", provider="aws", as_of=None, known=shipped())
