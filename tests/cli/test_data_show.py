"""`ssmke data show`: what cannot be drawn is refused by the name of the flag."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssmke.cli.data import main
from ssmke.data.sources.scenes import ScenesConfig, write_scenes
from ssmke.errors import ConfigError


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "out"
    write_scenes(folder, ScenesConfig(train=60, val=0, test=0), workers=1)
    return folder


def test_a_negative_seed_is_refused(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--seed -1: must be at least 0"):
        main(["show", str(scenes), "--out", str(tmp_path / "s.png"), "--seed", "-1"])
    assert main(["show", str(scenes), "--out", str(tmp_path / "s.png"), "--seed", str(2**70)]) == 0


def test_a_sheet_too_high_or_wide_for_webp_names_what_makes_it_smaller(scenes: Path, tmp_path: Path) -> None:
    show = ["show", str(scenes), "--count", "60", "--columns"]
    for columns, remedy in (("1", "more --columns"), ("60", "fewer --columns")):
        out = tmp_path / f"{columns}.webp"
        with pytest.raises(
            ConfigError, match=rf"--out .*16,383 a side: .*\.png, .*fewer --count or {remedy}"
        ):
            main([*show, columns, "--out", str(out)])
        assert not out.exists()
    assert main([*show, "8", "--out", str(tmp_path / "8.webp")]) == 0
