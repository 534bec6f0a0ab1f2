"""Small images, samples and caption files for the tests of ssmke.data."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ssmke.data.manifest import Manifest, Split
from ssmke.data.shards import Sample, write_shard

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def flickr8k() -> Path:
    """The real photos of the development data."""
    folder = SHARED_DATA / "flickr8k"
    if not (folder / "captions.json").is_file():
        pytest.skip(f"real data is not there: {folder}")
    return folder


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """``encode(width, height, format, seed)``: a picture of smooth noise, as a file's bytes."""

    def make(width: int = 48, height: int = 32, format: str = "JPEG", seed: int = 0) -> bytes:
        noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise).resize((width, height)).save(buffer, format)
        return buffer.getvalue()

    return make


@pytest.fixture(scope="session")
def samples(encode: Callable[..., bytes]) -> Callable[..., list[Sample]]:
    """``samples(n, prefix)``: with 1, 2, 3, 1, 2, ... captions."""

    def make(count: int, prefix: str = "s") -> list[Sample]:
        return [
            Sample(
                f"{prefix}{i:03d}",
                encode(seed=i),
                tuple(f"caption {j} of {prefix}{i}" for j in range(i % 3 + 1)),
                "toy",
                {"imgid": i},
            )
            for i in range(count)
        ]

    return make


@pytest.fixture
def dataset(tmp_path: Path, samples: Callable[..., list[Sample]]) -> Callable[..., Path]:
    """``dataset(name, shards={"train": [3, 2]})``: a dataset directory with shards of so many images."""

    def make(name: str = "toy", shards: dict[str, list[int]] | None = None) -> Path:
        directory = tmp_path / name
        directory.mkdir()
        splits = {}
        for split, sizes in (shards or {"train": [3, 2], "val": [2]}).items():
            infos = [
                write_shard(directory / f"{split}-{i:05d}.tar", samples(size, f"{name}_{split}{i}_"), split)
                for i, size in enumerate(sizes)
            ]
            splits[split] = Split(tuple(infos))
        Manifest(name, {"fingerprint": name}, splits).save(directory)
        return directory

    return make


@pytest.fixture
def karpathy(tmp_path: Path, encode: Callable[..., bytes]) -> KarpathyFiles:
    """Image files and a captions file in Karpathy's form, to be spoiled by tests."""
    return KarpathyFiles(tmp_path, encode)


class KarpathyFiles:
    """Five images, of which three are train, one val and one restval."""

    def __init__(self, folder: Path, encode: Callable[..., bytes]) -> None:
        self.images, self.captions, self.out = folder / "images", folder / "captions.json", folder / "out"
        self.images.mkdir()
        self.entries: list[dict[str, Any]] = []
        for i, split in enumerate(("train", "train", "val", "restval", "train")):
            self.add(f"{i}.jpg", encode(seed=i), split, f"caption one of {i}", f"caption two of {i}")

    def add(self, name: str, data: bytes | None, split: str, *captions: str) -> dict[str, Any]:
        if data is not None:
            (self.images / name).parent.mkdir(exist_ok=True, parents=True)
            (self.images / name).write_bytes(data)
        sentences = [{"raw": caption} for caption in captions]
        self.entries.append(
            {"filename": name, "split": split, "imgid": len(self.entries), "sentences": sentences}
        )
        self.save()
        return self.entries[-1]

    def save(self) -> None:
        self.captions.write_text(json.dumps({"dataset": "toy", "images": self.entries}))
