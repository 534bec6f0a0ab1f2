from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from PIL import Image

from ssmke.data.manifest import Manifest, Split
from ssmke.data.quality.leaks import (
    Leak,
    LeakConfig,
    LeakReport,
    Place,
    find_leaks,
    read_leaks,
    write_leaks,
)
from ssmke.data.shards import Sample, write_shard
from ssmke.errors import ConfigError, DataError


def jpeg(image: Image.Image, quality: int = 92) -> bytes:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def write(folder: Path, splits: Mapping[str, Sequence[Mapping[str, bytes]]]) -> Path:
    """A dataset of images by key, for each shard of each split."""
    folder.mkdir()
    written = {}
    for split, shards in splits.items():
        infos = []
        for number, images in enumerate(shards):
            samples = [Sample(key, data, (f"caption of {key}",)) for key, data in images.items()]
            infos.append(write_shard(folder / f"{split}-{number:05d}.tar", samples, split))
        written[split] = Split(tuple(infos))
    Manifest(folder.name, {}, written).save(folder)
    return folder


def pairs(report: LeakReport) -> list[tuple[str, str, str]]:
    return [(leak.kind, leak.train.key, leak.against.key) for leak in report.leaks]


@pytest.fixture(scope="module")
def photos(flickr8k: Path) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted((flickr8k / "images").iterdir())[:300]]


def test_planted_leaks_are_found_and_nothing_else(tmp_path: Path, photos: list[Image.Image]) -> None:
    evaluation = {f"e{i}": jpeg(photo) for i, photo in enumerate(photos[:100])}
    train = {f"t{i}": jpeg(photo) for i, photo in enumerate(photos[100:])}
    changes: list[Callable[[Image.Image], bytes]] = [
        lambda image: jpeg(image, 50),
        lambda image: jpeg(image.resize((100, 75))),
        lambda image: jpeg(image.crop((4, 4, image.width - 4, image.height - 4))),
        lambda image: jpeg(image.convert("L")),
    ]
    planted = {f"near{i}": changes[i % 4](photo) for i, photo in enumerate(photos[:40])}
    mirrored = {
        f"mirror{i}": jpeg(photos[i].transpose(Image.Transpose.FLIP_LEFT_RIGHT), 60) for i in range(40, 50)
    }
    exact = {f"exact{i}": evaluation[f"e{i}"] for i in range(50, 55)}
    web = write(tmp_path / "web", {"train": [train | mirrored, planted | exact]})
    held_out = write(tmp_path / "held_out", {"val": [dict(list(evaluation.items())[:30])]})
    other = write(tmp_path / "other", {"test": [dict(list(evaluation.items())[30:])], "train": [train]})
    totals: list[int] = []
    done: list[int] = []
    report = find_leaks(
        [web], [held_out, other], LeakConfig(), workers=2, on_total=totals.append, on_items=done.append
    )
    expected = [("mirrored", f"mirror{i}", f"e{i}") for i in range(40, 50)]
    expected += [("near", f"near{i}", f"e{i}") for i in range(40)]
    expected += [("exact", f"exact{i}", f"e{i}") for i in range(50, 55)]
    assert pairs(report) == expected
    assert report.images == 55
    assert (report.train_images, report.against_images) == (255, 100)
    assert totals == [355] == [sum(done)]
    assert all(leak.distance == 0 and leak.correlation == 1 for leak in report.leaks if leak.kind == "exact")
    first = report.leaks[10]
    assert first.train == Place(str(web.resolve()), "train", "near0")
    assert first.against == Place(str(held_out.resolve()), "val", "e0")
    assert report.leaks[40].against.split == "test"
    plain = find_leaks([web], [held_out, other], LeakConfig(mirrored=False))
    assert pairs(plain) == expected[10:]
    strict = find_leaks([web], [held_out, other], LeakConfig(max_distance=0, min_correlation=1))
    assert [kind for kind, _, _ in pairs(strict)].count("exact") == 5
    assert len(strict.leaks) < 15


def test_a_dataset_is_checked_against_its_own_splits(tmp_path: Path, encode: Callable[..., bytes]) -> None:
    images = [encode(64, 64, "PNG", seed=i) for i in range(6)]
    again = jpeg(Image.open(io.BytesIO(images[4])))
    folder = write(
        tmp_path / "own",
        {
            "train": [{"a": images[0], "b": images[1]}, {"c": images[4]}],
            "val": [{"d": images[1], "e": again}],
        },
    )
    report = find_leaks([folder], [folder], LeakConfig())
    assert pairs(report) == [("exact", "b", "d"), ("near", "c", "e")]
    # Named twice, nothing is found twice.
    assert pairs(find_leaks([folder, folder], [folder], LeakConfig())) == pairs(report)
    with pytest.raises(ConfigError, match=r"--against-splits: .*own would be compared with itself"):
        find_leaks([folder], [folder], LeakConfig(), against_splits=("val", "train"))
    with pytest.raises(DataError, match="no split 'test'"):
        find_leaks([folder], [folder], LeakConfig(), against_splits=("test",))


def test_copies_that_do_not_decode_leak_by_their_bytes(tmp_path: Path, encode: Callable[..., bytes]) -> None:
    broken, blank = encode(seed=1)[:500], jpeg(Image.new("RGB", (64, 64), "white"))
    almost = jpeg(Image.new("RGB", (65, 64), "white"))  # all blank pages look alike, and are no leaks
    folder = write(
        tmp_path / "own",
        {"train": [{"a": broken, "b": blank, "c": almost}], "test": [{"d": broken, "e": blank}]},
    )
    report = find_leaks([folder], [folder], LeakConfig())
    assert pairs(report) == [("exact", "a", "d"), ("exact", "b", "e")]
    assert report.unreadable == {"truncated image": 2}
    assert report.candidates == 0


def test_a_leak_may_be_of_several_images(tmp_path: Path, encode: Callable[..., bytes]) -> None:
    image = encode(seed=1)
    folder = write(
        tmp_path / "own", {"train": [{"a": image, "b": image}], "val": [{"c": image}], "test": [{"d": image}]}
    )
    report = find_leaks([folder], [folder], LeakConfig())
    assert sorted(pairs(report)) == [("exact", train, held_out) for train in "ab" for held_out in "cd"]
    assert report.images == 2


def test_a_picture_that_is_its_own_mirror_image_leaks_once(tmp_path: Path) -> None:
    half = Image.effect_mandelbrot((64, 64), (-2, -1, 1, 1), 60).convert("L")
    image = Image.new("L", (128, 64))
    image.paste(half, (0, 0))
    image.paste(half.transpose(Image.Transpose.FLIP_LEFT_RIGHT), (64, 0))
    folder = write(tmp_path / "own", {"train": [{"a": jpeg(image, 60)}], "val": [{"b": jpeg(image, 90)}]})
    assert pairs(find_leaks([folder], [folder], LeakConfig())) == [("near", "a", "b")]


def test_leaks_survive_being_written(tmp_path: Path) -> None:
    leaks = [
        Leak("near", 3, 0.9876, Place("/a b/ü", "train", "k"), Place("/c", "val", "l")),
        Leak("exact", 0, 1.0, Place("/a b/ü", "train", "m"), Place("/c", "test", "n")),
    ]
    path = tmp_path / "leaks.jsonl"
    write_leaks(path, leaks)
    assert read_leaks(path) == leaks
    assert json.loads(path.read_text().splitlines()[0])["train"] == {
        "dir": "/a b/ü",
        "split": "train",
        "key": "k",
    }
    write_leaks(path, [])
    assert read_leaks(path) == []


@pytest.mark.parametrize(
    "line", ["{}", "[]", "x", '{"kind": "near"}', '{"kind": "far", "distance": 1}', "\xff"]
)
def test_other_files_are_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "leaks.jsonl"
    place = Place("/a", "train", "k")
    write_leaks(path, [Leak("near", 3, 0.98, place, place)])
    path.write_bytes(path.read_bytes() + line.encode("latin-1") + b"\n")
    with pytest.raises(DataError, match=r"line 2 of .*leaks\.jsonl is not a leak"):
        read_leaks(path)
    with pytest.raises(DataError, match=r"cannot read .*missing"):
        read_leaks(tmp_path / "missing")


def test_options_are_checked() -> None:
    for wrong, flag in (
        ({"max_distance": 16}, "--max-distance 16"),
        ({"max_distance": -1}, "--max-distance -1"),
        ({"min_correlation": 0.0}, "--min-correlation 0.0"),
        ({"min_correlation": 1.1}, "--min-correlation 1.1"),
    ):
        with pytest.raises(ConfigError, match=flag):
            LeakConfig(**wrong)  # type: ignore[arg-type]
