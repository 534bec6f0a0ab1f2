from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssmke.data.atomic import HashingWriter
from ssmke.data.dataset import ImageTextShards
from ssmke.data.decode import decode_image
from ssmke.data.importing import ImportReport, StorageConfig
from ssmke.data.manifest import Manifest
from ssmke.data.quality.cleaning import CleaningConfig
from ssmke.data.shards import file_sha256
from ssmke.data.sources.karpathy import KarpathyConfig, import_karpathy
from ssmke.data.verify import verify
from ssmke.errors import ConfigError, DataError

Encode = Callable[..., bytes]


def run(files: Any, workers: int = 1, **options: Any) -> ImportReport:
    storage = StorageConfig(
        **{name: options.pop(name) for name in list(options) if name in vars(StorageConfig())}
    )
    out = options.pop("out", files.out)
    return import_karpathy(
        KarpathyConfig(files.images, files.captions, out, storage=storage, **options), workers
    )


def skipped(files: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (files.out / "skipped.jsonl").read_text().splitlines()]


def digests(directory: Path) -> dict[str, str]:
    return {
        path.name: file_sha256(path)
        for path in directory.iterdir()
        if path.suffix in (".tar", ".npz", ".json")
    }


def test_an_import_is_a_dataset(karpathy: Any) -> None:
    manifest = run(karpathy).manifest
    assert {name: (split.images, split.captions) for name, split in manifest.splits.items()} == {
        "train": (4, 8),
        "val": (1, 2),
    }
    assert manifest == Manifest.load(karpathy.out)
    assert (manifest.name, dict(manifest.skipped)) == ("toy", {})
    assert manifest.source["fingerprint"] == file_sha256(karpathy.captions)
    sample = ImageTextShards.open([karpathy.out], "train").read(2)
    assert (sample.key, sample.source, sample.captions) == (
        "3",
        "toy",
        ("caption one of 3", "caption two of 3"),
    )
    assert sample.image == (karpathy.images / "3.jpg").read_bytes()
    assert sample.extra == {"filename": "3.jpg", "imgid": 3}
    assert verify(karpathy.out).ok
    assert not (karpathy.out / "skipped.jsonl").exists()


def test_workers_and_repetition_change_no_byte(karpathy: Any, tmp_path: Path) -> None:
    run(karpathy, shard_images=2)
    run(karpathy, shard_images=2, workers=2, out=tmp_path / "again")
    assert digests(karpathy.out) == digests(tmp_path / "again")
    assert len(digests(karpathy.out)) == 3 * 2 + 1


@pytest.mark.parametrize(
    ("restval", "splits"), [("keep", {"train", "val", "restval"}), ("skip", {"train", "val"})]
)
def test_restval(karpathy: Any, restval: Any, splits: set[str]) -> None:
    manifest = run(karpathy, restval=restval).manifest
    assert set(manifest.splits) == splits
    assert manifest.splits["train"].images == 3


def test_coco_form(karpathy: Any, encode: Encode) -> None:
    karpathy.add("val2014/COCO_val2014_000000391895.jpg", encode(), "test", "A man on a motorcycle.")
    karpathy.entries[-1] |= {
        "filename": "COCO_val2014_000000391895.jpg",
        "filepath": "val2014",
        "cocoid": 391895,
    }
    karpathy.save()
    run(karpathy)
    sample = ImageTextShards.open([karpathy.out], "test").read(0)
    assert sample.key == "COCO_val2014_000000391895"
    assert sample.extra["cocoid"] == 391895


def test_shards_are_bounded_in_count_and_bytes(karpathy: Any) -> None:
    shards = run(karpathy, shard_images=3).manifest.splits["train"].shards
    assert [shard.images for shard in shards] == [3, 1]
    for name in ("0.jpg", "1.jpg", "3.jpg", "4.jpg"):
        with (karpathy.images / name).open("ab") as file:
            file.write(bytes(600_000))  # what follows the end of a JPEG is not looked at
    shards = (
        run(karpathy, shard_megabytes=1, out=karpathy.out.with_name("mb")).manifest.splits["train"].shards
    )
    assert [shard.images for shard in shards] == [1, 1, 1, 1]


def test_what_cannot_be_used_is_skipped_counted_and_listed(karpathy: Any, encode: Encode) -> None:
    whole = encode(256, 256)
    karpathy.add("cut.jpg", whole[: len(whole) // 2], "train", "x")
    karpathy.add("empty.jpg", b"", "train", "x")
    karpathy.add("page.jpg", b"<html>not found</html>", "train", "x")
    karpathy.add("dot.png", encode(1, 1, "PNG"), "val", "x")
    karpathy.add("missing.jpg", None, "train", "x")
    karpathy.add("0.jpg", None, "val", "listed again")
    karpathy.add("../captions.json", None, "train", "x")
    karpathy.add("/etc/passwd", None, "train", "x")
    karpathy.add("silent.jpg", whole, "train")
    karpathy.add("blank.jpg", whole, "train", " ", "a caption", "\ud83d")
    (karpathy.images / "folder.jpg").mkdir()
    karpathy.add("folder.jpg", None, "train", "x")
    os.mkfifo(karpathy.images / "pipe.jpg")
    karpathy.add("pipe.jpg", None, "train", "x")
    manifest = run(karpathy).manifest
    assert dict(manifest.skipped) == {
        "caption not UTF-8": 1, "duplicate file": 1, "empty caption": 1, "empty file": 1, "missing file": 1,
        "no usable caption": 1, "not a file": 2, "not an image": 1, "path outside of --images": 2,
        "too small": 1, "truncated image": 1,
    }  # fmt: skip
    assert (manifest.images, manifest.captions) == (6, 11)
    listed = skipped(karpathy)
    assert len(listed) == 13
    assert [(line["file"], line["caption"]) for line in listed if line["caption"] is not None] == [
        ("blank.jpg", 0),
        ("blank.jpg", 2),
    ]
    assert verify(karpathy.out).ok


def test_captions_are_stored_clean(karpathy: Any, encode: Encode) -> None:
    karpathy.add("a.jpg", encode(), "test", "two\nlines", "word " * 2000)
    run(karpathy)
    first, second = ImageTextShards.open([karpathy.out], "test").read(0).captions
    assert first == "two lines"
    assert len(second) == 1999


def test_a_caption_that_is_not_utf8_costs_only_itself(karpathy: Any) -> None:
    karpathy.captions.write_bytes(karpathy.captions.read_bytes().replace(b"caption one of 2", b"caf\xe9"))
    manifest = run(karpathy).manifest
    assert dict(manifest.skipped) == {"caption not UTF-8": 1}
    assert (manifest.splits["val"].images, manifest.splits["val"].captions) == (1, 1)


def test_a_png_named_jpg_is_stored_as_png(karpathy: Any, encode: Encode) -> None:
    karpathy.add("png.jpg", encode(format="PNG"), "test", "x")
    run(karpathy)
    assert b"png.png" in (karpathy.out / "test-00000.tar").read_bytes()[:100]
    assert verify(karpathy.out).ok


def test_images_of_one_stem_get_keys_of_their_own(karpathy: Any, encode: Encode) -> None:
    for name in ("0.png", "a/0.jpg", "b/0.jpg"):
        karpathy.add(name, encode(format="PNG" if "png" in name else "JPEG"), "train", name)
    manifest = run(karpathy).manifest
    shards = ImageTextShards.open([karpathy.out], "train")
    keys = [shards.key(i) for i in range(shards.images)]
    assert manifest.images == 8
    assert len(set(keys)) == len(keys)
    assert keys[0] == "0"


def test_max_side_scales_only_larger_images(karpathy: Any, encode: Encode) -> None:
    karpathy.add("large.png", encode(400, 100, "PNG"), "test", "x")
    karpathy.add("small.png", encode(64, 20, "PNG"), "test", "x")
    run(karpathy, max_side=64)
    shards = ImageTextShards.open([karpathy.out], "test")
    assert decode_image(shards.read(0).image).size == (64, 16)
    assert shards.read(1).image == encode(64, 20, "PNG")
    assert verify(karpathy.out).ok


def test_cleaning_is_counted_and_part_of_what_an_import_is(karpathy: Any, encode: Encode) -> None:
    karpathy.add("thin.jpg", encode(400, 40), "train", "a thin picture")
    karpathy.add("name.jpg", encode(), "train", "IMG_0012.jpg", "a dog runs")
    run(karpathy, out=karpathy.out.with_name("plain"))
    manifest = run(karpathy, clean=CleaningConfig(max_aspect=3, boilerplate=True)).manifest
    assert dict(manifest.skipped) == {"extreme aspect": 1, "boilerplate caption": 1}
    assert manifest.source["clean"] == {"--clean.max-aspect": 3, "--clean.boilerplate": True}
    assert (manifest.images, manifest.captions) == (6, 11)
    with pytest.raises(DataError, match=r"--clean.max-aspect was 3, now None"):
        run(karpathy)
    state = (karpathy.out.with_name("plain") / "import.state.jsonl").read_text()
    assert "clean" not in state  # so that imports of before there was cleaning go on


def test_ids_of_any_kind_are_bounded(karpathy: Any, encode: Encode) -> None:
    entry = karpathy.add("x.jpg", encode(), "test", "x")
    entry["imgid"], entry["cocoid"] = "\ud83d", ["no", "id"]
    karpathy.save()
    run(karpathy)
    assert ImageTextShards.open([karpathy.out], "test").read(0).extra == {"filename": "x.jpg"}


FAULTS: dict[str, Callable[[list[Any]], object]] = {
    r'images\[1\] \(.1.jpg.\): field "split" is missing': lambda e: e[1].pop("split"),
    r'images\[2\]: field "filename" is missing': lambda e: e[2].pop("filename"),
    r'images\[2\]: field "filename" is 7, but must be text': lambda e: e[2].update(filename=7),
    r'images\[2\] \(.*\): field "filename" is .., but must be text': lambda e: e[2].update(filename=""),
    r'images\[3\] \(.3.jpg.\): field "sentences" is missing': lambda e: e[3].pop("sentences"),
    r'images\[3\] .*: field "sentences" is not a list': lambda e: e[3].update(sentences="text"),
    r'images\[0\] .*: field "sentences\[1\].raw" is missing': lambda e: e[0]["sentences"][1].pop("raw"),
    r'images\[0\] .*: field "split" is .a/b., but must be of': lambda e: e[0].update(split="a/b"),
    r"images\[4\] is not an object": lambda e: e.__setitem__(4, "4.jpg"),
}


@pytest.mark.parametrize("message", FAULTS)
def test_a_captions_file_of_another_form_names_entry_and_field(karpathy: Any, message: str) -> None:
    FAULTS[message](karpathy.entries)
    karpathy.save()
    with pytest.raises(DataError, match=f"--captions {karpathy.captions}: {message}"):
        run(karpathy)
    assert not karpathy.out.exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not JSON"),
        (b'{"images": [', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", 'field "images" is missing'),
        (b'{"images": {}}', "no list"),
        (b'{"images": []}', "nothing could be imported"),
    ],
)
def test_what_is_no_captions_file(karpathy: Any, data: bytes, message: str) -> None:
    karpathy.captions.write_bytes(data)
    with pytest.raises(DataError, match=message):
        run(karpathy)
    karpathy.captions.unlink()
    with pytest.raises(DataError, match=r"cannot read --captions .*: No such file"):
        run(karpathy)
    karpathy.images.rename(karpathy.images.with_name("elsewhere"))
    with pytest.raises(DataError, match=r"--images .* is not a folder"):
        run(karpathy)


def test_if_no_image_can_be_used_it_says_why(karpathy: Any) -> None:
    for path in karpathy.images.iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"nothing could be imported .*: 5 x not an image"):
        run(karpathy)


def test_a_wrong_folder_of_images_deletes_nothing(karpathy: Any) -> None:
    run(karpathy)
    before = {path.name: path.read_bytes() for path in karpathy.out.iterdir()}
    karpathy.images.rename(karpathy.images.with_name("elsewhere"))
    karpathy.images.mkdir()
    with pytest.raises(DataError, match=r"none of the 5 images is where they are looked for \(0\.jpg"):
        run(karpathy)
    assert {path.name: path.read_bytes() for path in karpathy.out.iterdir()} == before


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="--max-side 5"):
        StorageConfig(max_side=5)
    with pytest.raises(ConfigError, match="--shard-images 0"):
        StorageConfig(shard_images=0)
    with pytest.raises(ConfigError, match="--shard-megabytes -1"):
        StorageConfig(shard_megabytes=-1)
    with pytest.raises(ConfigError, match="--restval 'val'"):
        KarpathyConfig(Path(), Path(), Path(), restval="val")  # type: ignore[arg-type]


# --- going on, and refusing to ------------------------------------------------------------------------------------


def test_a_full_disk_keeps_what_is_finished_and_the_import_goes_on(
    karpathy: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write = HashingWriter.write

    def full(self: HashingWriter, data: bytes) -> int:
        if self._path.name == "train-00001.tar":
            self._file.close()
            raise_full()
        return write(self, data)

    def raise_full() -> None:
        raise DataError("cannot write train-00001.tar: " + os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(HashingWriter, "write", full)
        with pytest.raises(DataError, match="No space left"):
            run(karpathy, shard_images=2)
    assert not list(karpathy.out.glob(".*"))
    assert [path.name for path in karpathy.out.glob("*.tar")] == ["train-00000.tar"]
    with pytest.raises(DataError, match="import that has not finished"):
        Manifest.load(karpathy.out)
    report = run(karpathy, shard_images=2)
    assert (report.reused, report.written) == (1, 2)
    run(karpathy, shard_images=2, out=tmp_path / "uninterrupted")
    assert digests(karpathy.out) == digests(tmp_path / "uninterrupted")


def test_a_finished_import_writes_nothing_again(karpathy: Any) -> None:
    run(karpathy, shard_images=2)
    before = digests(karpathy.out)
    report = run(karpathy, shard_images=2)
    assert (report.reused, report.written) == (3, 0)
    assert digests(karpathy.out) == before


def test_damaged_shards_are_written_again(karpathy: Any) -> None:
    run(karpathy, shard_images=2)
    before = digests(karpathy.out)
    (karpathy.out / "train-00000.tar").unlink()
    os.truncate(karpathy.out / "train-00001.tar", 700)
    with (karpathy.out / "val-00000.tar").open("r+b") as file:
        file.seek(600)
        file.write(b"x")
    assert run(karpathy, shard_images=2).written == 3
    assert digests(karpathy.out) == before


def test_images_that_were_missing_may_be_added(karpathy: Any, encode: Encode) -> None:
    (karpathy.images / "4.jpg").rename(karpathy.images / "later")
    report = run(karpathy, shard_images=2)
    assert dict(report.manifest.skipped) == {"missing file": 1}
    (karpathy.images / "later").rename(karpathy.images / "4.jpg")
    report = run(karpathy, shard_images=2)
    assert (report.reused, report.written) == (2, 1)
    assert (report.manifest.images, dict(report.manifest.skipped)) == (5, {})
    assert not (karpathy.out / "skipped.jsonl").exists()
    assert verify(karpathy.out).ok


def test_a_file_that_could_not_be_read_is_tried_again(karpathy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_bytes

    def broken_disk(path: Path) -> bytes:
        if path.name == "4.jpg":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", broken_disk)
        assert dict(run(karpathy, shard_images=2).manifest.skipped) == {"unreadable file": 1}
    report = run(karpathy, shard_images=2)
    assert (report.reused, report.written, report.manifest.images) == (2, 1, 5)


def test_a_shard_that_lost_all_its_images_is_gone(karpathy: Any) -> None:
    run(karpathy, shard_images=2)
    (karpathy.images / "2.jpg").unlink()
    manifest = run(karpathy, shard_images=2).manifest
    assert set(manifest.splits) == {"train"}
    assert not list(karpathy.out.glob("val*"))
    assert verify(karpathy.out).ok


def test_a_state_line_cut_by_a_crash_costs_its_shard(karpathy: Any) -> None:
    run(karpathy, shard_images=2)
    state = karpathy.out / "import.state.jsonl"
    os.truncate(state, state.stat().st_size - 40)
    assert run(karpathy, shard_images=2).written == 1
    (karpathy.out / ".train-00009.tar.ffff.partial").write_bytes(b"half a shard")
    assert run(karpathy, shard_images=2).written == 0
    assert verify(karpathy.out).ok


def test_another_import_is_refused_with_the_difference(karpathy: Any, encode: Encode) -> None:
    run(karpathy)
    before = digests(karpathy.out)
    with pytest.raises(
        DataError, match=r"holds another import: --max-side was 0, now 64; --shard-images was 1000, now 9"
    ):
        run(karpathy, max_side=64, shard_images=9)
    with pytest.raises(DataError, match=r"--restval was 'train', now 'keep'"):
        run(karpathy, restval="keep")
    karpathy.add("new.jpg", encode(), "train", "x")
    with pytest.raises(DataError, match=r"--captions \(SHA-256\) was"):
        run(karpathy)
    assert digests(karpathy.out) == before


def test_a_folder_of_something_else_is_refused(karpathy: Any, dataset: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="holds the dataset 'scenes', made otherwise"):
        run(karpathy, out=dataset("scenes"))
    with pytest.raises(DataError, match=r"is not empty \(it holds '0.jpg'\)"):
        run(karpathy, out=karpathy.images)
    with pytest.raises(DataError, match="is a file"):
        run(karpathy, out=karpathy.captions / "below")
    karpathy.out.mkdir()
    (karpathy.out / "import.state.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="is damaged"):
        run(karpathy)


SLOW_IMPORT = """
import sys, time
from pathlib import Path
from ssmke.data import importing
from ssmke.data.sources.karpathy import KarpathyConfig, import_karpathy

def slow(data, clean, store=importing.stored_image, **options):
    time.sleep(0.2)
    return store(data, clean, **options)

importing.stored_image = slow
if __name__ == "__main__":
    print("ready", flush=True)
    config = KarpathyConfig(*map(Path, sys.argv[1:4]), storage=importing.StorageConfig(shard_images=2))
    import_karpathy(config, int(sys.argv[4]), on_items=lambda n: n and print("item", flush=True))
"""


def wait_until_gone(group: int) -> None:
    """Wait until no process of the group is left; multiprocessing's own helper takes a moment."""
    deadline = time.monotonic() + 30
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.05)
        pytest.fail("processes are still running")


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_leaves_no_half_file_and_no_process(karpathy: Any, tmp_path: Path, workers: int) -> None:
    script = tmp_path / "slow.py"
    script.write_text(SLOW_IMPORT)
    command = [sys.executable, str(script), str(karpathy.images), str(karpathy.captions), str(karpathy.out)]
    process = subprocess.Popen(
        [*command, str(workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line == "item\n":
            break
    with pytest.raises(DataError, match="another process is importing"):
        run(karpathy, shard_images=2)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert errors.rstrip().endswith("KeyboardInterrupt")
    wait_until_gone(process.pid)
    assert not list(karpathy.out.glob(".*"))
    run(karpathy, shard_images=2)
    assert verify(karpathy.out).ok


def test_workers_do_not_outlive_a_killed_parent(karpathy: Any, tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text(SLOW_IMPORT)
    command = [
        sys.executable,
        str(script),
        str(karpathy.images),
        str(karpathy.captions),
        str(karpathy.out),
        "2",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line == "item\n":
            break
    process.kill()
    process.wait()
    wait_until_gone(process.pid)
    assert run(karpathy, shard_images=2).manifest.images == 5
    assert verify(karpathy.out).ok


# --- real data ----------------------------------------------------------------------------------------------------


def test_flickr8k_val(flickr8k: Path, tmp_path: Path) -> None:
    content = json.loads((flickr8k / "captions.json").read_text())
    content["images"] = [image for image in content["images"] if image["split"] == "val"]
    captions = tmp_path / "val.json"
    captions.write_text(json.dumps(content))
    report = import_karpathy(KarpathyConfig(flickr8k / "images", captions, tmp_path / "out"))
    assert (report.manifest.images, report.manifest.captions) == (1000, 5000)
    assert not report.manifest.skipped
    shards = ImageTextShards.open([tmp_path / "out"], "val")
    first = content["images"][0]
    sample = shards.read(0)
    assert sample.image == (flickr8k / "images" / first["filename"]).read_bytes()
    assert [caption.split() for caption in sample.captions] == [s["raw"].split() for s in first["sentences"]]
