"""``ssmke-cost prices``: listed with date and source, checked, imported; wrong input is one line."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from pathlib import Path

import pytest

from ssmke.cli.cost import main
from ssmke.cost.prices.catalogue import CATALOGUE

HEAVY = (
    "torch",
    "mlflow",
    "pandas",
    "numpy",
    "rich",
    "matplotlib",
    "deepspeed",
    "transformers",
    "timm",
    "tyro",
)
GPUHUNT = "instance_name,location,price,cpu,memory,gpu_count,gpu_name,gpu_memory,spot\n"
OWN = """
[[own]]
name = "lab"
purchase = 9200
residual = 1200
currency = "USD"
bought = 2025-03-01
life_years = 4
utilisation = 0.5
electricity_per_kwh = 0.3
pue = 1.2
accelerator = "A100"
gpus = 4
source = "invoice"
"""


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # no prices.toml of the developer


def test_prices_are_listed_with_the_price_of_the_day(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prices", "list", "--provider", "aws", "--accelerator", "h100", "--on", "2024-01-01"]) == 0
    shown = capsys.readouterr().out
    assert "aws/p5.48xlarge/us-east-1/on_demand" in shown
    assert "98.32" in shown
    assert "55.04" not in shown


def test_the_csv_has_the_source_and_can_be_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prices", "list", "--accelerator", "CPU", "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) >= 50
    assert all(row["source"].startswith("https://github.com/aws") and row["source_ref"] for row in rows)
    assert all(float(row["USD/h"]) > 0 for row in rows)


def test_own_hardware_and_prices_are_listed_beside_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prices.toml").write_text(OWN)
    assert main(["prices", "list", "--accelerator", "a100"]) == 0
    shown = capsys.readouterr().out
    assert "own/lab" in shown
    assert "+ 0.36 USD/kWh" in shown
    assert f"{8000 / (4 * 8760 * 0.5):.6f}" in shown
    assert "azure/" in shown
    assert main(["prices", "list", "--provider", "own"]) == 0
    assert "azure/" not in capsys.readouterr().out


def test_names_from_a_file_become_no_formula(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.toml").write_text(
        '[[price]]\nprovider = "=HYPERLINK(1)"\ninstance = "x"\naccelerator = "L4"\ngpus = 1\ngpu_mem_gib = 24\n'
        'usd_per_hour = 1\nas_of = 2026-01-01\nsource = "@sum"\n'
    )
    assert main(["prices", "list", "--prices", "mine.toml", "--accelerator", "L4", "--format", "csv"]) == 0
    cells = [cell for row in csv.reader(io.StringIO(capsys.readouterr().out)) for cell in row]
    assert "'=HYPERLINK(1)/x/-/on_demand" in cells
    assert "'@sum" in cells
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]


def test_check_fails_on_a_faulty_list_and_names_its_entries(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prices", "check"]) == 0
    assert "0 problems" in capsys.readouterr().out
    broken = tmp_path / "broken.csv"
    broken.write_text(CATALOGUE.read_text().replace(",USD,", ",EUR,", 1))
    assert main(["prices", "check", str(broken)]) == 1
    shown = capsys.readouterr().out
    assert "line 2 (aws/p3.2xlarge)" in shown
    assert "1 problem\n" in shown
    (tmp_path / "mine.toml").write_text(OWN + OWN.replace("0.5", "5"))
    assert main(["prices", "check", "mine.toml"]) == 1
    shown = capsys.readouterr().out
    assert "[[own]] 2 (lab): utilisation" in shown
    assert "0 good rows, 1 own; 1 problem\n" in shown


def test_import_keeps_the_good_rows_and_exits_1_for_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "gcp.csv"
    good = "g2-x,r1,1.2,8,32,1,L4,24,False\n"
    source.write_text(GPUHUNT + good + "".join(f"bad-{n},r1,0,8,32,1,L4,24,False\n" for n in range(5)))
    command = [
        "prices",
        "import",
        "--from",
        "gpuhunt",
        str(source),
        "--provider",
        "gcp",
        "--as-of",
        "2026-08-20",
    ]
    assert main([*command, "--out", "more.csv"]) == 1
    shown = capsys.readouterr().out
    assert "lines 3-7: bad-0 on_demand, bad-1 on_demand, bad-2 on_demand and 2 more: price 0" in shown
    assert "1 price added; 5 rejected" in shown
    assert main(["prices", "list", "--prices", "more.csv", "--provider", "gcp", "--accelerator", "L4"]) == 0
    assert "gcp/g2-x/r1/on_demand" in capsys.readouterr().out
    source.write_text(GPUHUNT + good)
    assert main([*command, "--out", "more.csv"]) == 0
    assert "1 of them in place of older ones" in capsys.readouterr().out
    (tmp_path / "prices.toml").write_text('include = ["more.csv"]\n')
    assert main(["prices", "list", "--provider", "gcp", "--region", "r1"]) == 0
    assert "gcp/g2-x/r1/on_demand" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["list", "--on", "yesterday"], "--on"),
        (["list", "--on", "20260101"], "--on"),
        (["list", "--prices", "/dev/urandom"], "no regular file"),
        (["check", "/dev/urandom"], "no regular file"),
        (
            ["import", "--from", "gpuhunt", "a.csv", "--provider", "x", "--as-of", "2999-01-01"],
            "--as-of 2999-01-01 is in the future",
        ),
        (["list", "--accelerator", "abacus"], "no price fits"),
        (["list", "--prices", "/nowhere.toml"], "/nowhere.toml"),
        (["check", "/nowhere.csv"], "/nowhere.csv"),
        (
            ["import", "--from", "gpuhunt", "/nowhere.csv", "--provider", "x", "--as-of", "unknown"],
            "/nowhere.csv",
        ),
        (["import", "--from", "gpuhunt", "a.csv", "--provider", "x", "--as-of", "May"], "--as-of"),
        (
            [
                "import",
                "--from",
                "gpuhunt",
                "a.csv",
                "--provider",
                "x",
                "--as-of",
                "unknown",
                "--out",
                "x.toml",
            ],
            "--out",
        ),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert main(["prices", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert says in error
    assert error.count("\n") == 1


def test_it_imports_nothing_heavy() -> None:
    script = (
        "import sys; from ssmke.cli.cost import main; code = main(sys.argv[1:]); "
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    for arguments in (["prices", "check"], ["prices", "list"]):
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stderr.strip() == "[]"


def test_an_import_into_a_place_that_is_no_folder_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gcp.csv").write_text(GPUHUNT + "g2-x,r1,1.2,8,32,1,L4,24,False\n")
    command = [
        "prices",
        "import",
        "--from",
        "gpuhunt",
        "gcp.csv",
        "--provider",
        "gcp",
        "--as-of",
        "2026-08-20",
    ]
    assert main([*command, "--out", "gcp.csv/x.csv"]) == 2
    assert capsys.readouterr().err == "error: gcp.csv/x.csv: cannot be written: Not a directory\n"


def test_one_row_is_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = CATALOGUE.read_text().splitlines(keepends=True)
    (tmp_path / "one.csv").write_text("".join(rows[:2]))
    assert main(["prices", "check", "one.csv"]) == 0
    assert "1 good row (" in capsys.readouterr().out
    (tmp_path / "prices.toml").write_text(OWN)
    assert main(["prices", "list", "--provider", "own"]) == 0
    assert "\n1 price; A:" in capsys.readouterr().out
