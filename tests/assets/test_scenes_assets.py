"""The shipped weights load key by key, fit their tokenizer, and know what they were shipped for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ssmke.assets
from ssmke.assets.make_scenes_assets import TEXT, VIT, VIT_NAME, Options, features, make
from ssmke.assets.scenes_language import build_tokenizer
from ssmke.assets.scenes_probe import probe
from ssmke.assets.scenes_vision import SIDE, TIMM_KWARGS, saliency, unlabelled_images, visual_words
from ssmke.data.sources.scene_captions import SHAPE_WORDS, caption_words
from ssmke.data.sources.scene_plan import COLOURS, plan_scenes
from ssmke.models.image_encoders import ImageEncoderConfig, build_image_encoder
from ssmke.models.teachers import Teacher, TeacherConfig, build_teacher
from ssmke.models.text_encoders import TextEncoderConfig, build_text_encoder, load_tokenizer

FOLDER = Path(ssmke.assets.__file__).parent
KWARGS: dict[str, int | float | bool | str] = {**TIMM_KWARGS}


def teacher(weights: str = f"package:{VIT}", depth: int = 6) -> Teacher:
    return build_teacher(TeacherConfig(VIT_NAME, weights, timm_kwargs={**KWARGS, "depth": depth}), quiet=True)


def text_config(weights: str = f"package:{TEXT}") -> TextEncoderConfig:
    return TextEncoderConfig(name=TEXT, depth=2, weights=weights, max_tokens=32)


def test_assets_are_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 12_000_000


def test_teacher_and_image_half_load_completely() -> None:
    whole = teacher()
    half = build_image_encoder(ImageEncoderConfig(VIT_NAME, 3, f"package:{VIT}", timm_kwargs=KWARGS))
    assert (whole.dim, whole.image_size, half.dim, half.image_size) == (128, SIDE, 128, SIDE)
    assert whole.load_report.dropped == {}
    assert len(half.load_report.dropped) == 3 * 12, "only blocks 4 to 6 may be left out"
    images = unlabelled_images(0, 2)
    assert half(images / 127.5 - 1).shape == (2, 17, 128)


def test_text_half_loads_completely_and_fits_its_tokenizer() -> None:
    encoder = build_text_encoder(text_config())
    tokenizer = load_tokenizer(text_config(), encoder.vocab_size)
    assert all(".layer.2." in key or ".layer.3." in key for key in encoder.load_report.dropped)
    assert len(tokenizer) == encoder.vocab_size
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab(), "the shipped tokenizer is not the script's"


def test_every_caption_word_is_one_token_and_any_text_has_tokens() -> None:
    tokenizer = load_tokenizer(text_config())
    for word in caption_words():
        assert len(tokenizer.tokenize(word)) == 1, word
    unknown = tokenizer("A ZEBRA, 3 cats & an umbrella!", add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in unknown


@pytest.fixture(scope="module")
def probes() -> dict[str, dict[str, float]]:
    train, test = plan_scenes(5, "train", 1500), plan_scenes(5, "test", 400)
    teachers = {
        "random": teacher("none"),
        "half": teacher(str(FOLDER / VIT), depth=3),
        "whole": teacher(),
    }
    return {
        name: probe(features(model, train), train, features(model, test), test)
        for name, model in teachers.items()
    }


@pytest.mark.parametrize("family", ["colour", "colour and shape", "colour at place", "count"])
def test_teacher_knows_composition_better_than_half_and_random(
    probes: dict[str, dict[str, float]], family: str
) -> None:
    assert probes["whole"][family] > probes["half"][family] + 2
    assert probes["whole"][family] > 1.5 * probes["random"][family]


def test_teacher_knows_a_little_of_shapes(probes: dict[str, dict[str, float]]) -> None:
    # The weakest family (README.md): stated here so that better weights can raise the bar.
    assert probes["whole"]["shape"] > probes["random"]["shape"] + 2


def test_text_encoder_knows_kinds_of_words() -> None:
    """The word most like a colour's is another colour's, and so on. (Synonyms it cannot know: their contexts
    are those of any other shape; that "disc" means circle is learned from pairs.)"""
    kinds = {
        "colour": list(COLOURS),
        "shape": list(SHAPE_WORDS),
        "shapes": [forms[0][1] for forms in SHAPE_WORDS.values()],
        "size": ["small", "little", "tiny", "large", "big", "huge"],
    }
    words = [(word, kind) for kind, members in kinds.items() for word in members]
    ids = load_tokenizer(text_config()).convert_tokens_to_ids([word for word, _ in words])

    def pure(weights: str) -> float:
        torch.manual_seed(0)
        config = text_config(weights)
        if weights == "none":
            config.architecture = build_text_encoder(text_config()).architecture()
        table = build_text_encoder(config, quiet=True).backbone.get_input_embeddings().weight  # type: ignore[operator]
        vectors = torch.nn.functional.normalize(table[ids].detach(), dim=1)
        nearest = (vectors @ vectors.T).fill_diagonal_(-1).argmax(1).tolist()
        return sum(words[n][1] == kind for n, (_, kind) in zip(nearest, words, strict=True)) / len(words)

    assert pure(f"package:{TEXT}") > 0.9
    assert pure("none") < 0.6


def test_visual_words_find_the_things() -> None:
    torch.manual_seed(0)
    images = unlabelled_images(9001, 150)
    words = visual_words(images)
    share = saliency(images).float().mean()
    assert 0.03 < share < 0.4
    things = sum(len(group) for scene in plan_scenes(9001, "train", 150) for group in scene.groups)
    found = (words.bag > 0).sum().item()
    assert 0.5 * things < found < 1.3 * things
    for at in (words.colours, words.outlines):
        torch.testing.assert_close(at.sum(-1), torch.ones(at.shape[:2]))


def test_the_script_runs_and_its_files_load(tmp_path: Path) -> None:
    make(Options(out=tmp_path, quick=True, parts=("image", "text")))
    assert teacher(str(tmp_path / VIT)).dim == 128
    assert build_text_encoder(text_config(str(tmp_path / TEXT))).dim == 128
    assert load_tokenizer(text_config(str(tmp_path / TEXT))).pad_token == "[PAD]"
