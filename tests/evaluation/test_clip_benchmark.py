"""Our numbers are CLIP_benchmark's, through its own interface, where it is installed."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ssmke.data.captions import clean_caption
from ssmke.data.dataset import ImageTextShards
from ssmke.data.decode import decode_image
from ssmke.evaluation.clip_benchmark import Transform, load
from ssmke.evaluation.embed import embed_images, embed_split
from ssmke.evaluation.retrieval import retrieval_metrics
from ssmke.evaluation.zero_shot import class_embeddings, classify
from ssmke.models.dual_encoder import Student
from ssmke.models.student import SSMKE

GOOD = [i for i in range(23) if i not in (3, 11, 12)]


class Captioned(Dataset):  # type: ignore[type-arg]
    def __init__(self, shards: ImageTextShards, transform: Transform) -> None:
        self.shards, self.transform = shards, transform
        self.classes = ["red dog", "blue cat", "two children", "green grass", "cat", "dog"]

    def __len__(self) -> int:
        return len(GOOD)

    def sample(self, place: int) -> tuple[torch.Tensor, list[str]]:
        sample = self.shards.read(GOOD[place])
        captions = [clean_caption(caption) for caption in sample.captions if caption.strip()]
        return self.transform(decode_image(sample.image)), captions


class Retrieval(Captioned):
    def __getitem__(self, place: int) -> tuple[torch.Tensor, list[str]]:
        return self.sample(place)


class Classes(Captioned):
    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        return self.sample(place)[0], GOOD[place] % 6


def test_the_interface_gives_the_embeddings_of_the_model(
    model_dir: Path, model: SSMKE, shards: ImageTextShards
) -> None:
    wrapped, transform, tokenizer = load(str(model_dir), "none", None, "cpu")
    image = decode_image(shards.read(0).image)
    assert torch.equal(wrapped.encode_image(transform(image)[None]), model.encode_image([image]))
    texts = ["a red dog", "cat"]
    torch.testing.assert_close(wrapped.encode_text(tokenizer(texts).to("cpu")), model.encode_text(texts))


def test_pictures_are_brought_to_upright_rgb_on_white_as_by_the_model(model: SSMKE) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 4), dtype=np.uint8)
    turned = Image.fromarray(pixels[..., :3])
    exif = turned.getexif()
    exif[0x0112] = 6
    file = io.BytesIO()
    turned.save(file, "PNG", exif=exif)
    transform = Transform(model.image_size)
    for picture in (Image.fromarray(pixels), Image.open(file), Image.fromarray(pixels[..., 0])):
        shown = transform(picture)
        assert torch.equal(shown, model.processor().images([picture])[0])
        assert np.array_equal(shown, Student(model, "tiny").preprocess(picture))
    clear = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    assert torch.equal(transform(clear), torch.full((3, 32, 32), 255, dtype=torch.uint8))


def test_retrieval_is_clip_benchmarks(model_dir: Path, model: SSMKE, shards: ImageTextShards) -> None:
    theirs_module = pytest.importorskip(
        "clip_benchmark.metrics.zeroshot_retrieval", reason="clip-benchmark is not installed"
    )
    wrapped, transform, tokenizer = load(str(model_dir))
    loader = DataLoader(
        Retrieval(shards, transform),
        batch_size=4,
        collate_fn=lambda batch: (torch.stack([x for x, _ in batch]), [texts for _, texts in batch]),
    )
    theirs = theirs_module.evaluate(wrapped, loader, tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10])
    found = embed_split(Student(model, "tiny"), shards)
    # Only text -> image: captions that are equal letter for letter tie, which theirs settles by their order.
    ours = retrieval_metrics(found.image, found.text, found.text_image).to_dict()
    for k in (1, 5, 10):
        assert 100 * theirs[f"image_retrieval_recall@{k}"] == pytest.approx(ours[f"t2i_r{k}"], abs=1e-3)


def test_zero_shot_is_clip_benchmarks(
    model_dir: Path, model: SSMKE, shards: ImageTextShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs_module = pytest.importorskip(
        "clip_benchmark.metrics.zeroshot_classification", reason="clip-benchmark is not installed"
    )
    # Version 1.6.2 takes float() of arrays of one number, which NumPy 2.4 refuses.
    monkeypatch.setattr(theirs_module, "float", lambda value: np.asarray(value).item(), raising=False)
    wrapped, transform, tokenizer = load(str(model_dir))
    data = Classes(shards, transform)
    templates = ["a {c}", "{c} on grass"]
    theirs = theirs_module.evaluate(
        wrapped, DataLoader(data, batch_size=8), tokenizer, data.classes, templates, "cpu", amp=False
    )
    student = Student(model, "tiny")
    images = embed_images(student, shards).image
    heads = class_embeddings(student, data.classes, ["a {}", "{} on grass"])
    labels = torch.tensor(GOOD) % 6
    ours = classify(images, heads, labels.numpy(), data.classes)
    assert 100 * theirs["acc1"] == pytest.approx(ours.top1)
    assert 100 * theirs["acc5"] == pytest.approx(ours.top5)
    assert 100 * theirs["mean_per_class_recall"] == pytest.approx(ours.class_mean)


def test_registers_its_type_once() -> None:
    models = pytest.importorskip("clip_benchmark.models", reason="clip-benchmark is not installed")
    from ssmke.evaluation.clip_benchmark import register

    register()
    register()
    assert models.MODEL_TYPES.count("ssmke") == 1
    assert models.TYPE2FUNC["ssmke"] is load
