"""Image folders, augmentation, and finetuning on images that can be told apart."""

from __future__ import annotations

import dataclasses
import io
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssmke.data.augmentation import AugmentationConfig
from ssmke.data.sources.image_files import close_archives
from ssmke.errors import ConfigError, DataError
from ssmke.evaluation.finetune.config import (
    AugmentConfig,
    ImageClassificationConfig,
    LoopConfig,
    RunConfig,
)
from ssmke.evaluation.finetune.image_classification import _ranks, mix, pixel_transform
from ssmke.evaluation.finetune.labelled_images import Augmented, LabelledViews, batches, read_image_classes
from ssmke.evaluation.finetune.run import run_image_classification
from ssmke.evaluation.labelled import open_labelled
from ssmke.models.student import SSMKE
from ssmke.training.unimodal.encoder_folder import save_image_encoder

HEAVY = AugmentConfig(mixup=0.8, cutmix=1.0, erase=0.5)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0), (0.0, 0.0)])
def test_mixed_targets_sum_to_one_and_hold_two_classes_at_most(mixup: float, cutmix: float) -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8)
    for _ in range(10):
        mixed, targets = mix(AugmentConfig(mixup=mixup, cutmix=cutmix), images, labels, 8)
        assert mixed.shape == images.shape
        torch.testing.assert_close(targets.sum(1), torch.ones(8))
        assert int((targets > 0).sum(1).max()) <= 2
        assert (targets >= 0).all()
        if mixup == cutmix == 0:
            assert torch.equal(mixed, images)


def test_mixup_mixes_images_as_it_mixes_targets() -> None:
    torch.manual_seed(1)
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 8, 8)
    mixed, targets = mix(AugmentConfig(mixup=0.8, cutmix=0), images, torch.arange(4), 4)
    torch.testing.assert_close(mixed[:, 0, 0, 0], targets @ torch.arange(4.0))
    mixed, targets = mix(AugmentConfig(mixup=0, cutmix=1), images, torch.arange(4), 4)
    torch.testing.assert_close(mixed[:, 0].mean((1, 2)), targets @ torch.arange(4.0))


def test_transform_erases_to_the_mean_and_keeps_bytes() -> None:
    torch.manual_seed(0)
    white = torch.full((3, 32, 32), 255, dtype=torch.uint8)
    shown = pixel_transform(AugmentConfig(rand_augment=0, erase=1.0), (0.2, 0.4, 0.6))(white)
    assert shown.dtype == torch.uint8
    erased = (shown != 255).all(0)
    assert 0.01 < float(erased.float().mean()) < 0.4
    assert shown[:, erased].unique(dim=1).flatten().tolist() == [51, 102, 153]
    assert torch.equal(pixel_transform(AugmentConfig(rand_augment=0, erase=0), (0, 0, 0))(white), white)


def test_images_do_not_depend_on_workers_and_change_with_the_epoch(image_folder: Path) -> None:
    data = read_image_classes(image_folder, 0.2, 0)
    shown = Augmented(AugmentationConfig(), pixel_transform(HEAVY, (0.5, 0.5, 0.5)), seed=3)
    order, found = list(range(data.train.images)), []
    for epoch, workers in ((0, 0), (0, 2), (1, 0)):
        skipped: Counter[str] = Counter()
        torch.manual_seed(workers)
        images = LabelledViews(data.train, 32, shown, epoch)
        state = torch.get_rng_state()
        pixels = torch.cat([batch for batch, _ in batches(images, order, 7, workers, skipped)])
        assert torch.equal(torch.get_rng_state(), state)
        assert skipped == {"truncated image": 1}
        found.append(pixels)
    assert found[0].shape == (48, 3, 32, 32)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_ranks_count_ties_against_the_model() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.9, 0.1, 0.5], [0.3, 0.3, 0.3]])
    assert _ranks(scores, torch.tensor([1, 1, 1])).tolist() == [0, 2, 2]


def test_split_is_seeded_and_keeps_every_class(image_folder: Path) -> None:
    one, again, other = (read_image_classes(image_folder / "val", 0.25, seed) for seed in (0, 0, 1))
    assert one.val.keys == again.val.keys
    assert one.digest == again.digest
    assert one.val.keys != other.val.keys
    assert Counter(one.val.labels.tolist()) == {0: 2, 1: 2, 2: 2}
    assert not set(one.train.keys) & set(one.val.keys)
    assert one.train.images + one.val.images == 24
    assert one.digest != other.digest


def test_data_that_are_refused(tmp_path: Path, image_folder: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        read_image_classes(tmp_path / "nothing", 0.2, 0)
    for name in ("train/cat/a.png", "train/dog/b.png", "only/one/a.png", "only/one/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match="has only train"):
        read_image_classes(tmp_path, 0.2, 0)
    (tmp_path / "val" / "cat").mkdir(parents=True)
    (tmp_path / "val" / "cat" / "c.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"differ in their classes \(dog\)"):
        read_image_classes(tmp_path, 0.2, 0)
    with pytest.raises(DataError, match="8 images of blue cannot be split"):
        read_image_classes(image_folder / "val", 0.01, 0)
    with pytest.raises(DataError, match="at least two"):
        read_image_classes(tmp_path / "only", 0.5, 0)


def test_tiny_imagenets_zip_is_read_by_workers_at_once(tmp_path: Path) -> None:
    rng, table = np.random.default_rng(0), ""
    with zipfile.ZipFile(tmp_path / "val.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(40):
            name, out = f"val_{i}.PNG", io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(out, "PNG")
            archive.writestr(f"images/{name}", out.getvalue())
            table += f"{name}\tn0{i % 2}\t0\t0\t62\t57\n"
        archive.writestr("val_annotations.txt", table)
    data = read_image_classes(tmp_path / "val.zip", 0.2, 0)
    assert (data.train.images, data.val.images, data.names) == (32, 8, ("n00", "n01"))
    found = []
    for workers in (0, 2):
        skipped: Counter[str] = Counter()
        loaded = batches(LabelledViews(data.train, 32, None), list(range(32)), 3, workers, skipped)
        found.append(torch.cat([pixels for pixels, _ in loaded]))
        assert not skipped
    assert torch.equal(*found)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_archive_that_goes_away_is_one_error_from_any_process(tmp_path: Path, workers: int) -> None:
    file = tmp_path / "val.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("images/a.png", b"x")
        archive.writestr("images/b.png", b"x")
        archive.writestr("val_annotations.txt", "a.png\tn0\nb.png\tn1\n")
    images = LabelledViews(open_labelled(file), 32, None)
    close_archives()
    file.unlink()
    with pytest.raises(DataError) as caught:
        list(batches(images, [0, 1], 2, workers, Counter()))
    assert str(caught.value) == f"cannot read {file}: No such file or directory."


def configured(model: Path, data: Path, epochs: int, **changes: object) -> ImageClassificationConfig:
    loop = LoopConfig(epochs=epochs, batch_size=16, lr=3e-3, layer_decay=0.8)
    augment = AugmentConfig(mixup=0.2, cutmix=0.2, rand_augment=1, erase=0.1, crop_min=0.5)
    config = ImageClassificationConfig(str(model), data, loop=loop, augment=augment, run=RunConfig(workers=0))
    return dataclasses.replace(config, **changes)


@pytest.mark.parametrize("part", ["encoder", "full"])
def test_learns_colours(model_dir: Path, image_folder: Path, part: str) -> None:
    lines: list[str] = []
    found = run_image_classification(configured(model_dir, image_folder, 6, part=part), lines.append)
    history = found["epochs"]["0"]
    assert found["metrics"]["top1"]["mean"] >= 80
    assert found["chance"]["top1"] == pytest.approx(100 / 3)
    assert found["metrics"]["top5"]["mean"] == 100
    assert history[-1]["loss"] < history[0]["loss"]
    low, high = found["seeds"]["0"]["top1_interval"]
    assert low <= found["metrics"]["top1"]["mean"] <= high
    assert found["skipped"]["0"] == {"train": {"truncated image": 1}, "val": {}}
    assert found["drop_path_applied"] is True
    assert sum(line.startswith("epoch ") for line in lines) == 6


def test_seeds_are_repeatable_and_aggregate(model_dir: Path, image_folder: Path) -> None:
    config = configured(model_dir, image_folder, 1, run=RunConfig(seed=(0, 1), workers=0))
    one, again = (run_image_classification(config, lambda _: None) for _ in range(2))
    assert one["epochs"] == again["epochs"]
    losses = [scores["loss"] for scores in one["seeds"].values()]
    assert losses[0] != losses[1]
    assert one["metrics"]["loss"]["mean"] == pytest.approx(np.mean(losses))
    assert one["metrics"]["loss"]["std"] == pytest.approx(np.std(losses, ddof=1))


def test_a_timm_model_as_peer(image_folder: Path) -> None:
    config = configured(
        Path("timm:mobilenetv2_035"), image_folder, 1, part="encoder", weights="none", image_size=32
    )
    with pytest.warns(UserWarning, match="RANDOM"):
        found = run_image_classification(config, lambda _: None)
    assert found["seeds"]["0"]["images"] == 24
    assert found["drop_path_applied"] is False


def test_a_distilled_image_encoder(model_dir: Path, image_folder: Path, tmp_path: Path) -> None:
    encoder = SSMKE.from_pretrained(model_dir)
    save_image_encoder(tmp_path / "encoder", encoder.config.image, encoder.image_encoder.state_dict())
    one, other = (
        run_image_classification(configured(model, image_folder, 1, part="encoder"), lambda _: None)
        for model in (tmp_path / "encoder", model_dir)
    )
    assert one["seeds"] == other["seeds"]
    with pytest.raises(ConfigError, match="no shared encoder"):
        run_image_classification(configured(tmp_path / "encoder", image_folder, 1), lambda _: None)
