from __future__ import annotations

import io
import json
import os
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssmke.data.dataset import ImageTextShards
from ssmke.data.importing import ImportReport, StorageConfig
from ssmke.data.quality.cleaning import CleaningConfig
from ssmke.data.shards import file_sha256
from ssmke.data.sources.tars import TarsConfig, import_tars
from ssmke.data.verify import verify
from ssmke.errors import ConfigError, DataError

Encode = Callable[..., bytes]
Members = list[tuple[str, bytes]]


def write_tar(path: Path, members: Members) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def img2dataset(encode: Encode) -> Callable[..., Members]:
    """``img2dataset(shard, rows)``: members in the order and with the JSON that img2dataset writes."""

    def make(shard: int, rows: int, **fields: Any) -> Members:
        members = []
        for row in range(rows):
            key = f"{shard:05d}{row:04d}"
            caption = f"caption {row} of shard {shard}"
            record = {
                "caption": caption,
                "url": f"http://host/{key}.jpg",
                "key": key,
                "status": "success",
                "error_message": None,
                "width": 48,
                "height": 32,
                "original_width": 480,
                "original_height": 320,
                "exif": json.dumps({"Image Make": "Canon"}),
                "sha256": "0" * 64,
            }
            members += [
                (f"{key}.jpg", encode(seed=100 * shard + row)),
                (f"{key}.json", json.dumps(record | fields, indent=4).encode()),
                (f"{key}.txt", caption.encode()),
            ]
        return members

    return make


def run(folder: Path, workers: int = 1, **options: Any) -> ImportReport:
    options.setdefault("out", folder.with_name("out"))
    return import_tars(TarsConfig(folder, **options), workers)


def test_img2dataset_output(tmp_path: Path, img2dataset: Callable[..., Members], encode: Encode) -> None:
    tars = tmp_path / "cc3m"
    for shard, rows in enumerate((3, 2)):
        write_tar(tars / f"{shard:05d}.tar", img2dataset(shard, rows))
        (tars / f"{shard:05d}.parquet").write_bytes(b"PAR1")
        (tars / f"{shard:05d}_stats.json").write_text(json.dumps({"count": 9, "successes": rows}))
    totals: list[int] = []
    report = import_tars(TarsConfig(tars, tmp_path / "out"), on_total=totals.append)
    assert totals == [5]
    assert (report.manifest.name, report.manifest.images, dict(report.manifest.skipped)) == ("cc3m", 5, {})
    shards = report.manifest.splits["train"].shards
    assert [(shard.file, shard.images) for shard in shards] == [
        ("train-00000.tar", 3),
        ("train-00001.tar", 2),
    ]
    sample = ImageTextShards.open([tmp_path / "out"], "train").read(4)
    assert (sample.key, sample.source) == ("000010001", "cc3m")
    assert sample.captions == ("caption 1 of shard 1",)
    assert sample.image == encode(seed=101)
    assert sample.extra == {
        "url": "http://host/000010001.jpg",
        "original_width": 480,
        "original_height": 320,
    }
    assert verify(tmp_path / "out").ok


def test_the_hubs_tars_repeat_keys_and_name_their_split(tmp_path: Path, encode: Encode) -> None:
    tars = tmp_path / "tars"
    for name in ("cc3m-train-0000", "cc3m-train-0001", "cc3m-validation-0000"):
        members = [("000000000.jpg", encode()), ("000000000.txt", f"a photo of {name}".encode())]
        write_tar(tars / f"{name}.tar", members)
    report = run(tars, name="cc3m")
    assert {split: part.images for split, part in report.manifest.splits.items()} == {"train": 2, "val": 1}
    keys = [ImageTextShards.open([tmp_path / "out"], "train").key(i) for i in range(2)]
    assert keys == ["cc3m-train-0000-000000000", "cc3m-train-0001-000000000"]
    sample = ImageTextShards.open([tmp_path / "out"], "val").read(0)
    assert sample.captions == ("a photo of cc3m-validation-0000",)
    assert sample.extra == {"original_key": "000000000"}
    assert verify(tmp_path / "out").ok  # which checks that no key comes twice


def test_keys_stay_unique_where_one_tars_name_begins_another(tmp_path: Path, encode: Encode) -> None:
    tars = tmp_path / "tars"
    for stem, keys in {"a": ["b1", "b-1"], "ab": ["1", "-1"], "a-b": ["1"]}.items():
        members = [
            (f"{key}.{kind}", data) for key in keys for kind, data in (("jpg", encode()), ("txt", b"x"))
        ]
        write_tar(tars / f"{stem}.tar", members)
    assert run(tars).manifest.images == 5
    assert verify(tmp_path / "out").ok


@pytest.mark.parametrize(
    ("record", "text", "field", "captions"),
    [
        ({"caption": "from json"}, b"from txt", "", ("from json",)),
        ({"captions": ["one", "two", 3, None]}, None, "", ("one", "two")),
        ({"caption": None, "text": "third"}, b"from txt", "", ("third",)),
        ({"caption": " "}, b"from txt", "", ("from txt",)),
        ({"caption": "alt", "recaption": "better"}, b"from txt", "recaption", ("better",)),
        ({"captions": {"a": 1}}, b"from txt", "", ("from txt",)),
        (["no object"], b"from txt", "", ("from txt",)),
        (None, b"from\ttxt\n", "", ("from txt",)),
    ],
)
def test_where_captions_are_found(
    tmp_path: Path, encode: Encode, record: Any, text: bytes | None, field: str, captions: tuple[str, ...]
) -> None:
    members = [("k.jpg", encode())]
    members += [] if record is None else [("k.json", json.dumps(record).encode())]
    members += [] if text is None else [("k.txt", text)]
    write_tar(tmp_path / "tars" / "0.tar", members)
    run(tmp_path / "tars", caption_field=field)
    assert ImageTextShards.open([tmp_path / "out"], "train").read(0).captions == captions


def test_other_members_and_odd_names_are_fine(tmp_path: Path, encode: Encode) -> None:
    members = [
        ("__info__.json", b"{}"),
        ("__MACOSX/._k.jpg", b"resource fork"),
        ("./._k.jpg", b"resource fork"),
        ("README", b"text"),
        ("./sub/k.cls", b"7"),
        ("./sub/k.JPG", encode(seed=1)),
        ("./sub/k.seg.png", encode(format="PNG")),
        ("./sub/k.txt", "café".encode()),
        ("naïve key!.jpeg", encode(seed=2)),
        ("naïve key!.txt", b"x"),
    ]
    write_tar(tmp_path / "tars" / "my tar.tar", members)
    report = run(tmp_path / "tars")
    assert dict(report.manifest.skipped) == {}
    shards = ImageTextShards.open([tmp_path / "out"], "train")
    assert [shards.read(i).image for i in range(2)] == [encode(seed=1), encode(seed=2)]
    assert shards.read(0).extra["original_key"] == "sub/k"
    assert verify(tmp_path / "out").ok


def test_what_cannot_be_used_is_skipped_counted_and_listed(tmp_path: Path, encode: Encode) -> None:
    good, hostile = encode(), json.dumps({"caption": "x", "url": "u" * 3000, "uid": "\ud83d", "id": 10**30})
    members: Members = [
        ("good.jpg", good), ("good.json", hostile.encode()),
        ("cut.jpg", good[:300]), ("cut.txt", b"x"),
        ("page.jpg", b"<html>"), ("page.txt", b"x"),
        ("silent.jpg", good),
        ("empty.jpg", good), ("empty.txt", b" "),
        ("latin.jpg", good), ("latin.txt", b"caf\xe9"),
        ("blind.txt", b"x"),
        ("garbled.jpg", good), ("garbled.json", b"{"), ("garbled.txt", b"x"),
        ("deep.jpg", good), ("deep.json", b"[" * 200_000),
        ("large.jpg", good), ("large.json", b" " * (1 << 20) + b"{}"), ("large.txt", b"x"),
        ("late.jpg", good), ("other.cls", b"1"), ("late.txt", b"x"),
    ]  # fmt: skip
    write_tar(tmp_path / "tars" / "00000.tar", members)
    manifest = run(tmp_path / "tars").manifest
    assert dict(manifest.skipped) == {
        "truncated image": 1, "not an image": 1, "no usable caption": 5, "empty caption": 1, "no image": 1,
        "caption not UTF-8": 1, "broken JSON": 2, "text too large": 1, "split sample": 1,
    }  # fmt: skip
    assert manifest.images == 1
    assert ImageTextShards.open([tmp_path / "out"], "train").read(0).extra == {"original_key": "good"}
    lines = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert {line["file"] for line in lines if line["reason"] == "truncated image"} == {"00000.tar: cut.jpg"}
    assert verify(tmp_path / "out").ok


def test_cleaning_and_max_side(tmp_path: Path, encode: Encode) -> None:
    members: Members = []
    for key, width, height, caption in (
        ("good", 200, 100, b"a dog runs"), ("long", 400, 40, b"a dog runs"), ("small", 60, 30, b"a dog runs"),
        ("short", 200, 100, b"dog"), ("name", 200, 100, b"dsc_0012.jpg"),
    ):  # fmt: skip
        members += [(f"{key}.jpg", encode(width, height)), (f"{key}.txt", caption)]
    write_tar(tmp_path / "tars" / "00000.tar", members)
    clean = CleaningConfig(min_side=40, max_aspect=4, min_words=2, boilerplate=True)
    manifest = run(tmp_path / "tars", clean=clean, storage=StorageConfig(max_side=100)).manifest
    assert dict(manifest.skipped) == {
        "extreme aspect": 1, "too small": 1, "short caption": 2, "no usable caption": 2,
    }  # fmt: skip
    assert manifest.source["clean"] == clean.identity()
    assert len(ImageTextShards.open([tmp_path / "out"], "train").read(0).image) < len(encode(200, 100))
    with pytest.raises(
        DataError, match=r"--clean.boilerplate was True, now None; .*--max-side was 100, now 0"
    ):
        run(tmp_path / "tars")


# --- hostile and damaged tars -------------------------------------------------------------------------------------


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_unsafe_members_are_refused_and_counted(tmp_path: Path, encode: Encode) -> None:
    (tmp_path / "secret.txt").write_text("the secret")
    path = tmp_path / "tars" / "00000.tar"
    path.parent.mkdir()
    sparse = special("sparse.jpg", tarfile.REGTYPE)
    sparse.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "sparse.jpg"}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for info in (
            special("folder", tarfile.DIRTYPE),  # harmless, and not counted
            special("link.txt", tarfile.SYMTYPE, str(tmp_path / "secret.txt")),
            special("hard.txt", tarfile.LNKTYPE, "../secret.txt"),
            special("pipe.txt", tarfile.FIFOTYPE),
            special("null.txt", tarfile.CHRTYPE),
            special("disk.txt", tarfile.BLKTYPE),
        ):
            tar.addfile(info)
        for name in ("../out.jpg", "a/../../out.jpg", "/etc/out.jpg", "..\\out.jpg", "link.jpg"):
            info = special(name, tarfile.REGTYPE)
            info.size = len(encode())
            tar.addfile(info, io.BytesIO(encode()))
        sparse.size = 512
        tar.addfile(sparse, io.BytesIO(b"1\n0\n1\n".ljust(512, b"\0")))
        for name, data in (("good.jpg", encode()), ("good.txt", b"x")):
            info = special(name, tarfile.REGTYPE)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    before = sorted(tmp_path.rglob("*"))
    manifest = run(tmp_path / "tars").manifest
    assert manifest.skipped["unsafe member"] == 10
    assert manifest.images == 1
    text = (tmp_path / "out" / "skipped.jsonl").read_text()
    assert "the secret" not in text
    assert {json.loads(line)["detail"] for line in text.splitlines()} >= {
        "link", "device or other special file", "sparse file", "name outside of the folder", "odd name",
    }  # fmt: skip
    assert {path for path in tmp_path.rglob("*") if "out" not in path.relative_to(tmp_path).parts[0]} == set(
        before
    )


def test_a_tar_full_of_unsafe_members_is_left(tmp_path: Path, img2dataset: Callable[..., Members]) -> None:
    write_tar(tmp_path / "tars" / "00000.tar", img2dataset(0, 1))
    write_tar(tmp_path / "tars" / "00001.tar", [("/x.jpg", b"")] * 10_100)
    skipped = run(tmp_path / "tars").manifest.skipped
    assert dict(skipped) == {"unsafe member": 10_000, "broken tar": 1}


@pytest.mark.parametrize("cut", [100, 512, 700, 2000, 5000, -1024, -1500])
def test_a_tar_that_was_cut_gives_what_came_before(
    tmp_path: Path, img2dataset: Callable[..., Members], cut: int
) -> None:
    tars = tmp_path / "tars"
    write_tar(tars / "00000.tar", img2dataset(0, 2))
    path = write_tar(tars / "00001.tar", img2dataset(1, 2))
    with tarfile.open(path) as tar:
        end = max(member.offset_data + -(-member.size // 512) * 512 for member in tar)
    os.truncate(path, cut if cut > 0 else end + 1024 + cut)
    manifest = run(tars).manifest
    assert manifest.skipped["broken tar"] == 1
    # Of the second tar: nothing at first, then one sample, in the end both.
    assert manifest.images == 2 + (0 if 0 < cut < 3500 else 1 if cut == 5000 else 2)
    assert verify(tmp_path / "out").ok


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    block = bytearray(name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + size + b"00000000000\0")
    block += b" " * 8 + kind + bytes(100) + b"ustar\x0000" + bytes(512 - 265)
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


NEGATIVE = b"\xff" + struct.pack(">q", -1024).rjust(11, b"\xff")
HUGE = b"\x80" + struct.pack(">q", 1 << 40).rjust(11, b"\0")
SMALL = b"00000000012\0"
HOSTILE = {
    "no tar": b"<html>404</html>" * 100,
    "empty": b"",
    "gzip": b"\x1f\x8b\x08" + bytes(2000),
    "negative size": header(b"a.jpg", NEGATIVE) + bytes(4096),
    "negative pax": header(b"a", SMALL) + bytes(512) + header(b"x", NEGATIVE, b"x") + bytes(4096),
    "terabyte": header(b"a.jpg", HUGE) + bytes(4096),
    "terabyte of name": header(b"a", HUGE, b"L") + bytes(4096),
    "terabyte of pax": header(b"a", HUGE, b"x") + bytes(4096),
    "names without end": header(b"a", SMALL, b"L") * 5000,
    "pax size": header(b"x", b"%011o\0" % 15, b"x")
    + b"15 size=-99999\n".ljust(512, b"\0")
    + header(b"a.jpg", SMALL),
    "garbled header": header(b"a.txt", SMALL) + bytes(512) + b"\xff" * 2048,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_tar_costs_only_itself(
    tmp_path: Path, img2dataset: Callable[..., Members], kind: str
) -> None:
    tars = tmp_path / "tars"
    write_tar(tars / "00001.tar", img2dataset(1, 2))
    (tars / "00000.tar").write_bytes(HOSTILE[kind])
    manifest = run(tars).manifest
    assert manifest.images == 2
    assert manifest.skipped["broken tar"] == 1
    assert manifest.splits["train"].shards[0].file == "train-00001.tar"
    (tars / "00001.tar").unlink()
    with pytest.raises(DataError, match=r"nothing could be imported to .*: .*broken tar"):
        run(tars, out=tmp_path / "none")


def test_what_is_no_file_costs_only_itself(tmp_path: Path, img2dataset: Callable[..., Members]) -> None:
    tars = tmp_path / "tars"
    write_tar(tars / "00000.tar", img2dataset(0, 2))
    (tars / "00002.tar").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tars / "00003.tar")
    manifest = run(tars).manifest
    assert (manifest.images, dict(manifest.skipped)) == (2, {"broken tar": 1, "unreadable file": 1})
    write_tar(tmp_path / "nowhere", img2dataset(2, 1))
    assert run(tars).manifest.images == 3


def test_forgets_members_while_reading(tmp_path: Path, img2dataset: Callable[..., Members]) -> None:
    from ssmke.data.sources import tar_members

    path = write_tar(tmp_path / "0.tar", img2dataset(0, 50))
    held = []
    original = tarfile.TarFile.next

    def spy(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
        held.append(len(tar.members))
        return original(tar)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tarfile.TarFile, "next", spy)
        assert sum(1 for _ in tar_members.tar_members(path)) == 150
    assert max(held) <= 1


# --- going on -----------------------------------------------------------------------------------------------------


def digests(directory: Path) -> dict[str, str]:
    return {
        path.name: file_sha256(path)
        for path in directory.iterdir()
        if path.suffix in (".tar", ".npz", ".json")
    }


def test_tars_are_kept_added_replaced_and_never_lost(
    tmp_path: Path, img2dataset: Callable[..., Members]
) -> None:
    tars = tmp_path / "tars"
    for shard in range(2):
        write_tar(tars / f"{shard:05d}.tar", img2dataset(shard, 3))
    run(tars)
    before = digests(tmp_path / "out")
    report = run(tars)
    assert (report.reused, report.written, digests(tmp_path / "out")) == (2, 0, before)
    write_tar(tars / "00002.tar", img2dataset(2, 1))
    report = run(tars)
    assert (report.reused, report.written, report.manifest.images) == (2, 1, 7)
    write_tar(tars / "00001.tar", img2dataset(1, 5))
    report = run(tars)
    assert (report.reused, report.written, report.manifest.images) == (2, 1, 9)
    gone = (tars / "00002.tar").read_bytes()
    (tars / "00002.tar").unlink()
    with pytest.raises(DataError, match=r"not in the source any more: 00002\.tar\. They would"):
        run(tars)
    assert verify(tmp_path / "out").ok
    (tars / "00002.tar").write_bytes(gone)
    assert run(tars).manifest.images == 9
    assert verify(tmp_path / "out").ok  # which finds shards that are not listed


def test_workers_change_no_byte(tmp_path: Path, img2dataset: Callable[..., Members]) -> None:
    for shard in range(3):
        write_tar(tmp_path / "tars" / f"{shard:05d}.tar", img2dataset(shard, 3))
    run(tmp_path / "tars")
    done: list[int] = []
    import_tars(TarsConfig(tmp_path / "tars", tmp_path / "again"), workers=2, on_items=done.append)
    assert digests(tmp_path / "out") == digests(tmp_path / "again")
    assert sum(done) == 9


def test_what_img2dataset_has_not_finished_waits(tmp_path: Path, img2dataset: Callable[..., Members]) -> None:
    tars = tmp_path / "tars"
    for shard in range(3):
        write_tar(tars / f"{shard:05d}.tar", img2dataset(shard, 2))
        if shard != 1:
            (tars / f"{shard:05d}_stats.json").write_text('{"successes": 2}')
    report = run(tars)
    assert (report.manifest.images, dict(report.manifest.skipped)) == (4, {"unfinished tar": 1})
    assert "1 of 3 tars are not finished by img2dataset (00001.tar" in report.notes[0]
    (tars / "00001_stats.json").write_text('{"successes": 2}')
    report = run(tars)
    assert (report.reused, report.manifest.images, report.notes) == (2, 6, ())
    assert [shard.file for shard in report.manifest.splits["train"].shards] == [
        f"train-{number:05d}.tar" for number in range(3)
    ]


def test_img2datasets_files_format(tmp_path: Path, img2dataset: Callable[..., Members]) -> None:
    folder = tmp_path / "files"
    for shard in range(2):
        (folder / f"{shard:05d}").mkdir(parents=True)
        for name, data in img2dataset(shard, 2):
            (folder / f"{shard:05d}" / name).write_bytes(data)
        write_tar(tmp_path / "tars" / f"{shard:05d}.tar", img2dataset(shard, 2))
    totals: list[int] = []
    import_tars(TarsConfig(folder, tmp_path / "out", name="x"), on_total=totals.append)
    run(tmp_path / "tars", out=tmp_path / "other", name="x")
    assert totals == [4]
    shards = {name: digest for name, digest in digests(tmp_path / "out").items() if name != "manifest.json"}
    assert shards.items() < digests(tmp_path / "other").items()
    report = run(folder, name="x")
    assert report.written == 0


def test_wrong_folders_are_named(tmp_path: Path, img2dataset: Callable[..., Members]) -> None:
    with pytest.raises(DataError, match=r"--tars .*nowhere is not a folder"):
        run(tmp_path / "nowhere")
    (tmp_path / "tars").mkdir()
    with pytest.raises(DataError, match=r"has no \*.tar, and no folders of images"):
        run(tmp_path / "tars")
    (tmp_path / "tars" / "0.tar.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"only compressed tars: unpack them \(gunzip .*0.tar.gz\)"):
        run(tmp_path / "tars")
    write_tar(tmp_path / "tars" / "below" / "0.tar", img2dataset(0, 1))
    with pytest.raises(DataError, match=r"its folder below has: give .*tars/below"):
        run(tmp_path / "tars")
    with pytest.raises(ConfigError, match="--split 'a/b'"):
        TarsConfig(tmp_path, tmp_path, split="a/b")
