"""Labelled images in each form they come in; pickled files are refused."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssmke.data.decode import decode_image
from ssmke.errors import BadSample, DataError
from ssmke.evaluation.labelled import open_labelled, splits_of


def picture(seed: int, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)).save(out, kind)
    return out.getvalue()


def write(path: Path, seed: int, kind: str = "PNG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(seed, kind))


def test_class_folders_in_order_of_name_with_nested_ones_and_without_empty_ones(tmp_path: Path) -> None:
    write(tmp_path / "cat" / "2.JPEG", 2, "JPEG")
    write(tmp_path / "cat" / "deep" / "1.png", 1)
    write(tmp_path / "big_dog" / "0.png", 0)
    (tmp_path / "another").mkdir()
    (tmp_path / "cat" / "note.txt").touch()
    found = open_labelled(tmp_path)
    assert found.folders == ["big_dog", "cat"]
    assert found.names == ["big dog", "cat"]
    assert found.labels.tolist() == [0, 1, 1]
    assert [found.read(i).image for i in range(3)] == [picture(0), picture(2, "JPEG"), picture(1)]
    part = found.subset(np.array([2, 0]))
    assert part.labels.tolist() == [1, 0]
    assert part.read(0).image == picture(1)


def test_splits_are_asked_for(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write(tmp_path / split / "n01440764" / "a.png", 1)
    assert splits_of(tmp_path) == ("train", "val")
    assert open_labelled(tmp_path, "val").names == ["tench"]
    with pytest.raises(DataError, match="has the splits train, val: name one of them with --split"):
        open_labelled(tmp_path)
    with pytest.raises(DataError, match="it has no 'test'"):
        open_labelled(tmp_path, "test")
    with pytest.raises(DataError, match="has no splits"):
        open_labelled(tmp_path / "val", "val")


@pytest.mark.parametrize("zipped", [True, False])
def test_tiny_imagenets_val(tmp_path: Path, zipped: bool) -> None:
    files = {
        "images/val_0.JPEG": picture(0),
        "images/val_1.JPEG": picture(1),
        "images/val_2.JPEG": picture(2),
    }
    files["val_annotations.txt"] = b"val_0.JPEG\tn02123045\t0\t0\t1\t1\nval_1.JPEG\tn01443537\t0\t0\t1\t1\nval_2.JPEG\tn02123045\t0\t0\t1\t1\n"  # fmt: skip  # noqa: E501
    if zipped:
        root = tmp_path / "tiny.zip"
        with zipfile.ZipFile(root, "w") as archive:
            for name, data in files.items():
                archive.writestr(f"top/{name}", data)
    else:
        root = tmp_path
        (root / "images").mkdir()
        for name, data in files.items():
            (root / name).write_bytes(data)
    found = open_labelled(root)
    assert found.names == ["goldfish", "tabby cat"]
    assert found.labels.tolist() == [1, 0, 1]
    assert found.read(1).image == picture(1)


@pytest.mark.parametrize(("kind", "label_bytes"), [("cifar-10-batches-bin", 1), ("cifar-100-binary", 2)])
def test_cifars_binary_version_to_the_pixel(tmp_path: Path, kind: str, label_bytes: int) -> None:
    folder = tmp_path / kind
    folder.mkdir()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 3, 32, 32), np.uint8)
    labels = np.array([2, 0, 1, 1, 2, 0], np.uint8)
    coarse = np.full((6, label_bytes - 1), 7, np.uint8)
    rows = np.concatenate([coarse, labels[:, None], pixels.reshape(6, -1)], 1)
    (folder / ("test_batch.bin" if label_bytes == 1 else "test.bin")).write_bytes(rows.tobytes())
    meta = folder / ("batches.meta.txt" if label_bytes == 1 else "fine_label_names.txt")
    meta.write_text("airplane\nmaple_tree\ncat\n\n")
    found = open_labelled(tmp_path, "test")
    assert splits_of(tmp_path) == ("test",)
    assert found.names == ["airplane", "maple tree", "cat"]
    assert found.labels.tolist() == labels.tolist()
    shown = np.asarray(decode_image(found.read(4).image))
    np.testing.assert_array_equal(shown, pixels[4].transpose(1, 2, 0))
    meta.write_text("airplane\n")
    with pytest.raises(DataError, match="names 1 classes, and there are labels to 2"):
        open_labelled(tmp_path, "test")
    next(folder.glob("test*.bin")).write_bytes(b"123")
    with pytest.raises(DataError, match="3 bytes are no whole number"):
        open_labelled(tmp_path, "test")


def test_pickled_cifar_is_refused_and_never_read(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Runs:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return Path.touch, (marker,)

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("batches.meta", "test_batch"):
        (folder / name).write_bytes(pickle.dumps(Runs()))
    for root in (tmp_path, folder):
        with pytest.raises(DataError, match=r"pickled.*binary version"):
            open_labelled(root)
    assert not marker.exists()


def test_what_is_none_says_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images in class folders"):
        open_labelled(tmp_path)
    with pytest.raises(DataError, match="no such folder or file"):
        open_labelled(tmp_path / "absent")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.txt", "")
    with pytest.raises(DataError, match=r"without val_annotations\.txt"):
        open_labelled(tmp_path / "x.zip")


def test_a_file_that_vanished_is_a_bad_sample(tmp_path: Path) -> None:
    write(tmp_path / "cat" / "1.png", 1)
    found = open_labelled(tmp_path)
    (tmp_path / "cat" / "1.png").unlink()
    with pytest.raises(BadSample, match="missing file"):
        found.read(0)
