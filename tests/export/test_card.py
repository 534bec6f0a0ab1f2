"""The model card says what the run says, and that the rest is missing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from ssmke.cli.main import main
from ssmke.cost.report import report
from ssmke.errors import DataError
from ssmke.export.card import MISSING, USES, model_card
from ssmke.export.facts import read_run
from ssmke.models.student import SSMKE
from ssmke.recipes import parse_recipe

SCORES = {
    "images": 9, "captions": 21, "i2t_r1": 12.3456, "i2t_r5": 34.5, "i2t_r10": 56.7, "t2i_r1": 7.25, "t2i_r5": 20.0,
    "t2i_r10": 30.0, "t2i_r1_chance": 11.11,
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, model_dir: Path, shards_dir: Path) -> Path:
    """A run folder with a real recipe, a real ledger and the scores above."""
    from ssmke.cost.config import CostConfig
    from ssmke.cost.meter import CostMeter

    folder = tmp_path / "run7"
    folder.mkdir()
    shards = ["--data.make", "nothing", "--data.shards", f"tiny={shards_dir}*2", "--data.split", "val"]
    recipe = parse_recipe(["--recipe", "scenes-tiny", *shards], "test")
    (folder / "recipe.json").write_text(json.dumps(recipe.resolved()))
    (folder / "lineage.json").write_text('{"lineage": "abc"}')
    meter = CostMeter(folder, lineage="abc", attempt="1", config=CostConfig(price="2.5"))
    meter.start()
    with meter.phase("train"):
        pass
    meter.note(retrieval=SCORES, eval_split="test", eval_data="tiny")
    meter.close("finished")
    results = {"steps": 12, "pairs": 1536, "eval_split": "test", "retrieval": SCORES, "usd": 999.0}
    (folder / "results.json").write_text(json.dumps(results))
    shutil.copytree(model_dir, folder / "model")
    return folder


def rows(card: str) -> dict[str, list[str]]:
    found = re.findall(r"^\| (.*?) \|$", card, re.MULTILINE)
    return {cells[0]: cells[1:] for cells in (row.split(" | ") for row in found) if cells[0].strip()}


def test_the_card_has_the_numbers_of_recipe_results_ledger_and_data(run: Path, model: SSMKE) -> None:
    text = model_card(model, read_run(run), "run7")
    table = rows(text)
    assert table["image to text"] == ["12.35", "34.50", "56.70"]
    assert table["text to image"] == ["7.25", "20.00", "30.00"]
    assert table["`tiny`"] == ["6", "13", "2 times"]
    assert table["parameters"] == [f"{sum(p.numel() for p in model.parameters()):,}"]
    assert table["steps"] == ["12"]
    assert table["peak learning rate"] == ["`0.001`"]
    assert "on split `test` of `tiny` (9 images, 21 captions)" in text
    # Dollars are the ledger's, not those that results.json claims.
    (cost,) = report(run).runs
    assert cost.usage.usd is not None
    assert 0 < float(table["dollars, all attempts"][0].removeprefix("$")) < 1
    assert table["energy of the devices"] == [f"{MISSING} (nothing here could measure it)"]
    assert "- image encoder `vit_tiny_patch16_224`: ships with ssmke, MIT" in text
    assert "data `tiny`: not known to ssmke" in text
    assert str(run.parent) not in text  # nobody's folders


def test_the_front_matter_is_what_the_hub_reads(run: Path, model: SSMKE) -> None:
    data = ModelCard(model_card(model, read_run(run), "run7")).data
    assert data.library_name == "ssmke"
    assert data.license == "other"
    assert data.model_name == "run7"
    found = {(r.dataset_split, r.metric_type): r.metric_value for r in data.eval_results}
    assert found["test", "image_to_text_recall_at_1"] == 12.35
    assert len(found) == 6


def test_what_a_run_does_not_say_is_called_missing_and_not_made_up(run: Path) -> None:
    (run / "results.json").unlink()
    shutil.rmtree(run / "cost")
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["data"]["shards"] = ["/home/somebody/secret/coco"]
    del recipe["optim"]["lr"]
    (run / "recipe.json").write_text(json.dumps(recipe))
    text = model_card(None, read_run(run), "run7")
    assert f"## Results\n\n{MISSING}: the run has not ended." in text
    assert f"## Cost\n\n{MISSING}: no cost ledger was at hand." in text
    table = rows(text)
    assert table["`coco`"] == [MISSING, MISSING, "once"]
    assert table["parameters"] == table["peak learning rate"] == table["steps"] == [MISSING]
    assert "Creative Commons Attribution 4.0" in text
    assert "somebody" not in text
    assert ModelCard(text).data.eval_results is None
    alone = model_card(None, None, "orphan")
    assert alone.count(MISSING) >= 5
    assert not re.search(r"\$\d", alone)


def test_names_of_a_run_cannot_become_markup(run: Path) -> None:
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["name"] = "x` | <script>\n# Fake\x1b[2J"
    (run / "recipe.json").write_text(json.dumps(recipe))
    text = model_card(None, read_run(run), "a\n---\nlicense: mit")
    assert "\x1b" not in text
    assert "\n# Fake" not in text
    assert re.search(r"^Recipe `x' / <script> # Fake.*`\.$", text, re.MULTILINE)
    assert ModelCard(text).data.license == "other"


@pytest.mark.parametrize("damage", [b"{", b"[]", b"\xff"])
def test_a_damaged_run_is_named(run: Path, damage: bytes) -> None:
    (run / "results.json").write_bytes(damage)
    with pytest.raises(DataError, match=r"results\.json"):
        read_run(run)
    (run / "recipe.json").unlink()
    with pytest.raises(DataError, match=r"has no recipe\.json"):
        read_run(run)


def test_each_form_says_how_it_is_used(run: Path, model: SSMKE) -> None:
    facts = read_run(run)
    cards = {form: model_card(model, facts, "run7", form) for form in USES}
    assert [form for form, text in cards.items() if "SSMKE.from_pretrained" in text] == ["safetensors"]
    assert 'InferenceSession("image.onnx")' in cards["onnx"]
    assert re.search(r"SentenceTransformer\(.*trust_remote_code=True\)", cards["sentence-transformers"])
    rests = {text.partition("## Model\n")[2] for text in cards.values()}
    assert len(rests) == 1
    assert rests != {""}


def test_the_commands_write_folder_and_card(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: SSMKE
) -> None:
    assert main(["export", "card", "--run", str(run), "--out", str(tmp_path / "new" / "card.md")]) == 0
    card = (tmp_path / "new" / "card.md").read_text()
    assert main(["export", "card", "--run", str(run)]) == 0
    assert card in capsys.readouterr().out
    out = tmp_path / "shared"
    assert (
        main(
            ["export", "safetensors", "--model", str(run / "model"), "--out", str(out), "--precision", "bf16"]
        )
        == 0
    )
    shared = (out / "README.md").read_text()
    assert shared.startswith(card)  # RUN/model finds its run
    assert re.fullmatch(
        r"\n## Precision\n\n.* bf16, .* at most \S+\. .* the fp32 model.*\n", shared[len(card) :]
    )
    assert "bf16" in capsys.readouterr().out
    assert main(["export", "safetensors", "--model", str(run / "model"), "--out", str(out)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert main(["export", "onnx", "--model", str(tmp_path / "none"), "--out", str(tmp_path / "o")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "no config.json" in error
