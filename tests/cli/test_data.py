from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssmke.cli import data as cli
from ssmke.cli.data import main
from ssmke.data.manifest import Manifest, Split
from ssmke.data.shards import Sample, write_shard
from ssmke.errors import ConfigError, DataError


def jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 48, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    """Arguments of an import of three photos, one of them truncated."""
    images = tmp_path / "images"
    images.mkdir()
    entries = []
    for i in range(3):
        (images / f"{i}.jpg").write_bytes(jpeg(i)[: None if i else 500])
        entries.append({"filename": f"{i}.jpg", "split": "train", "sentences": [{"raw": f"[red] photo {i}"}]})
    (tmp_path / "captions.json").write_text(json.dumps({"images": entries, "dataset": "photos"}))
    return [
        "--images",
        str(images),
        "--captions",
        str(tmp_path / "captions.json"),
        "--out",
        str(tmp_path / "out"),
    ]


def test_import_verify_show(photos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["import", "karpathy", *photos, "--workers", "1"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"train\W+2\W+2\W+1\.00\W+1\W", text)
    assert "skipped 1: truncated image" in text
    assert "Next: ssmke data show" in text
    assert main(["import", "karpathy", *photos]) == 0
    assert "0 shards written, 1 kept from before" in capsys.readouterr().out
    assert main(["verify", str(out)]) == 0
    assert "all is well" in capsys.readouterr().out
    sheet = tmp_path / "new folder" / "sheet.png"
    assert main(["show", str(out), "--out", str(sheet), "--count", "9"]) == 0
    assert Image.open(sheet).size[0] > 500


def test_verify_lists_problems_and_exits_with_1(
    photos: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["import", "karpathy", *photos])
    os.truncate(tmp_path / "out" / "train-00000.tar", 1500)
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "out")]) == 1
    text = capsys.readouterr().out
    assert "2 problems" in text
    assert "train-00000.tar" in text
    assert main(["verify", str(tmp_path / "out"), "--limit", "1"]) == 1
    assert "... and 1 more" in capsys.readouterr().out


def test_show_depends_on_the_seed_alone_and_shows_broken_images(tmp_path: Path) -> None:
    good = [Sample(f"k{i}", jpeg(i), (f"caption {i}",)) for i in range(6)]
    cut = Sample("cut", jpeg(9)[:400], ("half a picture",))
    info = write_shard(tmp_path / "test-00000.tar", [*good, cut], "test")
    Manifest("toy", {}, {"test": Split((info,))}).save(tmp_path)
    sheets = [tmp_path / f"{name}.png" for name in ("a", "b", "c")]
    for sheet, seed in zip(sheets, ("0", "0", "1"), strict=True):
        assert main(["show", str(tmp_path), "--out", str(sheet), "--count", "7", "--seed", seed]) == 0
    assert sheets[0].read_bytes() == sheets[1].read_bytes() != sheets[2].read_bytes()


def test_bad_options_are_named(photos: list[str], tmp_path: Path) -> None:
    main(["import", "karpathy", *photos])
    show = ["show", str(tmp_path / "out"), "--out", str(tmp_path / "sheet.png")]
    with pytest.raises(ConfigError, match="--count 0"):
        main([*show, "--count", "0"])
    with pytest.raises(ConfigError, match="--columns -1"):
        main([*show, "--columns", "-1"])
    with pytest.raises(DataError, match="no split 'test'; its splits: train"):
        main([*show, "--split", "test"])
    with pytest.raises(ConfigError, match=r"sheet\.gif: the name must end in one of \.png"):
        main([*show, "--out", str(tmp_path / "sheet.gif")])
    with pytest.raises(DataError, match="A file of that name is in the way"):
        main([*show, "--out", str(tmp_path / "captions.json" / "sheet.png")])
    with pytest.raises(ConfigError, match="--limit -1"):
        main(["verify", str(tmp_path / "out"), "--limit", "-1"])
    with pytest.raises(ConfigError, match="--max-side 3"):
        main(["import", "karpathy", *photos, "--max-side", "3"])
    with pytest.raises(SystemExit) as stop:
        main(["import", "karpathy", *photos, "--restvall", "keep"])
    assert stop.value.code == 2


def test_make_scenes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--train", "6", "--val", "2", "--test", "3", "--images-per-shard", "4", "--workers", "1"]
    assert main(["make", "scenes", "--out", str(tmp_path / "scenes"), *sizes]) == 0
    assert re.search(r"all\W+11\W+55\W+5\.00\W+4\W", capsys.readouterr().out)
    assert main(["verify", str(tmp_path / "scenes"), "--workers", "1"]) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_being_stopped_is_a_message_and_exit_code_130(
    photos: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def stop(*_: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(10)

    monkeypatch.setattr("ssmke.data.importing.run_jobs", stop)
    assert main(["import", "karpathy", *photos]) == cli.STOPPED
    assert "the same command goes on" in capsys.readouterr().out


def test_help_needs_no_torch() -> None:
    code = "import sys, ssmke.cli.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
