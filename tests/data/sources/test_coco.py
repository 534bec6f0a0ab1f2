from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssmke.data.dataset import ImageTextShards
from ssmke.data.shards import file_sha256
from ssmke.data.sources import import_coco
from ssmke.data.verify import verify
from ssmke.errors import DataError

Encode = Callable[..., bytes]


class Coco:
    """Four images of 2014 in COCO's layout, to be spoiled by tests."""

    def __init__(self, folder: Path, encode: Encode) -> None:
        self.root, self.out = folder / "coco", folder / "out"
        self.root.mkdir()
        names = {"train": (9, 25), "val": (42, 73)}
        self.images = {
            f"{part}2014/COCO_{part}2014_{number:012d}.jpg": encode(seed=number)
            for part, numbers in names.items()
            for number in numbers
        }
        self.annotations = {
            part: {
                "info": {"year": 2014},
                "images": [
                    {"id": number, "file_name": f"COCO_{part}2014_{number:012d}.jpg", "license": 3}
                    for number in numbers
                ],
                "annotations": [
                    {"image_id": number, "id": 10 * number + i, "caption": f"Caption {i} of {number}.\n"}
                    for i in range(5)
                    for number in numbers
                ],
            }
            for part, numbers in names.items()
        }
        splits = {9: "train", 25: "train", 42: "restval", 73: "test"}
        self.karpathy = {
            "dataset": "coco",
            "images": [
                {
                    "filepath": f"{part}2014",
                    "filename": f"COCO_{part}2014_{number:012d}.jpg",
                    "split": splits[number],
                    "imgid": i,
                    "cocoid": number,
                    "sentids": [1],
                    "sentences": [{"raw": f"Karpathy {number}", "tokens": ["karpathy"], "imgid": i}],
                }
                for part, numbers in names.items()
                for i, number in enumerate(numbers)
            ],
        }

    def folders(self) -> None:
        for name, data in self.images.items():
            (self.root / name).parent.mkdir(exist_ok=True)
            (self.root / name).write_bytes(data)

    def zips(self) -> None:
        for part in ("train2014", "val2014"):
            self.zip(f"{part}.zip", {name: data for name, data in self.images.items() if part in name})

    def zip(self, name: str, members: dict[str, bytes]) -> None:
        with zipfile.ZipFile(self.root / name, "w") as archive:
            for member, data in members.items():
                archive.writestr(member, data)

    def run(self, **options: Any) -> Any:
        return import_coco(self.root, options.pop("out", self.out), **options)


@pytest.fixture
def coco(tmp_path: Path, encode: Encode) -> Coco:
    return Coco(tmp_path, encode)


def counts(report: Any) -> dict[str, tuple[int, int]]:
    return {name: (split.images, split.captions) for name, split in report.manifest.splits.items()}


def test_cocos_own_annotations_in_its_own_archives(coco: Coco) -> None:
    coco.zips()
    texts = {part: json.dumps(content).encode() for part, content in coco.annotations.items()}
    coco.zip(
        "annotations_trainval2014.zip",
        {
            f"annotations/{kind}_{p}2014.json": t
            for p, t in texts.items()
            for kind in ("captions", "instances")
        },
    )
    report = coco.run()
    assert counts(report) == {"train": (2, 10), "val": (2, 10)}
    assert "annotations_trainval2014.zip: annotations/captions_train2014.json" in report.notes[0]
    sample = ImageTextShards.open([coco.out], "val").read(1)
    assert sample.key == "COCO_val2014_000000000073"
    assert sample.captions[:2] == ("Caption 0 of 73.", "Caption 1 of 73.")
    assert sample.extra == {"cocoid": 73, "filename": "COCO_val2014_000000000073.jpg"}
    assert sample.source == report.manifest.name == "coco"
    assert verify(coco.out).ok
    assert coco.run().reused == 2


def test_karpathys_splits_come_first(coco: Coco) -> None:
    coco.zips()
    (coco.root / "annotations").mkdir()
    for part, content in coco.annotations.items():
        (coco.root / "annotations" / f"captions_{part}2014.json").write_text(json.dumps(content))
    coco.zip("caption_datasets.zip", {"dataset_coco.json": json.dumps(coco.karpathy).encode()})
    report = coco.run()
    assert counts(report) == {"train": (3, 3), "test": (1, 1)}
    assert report.manifest.source["captions_file"] == "dataset_coco.json"
    assert ImageTextShards.open([coco.out], "test").read(0).extra["cocoid"] == 73


def test_folders_and_archives_give_the_same_bytes(coco: Coco, tmp_path: Path) -> None:
    (coco.root / "dataset_coco.json").write_text(json.dumps(coco.karpathy))
    coco.zips()
    coco.run()
    (coco.root / "train2014.zip").unlink()
    (coco.root / "images").mkdir()
    coco.root, inner = coco.root / "images", coco.root
    coco.folders()
    coco.root = inner
    coco.run(out=tmp_path / "mixed")  # a folder some levels below, and a zip
    for path in coco.out.iterdir():
        if path.name != "import.state.jsonl":
            assert file_sha256(path) == file_sha256(tmp_path / "mixed" / path.name)


def test_evaluation_needs_only_its_own_images(coco: Coco) -> None:
    (coco.root / "dataset_coco.json").write_text(json.dumps(coco.karpathy))
    coco.zips()
    (coco.root / "train2014.zip").unlink()
    with pytest.raises(
        DataError, match=r"Missing: images \(train2014/ or train2014.zip\)\. Found there: dat"
    ):
        coco.run()
    assert counts(coco.run(splits=("val", "test"))) == {"test": (1, 1)}
    with pytest.raises(DataError, match=r"--splits tset: .*dataset_coco.json has no images of them"):
        coco.run(splits=("tset",))
    with pytest.raises(DataError, match=r"--splits was \['test', 'val'\], now \['test'\]"):
        coco.run(splits=("test",))


def test_2017(coco: Coco, encode: Encode) -> None:
    (coco.root / "annotations").mkdir()
    for part, number in (("train", 9), ("val", 139)):
        content = {
            "images": [{"id": number, "file_name": f"{number:012d}.jpg"}],
            "annotations": [{"image_id": number, "id": 1, "caption": "A room."}],
        }
        (coco.root / "annotations" / f"captions_{part}2017.json").write_text(json.dumps(content))
        (coco.root / f"{part}2017").mkdir()
        (coco.root / f"{part}2017" / f"{number:012d}.jpg").write_bytes(encode(seed=number))
    assert counts(coco.run()) == {"train": (1, 1), "val": (1, 1)}


def test_all_that_is_missing_is_one_error(coco: Coco) -> None:
    with pytest.raises(DataError, match="does not hold all of coco-captions") as caught:
        coco.run()
    for piece in (
        "dataset_coco.json",
        "caption_datasets.zip",
        "captions_val2014.json",
        "train2014.zip",
        "val2014/",
    ):
        assert piece in str(caught.value)
    assert "Found there: nothing" in str(caught.value)
    (coco.root / "val2014").mkdir()  # without images it is as good as missing
    (coco.root / "captions_train2014.json").write_text("{}")
    with pytest.raises(DataError, match=r"val2014.zip\)\. Found there: captions_train2014.json, val2014/\."):
        coco.run()
    with pytest.raises(DataError, match="nowhere is not a folder"):
        import_coco(coco.root / "nowhere", coco.out)
    assert not coco.out.exists()


def test_an_image_without_captions_is_counted(coco: Coco) -> None:
    coco.folders()
    annotations = coco.annotations["train"]["annotations"]
    annotations[:] = [a for a in annotations if a["image_id"] != 9]  # type: ignore[index, union-attr]
    for part, content in coco.annotations.items():
        (coco.root / f"captions_{part}2014.json").write_text(json.dumps(content))
    report = coco.run()
    assert dict(report.manifest.skipped) == {"no usable caption": 1}


FAULTS: dict[str, Callable[[Any], object]] = {
    r'field "annotations" is missing': lambda c: c.pop("annotations"),
    r'images\[1\]: field "file_name" is missing': lambda c: c["images"][1].pop("file_name"),
    r'images\[0\]: field "id" is missing or no int': lambda c: c["images"][0].update(id="9"),
    r'annotations\[2\]: field "caption" is missing or no str': lambda c: c["annotations"][2].update(
        caption=None
    ),
    r"file_name '../x.jpg' is not a plain name": lambda c: c["images"][0].update(file_name="../x.jpg"),
    r"list the image 'COCO_val2014_000000000042' 2 times": lambda c: c["images"].append(c["images"][0]),
}


@pytest.mark.parametrize("message", FAULTS)
def test_annotations_of_another_form_name_the_field(coco: Coco, message: str) -> None:
    coco.folders()
    FAULTS[message](coco.annotations["val"])
    for part, content in coco.annotations.items():
        (coco.root / f"captions_{part}2014.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        coco.run()
    assert not coco.out.exists()


def test_damaged_files_are_named(coco: Coco) -> None:
    coco.folders()
    (coco.root / "caption_datasets.zip").write_bytes(b"<html>moved</html>")
    with pytest.raises(DataError, match=r"caption_datasets.zip is no zip archive"):
        coco.run()
    (coco.root / "caption_datasets.zip").unlink()
    (coco.root / "dataset_coco.json").write_text("{")
    with pytest.raises(DataError, match=r"dataset_coco.json is not JSON"):
        coco.run()
    coco.karpathy["images"][1].pop("filepath")  # type: ignore[index, attr-defined]
    (coco.root / "dataset_coco.json").write_text(json.dumps(coco.karpathy))
    with pytest.raises(DataError, match=r"'COCO_train2014_000000000025.jpg' has no field \"filepath\""):
        coco.run()
