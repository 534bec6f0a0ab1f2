"""`ssmke.data.statistics`: every number is one that could be counted by hand."""

from __future__ import annotations

import dataclasses
import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ssmke.data.decode import decode_image
from ssmke.data.manifest import Manifest, ShardInfo, Split
from ssmke.data.remote.fetch import RemoteConfig
from ssmke.data.remote.mirror import Mirror
from ssmke.data.shards import Sample, write_shard
from ssmke.data.statistics import Report, collect
from ssmke.data.statistics_counting import image_size
from ssmke.data.statistics_plots import draw
from ssmke.data.tally import Histogram, coarse
from ssmke.errors import BadSample, ConfigError, DataError

Encode = Callable[..., bytes]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=60), st.integers(0, 100))
def test_quantiles_are_those_of_the_sorted_values(values: list[int], percent: int) -> None:
    found = Histogram(Counter(values))
    (quantile,) = found.quantiles(percent / 100)
    expected = np.quantile(values, percent / 100, method="inverted_cdf")
    assert quantile == expected
    assert found.mean == pytest.approx(np.mean(values))


@given(st.integers(0, 1 << 40))
def test_coarse_is_near_and_small_numbers_stay(value: int) -> None:
    assert 0 <= value - coarse(value) <= value * 0.001
    assert coarse(value) == value or value >= 2048


@pytest.fixture
def toy(tmp_path: Path, encode: Encode) -> Path:
    """Two splits with known sizes, one broken header, repeats, an empty caption, and losses."""
    train = [
        Sample("a", encode(64, 32), ("A dog runs .", "a DOG runs ."), "one"),
        Sample("b", encode(32, 64, "PNG"), ("one two three four five",), "one"),
        Sample("c", encode(40, 40, "WEBP"), ("a dog runs .", "word"), "two"),
    ]
    val = [
        Sample("d", encode(48, 24), ("word",), "two"),
        Sample("e", encode(48, 24)[:40], (" ", "broken header"), "two"),
    ]
    infos = {
        name: (
            write_shard(tmp_path / f"{name}-00000.tar", samples[:2], name),
            *([write_shard(tmp_path / f"{name}-00001.tar", samples[2:], name)] if samples[2:] else []),
        )
        for name, samples in (("train", train), ("val", val))
    }
    skipped = {"truncated image": 2, "empty caption": 1, "missing file": 1}
    Manifest("toy", {}, {name: Split(shards) for name, shards in infos.items()}, skipped).save(tmp_path)
    lines = [
        ("train", "truncated image"),
        ("train", "truncated image"),
        ("val", "empty caption"),
        ("val", "other"),
    ]
    text = "".join(json.dumps({"split": split, "reason": reason}) + "\n" for split, reason in lines)
    (tmp_path / "skipped.jsonl").write_text(text + "not JSON\n")
    return tmp_path


def test_every_number(toy: Path, encode: Encode) -> None:
    report = collect([toy])
    train, val, both = report.splits["train"], report.splits["val"], report.together
    assert (train.images, train.pairs, val.images, val.pairs, both.images, both.pairs) == (3, 5, 2, 3, 5, 8)
    assert train.captions_per_image.counts == {2: 2, 1: 1}
    assert train.words.counts == {4: 3, 5: 1, 1: 1}
    assert train.width.counts == {64: 1, 32: 1, 40: 1}
    assert train.height.counts == {32: 1, 64: 1, 40: 1}
    assert train.short_side.counts == {32: 2, 40: 1}
    assert train.aspect.counts == {200: 1, 50: 1, 100: 1}
    assert train.formats == {"jpg": 1, "png": 1, "webp": 1}
    assert both.sources == {"one": 2, "two": 3}
    files = [
        encode(64, 32),
        encode(32, 64, "PNG"),
        encode(40, 40, "WEBP"),
        encode(48, 24),
        encode(48, 24)[:40],
    ]
    assert both.image_bytes == sum(map(len, files))
    assert both.bytes.counts == Counter(coarse(len(data)) for data in files)
    # The broken header and the empty caption would be skipped by training.
    assert val.unusable == {"truncated image": 1, "empty caption": 1}
    assert val.width.total == 1
    # "A dog runs ." comes three times in train; "word" once in each split, so a repeat only of both.
    assert (train.repeated, val.repeated, both.repeated) == (2, 0, 3)
    # Of "other" the manifest knows nothing, and of "missing file" the list does not say the split.
    assert report.losses == {
        "train": {"truncated image": 2},
        "val": {"empty caption": 1},
        "": {"missing file": 1},
    }
    assert report.all_losses == {"truncated image": 2, "empty caption": 1, "missing file": 1}


def test_links_that_gave_nothing_are_counted(toy: Path, dataset: Callable[..., Path]) -> None:
    other = dataset("other")
    for folder, failures in ((toy, {"HTTP 404": 2}), (other, {"HTTP 404": 1, "timed out": 3})):
        (folder / "downloads.json").write_text(json.dumps({"links": {"asked": 9, "failures": failures}}))
    assert collect([toy, other]).links == {"HTTP 404": 3, "timed out": 3}
    (toy / "downloads.json").write_text('{"files": []}')
    assert collect([toy]).links == {}


def test_one_split(toy: Path) -> None:
    report = collect([toy], split="val")
    assert report.together.images == 2
    assert report.all_losses == {"empty caption": 1}
    with pytest.raises(DataError, match="no split 'test'; the splits: train, val"):
        collect([toy], split="test")


def test_several_datasets_and_processes_give_the_sum(
    toy: Path, dataset: Callable[..., Path], tmp_path: Path
) -> None:
    other = dataset("other", {"train": [5, 4, 3]})
    seen: list[int] = []
    together = collect([toy, other], workers=2, on_total=seen.append, on_items=seen.append)
    assert seen[0] == sum(seen[1:]) == 17
    alone = collect([other]).together
    assert together.splits["train"].images == 3 + alone.images
    assert together.together.pairs == 8 + alone.pairs
    assert together.names == ("toy", "other")


def plain(report: Report) -> str:
    return json.dumps(dataclasses.replace(report, sampled=False).to_dict(), sort_keys=True)


@pytest.mark.parametrize("sample", [1, 4, 7, 11, 12, 99])
def test_a_sample_is_spread_over_everything(dataset: Callable[..., Path], sample: int) -> None:
    folder = dataset("many", {"train": [4, 1, 3], "val": [4]})
    report = collect([folder], sample=sample)
    assert report.together.images == min(sample, 12)
    assert report.sampled
    assert report.stated == {"train": (8, 14), "val": (4, 7)}
    expected = 8 * min(sample, 12) / 12
    assert abs(report.splits["train"].images - expected) <= 1
    if sample >= 12:
        assert plain(report) == plain(collect([folder]))
    with pytest.raises(ConfigError, match="--sample -1"):
        collect([folder], sample=-1)


def test_headers_behind_long_metadata_and_turned_photos(tmp_path: Path) -> None:
    image = Image.fromarray(np.zeros((30, 50, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    exif[0x010E] = "x" * 30_000  # more than is read of a file at first
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    assert buffer.getvalue().find(b"\xff\xc0") > 16 << 10
    info = write_shard(tmp_path / "train-00000.tar", [Sample("a", buffer.getvalue(), ("x",))], "train")
    Manifest("turned", {}, {"train": Split((info,))}).save(tmp_path)
    found = collect([tmp_path]).together
    assert (found.width.counts, found.height.counts) == ({30: 1}, {50: 1})
    assert not found.unusable
    with pytest.raises(BadSample, match="truncated image"):
        image_size(buffer.getvalue()[:2000], "jpg")


@pytest.mark.parametrize(
    ("orientation", "size"), [(3, (50, 30)), (5, (30, 50)), (8, (30, 50)), (9, (50, 30)), (0, (50, 30))]
)
def test_photos_are_turned_as_decoding_turns_them(orientation: int, size: tuple[int, int]) -> None:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(np.zeros((30, 50, 3), np.uint8)).save(buffer, "JPEG", exif=exif)
    assert image_size(buffer.getvalue(), "jpg") == decode_image(buffer.getvalue()).size == size


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_exif_block_says_nothing_of_the_image(encode: Encode) -> None:
    whole = encode(50, 30)
    exif = b"Exif\0\0II*\0\xff\xff\xff\xff"
    data = whole[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + whole[2:]
    assert image_size(data, "jpg") == decode_image(data).size == (50, 30)


def test_a_dataset_that_is_given_twice_is_refused(dataset: Callable[..., Path], tmp_path: Path) -> None:
    folder = dataset("toy")
    (tmp_path / "link").symlink_to(folder)
    for again in (folder, Path(f"{folder}/../toy"), tmp_path / "link"):
        with pytest.raises(ConfigError, match=f"{again}: was given twice"):
            collect([folder, again])


def test_remote_shards_that_make_room_for_each_other_are_all_counted(
    dataset: Callable[..., Path], tmp_path: Path
) -> None:
    folder = dataset("far", {"train": [5, 5, 5, 5], "val": [2]})
    largest = max(path.stat().st_size for path in folder.glob("*.tar"))
    remote = RemoteConfig(cache_dir=str(tmp_path / "cache"), cache_gigabytes=1.5 * largest / 1e9)
    far = collect([f"file://{folder}"], workers=2, remote=remote)
    assert far.to_dict() == collect([folder]).to_dict()
    assert len(list((tmp_path / "cache").rglob("*.tar"))) < 5


def test_a_remote_shard_that_gave_way_before_it_was_opened_is_fetched_again(
    dataset: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = dataset("far", {"train": [5, 5]})
    taken: list[str] = []
    ensure = Mirror.ensure

    def taken_away(mirror: Mirror, info: ShardInfo) -> Path:
        path = ensure(mirror, info)
        if info.file not in taken:
            taken.append(info.file)
            path.unlink()  # as another process does that needs the room
        return path

    monkeypatch.setattr(Mirror, "ensure", taken_away)
    far = collect([f"file://{folder}"], remote=RemoteConfig(cache_dir=str(tmp_path / "cache")))
    assert len(taken) == 2
    assert far.to_dict() == collect([folder]).to_dict()


def test_what_training_would_skip_for_its_size_is_told(tmp_path: Path, encode: Encode) -> None:
    samples = [Sample("a", encode(64, 15), ("x",)), Sample("b", encode(64, 16), ("x",))]
    info = write_shard(tmp_path / "train-00000.tar", samples, "train")
    Manifest("small", {}, {"train": Split((info,))}).save(tmp_path)
    assert collect([tmp_path]).together.unusable == {"too small": 1}


def test_tokens_are_those_of_the_tokenizer(toy: Path) -> None:
    folder = Path(__file__).parents[2] / "ssmke" / "assets" / "scenes_text_encoder"
    found = collect([toy], split="train", tokenizer=str(folder)).together
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    captions = ["A dog runs .", "a DOG runs .", "one two three four five", "a dog runs .", "word"]
    assert found.tokens.counts == Counter(len(tokenizer(caption)["input_ids"]) for caption in captions)
    with pytest.raises(ConfigError, match=r"--tokenizer .*nowhere"):
        collect([toy], tokenizer=str(toy / "nowhere"))


def test_a_replaced_shard_is_an_error_that_names_it(toy: Path, encode: Encode) -> None:
    write_shard(toy / "val-00000.tar", [Sample("z", encode(), ("x",))], "val")
    with pytest.raises(DataError, match=r"val-00000\.tar has 1 images, the manifest says 2"):
        collect([toy])
    (toy / "val-00000.tar").unlink()
    with pytest.raises(DataError, match=r"val-00000\.tar is missing"):
        collect([toy])


def test_plots_are_drawn_the_same_each_time(toy: Path, tmp_path: Path) -> None:
    report = collect([toy])
    paths = [tmp_path / "new" / f"{name}.png" for name in "ab"]
    for path in paths:
        draw(report, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with Image.open(paths[0]) as picture:
        assert picture.width > 1500
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 50
    draw(collect([toy], split="val", sample=1), paths[0])  # with nearly nothing to draw
    assert paths[0].read_bytes() != paths[1].read_bytes()
    with pytest.raises(ConfigError, match=r"stats\.svg: the name must end in \.png"):
        draw(report, tmp_path / "stats.svg")
