"""What `--data.shards` says."""

from __future__ import annotations

import pytest

from ssmke.data.mixture import Part, parse_mixture
from ssmke.errors import ConfigError


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("data/coco", Part("data/coco", 1.0, "coco")),
        ("data/coco/", Part("data/coco/", 1.0, "coco")),
        ("coco=data/a", Part("data/a", 1.0, "coco")),
        ("data/coco*0.5", Part("data/coco", 0.5, "coco")),
        ("cc3m=s3://bucket/cc3m*2", Part("s3://bucket/cc3m", 2.0, "cc3m")),
        ("/runs/x=1/data", Part("/runs/x=1/data", 1.0, "data")),
    ],
)
def test_a_word_is_a_place_with_name_and_weight(word: str, part: Part) -> None:
    assert parse_mixture([word]) == (part,)


def test_parts_come_in_several_words_or_in_one() -> None:
    parts = parse_mixture(["coco=data/coco", "cc3m=data/cc3m*0.5"])
    assert [part.weight for part in parts] == [1.0, 0.5]
    assert parse_mixture(["coco=data/coco,cc3m=data/cc3m*0.5"]) == parts
    assert parse_mixture(["data/a,b"]) == (Part("data/a,b", 1.0, "a,b"),)


@pytest.mark.parametrize("weight", ["0", "-1", "x", "inf", "1e9", "nan", ""])
def test_weights_are_positive_numbers(weight: str) -> None:
    word = f"data/a*{weight}"
    with pytest.raises(
        ConfigError, match=r"--data\.shards .*positive number of at most 1000, such as data/a\*0\.5"
    ):
        parse_mixture([word])


def test_a_part_needs_a_place() -> None:
    for word in ("", "  "):
        with pytest.raises(ConfigError, match="no folder or address"):
            parse_mixture([word])
