from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from ssmke.data.importing import MAX_FILE_BYTES
from ssmke.data.shards import file_sha256
from ssmke.data.sources import image_files
from ssmke.data.sources.image_files import FileStamp, ImageFiles
from ssmke.data.sources.karpathy import KarpathyConfig, import_karpathy
from ssmke.errors import BadSample, DataError


def write_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def reason(files: ImageFiles, name: str) -> str:
    with pytest.raises(BadSample) as caught:
        files.read(name)
    return caught.value.reason


def test_names_are_found_below_the_one_folder_of_an_archive(tmp_path: Path) -> None:
    nested = write_zip(
        tmp_path / "a.zip",
        {"flickr30k-images/1.jpg": b"one", "__MACOSX/flickr30k-images/._1.jpg": b"junk", "readme.txt": b""},
    )
    files = ImageFiles({"": nested})
    assert files.read("1.jpg") == files.read("flickr30k-images/1.jpg") == b"one"
    assert reason(files, "._1.jpg") == "missing file"
    flat = write_zip(tmp_path / "b.zip", {"1.jpg": b"one", "sub/2.jpg": b"two"})
    files = ImageFiles({"": flat})
    assert (files.read("1.jpg"), files.read("sub/2.jpg")) == (b"one", b"two")
    assert reason(files, "2.jpg") == "missing file"
    assert files.stamp("2.jpg") == FileStamp(None, None)
    assert files.stamp("1.jpg").size == 3


def test_the_first_part_of_a_path_picks_the_place(tmp_path: Path) -> None:
    (tmp_path / "val2014").mkdir()
    (tmp_path / "val2014" / "2.jpg").write_bytes(b"two")
    files = ImageFiles(
        {
            "train2014": write_zip(tmp_path / "train2014.zip", {"train2014/1.jpg": b"one"}),
            "val2014": tmp_path / "val2014",
        }
    )
    assert (files.read("train2014/1.jpg"), files.read("val2014/2.jpg")) == (b"one", b"two")
    assert reason(files, "elsewhere/1.jpg") == reason(files, "1.jpg") == "missing file"
    assert files.stamp("val2014/2.jpg").size == 3


def test_an_archive_that_is_replaced_is_opened_again(tmp_path: Path) -> None:
    files = ImageFiles({"": write_zip(tmp_path / "a.zip", {"1.jpg": b"one"})})
    before = files.stamp("1.jpg")
    write_zip(tmp_path / "a.zip", {"1.jpg": b"two", "2.jpg": b""})
    assert files.read("1.jpg") == b"two"
    assert files.stamp("1.jpg") != before


def test_bombs_and_damage_cost_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_zip(
        tmp_path / "a.zip",
        {"good": b"good", "bomb": bytes(300 << 10), "lies": bytes(100 << 10), "flipped": b"flipped" * 100},
        zipfile.ZIP_DEFLATED,
    )
    data = bytearray(path.read_bytes())
    directory = data.index(b"PK\x01\x02")
    with zipfile.ZipFile(path) as archive:
        header = archive.getinfo("flipped").header_offset
    data[header + 30 + len("flipped") + 3] ^= 0xFF
    entry = data.index(b"lies", directory) - 46  # states 10 bytes, and unpacks to 100 KB
    data[entry + 24 : entry + 28] = (10).to_bytes(4, "little")
    path.write_bytes(data)
    monkeypatch.setattr(image_files.Archive.read, "__defaults__", (200 << 10,))
    files = ImageFiles({"": path})
    assert reason(files, "bomb") == "file too large"
    assert reason(files, "lies") == "damaged in archive"
    assert reason(files, "flipped") == "damaged in archive"
    assert files.read("good") == b"good"


def test_encrypted_and_unknown_methods_cost_one_file(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"secret": b"x" * 20, "method": b"x", "good": b"good"})
    data = bytearray(path.read_bytes())
    directory = data.index(b"PK\x01\x02")
    for name, offset, value in (("secret", 8, 1), ("method", 10, 77)):
        entry = data.index(name.encode(), directory) - 46
        data[entry + offset] = value
        local = data.index(name.encode()) - 30
        data[local + offset - 2] = value
    path.write_bytes(data)
    files = ImageFiles({"": path})
    assert reason(files, "secret") == reason(files, "method") == "damaged in archive"
    assert files.read("good") == b"good"


@pytest.mark.parametrize("cut", [0, 10, -1, -30])
def test_an_archive_that_was_cut_is_one_error(tmp_path: Path, cut: int) -> None:
    path = write_zip(tmp_path / "a.zip", {f"{i}.jpg": b"x" * 100 for i in range(10)})
    path.write_bytes(path.read_bytes()[:cut] if cut else b"")
    with pytest.raises(DataError, match=r"a\.zip is no zip archive, or cut short .*download it again"):
        ImageFiles({"": path}).stamp("1.jpg")


def test_the_bound_is_that_of_files(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"1.jpg": b"x"})
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = (MAX_FILE_BYTES + 1).to_bytes(4, "little")
    path.write_bytes(data)
    assert reason(ImageFiles({"": path}), "1.jpg") == "file too large"


def digests(directory: Path) -> dict[str, str]:
    return {
        path.name: file_sha256(path)
        for path in directory.iterdir()
        if path.suffix in (".tar", ".npz", ".json")
    }


def test_real_photos_in_a_zip_give_the_shards_of_the_folder(flickr8k: Path, tmp_path: Path) -> None:
    content = json.loads((flickr8k / "captions.json").read_text())
    content["images"] = content["images"][:50]
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps(content))
    members = {
        f"Flicker8k_Dataset/{image['filename']}": (flickr8k / "images" / image["filename"]).read_bytes()
        for image in content["images"]
    }
    archive = write_zip(tmp_path / "Flickr8k_Dataset.zip", members, zipfile.ZIP_DEFLATED)
    results: list[Any] = []
    for name, images, workers in (
        ("folder", flickr8k / "images", 1),
        ("zip", archive, 1),
        ("two", archive, 2),
    ):
        config = KarpathyConfig(images, captions, tmp_path / name)
        results.append(import_karpathy(config, workers))
    assert results[0].manifest.images == 50
    assert digests(tmp_path / "folder") == digests(tmp_path / "zip") == digests(tmp_path / "two")


def test_an_import_from_a_zip_goes_on_and_sees_changed_members(karpathy: Any, tmp_path: Path) -> None:
    members = {path.name: path.read_bytes() for path in karpathy.images.iterdir()}
    archive = write_zip(tmp_path / "images.zip", members)
    config = KarpathyConfig(archive, karpathy.captions, karpathy.out)
    import_karpathy(config)
    write_zip(archive, members)  # packed again: another time, the same content
    assert import_karpathy(config).written == 0
    write_zip(archive, members | {"2.jpg": members["1.jpg"]})
    report = import_karpathy(config)
    assert (report.reused, report.written) == (1, 1)
