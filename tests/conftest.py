"""A real student and real shards, as small as they can be; and img2dataset's environment."""

from __future__ import annotations

import io
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image
from tokenizers import BertWordPieceTokenizer
from transformers import BertTokenizerFast

from ssmke.data.dataset import ImageTextShards
from ssmke.data.download.environment import img2dataset_python
from ssmke.data.manifest import Manifest, Split
from ssmke.data.shards import Sample, write_shard
from ssmke.errors import DataError
from ssmke.models.image_encoders import ImageEncoderConfig
from ssmke.models.shared import SharedConfig
from ssmke.models.student import SSMKE, StudentConfig
from ssmke.models.text_encoders import TextEncoderConfig

# In a job that a shell put into the background Ctrl-C is ignored, and so it would be in all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run, so that a change is judged by itself; `--hypothesis-profile default` draws new ones.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

WORDS = ["a", "dog", "cat", "red", "blue", "green", "runs", "sits", "on", "grass", "near", "two", "children"]


def jpeg(rng: np.random.Generator, width: int, height: int) -> bytes:
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((width, height)).save(out, "JPEG", quality=92)
    return out.getvalue()


def samples(count: int, seed: int) -> list[Sample]:
    """Images of different shapes with one to four captions of different lengths, some of them equal."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        captions = [" ".join(rng.choice(WORDS, rng.integers(1, 20))) for _ in range(1 + i % 4)]
        image = jpeg(rng, int(rng.integers(24, 90)), int(rng.integers(24, 90)))
        made.append(
            Sample(f"s{seed}-{i:03d}", image, (*captions[:-1], "a dog") if i % 3 == 0 else tuple(captions))
        )
    return made


@pytest.fixture(scope="session")
def shards_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Splits "val" and "test": 23 images in two shards, 3, 11 and 12 damaged, a caption of image 5 blank."""
    folder = tmp_path_factory.mktemp("shards")
    made = samples(23, seed=1)
    for i, image in ((3, made[3].image[:300]), (11, b"\xff\xd8\xff not a JPEG"), (12, made[12].image[:200])):
        made[i] = Sample(made[i].key, image, made[i].captions)
    made[5] = Sample(made[5].key, made[5].image, ("a red dog", " \n ", "two cats"))
    test = (
        write_shard(folder / "test-00000.tar", made[:9], "test"),
        write_shard(folder / "test-00001.tar", made[9:], "test"),
    )
    val = (write_shard(folder / "val-00000.tar", samples(6, seed=2), "val"),)
    Manifest("tiny", {"fingerprint": "tiny"}, {"test": Split(test), "val": Split(val)}).save(folder)
    return folder


@pytest.fixture
def shards(shards_dir: Path) -> ImageTextShards:
    return ImageTextShards.open([shards_dir], "test")


@pytest.fixture(scope="session")
def img2dataset() -> Path:
    """Python of the environment that ssmke makes for img2dataset; found, or made once, in a minute or two."""
    try:
        return img2dataset_python(None)
    except DataError as error:
        pytest.skip(f"img2dataset cannot be had: {error}")


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved student with random weights that are large enough to tell its inputs apart."""
    folder = tmp_path_factory.mktemp("student")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    wordpiece = BertWordPieceTokenizer(vocabulary)
    BertTokenizerFast(tokenizer_object=wordpiece._tokenizer).save_pretrained(str(folder / "tokenizer"))
    vit = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    bert = {
        "model_type": "bert",
        "vocab_size": len(vocabulary),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
    }
    torch.manual_seed(0)
    model = SSMKE(
        StudentConfig(
            image=ImageEncoderConfig("vit_tiny_patch16_224", depth=None, weights="none", timm_kwargs=vit),
            text=TextEncoderConfig(
                "bert-base-uncased",
                depth=None,
                weights="none",
                max_tokens=16,
                architecture=bert,
                tokenizer=str(folder / "tokenizer"),
            ),
            shared=SharedConfig(dim=32, heads=2),
        ),
        quiet=True,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    model.save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture
def model(model_dir: Path) -> SSMKE:
    return SSMKE.from_pretrained(model_dir)
