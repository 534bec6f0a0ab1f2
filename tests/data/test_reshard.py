from __future__ import annotations

import dataclasses
import io
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ssmke.data.importing import StorageConfig
from ssmke.data.manifest import Manifest, Split
from ssmke.data.quality.cleaning import CleaningConfig
from ssmke.data.quality.leaks import Leak, Place, write_leaks
from ssmke.data.reshard import ReshardConfig, ReshardReport, reshard
from ssmke.data.shards import MAX_KEY, Sample, ShardIndex, index_path, write_shard
from ssmke.data.verify import verify
from ssmke.errors import ConfigError, DataError

SMALL = StorageConfig(shard_images=3)


def write(
    folder: Path, splits: Mapping[str, Sequence[Sequence[Sample]]], skipped: Mapping[str, int] | None = None
) -> Path:
    """A dataset of samples, for each shard of each split."""
    folder.mkdir(parents=True)
    written = {}
    for split, shards in splits.items():
        infos = [
            write_shard(folder / f"{split}-{i:05d}.tar", samples, split) for i, samples in enumerate(shards)
        ]
        written[split] = Split(tuple(infos))
    Manifest(folder.name, {"made": "by hand"}, written, skipped or {}).save(folder)
    return folder


def read(folder: Path, split: str = "train") -> list[Sample]:
    return list(_read(folder, split))


def _read(folder: Path, split: str) -> Iterator[Sample]:
    for info in Manifest.load(folder).splits[split].shards:
        index = ShardIndex.load(folder / info.file)
        yield from (index.read(i) for i in range(len(index)))


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and time of every file of a folder."""
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def tars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


def skipped(folder: Path) -> list[dict[str, Any]]:
    path = folder / "skipped.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def check_sums(report: ReshardReport, folder: Path) -> None:
    """Every image of the inputs is in the output or left out for a reason that is listed, and all is well."""
    lines = skipped(folder)
    assert Counter(line["reason"] for line in lines) == report.result.manifest.skipped
    left_out = [line for line in lines if line["caption"] is None]
    assert report.images == report.result.manifest.images + len(left_out)
    assert verify(folder).problems == ()


@settings(max_examples=10, deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=3), min_size=1, max_size=3),
    shard_images=st.integers(1, 20),
)
def test_untouched_samples_are_bit_identical_at_any_shard_size(
    sizes: list[list[int]],
    shard_images: int,
    samples: Callable[..., list[Sample]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("property")
    inputs = [
        write(
            folder / f"in{i}",
            {
                "train": [samples(size, f"d{i}_{j}_") for j, size in enumerate(shards)],
                "val": [samples(1, f"d{i}_val_")],
            },
        )
        for i, shards in enumerate(sizes)
    ]
    storage = StorageConfig(shard_images=shard_images)
    report = reshard(ReshardConfig(tuple(inputs), folder / "out", storage=storage))
    for split in ("train", "val"):
        before = list(itertools.chain.from_iterable(read(directory, split) for directory in inputs))
        assert read(folder / "out", split) == before  # keys, image bytes, captions, source, ids
        counts = [info.images for info in report.result.manifest.splits[split].shards]
        assert all(count == shard_images for count in counts[:-1])
        assert counts[-1] <= shard_images
    check_sums(report, folder / "out")
    assert report.result.manifest.skipped == {}


def test_same_inputs_and_options_give_the_same_bytes(tmp_path: Path, dataset: Callable[..., Path]) -> None:
    inputs = (dataset("a", {"train": [3, 2], "val": [2]}), dataset("b", {"train": [4]}))
    reshard(ReshardConfig(inputs, tmp_path / "one", storage=SMALL, short_side=32, drop_duplicates=True))
    reshard(
        ReshardConfig(inputs, tmp_path / "two", storage=SMALL, short_side=32, drop_duplicates=True), workers=2
    )
    assert tars(tmp_path / "one") == tars(tmp_path / "two")
    assert len(tars(tmp_path / "one")) == 3  # the toy images of all shards are the same few
    assert (tmp_path / "one" / "manifest.json").read_bytes() == (
        tmp_path / "two" / "manifest.json"
    ).read_bytes()


def test_inputs_are_only_read(tmp_path: Path, dataset: Callable[..., Path]) -> None:
    folder = dataset("a", {"train": [3, 2]})
    index_path(folder / "train-00001.tar").unlink()
    before = content(folder)
    reshard(ReshardConfig((folder,), tmp_path / "out", storage=SMALL, drop_duplicates=True))
    assert content(folder) == before
    for out in (folder, folder / "below" / "it"):
        with pytest.raises(ConfigError, match="which is only read"):
            ReshardConfig((folder,), out)
    with pytest.raises(DataError, match="is not empty"):
        reshard(ReshardConfig((folder,), tmp_path))
    with pytest.raises(DataError, match="holds the dataset 'a', made otherwise"):
        reshard(ReshardConfig((dataset("b"),), folder))
    assert content(folder) == before


def test_a_stopped_run_goes_on(
    tmp_path: Path, dataset: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ReshardConfig((dataset("a", {"train": [5, 5]}),), tmp_path / "out", storage=SMALL)
    whole = dataclasses.replace(config, out=tmp_path / "whole")
    reshard(whole)
    seen = 0

    def stop_at_the_fifth(images: int) -> None:
        nonlocal seen
        seen += images
        if seen >= 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reshard(config, on_items=stop_at_the_fifth)
    assert sorted(tars(config.out)) == ["train-00000.tar"]
    assert not list(config.out.glob(".*"))
    with pytest.raises(DataError, match="holds an import that has not finished"):
        Manifest.load(config.out)
    first = (config.out / "train-00000.tar").stat().st_mtime_ns
    done: list[int] = []
    report = reshard(config, on_items=done.append)
    assert (report.result.reused, report.result.written, sum(done)) == (1, 3, 10)
    assert (config.out / "train-00000.tar").stat().st_mtime_ns == first
    assert tars(config.out) == tars(whole.out)
    # A damaged shard is made again, the others are kept.
    os.truncate(config.out / "train-00002.tar", 700)
    report = reshard(config)
    assert (report.result.reused, report.result.written) == (3, 1)
    assert tars(config.out) == tars(whole.out)
    with pytest.raises(DataError, match="--short-side was 0, now 32"):
        reshard(dataclasses.replace(config, short_side=32))


def test_other_content_is_another_run(tmp_path: Path, samples: Callable[..., list[Sample]]) -> None:
    folder = write(tmp_path / "in", {"train": [samples(3)]})
    config = ReshardConfig((folder,), tmp_path / "out")
    reshard(config)
    info = write_shard(folder / "train-00000.tar", samples(3, "x"), "train")
    Manifest("in", {}, {"train": Split((info,))}).save(folder)
    with pytest.raises(DataError, match=r"holds another import: IN \(SHA-256\) was"):
        reshard(config)


def test_exact_duplicates_are_joined(tmp_path: Path, encode: Callable[..., bytes]) -> None:
    red, blue, broken = encode(seed=1), encode(seed=2), encode(seed=3)[:300]
    a = write(
        tmp_path / "a",
        {
            "train": [
                [Sample("r", red, ("red", "red"), "s"), Sample("b", blue, ("blue",), "s")],
                [Sample("r2", red, ("red", "rot", ""), "s")],
            ],
            "val": [[Sample("v", red, ("val red",)), Sample("v2", red, ("val red again",))]],
        },
    )
    b = write(
        tmp_path / "b",
        {
            "train": [
                [
                    Sample("x", broken, ("x",)),
                    Sample("r3", red, ("rouge", "rot")),
                    Sample("y", broken, ("y",)),
                ]
            ]
        },
    )
    report = reshard(ReshardConfig((a, b), tmp_path / "out", drop_duplicates=True))
    assert [(sample.key, sample.captions) for sample in read(tmp_path / "out")] == [
        ("r", ("red", "red", "rot", "rouge")),
        ("b", ("blue",)),
        ("x", ("x", "y")),
    ]
    # Captions of an evaluation image never go to a training image, and evaluation splits stay as they are.
    assert [(sample.key, sample.captions) for sample in read(tmp_path / "out", "val")] == [
        ("v", ("val red",)),
        ("v2", ("val red again",)),
    ]
    assert report.result.manifest.skipped == {"duplicate image": 3, "repeated caption": 2, "empty caption": 1}
    assert report.joined == 6
    details = {line["file"]: line["detail"] for line in skipped(tmp_path / "out") if line["caption"] is None}
    assert details == {"a/r2": "of r", "b/r3": "of r", "b/y": "of x"}
    everywhere = ReshardConfig((a, b), tmp_path / "all", drop_duplicates=True, clean_splits=("train", "val"))
    reshard(everywhere)
    assert [sample.captions for sample in read(tmp_path / "all", "val")] == [("val red", "val red again")]


def test_leaks_are_dropped(tmp_path: Path, dataset: Callable[..., Path]) -> None:
    a, b = dataset("a", {"train": [3, 3], "val": [2]}), dataset("b", {"train": [2]})

    def leak(folder: Path, key: str, split: str = "train") -> Leak:
        return Leak("near", 2, 0.97, Place(str(folder.resolve()), split, key), Place("/eval", "test", "e1"))

    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    write_leaks(one, [leak(a, "a_train0_001"), leak(a, "a_train1_000"), leak(a, "a_train1_000")])
    write_leaks(two, [leak(b, "b_train0_001"), leak(tmp_path / "elsewhere", "k")])
    report = reshard(ReshardConfig((a, b), tmp_path / "out", drop=(one, two)))
    assert [sample.key for sample in read(tmp_path / "out")] == [
        "a_train0_000",
        "a_train0_002",
        "a_train1_001",
        "a_train1_002",
        "b_train0_000",
    ]
    assert report.result.manifest.skipped == {"leak": 3}
    assert {line["detail"] for line in skipped(tmp_path / "out")} == {"of e1"}
    check_sums(report, tmp_path / "out")
    # Only one of the datasets of a file may be resharded; a file that is about none of them is a mistake.
    write_leaks(two, [leak(tmp_path / "elsewhere", "k")])
    with pytest.raises(DataError, match=r"two\.jsonl is about .*elsewhere, which is not among the inputs"):
        reshard(ReshardConfig((a, b), tmp_path / "out2", drop=(two,)))
    write_leaks(two, [leak(a, "a_train0_001"), leak(a, "a_train0_001", "val")])
    with pytest.raises(
        DataError, match="names 1 images that are not there, such as 'a_train0_001' of the split 'val'"
    ):
        reshard(ReshardConfig((a, b), tmp_path / "out3", drop=(two,)))
    write_leaks(two, [])
    assert reshard(ReshardConfig((a,), tmp_path / "out4", drop=(two,))).result.manifest.images == 8


def test_a_duplicate_of_a_leak_does_not_replace_it(tmp_path: Path, encode: Callable[..., bytes]) -> None:
    image = encode(seed=1)
    folder = write(
        tmp_path / "a",
        {
            "train": [
                [Sample("k", image, ("one",)), Sample("l", image, ("two",)), Sample("m", image, ("three",))]
            ]
        },
    )
    leaks = tmp_path / "leaks.jsonl"
    write_leaks(
        leaks,
        [Leak("exact", 0, 1.0, Place(str(folder.resolve()), "train", "k"), Place("/eval", "test", "e"))],
    )
    reshard(ReshardConfig((folder,), tmp_path / "out", drop=(leaks,), drop_duplicates=True))
    assert [(sample.key, sample.captions) for sample in read(tmp_path / "out")] == [("l", ("two", "three"))]


def test_keys_are_made_unique(tmp_path: Path, encode: Callable[..., bytes]) -> None:
    long = "k" * MAX_KEY
    inputs = tuple(
        write(
            tmp_path / f"{i}" / "same_name",
            {
                "train": [
                    [Sample("1", encode(seed=i), ("c",), "s"), Sample(long, encode(seed=9), ("l",), "s")]
                ],
                "val": [[Sample("2" if i else "1", encode(seed=5), ("v",), "s")]]
                if i != 1
                else [[Sample("1", encode(seed=6), ("v",), "s")]],
            },
        )
        for i in range(3)
    )
    report = reshard(ReshardConfig(inputs, tmp_path / "out"))
    samples = read(tmp_path / "out") + read(tmp_path / "out", "val")
    keys = [sample.key for sample in samples]
    assert len(set(keys)) == len(keys) == 9
    assert keys[:2] == ["1", long]
    assert keys[-1] == "2"
    assert all(len(key) <= MAX_KEY for key in keys)
    assert report.renamed == 6
    assert [sample.image for sample in samples[:6:2]] == [encode(seed=i) for i in range(3)]
    check_sums(report, tmp_path / "out")


def test_only_some_sources(
    tmp_path: Path, encode: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def sample(key: str, source: str) -> Sample:
        return Sample(key, encode(seed=len(key)), ("c",), source)

    a = write(tmp_path / "a", {"train": [[sample("k", "x"), sample("kk", ""), sample("kkk", "y")]]})
    saved: list[dict[str, int]] = []
    save = Manifest.save

    def watched(manifest: Manifest, directory: str | Path) -> Path:
        saved.append(dict(manifest.skipped))
        return save(manifest, directory)

    with monkeypatch.context() as patched:
        patched.setattr(Manifest, "save", watched)
        report = reshard(ReshardConfig((a,), tmp_path / "out", sources=("a", "y")))
    # A folder with a manifest counts as complete, so there is never one that lacks the count.
    assert saved == [{"other source": 1}]
    # A sample that does not tell its source is of the dataset, also when that is merged into another.
    assert [(sample.key, sample.source) for sample in read(tmp_path / "out")] == [("kk", "a"), ("kkk", "y")]
    assert report.result.manifest.skipped == {"other source": 1}
    assert Manifest.load(tmp_path / "out") == report.result.manifest
    assert verify(tmp_path / "out").ok
    assert skipped(tmp_path / "out") == []  # counted, not listed: it is no loss
    with pytest.raises(DataError, match=r"nothing would be left for --out .*none: 3 x other source"):
        reshard(ReshardConfig((a,), tmp_path / "none", sources=("z",)))


def test_cleaning_is_for_the_training_split(tmp_path: Path, encode: Callable[..., bytes]) -> None:
    def batch(prefix: str) -> list[Sample]:
        return [
            Sample(f"{prefix}0", encode(200, 200, seed=1), ("a dog runs", "IMG_1234", "dog"), "s"),
            Sample(f"{prefix}1", encode(400, 40, seed=2), ("a long dog runs",), "s"),
            Sample(f"{prefix}2", encode(30, 30, seed=3), ("a small dog runs",), "s"),
            Sample(f"{prefix}3", encode(200, 200, seed=4), ("www.example.com",), "s"),
        ]

    a = write(tmp_path / "a", {"train": [batch("t")], "val": [batch("v")]}, {"truncated image": 7})
    clean = CleaningConfig(min_side=32, max_aspect=4, min_words=3, boilerplate=True)
    report = reshard(ReshardConfig((a,), tmp_path / "out", clean=clean))
    assert [(sample.key, sample.captions) for sample in read(tmp_path / "out")] == [("t0", ("a dog runs",))]
    assert read(tmp_path / "out", "val") == batch("v")
    assert report.result.manifest.skipped == {
        "short caption": 3,
        "no usable caption": 1,
        "extreme aspect": 1,
        "too small": 1,
    }
    check_sums(report, tmp_path / "out")
    # What had been left out before stays visible, apart.
    assert report.before == {str(a): {"truncated image": 7}}
    source = Manifest.load(tmp_path / "out").source
    assert source["inputs"] == [
        {
            "name": "a",
            "images": 8,
            "captions": 12,
            "skipped": {"truncated image": 7},
            "source": {"made": "by hand"},
        }
    ]


def size_of(data: bytes) -> tuple[str | None, tuple[int, int]]:
    image = Image.open(io.BytesIO(data))
    return image.format, image.size


def test_images_are_made_smaller(tmp_path: Path, encode: Callable[..., bytes]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.open(io.BytesIO(encode(300, 200, "PNG"))).save(buffer, "JPEG", exif=exif)
    images = {
        "wide": encode(400, 200),
        "tall_png": encode(130, 520, "PNG"),
        "small": encode(99, 64),
        "turned": buffer.getvalue(),
        "huge": encode(2000, 1000),
    }
    a = write(tmp_path / "a", {"train": [[Sample(key, data, ("c",), "s") for key, data in images.items()]]})

    def sizes(**options: Any) -> dict[str, tuple[str | None, tuple[int, int]]]:
        out = tmp_path / "-".join(map(str, options.values())).replace("/", "")[:40]
        report = reshard(ReshardConfig((a,), out, **options))
        check_sums(report, out)
        assert next(sample.image for sample in read(out) if sample.key == "small") == images["small"]
        return {sample.key: size_of(sample.image) for sample in read(out)}

    assert sizes(short_side=100) == {
        "wide": ("JPEG", (200, 100)),
        "tall_png": ("JPEG", (100, 400)),
        "small": ("JPEG", (99, 64)),
        "turned": ("JPEG", (100, 150)),  # upright
        "huge": ("JPEG", (200, 100)),
    }
    both = sizes(storage=StorageConfig(max_side=150), short_side=100)
    assert both["wide"][1] == (150, 75)
    assert both["turned"][1] == (100, 150)
    # The same picture, whatever the size that it is decoded at.
    small = next(sample.image for sample in read(tmp_path / "100") if sample.key == "huge")
    expected = Image.open(io.BytesIO(images["huge"])).resize((200, 100), Image.Resampling.LANCZOS)
    pairs = zip(expected.tobytes(), Image.open(io.BytesIO(small)).tobytes(), strict=True)
    assert sum(abs(x - y) for x, y in pairs) / (200 * 100 * 3) < 2


def test_shards_are_bounded_in_bytes(tmp_path: Path, encode: Callable[..., bytes]) -> None:
    many = [Sample(f"k{i}", encode(500, 400, "PNG", seed=i), ("c",), "s") for i in range(20)]
    assert all(50_000 < len(sample.image) < 200_000 for sample in many)
    a = write(tmp_path / "a", {"train": [many]})
    report = reshard(ReshardConfig((a,), tmp_path / "out", storage=StorageConfig(shard_megabytes=1)))
    shards = report.result.manifest.splits["train"].shards
    assert len(shards) > 1
    assert all(shard.bytes <= 1 << 20 for shard in shards)
    # Images that will be small count as small.
    config = ReshardConfig((a,), tmp_path / "small", storage=StorageConfig(shard_megabytes=1), short_side=64)
    assert len(reshard(config).result.manifest.splits["train"].shards) == 1
    assert read(tmp_path / "out") == many


def test_bad_samples_are_left_out_and_counted(tmp_path: Path, encode: Callable[..., bytes]) -> None:
    a = write(
        tmp_path / "a",
        {"train": [[Sample("k", encode(200, 100), ("c",)), Sample("l", encode(200, 100)[:900], ("d",))]]},
    )
    info = Manifest.load(a).splits["train"].shards[0]
    data = (a / info.file).read_bytes()
    # The first sample's JSON breaks (same length, so that the index still fits).
    (a / info.file).write_bytes(data.replace(b'{"captions": ["c"]', b'{"capti__s": ["c"]'))
    index_path(a / info.file).unlink()
    with pytest.raises(DataError, match="1 x broken JSON, 1 x truncated image"):
        reshard(ReshardConfig((a,), tmp_path / "out", short_side=64, drop_duplicates=True))
    # What is not made smaller is not decoded; `ssmke data verify` is for that.
    report = reshard(ReshardConfig((a,), tmp_path / "out2"))
    assert [sample.key for sample in read(tmp_path / "out2")] == ["l"]
    assert report.result.manifest.skipped == {"broken JSON": 1}


def test_options_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="IN is missing"):
        ReshardConfig((), tmp_path / "out")
    with pytest.raises(ConfigError, match="--short-side 8"):
        ReshardConfig((tmp_path / "a",), tmp_path / "out", short_side=8)
    with pytest.raises(ConfigError, match="was given twice"):
        ReshardConfig((tmp_path / "a", tmp_path / "b" / ".." / "a"), tmp_path / "out")
    with pytest.raises(DataError, match="does not exist"):
        reshard(ReshardConfig((tmp_path / "a",), tmp_path / "out"))
