"""`ssmke data stats` as it is typed."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssmke.cli.data.stats import stats
from ssmke.data.manifest import Manifest, Split
from ssmke.data.shards import Sample, write_shard
from ssmke.errors import ConfigError


def picture(seed: int, width: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, width, 3), np.uint8)).save(
        buffer, "JPEG"
    )
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    toy = tmp_path / "toy"
    toy.mkdir()
    splits = {}
    for split, count in (("test", 2), ("train", 6), ("extra", 1), ("more", 1), ("val", 2)):
        samples = [
            Sample(f"{split}{i}", picture(i, 60 + i), ("[b]some words[/b]",) * 2) for i in range(count)
        ]
        splits[split] = Split((write_shard(toy / f"{split}-00000.tar", samples, split),))
    Manifest("toy", {}, splits, {"[red] reason": 12_345}).save(toy)
    return toy


def test_the_table_fits_and_the_files_are_written(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out, numbers = tmp_path / "new" / "stats.png", tmp_path / "new" / "stats.json"
    assert stats((str(folder),), out=out, json=numbers, workers=1) == 0
    text = capsys.readouterr().out
    table = [line for line in text.splitlines() if line.startswith(("│", "┃", "├"))]
    assert all(len(line) <= 80 for line in table)
    assert re.search(r"images +│ +6 │ +2 │ +2 │ +1 │ +12 │", text)
    assert re.search(r"repeated +│ +91.7 %", text)
    assert "In the sum, too: more" in text
    assert "12,345  [red] reason" in text
    content = json.loads(numbers.read_text())
    assert content["together"]["images"] == 12
    assert content["splits"]["more"]["words"]["median"] == 2
    with Image.open(out) as plots:
        assert plots.format == "PNG"


def test_a_sample_says_that_it_is_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stats((str(folder),), split="train", sample=3, workers=1) == 0
    text = capsys.readouterr().out
    assert re.search(r"images +│ +6 │", text)
    assert re.search(r"images read +│ +3 │", text)
    assert "A sample: 3 images" in text
    assert "--out stats.png" in text


def test_a_wrong_name_is_said_before_the_work(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"--out stats\.pdf: the name must end in \.png"):
        stats((str(folder),), out=Path("stats.pdf"))
    assert "counting" not in capsys.readouterr().out


def test_addresses_are_counted_as_folders_are(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, place in (("near", str(folder)), ("far", f"file://{folder}")):
        assert stats((place,), json=tmp_path / f"{name}.json", workers=1) == 0
        assert place in "".join(capsys.readouterr().out.split())
    near, far = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("near", "far"))
    assert far == near
    assert far["together"]["images"] == 12
    with pytest.raises(ConfigError, match="was given twice"):
        stats((f"file://{folder}", f"file://{folder}/"), workers=1)
