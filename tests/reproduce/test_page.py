"""The report says what ran, what did not, and in which order models came out."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from ssmke.errors import DataError
from ssmke.reproduce.outcome import Factors, Outcome, Score, costs_of, outcomes
from ssmke.reproduce.page import html, markdown
from ssmke.reproduce.steps import Places
from ssmke.reproduce.variants import TABLES


def outcome(value: float) -> Outcome:
    names = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10", "mean_r1")
    scores = {
        ("scenes", name): Score(value + i, value + i - 1, value + i + 1) for i, name in enumerate(names)
    }
    return Outcome(
        scores, tuple(5.0 / (step + 1) for step in range(80)), 0.0321, 0.0042, Factors(14976, 117, 128)
    )


def test_rows_have_published_and_own_figures_and_gaps_stay_gaps() -> None:
    found = {"mse": outcome(20), "bank": outcome(30), "none": outcome(10)}
    text = markdown([TABLES["distillation"]], "scenes", found, "facts")
    [bank] = [line for line in text.splitlines() if line.startswith("| S-SMKE, contrastive KD \\+ bank")]
    assert "| 53.54 | 35.65 | 70.9 | 52.72 | 30.0 / 31.0 / 32.0 | 33.0 / 34.0 / 35.0 | 36.00" in bank
    assert bank.endswith("0.032 | 0.0042 |")
    assert "- Seen in training, once for each epoch: 14,976 pairs in 117 steps of 128.\n" in text
    [missing] = [line for line in text.splitlines() if line.startswith("| S-SMKE, contrastive KD |")]
    assert "| - | - | - | - | - |" in missing
    assert "S-SMKE, MSE: the same order" in text
    assert "The best two on scenes are apart" in text


def test_another_order_and_overlapping_intervals_are_said() -> None:
    found = {"mse": outcome(30.5), "bank": outcome(30)}
    text = markdown([TABLES["distillation"]], "scenes", found, "facts")
    assert "another order" in text
    assert "The best two on scenes are not apart by these intervals, which are those of one seed." in text


def test_the_page_is_whole_and_loads_nothing() -> None:
    page = html(list(TABLES.values()), "scenes", {"bank": outcome(30)}, "<script>facts")
    assert page.startswith("<!doctype html>")
    assert "&lt;script&gt;facts" in page
    assert "<script" not in page
    assert "Content-Security-Policy" in page
    assert ' style="' not in page
    assert "not at this scale: no supervised teacher of scenes" in page
    assert page.count("<svg") >= 6


def seeded(*values: float) -> Outcome:
    mean = sum(values) / len(values)
    return Outcome({("scenes", "mean_r1"): Score(mean, mean - 2, mean + 2, 0.5, tuple(enumerate(values)))})


@pytest.mark.parametrize(
    ("best", "second", "said"),
    [
        ((31.0, 32.0, 33.0), (28.0, 29.0, 30.9), "apart: every seed of the one is above every seed of the other "
         "\\(of two equal models: once in 10 times\\)."),
        ((31.0, 32.0, 33.0), (28.0, 29.0, 31.1), "not apart: their seeds overlap"),
        ((41.0, 42.0), (28.0, 29.0), "apart by their intervals over images, with 2 seeds, too few to judge by"),
        ((31.0, 32.0, 33.0), (28.0, 32.0), "not apart by these intervals, which are those of 2 seeds, too few"),
    ],
)  # fmt: skip
def test_three_seeds_decide_whether_models_are_apart(
    best: tuple[float, ...], second: tuple[float, ...], said: str
) -> None:
    found = {"bank": seeded(*best), "mse": seeded(*second)}
    text = markdown([TABLES["distillation"]], "scenes", found, "facts")
    assert f"The best two on scenes are {said}" in text
    assert "32.00 ± 0.50 \\(30.0 to 34.0\\)" in text or len(best) == 2
    page = html([TABLES["distillation"]], "scenes", found, "facts")
    assert page.count('<circle class="alt') == len(best) + len(second)


def test_without_runs_the_page_of_costs_has_the_published_ones_and_says_what_does_not_compare(
    tmp_path: Path,
) -> None:
    (tmp_path / "runs").mkdir()
    costs = costs_of(Places(tmp_path, tmp_path))
    text = markdown([TABLES["efficiency"]], "scenes", {}, "facts", costs)
    [clip] = [line for line in text.splitlines() if line.startswith("| CLIP ")]
    assert clip.endswith("| 428M | 400M | 73,728 | \\$77,414.40 | 58.4 / 37.8 | 88.0 / 68.7 |")
    [ours] = [line for line in text.splitlines() if "53.54 / 35.65" in line]
    assert "| 117M | 3.3M | 22.4 | \\$15.456 |" in ours
    assert "99.98 % than CLIP" in text
    assert "| VLMo, 1B pairs \\(large\\) | 562M | 1B | unknown | &gt;= \\$9,676.80 |" in text
    assert "Recalls here are on scenes: other data, and not comparable" in text
    page = html([TABLES["efficiency"]], "scenes", {}, "facts", costs)
    assert "Quality against dollars" in page
    assert "Pareto front" in page
    assert "other data" not in markdown([TABLES["efficiency"]], "full", {}, "facts", costs)


def test_halves_by_themselves_stand_beside_the_published_ones() -> None:
    found = {"alone-cut": Outcome({("labelled-scenes", "finetuned-top1"): Score(33.7, 28.8, 38.3)})}
    text = markdown([TABLES["unimodal"]], "scenes", found, "facts")
    assert "| halves cut from the pretrained encoders | - | - | - | - | 33.70 \\(28.8 to 38.3\\) |" in text
    assert "| 75.5 | 97.6 | 85.2 | 61.3 | - |" in text
    text = markdown([TABLES["unimodal"]], "small", {}, "facts")
    assert "not at this scale" in text


def written(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), "utf-8")


def test_seeds_are_averaged_as_evaluation_averages_them(tmp_path: Path) -> None:
    places = Places(tmp_path, tmp_path, (0, 1, 2))
    for seed, value in enumerate((40.0, 43.0)):  # the third has not run
        written(
            places.result("bank", "scenes", seed),
            {"metrics": {"mean_r1": value}, "intervals": {"mean_r1": [value - 2, value + 1]}},
        )
        run = places.run("bank", seed)
        written(run / "results.json", {"pairs": 96, "steps": 3})
        written(run / "recipe.json", {"optim": {"batch_size": 32}})
        (run / "metrics.jsonl").write_text("".join(f'{{"contrast": {4 + seed + i}}}\n' for i in range(3)))
        written(
            places.result("alone-cut", "labelled-scenes", seed),
            {"seeds": {str(seed): {"top1": value, "top1_interval": [value - 1, value + 1]}}},
        )
    found = outcomes([TABLES["token-type"], TABLES["unimodal"]], "scenes", places)
    score = found["bank"].scores["scenes", "mean_r1"]
    assert (score.value, score.low, score.high) == (41.5, 39.5, 42.5)
    assert score.std == pytest.approx(statistics.stdev([40.0, 43.0]))
    assert score.seeds == ((0, 40.0), (1, 43.0))
    assert found["bank"].loss == (4.5, 5.5, 6.5)
    assert found["bank"].factors == Factors(96, 3, 32)
    assert found["alone-cut"].scores["labelled-scenes", "finetuned-top1"].value == 41.5


def test_numbers_of_suites_are_found_in_their_results(tmp_path: Path) -> None:
    places = Places(tmp_path, tmp_path)
    written(
        places.result("bank", "imagenet-classes"),
        {"metrics": {"top1": 37.0}, "intervals": {"top1": [36.6, 37.4]}},
    )
    written(places.result("alone-trained", "glue"), {"means": {"mean": {"mean": 61.3, "std": None}}})
    found = outcomes([TABLES["teachers"], TABLES["unimodal"]], "full", places)
    assert found["bank"].scores == {("imagenet-classes", "top1"): Score(37.0, 36.6, 37.4)}
    assert found["alone-trained"].scores == {("glue", "glue-mean"): Score(61.3, None, None)}
    text = markdown([TABLES["teachers"], TABLES["unimodal"]], "full", found, "facts")
    assert "37.00 \\(36.6 to 37.4\\)" in text
    assert "| 61.3 | - | - | - | 61.30 |" in text
    written(places.result("alone-trained", "glue"), {})
    with pytest.raises(DataError, match=r"alone-trained-glue\.json is damaged"):
        outcomes([TABLES["unimodal"]], "full", places)


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
