"""`ssmke-cost forecast` and `whatif`: what they print, and what they ask for when something is missing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ssmke.cli.cost import main
from ssmke.cost.probes.probe import Device, Sample
from ssmke.data.dataset import ImageTextShards
from tests.cost.simulated import Run

A100 = Device(id="GPU-0", name="NVIDIA A100-SXM4-80GB", memory_mib=81920, energy="power")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of an hour on one A100 that noted what training notes."""
    folder = tmp_path_factory.mktemp("runs") / "a100"
    meter = Run(folder, price="2.0").attempt(
        "a",
        [("setup", 60), ("train", 3540)],
        devices=(A100,),
        readings=[{"GPU-0": Sample(mw=300_000)}],
        close=None,
    )
    meter.note(
        recipe="scenes-tiny",
        pairs_per_epoch=9000,
        efficiency={
            "dtype": "bf16",
            "flops_per_pair": 1e8,
            "text_tokens_per_pair": 9.5,
            "devices": 1,
            "device": A100.name,
        },
    )
    meter.close("finished")
    return folder


def test_a_recipe_on_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["forecast", "--recipe", "scenes-tiny", "--device", "L4", "--pairs", "9000"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("scenes-tiny on 1 x L4\n")
    assert "3 epochs of 9,000 pairs" in out
    assert "utilisation assumed: 0.2 to 0.45" in out
    assert "$" in out


def test_as_json_with_a_price_and_a_rate(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "--recipe ssmke-base --device H100 --devices 2 --pairs 36000 --epochs 1 --pairs-per-second 10"
    assert main(["forecast", *arguments.split(), "--price", "7.5", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["hours"]["point"] == pytest.approx(1.0)
    assert found["device_hours"]["point"] == pytest.approx(2.0)
    assert found["usd"]["point"] == "7.50"
    assert any("H100-SXM" in why for why in found["reasons"])


def test_like_a_measured_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["forecast", "--like", str(run), "--epochs", "2"]) == 0
    out = capsys.readouterr().out
    assert "scenes-tiny like a100 on 1 x NVIDIA A100-SXM4-80GB" in out
    assert "2 epochs of 9,000 pairs (as a100 had)" in out
    assert main(["forecast", "--recipe", "scenes-tiny", "--like", str(run), "--device", "H100"]) == 0
    out = capsys.readouterr().out
    assert "memory traffic alone" in out
    assert "captions of 9.5 tokens as in a100" in out


def test_a_field_of_the_recipe_can_be_set(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["forecast", "--recipe", "ssmke-base", "--device", "L4", "--pairs", "1000"]
    assert main(arguments) == 0
    assert "target cache" in capsys.readouterr().out
    assert main([*arguments, "--set", "targets.mode", "online", "--set", "optim.epochs", "2"]) == 0
    out = capsys.readouterr().out
    assert "+ teacher 35.1" in out
    assert "target cache" not in out
    assert "2 epochs" in out


def test_pairs_and_images_are_those_of_the_shards(
    shards_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--set", "data.split", "test", "--device", "L4", "--set", "data.shards"]
    assert main(["forecast", "--recipe", "ssmke-base", *arguments, str(shards_dir)]) == 0
    out = capsys.readouterr().out
    pairs = ImageTextShards.open([shards_dir], "test").pairs
    assert f"7 epochs of {pairs} pairs (in {shards_dir})" in out
    assert "each of 23 images" in out


def test_an_unfinished_run_tells_its_own_total(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "copy")
    (tmp_path / "copy" / "recipe.json").write_text('{"optim": {"epochs": 4}}')
    assert main(["forecast", "--like", str(tmp_path / "copy")]) == 0
    assert "4 epochs of 9,000 pairs" in capsys.readouterr().out


def test_whatif_on_demand_and_spot(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["whatif", str(run), "--on", "H100", "--provider", "aws"]) == 0
    demand = capsys.readouterr().out
    assert "a100 on 1 x H100-SXM" in demand
    assert "interruptions" not in demand
    assert main(["whatif", str(run), "--on", "H100", "--provider", "gcp", "--tier", "spot"]) == 0
    assert "an assumption" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("forecast", "--recipe is missing"),
        ("forecast --recipe ssmke-base", "--pairs is missing"),
        ("forecast --recipe ssmke-base --pairs 10", "--device is missing"),
        ("forecast --recipe ssmke-bse --pairs 10 --device H100", "did you mean"),
        ("forecast --recipe ssmke-base --pairs 0 --device H100", "--pairs 0"),
        ("forecast --recipe ssmke-base --pairs 10 --device H900", "device 'H900' is not known"),
        ("forecast --recipe ssmke-base --pairs 10 --device H100 --devices 0", "--devices 0"),
        ("forecast --recipe ssmke-base --pairs 10 --device H100 --mfu 0.5 0.2", "--mfu 0.5 0.2"),
        ("forecast --recipe ssmke-base --pairs 10 --device H100 --text-tokens 99", "--text-tokens"),
        ("forecast --recipe ssmke-base --pairs 10 --device T4 --dtype tf32", "no tf32 peak"),
        ("forecast --recipe ssmke-base --pairs 10 --device H100 --price 2 --tier spot", "--price says all"),
        ("forecast --like RUN", "--epochs is missing"),
        ("forecast --like RUN --epochs 1 --set targets.mode online", "--set changes a recipe"),
        ("forecast --like RUN --epochs 1 --tier spot", "go with --device"),
        ("whatif RUN", "--on is missing"),
        ("whatif RUN --on H100 --tier cheap", "--tier 'cheap'"),
        ("whatif EMPTY --on H100", "no run with a cost ledger"),
        ("whatif RUN --on H100 --restart-loss -1", "--restart-loss"),
        ("whatif RUN --on H100 --restart-loss nan", "--restart-loss nan"),
        ("whatif RUN --on H100 --pairs-per-second 1e-320", "--pairs-per-second"),
        ("whatif RUN --on H100 --pairs-per-second nan", "--pairs-per-second nan"),
        ("whatif RUN --on H100 --devices BIG", "--devices 999999... (320 digits)"),
        ("whatif RUN --on H100 --price aws/p3.2xlarge", "is the price of V100 16 GB, not of H100-SXM 80 GB"),
        ("whatif RUN --on H100 --price cheap", "--price 'cheap'"),
        ("forecast --recipe ssmke-base --pairs BIG --device H100", "--pairs 999999... (320 digits)"),
        ("forecast --recipe ssmke-base --pairs 10 --epochs BIG --device H100", "--epochs"),
        ("forecast --recipe ssmke-base --pairs 10 --images BIG --device H100", "--images"),
        ("forecast --recipe ssmke-base --pairs 10 --device H100 --text-tokens nan", "--text-tokens nan"),
        ("forecast --recipe ssmke-base --pairs 10 --device H100 --mfu 1e-320 0.5", "--mfu"),
        ("forecast --recipe ssmke-base --pairs 10 --device H100 --mfu nan nan", "--mfu nan"),
        ("forecast --recipe ssmke-base --pairs 10 --device H100 --pairs-per-second inf", "-second inf"),
        ("forecast --recipe ssmke-base --pairs 10 --device H100 --pairs-per-second 1e-320", "-second 9.9"),
        ("forecast --recipe ssmke-base --pairs 10 --device H100 --price aws/p3.2xlarge", "V100 16 GB"),
        ("forecast --like RUN --epochs 1 --pairs-per-second 9", "on which hardware was --pairs-per-second"),
    ],
)
def test_what_is_missing_or_wrong_is_named(
    run: Path, tmp_path: Path, arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        {"RUN": str(run), "EMPTY": str(tmp_path), "BIG": "9" * 320}.get(word, word)
        for word in arguments.split()
    ]
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_a_folder_of_several_runs_is_not_one(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        Run(tmp_path / name).attempt("a", [("train", 5)], lineage=name)
    assert main(["whatif", str(tmp_path), "--on", "H100"]) == 2
    assert "holds 2 runs (one, two)" in capsys.readouterr().err


def test_auto_is_the_price_that_is_found_without_one(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forecast = ["forecast", "--recipe", "scenes-tiny", "--device", "H100", "--pairs", "9000"]
    for command in (forecast, ["whatif", str(run), "--on", "H100"]):
        shown = []
        for price in ([], ["--price", "auto"], ["--price", "auto", "--tier", "on_demand"]):
            assert main([*command, *price]) == 0
            shown.append(capsys.readouterr().out)
        assert shown[0] == shown[1] == shown[2]
        assert "price: unknown" not in shown[0]


def test_a_given_loss_is_no_assumption(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["whatif", str(run), "--on", "H100", "--tier", "spot", "--restart-loss", "0.02"]) == 0
    out = capsys.readouterr().out
    assert "interruptions cost 2 % of the time, as given" in out
    assert "assumption" not in out


def test_one_epoch_of_one_pair_and_the_flag_that_was_used(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "--recipe ssmke-base --device H100 --pairs 1 --epochs 1 --pairs-per-second 10 --price 2"
    assert main(["forecast", *arguments.split()]) == 0
    out = capsys.readouterr().out
    assert "1 epoch of 1 pair (--pairs)" in out
    assert "1 pair at 10 a second" in out
    assert "given by --price" in out
    assert "--cost.price" not in out


def test_whatif_needs_no_torch(run: Path) -> None:
    code = (
        "import sys; from ssmke.cli.cost import main; "
        f"code = main(['whatif', {str(run)!r}, '--on', 'H100']); "
        "sys.exit(code or any(m in sys.modules for m in ('torch', 'numpy', 'mlflow', 'pandas', 'rich')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
