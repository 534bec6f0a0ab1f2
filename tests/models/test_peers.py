"""Peers through the same interface: what their own libraries give, and clear words where there is nothing to load."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
import transformers
from open_clip import factory
from PIL import Image
from safetensors.torch import save_file

from ssmke.errors import ConfigError, WeightsError
from ssmke.models.dual_encoder import DualEncoder, Student, load_dual_encoder
from ssmke.models.weights import weights_digest

CPU = torch.device("cpu")
TEXTS = ["a dog", "two red cats on grass"]
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[str]:
    """An architecture that open_clip knows as long as the test runs."""
    (tmp_path / "ssmke-tiny.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(tmp_path / "ssmke-tiny.json")
    yield "ssmke-tiny"
    factory._MODEL_CONFIGS.pop("ssmke-tiny", None)


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)) for _ in range(3)]


def embed(encoder: DualEncoder) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = np.stack([encoder.preprocess(picture) for picture in pictures()])
    return encoder.encode_image(torch.from_numpy(pixels)), encoder.encode_text(TEXTS)


def test_open_clip_from_a_local_file_gives_what_open_clip_gives(tiny: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    reference, _, transform = open_clip.create_model_and_transforms(tiny)
    save_file(reference.state_dict(), tmp_path / "tiny.safetensors")
    encoder = load_dual_encoder(f"open_clip:{tiny}/{tmp_path / 'tiny.safetensors'}", CPU)
    image, text = embed(encoder)
    reference.eval()
    with torch.no_grad():
        theirs = reference.encode_image(torch.stack([transform(p) for p in pictures()]), normalize=True)
        torch.testing.assert_close(image, theirs)
        theirs = reference.encode_text(open_clip.get_tokenizer(tiny)(TEXTS), normalize=True)
        torch.testing.assert_close(text, theirs)
    assert encoder.dim == 16
    assert encoder.digest == weights_digest(reference)
    assert not torch.allclose(text[0], text[1])


def test_a_tag_runs_with_the_activation_of_its_weights(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    torch.manual_seed(3)
    reference, _, transform = open_clip.create_model_and_transforms(tiny, force_quick_gelu=True)
    file = tmp_path / "tiny.safetensors"
    save_file(reference.state_dict(), file)
    tags = {"quick": {"file": str(file), "quick_gelu": True}, "plain": {"file": str(file)}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, tiny, tags)
    image, text = embed(load_dual_encoder(f"open_clip:{tiny}/quick", CPU))
    assert not [warning for warning in recwarn if "QuickGELU" in str(warning.message)]
    with torch.no_grad():
        theirs = reference.eval().encode_image(
            torch.stack([transform(p) for p in pictures()]), normalize=True
        )
        torch.testing.assert_close(image, theirs)
        theirs = reference.encode_text(open_clip.get_tokenizer(tiny)(TEXTS), normalize=True)
        torch.testing.assert_close(text, theirs)
    plain, _ = embed(load_dual_encoder(f"open_clip:{tiny}/plain", CPU))
    assert not torch.allclose(plain, image, atol=1e-4)


def test_random_weights_are_asked_for_said_and_always_the_same(
    tiny: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = torch.random.get_rng_state()
    first = load_dual_encoder(f"open_clip:{tiny}/random", CPU)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert "RANDOM weights" in caplog.text
    assert load_dual_encoder(f"open_clip:{tiny}/random", CPU).digest == first.digest
    with pytest.raises(WeightsError, match=r"names no weights; give open_clip:ssmke-tiny/PRETRAINED.*random"):
        load_dual_encoder(f"open_clip:{tiny}", CPU)


def test_what_open_clip_does_not_know_is_named(tiny: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such architecture; close: .*ViT-B-32"):
        load_dual_encoder("open_clip:ViT-B32/openai", CPU)
    with pytest.raises(WeightsError, match=r"'laion9b' is no tag of it and no file.*one of: .*openai"):
        load_dual_encoder("open_clip:ViT-B-32/laion9b", CPU)
    with pytest.raises(ConfigError, match="names no model; for example open_clip:"):
        load_dual_encoder("open_clip:", CPU)
    (tmp_path / "cut.safetensors").write_bytes(b"12345678 nothing")
    with pytest.raises(WeightsError, match="cannot be loaded"):
        load_dual_encoder(f"open_clip:{tiny}/{tmp_path / 'cut.safetensors'}", CPU)


def test_a_pickle_is_not_run(tiny: str, tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Runs:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return Path.touch, (marker,)

    torch.save({"state_dict": Runs()}, tmp_path / "bad.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Runs()))
    for name in ("bad.pt", "plain.pt"):
        with pytest.raises(WeightsError, match="cannot be loaded"):
            load_dual_encoder(f"open_clip:{tiny}/{tmp_path / name}", CPU)
    assert not marker.exists()


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of transformers as it lies on a hub."""
    folder = tmp_path_factory.mktemp("clip")
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = transformers.CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[])
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**size, "vocab_size": len(pieces), "max_position_embeddings": 24}
    text |= {"bos_token_id": pieces.index("<|startoftext|>"), "eos_token_id": pieces.index("<|endoftext|>")}
    config = transformers.CLIPConfig(
        text_config=text, vision_config={**size, "image_size": 32, "patch_size": 16}, projection_dim=20
    )
    torch.manual_seed(0)
    model = transformers.CLIPModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    images = transformers.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    transformers.CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def test_transformers_gives_what_transformers_gives(clip_folder: Path) -> None:
    encoder = load_dual_encoder(f"transformers:{clip_folder}", CPU)
    image, text = embed(encoder)
    model = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    processor = transformers.CLIPProcessor.from_pretrained(clip_folder)
    with torch.no_grad():
        inputs = processor(images=pictures(), text=TEXTS, return_tensors="pt", padding=True)
        theirs = model(**inputs)
    torch.testing.assert_close(image, F.normalize(theirs.image_embeds, dim=-1))
    torch.testing.assert_close(text, F.normalize(theirs.text_embeds, dim=-1), atol=1e-5, rtol=0)
    assert encoder.dim == 20
    assert encoder.encode_text(["x" * 300]).shape == (1, 20), "longer than the model reads"


def test_transformers_computes_in_fp32_whatever_the_file_holds(clip_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(clip_folder, tmp_path / "half")
    transformers.CLIPModel.from_pretrained(clip_folder).half().save_pretrained(tmp_path / "half")
    encoder = load_dual_encoder(f"transformers:{tmp_path / 'half'}", CPU)
    assert {p.dtype for p in encoder.model.parameters()} == {torch.float32}  # type: ignore[attr-defined]
    model = transformers.CLIPModel.from_pretrained(tmp_path / "half").float().eval()
    pixels = torch.stack([torch.from_numpy(encoder.preprocess(picture)) for picture in pictures()])
    with torch.no_grad():
        theirs = F.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
    torch.testing.assert_close(encoder.encode_image(pixels), theirs)


def test_a_model_that_loads_and_cannot_embed_is_refused_at_once(tmp_path: Path) -> None:
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Siglip2Config(
        text_config={**size, "vocab_size": 16, "max_position_embeddings": 8, "projection_size": 32},
        vision_config={**size, "num_patches": 16, "patch_size": 16},
    )
    transformers.Siglip2Model(config).save_pretrained(tmp_path)
    transformers.Siglip2Processor(
        transformers.Siglip2ImageProcessor(max_num_patches=16), transformers.Siglip2Tokenizer()
    ).save_pretrained(tmp_path)
    with pytest.raises(
        WeightsError, match=r"a Siglip2Model was loaded and cannot embed a blank image.*NaFlex"
    ):
        load_dual_encoder(f"transformers:{tmp_path}", CPU)


def test_what_transformers_cannot_load_is_said(clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such folder"):
        load_dual_encoder(f"transformers:{tmp_path / 'absent'}", CPU)
    with pytest.raises(WeightsError, match="cannot be loaded"):
        load_dual_encoder(f"transformers:{tmp_path}", CPU)
    bert = transformers.BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    transformers.BertModel(bert).save_pretrained(tmp_path / "bert")
    with pytest.raises(ConfigError, match="a BertModel does not embed images and texts in one space"):
        load_dual_encoder(f"transformers:{tmp_path / 'bert'}", CPU)
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_bytes((clip_folder / "config.json").read_bytes())
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="cannot be loaded"):
        load_dual_encoder(f"transformers:{pickled}", CPU)


def test_anything_else_is_ours(model_dir: Path) -> None:
    encoder = load_dual_encoder(str(model_dir), CPU)
    assert isinstance(encoder, Student)
    image, text = embed(encoder)
    torch.testing.assert_close(image, encoder.model.encode_image(pictures()))
    torch.testing.assert_close(text, encoder.model.encode_text(TEXTS))
    assert encoder.digest == weights_digest(encoder.model)
