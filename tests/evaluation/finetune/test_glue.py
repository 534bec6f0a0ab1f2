"""GLUE finetuning: learning, the means, and lengths."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from ssmke.errors import ConfigError, DataError
from ssmke.evaluation.finetune.backbones import load_text_features
from ssmke.evaluation.finetune.config import GlueConfig, RunConfig
from ssmke.evaluation.finetune.glue import checked_tokens, glue_means
from ssmke.evaluation.finetune.glue_data import TASKS
from ssmke.evaluation.finetune.run import run_glue
from ssmke.evaluation.finetune.text_batches import tokenize_texts
from ssmke.models.student import SSMKE


def quiet(_: str) -> None: ...


@pytest.mark.parametrize("part", ["encoder", "full"])
def test_learns_a_word_and_a_score(model_dir: Path, glue_folder: Path, part: str) -> None:
    config = GlueConfig(
        str(model_dir), glue_folder, part=part, tasks=("sst2", "STS-B"), epochs=8, batch_size=16, lr=2e-3
    )
    found = run_glue(config, quiet)
    sst2, stsb = (found["tasks"][name]["seeds"]["0"] for name in ("SST-2", "STS-B"))
    assert sst2["accuracy"] >= 85
    assert sst2["examples"] == 40
    assert sst2["accuracy_interval"][0] > 50
    assert stsb["spearman"] >= 70
    first = found["tasks"]["STS-B"]["epochs"]["0"][0]
    assert stsb["loss"] < 0.75 * first["loss"]
    assert found["one_number"] == {"SST-2": "accuracy", "STS-B": "spearman"}
    assert found["means"]["mean"]["mean"] == pytest.approx((sst2["accuracy"] + stsb["spearman"]) / 2)


def test_a_transformers_folder_as_peer(model_dir: Path, glue_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=18, max_position_embeddings=16, **sizes)).save_pretrained(tmp_path)
    SSMKE.from_pretrained(model_dir).tokenizer().save_pretrained(str(tmp_path))
    config = GlueConfig(f"transformers:{tmp_path}", glue_folder, part="encoder", tasks=("SST-2",), epochs=1)
    found = run_glue(config, quiet)
    assert found["tasks"]["SST-2"]["seeds"]["0"]["examples"] == 40
    with pytest.raises(ConfigError, match="no shared encoder"):
        run_glue(GlueConfig(f"transformers:{tmp_path}", glue_folder, tasks=("SST-2",)), quiet)


def test_pairs_are_cut_at_the_longer_sentence_and_typed(model_dir: Path) -> None:
    tokenizer = SSMKE.from_pretrained(model_dir).tokenizer()
    texts = tokenize_texts(tokenizer, ["a dog", "red " * 20], ["cat", "cat"], 8)
    ids, mask, types = texts.batch([0, 1], torch.device("cpu"))
    assert mask.sum(1).tolist() == [6, 8]
    assert tokenizer.convert_ids_to_tokens(ids[1].tolist())[-3:] == ["[SEP]", "cat", "[SEP]"]
    assert types.tolist() == [[0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0, 1, 1]]


def test_length_is_bounded_by_positions(model_dir: Path) -> None:
    features, _ = load_text_features(str(model_dir), "encoder")
    assert checked_tokens(features, None) == 32
    assert checked_tokens(features, 20) == 20
    with pytest.raises(ConfigError, match="only 32 positions"):
        checked_tokens(features, 64)


def test_means_of_the_nine() -> None:
    assert len(TASKS) == 9
    rng = np.random.default_rng(0)
    scores = {
        name: {metric: float(rng.uniform(0, 100)) for metric in task.metrics} for name, task in TASKS.items()
    }
    found = glue_means(scores, TASKS)
    s = scores
    single = [s[n]["accuracy"] for n in ("SST-2", "MNLI", "QNLI", "RTE", "WNLI")] + [s["CoLA"]["matthews"]]
    assert found["mean"] == pytest.approx(
        (sum(single) + s["MRPC"]["f1"] + s["QQP"]["f1"] + s["STS-B"]["spearman"]) / 9
    )
    pairs = [sum(s[n].values()) / 2 for n in ("MRPC", "QQP", "STS-B")]
    assert found["glue_average"] == pytest.approx((sum(single) + sum(pairs)) / 9)


def test_mnli_scores_both_dev_sets(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "MNLI").mkdir()
    header = "index\tsentence1\tsentence2\tgold_label\n"
    rows = [f"{i}\ta dog\tred cat\t{label}\n" for i, label in enumerate(["neutral"] * 8)]
    for name in ("train", "dev_matched"):
        (tmp_path / "MNLI" / f"{name}.tsv").write_text(header + "".join(rows))
    wrong = "".join(rows).replace("neutral", "entailment")
    (tmp_path / "MNLI" / "dev_mismatched.tsv").write_text(header + wrong)
    config = GlueConfig(str(model_dir), tmp_path, tasks=("MNLI",), lr=1e-2, run=RunConfig(seed=(4,)))
    scores = run_glue(config, quiet)["tasks"]["MNLI"]["seeds"]["4"]
    assert scores["accuracy_dev_matched"] == 100
    assert scores["accuracy_dev_mismatched"] == 0
    assert scores["accuracy"] == 50
    assert scores["examples"] == 16


def test_what_is_wrong_with_any_task_is_said_first(
    model_dir: Path, glue_folder: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    with pytest.raises(DataError, match="no CoLA/"):
        run_glue(GlueConfig(str(model_dir), glue_folder, tasks=("SST-2", "CoLA")), lines.append)
    assert not lines  # nothing was trained before
    shutil.copytree(glue_folder, tmp_path / "glue")
    (tmp_path / "glue" / "STS-B" / "dev.tsv").write_text("damaged\n")
    work = RunConfig(work=tmp_path / "work")
    both = GlueConfig(str(model_dir), tmp_path / "glue", tasks=("SST-2", "STS-B"), epochs=1, run=work)
    with pytest.raises(DataError, match=r"STS-B/dev\.tsv: no column"):
        run_glue(both, lines.append)
    with pytest.raises(ConfigError, match="--max-tokens 64: the text encoder has only 32 positions"):
        run_glue(dataclasses.replace(both, data=glue_folder, max_tokens=64), lines.append)
    assert not lines
    assert not (tmp_path / "work").exists()
    with pytest.raises(ConfigError, match="--tasks SST-3"):
        run_glue(GlueConfig(str(model_dir), glue_folder, tasks=("SST-3",)), quiet)
