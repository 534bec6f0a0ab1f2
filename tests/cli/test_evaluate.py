"""`ssmke evaluate retrieval` on a real student and real shards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ssmke.cli.evaluate import main
from ssmke.data.captions import clean_caption
from ssmke.data.dataset import ImageTextShards
from ssmke.data.decode import decode_image
from ssmke.errors import ConfigError, DataError, WeightsError
from ssmke.evaluation.retrieval import EvaluationError
from ssmke.models.student import SSMKE


def evaluate(model: Path, data: Path, *more: str | Path) -> int:
    return main([str(a) for a in ("retrieval", "--model", model, "--device", "cpu", "--data", data, *more)])


def test_writes_the_numbers_that_one_at_a_time_gives(
    model_dir: Path, shards_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "results.json"
    assert evaluate(model_dir, shards_dir, "--out", out, "--batch-size", "5") == 0
    results = json.loads(out.read_text())

    model, shards = SSMKE.from_pretrained(model_dir), ImageTextShards.open([shards_dir], "test")
    images, captions, owner = [], [], []
    for i in sorted(set(range(23)) - {3, 11, 12}):
        sample = shards.read(i)
        good = [clean_caption(caption) for caption in sample.captions if caption.strip()]
        captions += good
        owner += [len(images)] * len(good)
        images.append(model.encode_image([decode_image(sample.image)]))
    text = {caption: model.encode_text([caption]) for caption in captions}
    scores = (torch.cat([text[c] for c in captions]) @ torch.cat(images).T).numpy()  # [T, I]
    higher = (scores > scores[np.arange(len(owner)), owner, None]).sum(axis=1)
    assert results["metrics"]["captions"] == len(captions)
    for k in (1, 5, 10):
        assert results["metrics"][f"t2i_r{k}"] == pytest.approx(100 * np.mean(higher < k))
    assert results["metrics"]["t2i_mean_rank"] == pytest.approx(np.mean(higher + 1))
    assert results["metrics"]["images"] == 20
    assert results["skipped"] == {"truncated image": 3, "empty caption": 1}
    assert results["data"] == {"paths": [str(shards_dir)], "split": "test"}

    printed = capsys.readouterr().out
    assert "skipped 3: truncated image" in printed
    assert f"{results['metrics']['t2i_r10']:.2f}" in printed
    assert "chance" in printed


def test_several_datasets_are_evaluated_as_one(model_dir: Path, shards_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    evaluate(model_dir, shards_dir, shards_dir, "--split", "val", "--out", out)
    assert json.loads(out.read_text())["metrics"]["images"] == 12


def test_draws_the_sheet(model_dir: Path, shards_dir: Path, tmp_path: Path) -> None:
    evaluate(model_dir, shards_dir, "--split", "val", "--sheet", tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 1000
        assert len(sheet.convert("L").getcolors()) > 50


def test_an_unknown_split_names_the_available_ones(model_dir: Path, shards_dir: Path) -> None:
    with pytest.raises(DataError, match="no split 'dev'; its splits: test, val"):
        evaluate(model_dir, shards_dir, "--split", "dev")


def test_a_model_that_is_none_says_so(shards_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"has no config\.json"):
        evaluate(tmp_path, shards_dir)


def test_a_diverged_model_is_an_error_and_writes_nothing(
    model_dir: Path, shards_dir: Path, tmp_path: Path
) -> None:
    state = load_file(model_dir / "model.safetensors")
    name = next(name for name in state if "text_encoder" in name and state[name].ndim == 2)
    state[name].fill_(float("nan"))
    broken = tmp_path / "model"
    broken.mkdir()
    save_file(state, broken / "model.safetensors")
    (broken / "config.json").write_text((model_dir / "config.json").read_text())
    (broken / "tokenizer").symlink_to(model_dir / "tokenizer")
    with pytest.raises(EvaluationError, match="caption embeddings are NaN"):
        evaluate(broken, shards_dir, "--out", tmp_path / "results.json")
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--batch-size", "0"), "--batch-size 0: must be at least 1"),
        (("--sheet", "sheet.gif"), r"--sheet sheet\.gif.*\.png"),
        (("--device", "tpu9000"), "--device tpu9000"),
        (("--device", "cuda:77"), "--device cuda:77"),
    ],
)
def test_wrong_flags_are_named(
    model_dir: Path, shards_dir: Path, flags: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate(model_dir, shards_dir, *flags)


def test_an_output_that_cannot_be_written_is_said_before_the_work(
    model_dir: Path, shards_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write"):
        evaluate(model_dir, shards_dir, "--out", tmp_path / "file" / "results.json")
    with pytest.raises(DataError, match="A folder of that name is in the way"):
        evaluate(model_dir, shards_dir, "--out", tmp_path)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(DataError, match="A folder of that name is in the way"):
        evaluate(model_dir, shards_dir, "--sheet", tmp_path / "folder.png")
    with pytest.raises(DataError, match="cannot write"):
        evaluate(model_dir, shards_dir, "--out", tmp_path / ("x" * 250))  # too long once it has a suffix
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]
    assert "R@1" not in capsys.readouterr().out
