"""``ssmke-cost`` starts fast, without heavy libraries, and answers wrong input in one line."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ssmke.cli.cost import main

HEAVY = ("torch", "mlflow", "pandas", "numpy", "deepspeed", "transformers", "timm", "PIL", "tyro")


def test_report_of_an_empty_workspace_shows_the_baselines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report"]) == 0
    shown = capsys.readouterr().out
    for dollars in ("$77,414.40", "$9,676.80", "$356,106.24", "$15.456"):
        assert dollars in shown
    assert "99.84 % cheaper than VLMo, 99.98 % than CLIP" in shown


@pytest.mark.parametrize("form", ["table", "json", "markdown", "csv"])
def test_a_metered_run_is_in_every_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    from ssmke.cost import CostConfig, CostMeter

    meter = CostMeter(
        tmp_path / "my-run", lineage="l", attempt="a", visible="", config=CostConfig(price="3.6")
    )
    meter.start()
    meter.close()
    assert main(["report", str(tmp_path), "--format", form]) == 0
    shown = capsys.readouterr().out
    assert "my-run" in shown
    if form == "json":
        assert json.loads(shown)["runs"][0]["usd"] is not None


def test_it_imports_nothing_heavy_and_starts_at_once(tmp_path: Path) -> None:
    script = (
        "import sys; from ssmke.cli.cost import main; code = main(sys.argv[1:]); "
        f"loaded = [m for m in {HEAVY!r} if m in sys.modules]; print(loaded, file=sys.stderr); sys.exit(code)"
    )
    for arguments in (["report", str(tmp_path)], ["prices", "check"], ["prices", "list"]):
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stderr.strip() == "[]"
        assert time.perf_counter() - began < 3  # 0.3 s alone on a core


def test_prices_are_listed_with_their_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prices", "list", "--provider", "aws", "--accelerator", "h100", "--on", "2024-01-01"]) == 0
    shown = capsys.readouterr().out
    assert "aws/p5.48xlarge/us-east-1/on_demand" in shown
    assert "98.32" in shown
    assert "55.04" not in shown
    assert main(["prices", "list", "--accelerator", "CPU", "--format", "csv"]) == 0
    assert "https://github.com/aws" in capsys.readouterr().out


def test_prices_check_fails_on_a_faulty_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prices", "check"]) == 0
    assert "0 problems" in capsys.readouterr().out
    from ssmke.cost.prices import CATALOGUE

    broken = tmp_path / "prices.csv"
    broken.write_text(CATALOGUE.read_text().replace(",USD,", ",EUR,", 1))
    assert main(["prices", "check", str(broken)]) == 1
    assert "1 problems" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["report", "/nowhere/at/all"], "/nowhere/at/all"),
        (["prices", "list", "--on", "yesterday"], "--on"),
        (["prices", "list", "--accelerator", "abacus"], "no price fits"),
        (["prices", "check", "/nowhere.csv"], "/nowhere.csv"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert says in error
    assert error.count("\n") == 1


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m ssmke.cli.cost prices list | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
