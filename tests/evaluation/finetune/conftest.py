"""Small data sets in the formats that people have."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

COLOURS = {"blue": (20, 40, 220), "green": (30, 200, 40), "red": (220, 30, 30)}


def picture(rng: np.random.Generator, colour: tuple[int, int, int]) -> Image.Image:
    """A noisy picture of one colour, of any shape."""
    height, width = rng.integers(24, 60, 2)
    pixels = np.array(colour) + rng.normal(0, 25, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and val/ with three classes that differ in colour; one damaged training image."""
    root, rng = tmp_path_factory.mktemp("classes"), np.random.default_rng(0)
    for part, count in (("train", 16), ("val", 8)):
        for name, colour in COLOURS.items():
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                picture(rng, colour).save(root / part / name / f"{i:02d}.{'png' if i % 2 else 'jpg'}")
    (root / "train" / "red" / "broken.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    return root


@pytest.fixture(scope="session")
def nlvr2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release's layout. A statement is true exactly when the left image is red; two pairs for each sentence."""
    root, rng = tmp_path_factory.mktemp("nlvr2"), np.random.default_rng(1)
    for split, sets in (("train", 16), ("dev", 8)):
        lines = []
        for group in range(sets):
            for pair in range(2):
                true = pair == group % 2
                entry = {
                    "identifier": f"{split}-{group}-{pair}-0",
                    "sentence": f"a {'dog' if group % 3 else 'cat'} sits on the left — “near” two",
                    "label": str(true),
                }
                folder = root / "images" / split
                if split == "train":
                    entry["directory"] = group % 4
                    folder = folder / str(group % 4)
                folder.mkdir(parents=True, exist_ok=True)
                for side, colour in (
                    ("img0", COLOURS["red" if true else "blue"]),
                    ("img1", COLOURS["green"]),
                ):
                    picture(rng, colour).save(folder / f"{split}-{group}-{pair}-{side}.png")
                lines.append(json.dumps(entry, ensure_ascii=False))
        (root / f"{split}.json").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def sentiment_lines(count: int, seed: int) -> list[str]:
    """SST-2's lines: 1 where the sentence has "red", 0 where it has "blue"; quotes that never close."""
    rng = np.random.default_rng(seed)
    lines = []
    for i in range(count):
        label = i % 2
        words = ["red" if label else "blue", *rng.choice(["dog", "cat", "runs", "near", "grass"], 4)]
        rng.shuffle(words)
        opening = '"' if i % 5 == 0 else ""
        lines.append(f"{opening}{' '.join(words)}\t{label}")
    return lines


@pytest.fixture(scope="session")
def glue_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SST-2, which can be learned from one word, and STS-B, whose score is the number of words that pairs share."""
    root = tmp_path_factory.mktemp("glue")
    (root / "SST-2").mkdir()
    for split, count in (("train", 96), ("dev", 40)):
        text = "\n".join(["sentence\tlabel", *sentiment_lines(count, len(split))]) + "\n"
        (root / "SST-2" / f"{split}.tsv").write_text(text, encoding="utf-8")
    (root / "STS-B").mkdir()
    rng = np.random.default_rng(3)
    header = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"
    for split, count in (("train", 96), ("dev", 40)):
        rows = [header]
        for i in range(count):
            share = int(rng.integers(0, 6))
            first = "red " * share + "blue " * (5 - share)
            rows.append(f'{i}\tnews\tf\t2012\t{i}\tnone\tnone\t{first.strip()}\ta "dog\t{share:.3f}')
        (root / "STS-B" / f"{split}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root
