"""Tiny teachers of both kinds, and a corpus."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

from ssmke.models.image_encoders import ImageEncoderConfig
from ssmke.models.text_encoders import TextEncoderConfig
from tests.conftest import WORDS

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
LENGTH = 24


@pytest.fixture(scope="session")
def vit_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a ViT of 4 blocks."""
    torch.manual_seed(3)
    model = timm.create_model("vit_tiny_patch16_224", **VIT)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    path = tmp_path_factory.mktemp("vit") / "vit.safetensors"
    save_file(model.state_dict(), path)
    return path


@pytest.fixture
def image(vit_file: Path) -> ImageEncoderConfig:
    return ImageEncoderConfig("vit_tiny_patch16_224", depth=2, weights=str(vit_file), timm_kwargs={**VIT})


@pytest.fixture(scope="session")
def bert_dir(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 4 layers with its head of masked words and its tokenizer, as transformers saves it."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(4)
    config = BertConfig(
        vocab_size=5 + len(WORDS), hidden_size=32, num_hidden_layers=4, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=32, initializer_range=0.2,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    BertTokenizerFast.from_pretrained(model_dir / "tokenizer").save_pretrained(folder)
    return folder


@pytest.fixture
def text(bert_dir: Path) -> TextEncoderConfig:
    return TextEncoderConfig(depth=2, weights=str(bert_dir), max_tokens=LENGTH)


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of texts of all kinds: 160 documents."""
    folder, rng = tmp_path_factory.mktemp("texts"), np.random.default_rng(5)
    made = [" ".join(rng.choice(WORDS, rng.integers(3, 30))) for _ in range(160)]
    (folder / "a.txt").write_text("\n\n".join(made[:40]))
    with gzip.open(folder / "b.txt.gz", "wt") as file:
        file.write("\n \n".join(made[40:80]))
    lines = [json.dumps({"text": text, "url": "x"}) for text in made[80:]]
    (folder / "c.jsonl").write_text("\n".join(lines[:40]) + "\n")
    (folder / "deep").mkdir()
    with gzip.open(folder / "deep" / "d.jsonl.gz", "wt") as file:
        file.write("\n".join(lines[40:]))
    (folder / "all.json").write_text(json.dumps(made))
    return folder
