from __future__ import annotations

import csv
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssmke.data.dataset import ImageTextShards
from ssmke.data.sources import import_flickr8k, import_flickr30k
from ssmke.data.verify import verify
from ssmke.errors import DataError

Encode = Callable[..., bytes]

SPLITS = {"1000": "train", "1001": "train", "1002": "val", "1003": "test"}


class Flickr:
    """Four images; a test adds captions in the form that it is about."""

    def __init__(self, folder: Path, encode: Encode) -> None:
        self.root, self.out = folder / "flickr", folder / "out"
        self.root.mkdir()
        self.images = {f"{name}.jpg": encode(seed=int(name)) for name in SPLITS}

    def folder(self, name: str) -> None:
        (self.root / name).mkdir(parents=True)
        for file, data in self.images.items():
            (self.root / name / file).write_bytes(data)

    def zip(self, name: str, members: dict[str, bytes]) -> None:
        with zipfile.ZipFile(self.root / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, data in members.items():
                archive.writestr(member, data)

    def karpathy(self, dataset: str) -> bytes:
        images = [
            {
                "filename": f"{name}.jpg",
                "split": split,
                "imgid": int(name),
                "sentids": [0],
                "sentences": [{"raw": f"Picture {name} .", "tokens": ["picture"]}],
            }
            for name, split in SPLITS.items()
        ]
        return json.dumps({"dataset": dataset, "images": images}).encode()

    def tokens(self) -> str:
        return "".join(f"{name}.jpg#{i}\tCaption {i} of {name} .\n" for name in SPLITS for i in range(5))

    def counts(self, report: Any) -> dict[str, tuple[int, int]]:
        return {name: (split.images, split.captions) for name, split in report.manifest.splits.items()}


@pytest.fixture
def flickr(tmp_path: Path, encode: Encode) -> Flickr:
    return Flickr(tmp_path, encode)


WHOLE = {"train": (2, 10), "val": (1, 5), "test": (1, 5)}


def test_flickr8k_as_its_two_archives(flickr: Flickr) -> None:
    junk = {f"__MACOSX/Flicker8k_Dataset/._{name}": b"\0\5\x16\7" for name in flickr.images}
    photos = {f"Flicker8k_Dataset/{name}": data for name, data in flickr.images.items()}
    flickr.zip("Flickr8k_Dataset.zip", junk | photos)
    lists = {"train": "train", "val": "dev", "test": "test"}
    texts = {
        f"Flickr_8k.{lists[split]}Images.txt": "".join(
            f"{n}.jpg\n" for n in SPLITS if SPLITS[n] == split
        ).encode()
        for split in lists
    }
    # The distributed file has captions of an image that is in no list, under an odd name.
    tokens = flickr.tokens() + "2258277193_586949ec62.jpg.1#0\tpeople waiting for the subway\n"
    flickr.zip(
        "Flickr8k_text.zip",
        {"Flickr8k.token.txt": tokens.encode(), "__MACOSX/._Flickr8k.token.txt": b"\0\5"} | texts,
    )
    report = import_flickr8k(flickr.root, flickr.out)
    assert flickr.counts(report) == WHOLE
    assert dict(report.manifest.skipped) == {"in no split": 1}
    assert report.manifest.name == "flickr8k"
    sample = ImageTextShards.open([flickr.out], "val").read(0)
    assert (sample.key, sample.captions[4]) == ("1002", "Caption 4 of 1002 .")
    assert sample.image == flickr.images["1002.jpg"]
    assert verify(flickr.out).ok
    assert import_flickr8k(flickr.root, flickr.out).written == 0


def test_flickr8k_unpacked_one_level_too_deep(flickr: Flickr) -> None:
    flickr.folder("Flickr8k_Dataset/Flicker8k_Dataset")
    flickr.zip("caption_datasets.zip", {"dataset_flickr8k.json": flickr.karpathy("flickr8k")})
    report = import_flickr8k(flickr.root, flickr.out)
    assert flickr.counts(report) == {"train": (2, 2), "val": (1, 1), "test": (1, 1)}
    assert "caption_datasets.zip: dataset_flickr8k.json" in report.notes[0]


def test_flickr8k_needs_its_lists(flickr: Flickr) -> None:
    flickr.folder("Images")
    (flickr.root / "Flickr8k.token.txt").write_text(flickr.tokens())
    (flickr.root / "Flickr_8k.trainImages.txt").write_text("1000.jpg\n")
    with pytest.raises(
        DataError, match=r"Missing: captions .*Flickr_8k.devImages.txt.*Found there: Flickr8k.token"
    ):
        import_flickr8k(flickr.root, flickr.out)


def test_flickr30k_from_the_hubs_archive_and_table(flickr: Flickr) -> None:
    photos = {f"flickr30k-images/{name}": data for name, data in flickr.images.items()}
    flickr.zip("flickr30k-images.zip", photos | {"__MACOSX/flickr30k-images/._1000.jpg": b"\0"})
    with (flickr.root / "flickr_annotations_30k.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["raw", "sentids", "split", "filename", "img_id"])
        for i, (name, split) in enumerate(SPLITS.items()):
            captions = [f'A "{name}", number {j} .' for j in range(5)]
            rows.writerow([json.dumps(captions), list(range(5)), split, f"{name}.jpg", i])
    report = import_flickr30k(flickr.root, flickr.out)
    assert flickr.counts(report) == WHOLE
    sample = ImageTextShards.open([flickr.out], "test").read(0)
    assert sample.captions[0] == 'A "1003", number 0 .'
    assert sample.extra == {"filename": "1003.jpg", "imgid": 3}
    assert import_flickr30k(flickr.root, flickr.out).written == 0


def test_flickr30k_tokens_with_the_lists_of_entities(flickr: Flickr) -> None:
    flickr.folder("flickr30k-images")
    (flickr.root / "results_20130124.token").write_text(flickr.tokens().replace("\n", "\r\n"))
    (flickr.root / "flickr30k_entities").mkdir()
    for split in ("train", "val", "test"):
        names = "".join(f"{name}\n" for name in SPLITS if SPLITS[name] == split)
        (flickr.root / "flickr30k_entities" / f"{split}.txt").write_text(names)
    report = import_flickr30k(flickr.root, flickr.out)
    assert flickr.counts(report) == WHOLE
    assert len(report.notes) == 1


def test_flickr30k_tokens_without_lists_are_all_train_and_say_so(flickr: Flickr) -> None:
    flickr.folder("flickr30k-images")
    (flickr.root / "results_20130124.token").write_text(flickr.tokens())
    report = import_flickr30k(flickr.root, flickr.out)
    assert flickr.counts(report) == {"train": (4, 20)}
    assert "all images are in train: do not evaluate on Flickr30k" in report.notes[1]


def test_images_may_lie_in_the_root_and_splits_be_chosen(flickr: Flickr) -> None:
    for name, data in flickr.images.items():
        (flickr.root / name).write_bytes(data)
    (flickr.root / "dataset_flickr30k.json").write_bytes(flickr.karpathy("flickr30k"))
    report = import_flickr30k(flickr.root, flickr.out, splits=("test",))
    assert flickr.counts(report) == {"test": (1, 1)}


def test_a_compressed_tar_gets_the_command_that_unpacks_it(flickr: Flickr) -> None:
    flickr.folder("flickr30k-images")
    with tarfile.open(flickr.root / "flickr30k-images.tar.gz", "w:gz") as tar:
        tar.add(flickr.root / "flickr30k-images", "flickr30k-images")
    for path in (flickr.root / "flickr30k-images").iterdir():
        path.unlink()
    (flickr.root / "dataset_flickr30k.json").write_bytes(flickr.karpathy("flickr30k"))
    with pytest.raises(DataError) as caught:
        import_flickr30k(flickr.root, flickr.out)
    message = str(caught.value)
    command = message[message.index("(tar ") + 1 : message.rindex(")")]
    assert command == f"tar -xf {flickr.root}/flickr30k-images.tar.gz -C {flickr.root}"
    assert "images (flickr30k-images/, flickr30k_images/, Images/, flickr30k-images.zip" in message
    assert "dataset_flickr30k.json;" not in message


def test_captions_that_are_not_utf8_or_hold_odd_line_ends_cost_only_themselves(flickr: Flickr) -> None:
    flickr.folder("flickr30k-images")
    text = flickr.tokens().replace("Caption 1 of 1000", "one\u2028two").encode()
    (flickr.root / "results_20130124.token").write_bytes(text.replace(b"Caption 2 of 1000", b"caf\xe9"))
    report = import_flickr30k(flickr.root, flickr.out)
    assert dict(report.manifest.skipped) == {"caption not UTF-8": 1}
    assert ImageTextShards.open([flickr.out], "train").read(0).captions[1] == "one two ."


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "results_20130124.token",
            "1000.jpg#0 no tab",
            r"line 1 is '1000.jpg#0 no tab', not NAME.jpg#NUMBER",
        ),
        ("results_20130124.token", "1000.jpg#0\tx\n1000.jpg\tx", r"line 2 is "),
        ("results_20130124.token", "../1000.jpg#0\tx", r"line 1: '../1000.jpg' is not the name of an image"),
        ("flickr_annotations_30k.csv", "raw,filename\n[],x.jpg\n", r"has no column split"),
        (
            "flickr_annotations_30k.csv",
            "raw,split,filename\n[1],train,x.jpg\n",
            r'line 2: column "raw": it is no',
        ),
        ("flickr_annotations_30k.csv", "raw,split,filename\n[],a/b,x.jpg\n", r"column \"split\" is 'a/b'"),
        ("flickr_annotations_30k.csv", "raw,split,filename\n[]\n", r'column "split" is \'\''),
        (
            "flickr_annotations_30k.csv",
            "raw,split,filename\n[],train,/etc/passwd\n",
            r"'/etc/passwd' is not the",
        ),
        (
            "flickr_annotations_30k.csv",
            'raw,split,filename\n"[],train,x.jpg\n',
            r"line 1: unexpected end of data",
        ),
        ("flickr_annotations_30k.csv", "", r"has no column filename, raw, split"),
    ],
)
def test_captions_of_another_form_name_the_place(flickr: Flickr, name: str, text: str, message: str) -> None:
    flickr.folder("flickr30k-images")
    (flickr.root / name).write_text(text)
    with pytest.raises(DataError, match=f"{name}: .*{message}"):
        import_flickr30k(flickr.root, flickr.out)
    assert not flickr.out.exists()


def test_real_flickr8k_in_the_layout_of_its_archives(flickr8k: Path, tmp_path: Path) -> None:
    """The same photos and captions, once in Karpathy's form and once as token file with lists."""
    content = json.loads((flickr8k / "captions.json").read_text())
    kept = [image for image in content["images"] if image["split"] == "train"][:30]
    kept += [image for image in content["images"] if image["split"] == "val"][:10]
    samples = []
    for form in ("karpathy", "tokens"):
        root = tmp_path / form
        (root / "Flicker8k_Dataset").mkdir(parents=True)
        for image in kept:
            target = root / "Flicker8k_Dataset" / image["filename"]
            target.symlink_to(flickr8k / "images" / image["filename"])
        if form == "karpathy":
            (root / "dataset_flickr8k.json").write_text(json.dumps({"dataset": "flickr8k", "images": kept}))
        else:
            lines = [f"{i['filename']}#{n}\t{s['raw']}\n" for i in kept for n, s in enumerate(i["sentences"])]
            (root / "Flickr8k.token.txt").write_text("".join(lines))
            for name, split in (("train", "train"), ("dev", "val"), ("test", "test")):
                names = "".join(f"{image['filename']}\n" for image in kept if image["split"] == split)
                (root / f"Flickr_8k.{name}Images.txt").write_text(names)
        import_flickr8k(root, tmp_path / f"out-{form}")
        shards = ImageTextShards.open([tmp_path / f"out-{form}"], "val")
        samples.append([(s.key, s.image, s.captions) for s in map(shards.read, range(shards.images))])
    assert samples[0] == samples[1]
    assert len(samples[0]) == 10
