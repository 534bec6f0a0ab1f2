"""The report says what ran, what did not, and in which order models came out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ssmke.errors import DataError
from ssmke.reproduce.outcome import Outcome, Score, outcomes
from ssmke.reproduce.page import html, markdown
from ssmke.reproduce.steps import Places
from ssmke.reproduce.variants import TABLES


def outcome(value: float) -> Outcome:
    names = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10", "mean_r1")
    scores = {
        ("scenes", name): Score(value + i, value + i - 1, value + i + 1) for i, name in enumerate(names)
    }
    return Outcome(scores, tuple(5.0 / (step + 1) for step in range(80)), 0.0321, 0.0042)


def test_rows_have_published_and_own_figures_and_gaps_stay_gaps() -> None:
    found = {"mse": outcome(20), "bank": outcome(30), "none": outcome(10)}
    text = markdown([TABLES["distillation"]], "scenes", found, "facts")
    [bank] = [line for line in text.splitlines() if line.startswith("| S-SMKE, contrastive KD \\+ bank")]
    assert "| 53.54 | 35.65 | 70.9 | 52.72 | 30.0 / 31.0 / 32.0 | 33.0 / 34.0 / 35.0 | 36.00" in bank
    assert "0.032 | 0.0042" in bank
    [missing] = [line for line in text.splitlines() if line.startswith("| S-SMKE, contrastive KD |")]
    assert "| - | - | - | - | - |" in missing
    assert "S-SMKE, MSE: the same order" in text
    assert "The best two on scenes are apart" in text


def test_another_order_and_overlapping_intervals_are_said() -> None:
    found = {"mse": outcome(30.5), "bank": outcome(30)}
    text = markdown([TABLES["distillation"]], "scenes", found, "facts")
    assert "another order" in text
    assert "not apart" in text


def test_the_page_is_whole_and_loads_nothing() -> None:
    page = html(list(TABLES.values()), "scenes", {"bank": outcome(30)}, "<script>facts")
    assert page.startswith("<!doctype html>")
    assert "&lt;script&gt;facts" in page
    assert "<script" not in page
    assert "Content-Security-Policy" in page
    assert ' style="' not in page
    assert "not at this scale: no supervised teacher of scenes" in page
    assert page.count("<svg") >= len(TABLES)


def test_results_are_read_from_files_and_damage_is_named(tmp_path: Path) -> None:
    places = Places(tmp_path, tmp_path)
    assert outcomes([TABLES["token-type"]], "scenes", places)["bank"] == Outcome()
    path = places.result("bank", "scenes")
    path.parent.mkdir()
    path.write_text(
        json.dumps({"metrics": {"mean_r1": 40.0}, "intervals": {"seed": 0, "mean_r1": [38.0, 42.0]}}), "utf-8"
    )
    run = places.run("bank")
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"contrast": 4.5}\n{"contrast": 4.0}\n{"contr')
    found = outcomes([TABLES["token-type"]], "scenes", places)["bank"]
    assert found.scores == {("scenes", "mean_r1"): Score(40.0, 38.0, 42.0)}
    assert found.loss == (4.5, 4.0)
    path.write_text("{}")
    with pytest.raises(DataError, match=r"bank-scenes\.json is damaged"):
        outcomes([TABLES["token-type"]], "scenes", places)
