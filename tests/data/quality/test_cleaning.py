from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from ssmke.data.quality.cleaning import CleaningConfig, boilerplate, check_size, usable_captions
from ssmke.errors import BadSample, ConfigError

FLICKR30K = Path(__file__).resolve().parents[4] / "shared" / "data" / "text" / "flickr30k_captions_en.txt.gz"


@pytest.mark.parametrize(
    ("caption", "kind"),
    [
        ("beach-2014.JPG", "file name"),
        ("https://example.org/a/b?c=d", "web address"),
        ("www.example.com", "web address"),
        ("stockphotos.example.com/p/12", "web address"),
        ("DSC_0012", "counter"),
        ("IMG 20190102 113000", "counter"),
        ("Image (3)", "counter"),
        ("photo 3 of 12", "counter"),
        ("Screenshot 2019-01-02 at 11.30.00", "counter"),
        ("Untitled-1", "counter"),
        ("picture", "counter"),
        ("9f86d081884c7d659a2feaa0c55ad015", "identifier"),
        ("0b8f1f0e-5f3a-4c5e-9d7a-2a1f6c1d2e3f", "identifier"),
        ("Image may contain: one or more people, outdoor", "automatic text"),
        ("May be an image of 2 people and grass", "automatic text"),
        ("No photo description available.", "placeholder"),
        ("image not available", "placeholder"),
        ("Picture is currently unavailable", "placeholder"),
        ("Featured image", "placeholder"),
        ("Loading...", "placeholder"),
        ("Click to enlarge", "instruction"),
        ("click on the image to view larger version", "instruction"),
        ("Tap here to open full-size image.", "instruction"),
        ("All rights reserved.", "rights"),
        ("© 2014 Some Person. All rights reserved", "rights"),
        ("12 / 2014 !!", "no words"),
        ("...", "no words"),
    ],
)
def test_boilerplate_is_told_by_kind(caption: str, kind: str) -> None:
    assert boilerplate(caption) == kind
    kept, dropped = usable_captions(["A dog .", caption], CleaningConfig(boilerplate=True))
    assert kept == ["A dog ."]
    assert [(number, error.reason, error.detail) for number, error in dropped] == [
        (1, "boilerplate caption", kind)
    ]
    assert usable_captions([caption], CleaningConfig())[0] == [caption]


@pytest.mark.parametrize(
    "caption",
    [
        "photo of a dog",
        "A picture may contain a dog, says the sign",
        "slide",
        "loading",
        "screenshot of a game",
        "dog on a beach.jpg",
        "A man clicks to enlarge the photo of his dog",
        "Click to see: a dog leaps over a fence",
        "no photo of the queen was ever taken here",
        "visit www.example.com for red shoes like these",
        "the copyright lawyers of 2014",
        "\U0001f436",
        "犬",
        "K9",
        "img of the sea",
        "deadbeef",
        "Image 3: two girls with balloons",
        "An untitled painting",
    ],
)
def test_what_may_describe_a_picture_is_kept(caption: str) -> None:
    assert boilerplate(caption) is None


def test_no_caption_that_a_person_wrote_is_boilerplate(flickr8k: Path) -> None:
    if not FLICKR30K.is_file():
        pytest.skip(f"real captions are not there: {FLICKR30K}")
    with gzip.open(FLICKR30K, "rt", encoding="utf-8") as lines:
        captions = [" ".join(line.split()) for line in lines]
    content = json.loads((flickr8k / "captions.json").read_text())
    captions += [" ".join(s["raw"].split()) for image in content["images"] for s in image["sentences"]]
    assert len(captions) == 136_310 + 35_000
    assert [caption for caption in captions if boilerplate(caption)] == []


@pytest.mark.timeout(20)  # a pattern that backtracks exponentially would take years
@pytest.mark.parametrize("part", ["img ", "1 ", "a.", "© ", "may be a photo", "click the ", "-", "0", "of"])
def test_hostile_captions_end(part: str) -> None:
    for caption in (part * (1999 // len(part)) + "x", "photo" + part * (1990 // len(part)) + "\0"):
        assert boilerplate(caption) is None


def test_captions_are_cleaned_counted_and_numbered() -> None:
    raw = ["a  dog\n", "", "A dog , .", "\udcff", "a dog", "two brown dogs run"]
    assert usable_captions(raw, CleaningConfig())[0] == ["a dog", "A dog , .", "a dog", "two brown dogs run"]
    kept, dropped = usable_captions(raw, CleaningConfig(min_words=2, drop_repeats=True))
    assert kept == ["a dog", "A dog , .", "two brown dogs run"]
    assert [(number, error.reason) for number, error in dropped] == [
        (1, "empty caption"),
        (3, "caption not UTF-8"),
        (4, "repeated caption"),
    ]
    kept, dropped = usable_captions(raw, CleaningConfig(min_words=3))
    assert kept == ["two brown dogs run"]
    assert dropped[2][1].detail == "2 of 3 words"  # punctuation is no word


@pytest.mark.parametrize(
    ("size", "reason"),
    [((100, 100), None), ((300, 100), None), ((100, 301), "extreme aspect"), ((99, 100), "too small")],
)
def test_sizes(size: tuple[int, int], reason: str | None) -> None:
    check_size(*size, CleaningConfig())
    config = CleaningConfig(min_side=100, max_aspect=3.0)
    if reason is None:
        check_size(*size, config)
        return
    with pytest.raises(BadSample) as caught:
        check_size(*size, config)
    assert caught.value.reason == reason


def test_options_are_checked_and_identify_an_import() -> None:
    assert CleaningConfig().identity() == {}
    assert CleaningConfig(min_side=64, boilerplate=True).identity() == {
        "--clean.min-side": 64,
        "--clean.boilerplate": True,
    }
    for wrong, flag in (
        ({"min_side": -1}, "--clean.min-side -1"),
        ({"max_aspect": 0.5}, "--clean.max-aspect 0.5"),
        ({"max_aspect": float("nan")}, "--clean.max-aspect nan"),
        ({"min_words": -2}, "--clean.min-words -2"),
    ):
        with pytest.raises(ConfigError, match=flag):
            CleaningConfig(**wrong)  # type: ignore[arg-type]
