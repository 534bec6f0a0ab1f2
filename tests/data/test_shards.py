from __future__ import annotations

import concurrent.futures
import errno
import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from ssmke.data import shards as shards_module
from ssmke.data.atomic import HashingWriter
from ssmke.data.shard_scan import scan
from ssmke.data.shards import (
    MAX_KEY,
    OpenFiles,
    Sample,
    ShardIndex,
    file_sha256,
    index_path,
    keys_digest,
    make_key,
    write_shard,
)
from ssmke.errors import BadSample, DataError

Samples = Callable[..., list[Sample]]
BLOCK = 512


def test_what_is_written_is_read(tmp_path: Path, samples: Samples) -> None:
    written = samples(7)
    path = tmp_path / "train-00000.tar"
    info = write_shard(path, iter(written), "train")
    index = ShardIndex.load(path)
    assert [index.read(i) for i in range(len(index))] == written
    assert index.keys.tolist() == [sample.key for sample in written]
    assert index.captions.tolist() == [len(sample.captions) for sample in written]
    assert (info.file, info.images, info.captions) == ("train-00000.tar", 7, sum(index.captions))
    assert (info.bytes, info.sha256) == (path.stat().st_size, file_sha256(path))
    assert info.keys_sha256 == keys_digest(sample.key for sample in written)
    with pytest.raises(IndexError):
        index.read(7)
    with pytest.raises(IndexError):
        index.read(-1)


def test_webdataset_reads_it(tmp_path: Path, samples: Samples) -> None:
    written = samples(3)
    write_shard(tmp_path / "val-00000.tar", written, "val")
    read = list(webdataset.WebDataset(str(tmp_path / "val-00000.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in read] == [sample.key for sample in written]
    assert [sample["jpg"] for sample in read] == [sample.image for sample in written]
    record = {
        "key": "s001",
        "split": "val",
        "source": "toy",
        "imgid": 1,
        "captions": list(written[1].captions),
    }
    assert json.loads(read[1]["json"]) == record


def test_the_same_samples_give_the_same_bytes(tmp_path: Path, samples: Samples) -> None:
    infos = [
        write_shard(tmp_path / folder / "a.tar", samples(5), "train")
        for folder in ("x", "y")
        if not (tmp_path / folder).mkdir()
    ]
    assert infos[0] == infos[1]
    assert file_sha256(index_path(tmp_path / "x" / "a.tar")) == file_sha256(
        index_path(tmp_path / "y" / "a.tar")
    )
    with tarfile.open(tmp_path / "x" / "a.tar") as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar} == {(0, 0, 0, "", "", 0o644)}


def test_the_extension_is_that_of_the_content(tmp_path: Path, encode: Callable[..., bytes]) -> None:
    written = [Sample(f"k{i}", encode(format=f), ("c",)) for i, f in enumerate(("PNG", "JPEG", "WEBP"))]
    write_shard(tmp_path / "a.tar", written, "train")
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert tar.getnames() == ["k0.png", "k0.json", "k1.jpg", "k1.json", "k2.webp", "k2.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": "a.b"}, "'a.b' is not a valid key"),
        ({"key": "../a"}, "not a valid key"),
        ({"key": "x" * (MAX_KEY + 1)}, "not a valid key"),
        ({"key": "s000"}, "'s000' comes twice"),
        ({"captions": ()}, "has no captions"),
        ({"image": b"GIF89a"}, "unsupported format"),
        ({"extra": {"split": "x"}}, r"extra may not hold \['split'\]"),
    ],
)
def test_samples_that_cannot_be_stored(
    tmp_path: Path, samples: Samples, change: dict[str, object], message: str
) -> None:
    first, second = samples(2)
    bad = Sample(**(vars(second) | change))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        write_shard(tmp_path / "a.tar", [first, bad], "train")
    with pytest.raises(DataError, match="no samples"):
        write_shard(tmp_path / "a.tar", [], "train")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_costs_the_shard_that_is_being_written(
    tmp_path: Path, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(tmp_path / "a.tar", samples(2), "train")
    before = sorted(tmp_path.iterdir())
    write = HashingWriter.write

    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fills_up(self: HashingWriter, data: bytes) -> int:
        if self.bytes > 2000:
            self._file.close()
            self._file = Full()
        return write(self, data)

    monkeypatch.setattr(HashingWriter, "write", fills_up)
    with pytest.raises(DataError, match=r"cannot write .*b\.tar: No space left.*The disk is full"):
        write_shard(tmp_path / "b.tar", samples(9), "train")
    assert sorted(tmp_path.iterdir()) == before
    assert len(ShardIndex.load(tmp_path / "a.tar")) == 2


@pytest.fixture
def shard(tmp_path: Path, samples: Samples) -> Path:
    path = tmp_path / "train-00000.tar"
    write_shard(path, samples(4), "train")
    return path


def test_a_missing_index_is_rebuilt_as_it_was(shard: Path) -> None:
    before = index_path(shard).read_bytes()
    index_path(shard).unlink()
    assert len(ShardIndex.load(shard)) == 4
    assert index_path(shard).read_bytes() == before


@pytest.mark.parametrize("damage", ["garbage", "other tar", "pickled"])
def test_an_index_that_is_not_of_this_tar_is_rebuilt(shard: Path, samples: Samples, damage: str) -> None:
    before = index_path(shard).read_bytes()
    if damage == "garbage":
        index_path(shard).write_bytes(before[: len(before) // 2])
    elif damage == "pickled":
        np.savez(index_path(shard), captions=np.array([{}]), tar_bytes=np.array(shard.stat().st_size))
    else:
        write_shard(shard.with_name("b.tar"), samples(90), "train")
        index_path(shard.with_name("b.tar")).replace(index_path(shard))
    assert ShardIndex.load(shard).keys.tolist() == ["s000", "s001", "s002", "s003"]
    assert index_path(shard).read_bytes() == before


def test_where_the_index_cannot_be_written_it_is_kept_in_memory(
    shard: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    index_path(shard).unlink()

    def refuse(*_: object) -> None:
        raise DataError("cannot write: read-only")

    monkeypatch.setattr(shards_module, "_save_index", refuse)
    index = ShardIndex.load(shard)
    assert index.read(3).key == index.keys[3] == "s003"
    assert "read-only" in caplog.text


def cuts(path: Path) -> dict[str, int]:
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    image, record = members[4], members[5]
    return {
        "mid image": image.offset_data + image.size // 2,
        "mid image header": image.offset + BLOCK // 2,
        "after an image header": image.offset_data,
        "between image and JSON": record.offset,
        "mid JSON": record.offset_data + 5,
        "mid JSON header": record.offset + 1,
        "between samples": members[6].offset,
        "after the last sample": members[-1].offset_data + BLOCK,
        "in the first header": 100,
    }


def test_a_tar_replaced_by_one_of_the_same_size_does_not_go_unnoticed(shard: Path, samples: Samples) -> None:
    index = ShardIndex.load(shard)
    index.read(0)
    other = shard.with_name("other.tar")
    write_shard(other, samples(5, "x")[1:], "train")
    assert other.stat().st_size == shard.stat().st_size  # tars are padded to 10 KB
    other.replace(shard)
    with pytest.raises(BadSample, match=r"not as indexed: sample 2 of .*: delete .*\.index\.npz"):
        ShardIndex.load(shard).read(2)
    assert index.read(2).key == "s002"  # its descriptor is of the old file, which is still there


def test_rewriting_a_shard_leaves_no_stale_index_whatever_happens(
    shard: Path, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shards_module, "_save_index", die)
    with pytest.raises(KeyboardInterrupt):
        write_shard(shard, samples(4, "new"), "train")
    monkeypatch.undo()
    assert ShardIndex.load(shard).read(3).key == "new003"


CUTS = (
    "in the first header",
    "mid image",
    "mid image header",
    "after an image header",
    "between image and JSON",
    "mid JSON",
    "mid JSON header",
    "between samples",
    "after the last sample",
)


@pytest.mark.parametrize("where", CUTS)
def test_a_shard_that_is_cut_short(shard: Path, where: str) -> None:
    index = ShardIndex.load(shard)
    index.read(0)
    os.truncate(shard, cuts(shard)[where])
    with pytest.raises(DataError, match=f"{shard} is cut short .*: copy it again"):
        ShardIndex.load(shard)
    if where != "after the last sample":
        with pytest.raises(DataError, match="is cut short"):
            index.read(3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not a shard of ssmke: it is empty"),
        (bytes(10240), "holds no samples"),
        (b"x" * 5000, "no plain tar"),
        (b"\x1f\x8b" + b"x" * 5000, "no plain tar"),
    ],
)
def test_a_tar_that_is_none_or_empty(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(DataError, match=message):
        ShardIndex.load(tmp_path / "a.tar")
    with pytest.raises(DataError, match="is missing"):
        ShardIndex.load(tmp_path / "b.tar")


def write_tar(path: Path, *members: tuple[str, bytes, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data, kind in members:
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = len(data), kind, "/etc/passwd"
            tar.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("../evil.jpg", tarfile.REGTYPE, "'../evil.jpg' is not a plain name"),
        ("/etc/evil.jpg", tarfile.REGTYPE, "is not a plain name"),
        ("a/b.jpg", tarfile.REGTYPE, "is not a plain name"),
        ("a\\b.jpg", tarfile.REGTYPE, "is not a plain name"),
        ("link.jpg", tarfile.SYMTYPE, "'link.jpg' is not a plain file"),
        ("link.jpg", tarfile.LNKTYPE, "is not a plain file"),
        ("null.jpg", tarfile.CHRTYPE, "is not a plain file"),
        ("pipe.jpg", tarfile.FIFOTYPE, "is not a plain file"),
        ("sparse.jpg", tarfile.GNUTYPE_SPARSE, "is not a plain file"),
        ("folder", tarfile.DIRTYPE, "is not a plain file"),
        ("readme.txt", tarfile.REGTYPE, "stands where readme.jpg or readme.png or readme.webp should"),
        (".jpg", tarfile.REGTYPE, "is not a plain name"),
    ],
)
def test_hostile_members_are_refused_and_nothing_is_extracted(
    tmp_path: Path, encode: Callable[..., bytes], name: str, kind: bytes, message: str
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    record = b'{"key": "a", "captions": ["c"]}'
    good = (("a.jpg", encode(), tarfile.REGTYPE), ("a.json", record, tarfile.REGTYPE))
    write_tar(folder / "a.tar", *good, (name, b"" if kind != tarfile.REGTYPE else encode(), kind))
    with pytest.raises(DataError) as error:
        ShardIndex.load(folder / "a.tar")
    assert message in str(error.value)
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "a.tar"]


def test_samples_that_are_not_pairs_are_refused(tmp_path: Path, encode: Callable[..., bytes]) -> None:
    path, image = tmp_path / "a.tar", encode()
    record = b'{"key": "a", "captions": ["c"]}'
    a_image, a_record = ("a.jpg", image, tarfile.REGTYPE), ("a.json", record, tarfile.REGTYPE)
    write_tar(path, a_image, ("b.json", record, tarfile.REGTYPE))
    with pytest.raises(DataError, match=r"'a.jpg' is followed by 'b.json', not a.json"):
        ShardIndex.load(path)
    write_tar(path, a_image, a_record, a_image, a_record)
    with pytest.raises(DataError, match="the key 'a' comes twice"):
        ShardIndex.load(path)
    write_tar(path, a_image)
    with pytest.raises(DataError, match="is followed by nothing"):
        ShardIndex.load(path)


def test_bad_records_cost_their_sample_only(tmp_path: Path, encode: Callable[..., bytes]) -> None:
    records = [
        b'{"key": "k0", "captions": ["caf\xe9", "fine"]}',
        b'{"key": "k1", "captions": "one"}',
        b"not JSON",
        b"[" * 100_000,
        b'{"captions": ["no key"]}',
        b'{"key": "k5", "captions": ["fine"]}',
    ]
    members = []
    for i, record in enumerate(records):
        members += [(f"k{i}.jpg", encode(), tarfile.REGTYPE), (f"k{i}.json", record, tarfile.REGTYPE)]
    write_tar(tmp_path / "a.tar", *members)
    index = ShardIndex.load(tmp_path / "a.tar")
    assert index.captions.tolist() == [2, 0, 0, 0, 0, 1]
    # The byte that is not UTF-8 arrives as a surrogate, for clean_caption to refuse: its sibling is kept.
    assert index.read(0).captions == ("caf\udce9", "fine")
    for i in (1, 2, 3, 4):
        with pytest.raises(BadSample, match="broken JSON"):
            index.read(i)
    assert index.read(5).captions == ("fine",)


def test_an_index_can_be_copied_and_shared_by_threads(shard: Path) -> None:
    index = ShardIndex.load(shard)
    expected = [index.read(i) for i in range(4)]
    assert [pickle.loads(pickle.dumps(index)).read(i) for i in range(4)] == expected
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for i, sample in zip(range(2000), pool.map(index.read, (i % 4 for i in range(2000))), strict=True):
            assert sample == expected[i % 4]


def test_descriptors_are_bounded_and_closed(tmp_path: Path) -> None:
    files = OpenFiles(limit=3)
    paths = [tmp_path / str(i) for i in range(20)]
    for path in paths:
        path.write_text(path.name)
    before = len(list(Path("/proc/self/fd").iterdir()))
    held = files.get(paths[0])
    for path in paths * 2:
        assert os.pread(files.get(path).number, 10, 0) == path.name.encode()
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= 6
    assert os.pread(held.number, 10, 0) == b"0"  # evicted long ago, but still in use here


@given(st.text(), st.text())
def test_keys_are_valid_and_stay_distinct(one: str, other: str) -> None:
    key = make_key(one)
    assert 0 < len(key) <= MAX_KEY
    assert set(key) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
    assert make_key(key) == key
    assert (make_key(other) == key) == (one == other) or one == make_key(other) or other == key


def test_ordinary_names_are_their_own_keys() -> None:
    assert make_key("COCO_val2014_000000391895") == "COCO_val2014_000000391895"
    assert make_key("img.v2").startswith("img_v2-")


def test_scanning_agrees_with_writing(shard: Path) -> None:
    table, index = scan(shard), ShardIndex.load(shard)
    np.testing.assert_array_equal(table.rows_array(), index.rows)
    assert table.extensions == ["jpg"] * 4


@pytest.mark.parametrize(
    ("column", "value"),
    [("image_offset", 1 << 60), ("image_size", 1 << 60), ("json_offset", -1), ("json_size", -5)],
)
def test_an_index_that_names_impossible_places_is_made_again(
    column: str, value: int, tmp_path: Path, samples: Callable[..., list[Sample]]
) -> None:
    path = tmp_path / "train-00000.tar"
    write_shard(path, samples(3), "train")
    with np.load(index_path(path)) as stored:
        arrays = dict(stored)
    arrays[column][1] = value
    np.savez(index_path(path), **arrays)
    assert ShardIndex.load_stored(path) is None
    assert ShardIndex.load(path).read(1).key == "s001"


@pytest.mark.parametrize("columns", [("image_offset", "image_size"), ("image_size",)])
def test_an_index_that_gives_another_image_is_noticed(
    columns: tuple[str, ...], tmp_path: Path, samples: Callable[..., list[Sample]]
) -> None:
    path = tmp_path / "train-00000.tar"
    write_shard(path, samples(3), "train")
    with np.load(index_path(path)) as stored:
        arrays = dict(stored)
    for column in columns:
        arrays[column][[0, 1]] = arrays[column][[1, 0]]
    np.savez(index_path(path), **arrays)
    index = ShardIndex.load(path)
    for number in (0, 1):
        with pytest.raises(BadSample, match="not as indexed"):
            index.read(number)
    assert index.read(2).key == "s002"


@pytest.mark.parametrize("captions", [np.array([[1], [2], [3]]), np.array(["1", "2", "3"])])
def test_an_index_of_other_types_is_made_again(
    captions: np.ndarray, tmp_path: Path, samples: Callable[..., list[Sample]]
) -> None:
    path = tmp_path / "train-00000.tar"
    write_shard(path, samples(3), "train")
    with np.load(index_path(path)) as stored:
        arrays = dict(stored) | {"captions": captions}
    np.savez(index_path(path), **arrays)
    assert ShardIndex.load(path).captions.tolist() == [1, 2, 3]
