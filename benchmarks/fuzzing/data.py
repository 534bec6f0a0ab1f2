"""Targets: shards, their indexes and manifests, images, and the small records that lie beside a dataset."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.fuzzing.guard import Target
from ssmke.data.atomic import encode_json
from ssmke.data.captions import clean_caption
from ssmke.data.dataset import ImageTextShards
from ssmke.data.decode import EncodedImage, decode_image
from ssmke.data.download.archives import DOWNLOADS_NAME, Fetched, read_record, write_record
from ssmke.data.download.url_list import _load as load_list_state
from ssmke.data.import_state import ImportState, Skip, SourceFile
from ssmke.data.importing import SKIPPED_NAME
from ssmke.data.losses import dead_links, left_out
from ssmke.data.manifest import FILE_NAME, IMPORT_STATE_NAME, Manifest, ShardInfo, Split
from ssmke.data.quality.cleaning import CleaningConfig
from ssmke.data.quality.fingerprints import thumbnail
from ssmke.data.quality.leaks import Leak, Place, read_leaks, write_leaks
from ssmke.data.remote.contents import caption_counts, is_index_of, parse_manifest
from ssmke.data.resizing import stored_image
from ssmke.data.shards import Sample, ShardIndex, index_path, load_caption_counts, write_shard
from ssmke.data.sources.tars import _successes
from ssmke.data.verify import verify
from ssmke.errors import BadSample

TAR = "test-00000.tar"
_SEEN = 8
"""Samples of a shard that are read; a mutated seed has no more."""


def picture(form: str, size: tuple[int, int] = (24, 20), mode: str = "RGB", **options: object) -> bytes:
    """A small image file."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(out, form, **options)
    return out.getvalue()


def pictures() -> list[bytes]:
    """One of every kind that is told apart: formats, modes, EXIF, several scans, several frames."""
    exif = Image.Exif()
    exif[0x0112] = 6
    frame = Image.new("RGB", (24, 20), "red")
    return [
        picture("JPEG"), picture("JPEG", mode="L"), picture("JPEG", mode="CMYK"), picture("JPEG", progressive=True),
        picture("JPEG", exif=exif.tobytes()), picture("PNG"), picture("PNG", mode="P"), picture("PNG", mode="RGBA"),
        picture("PNG", mode="I;16"), picture("PNG", exif=exif.tobytes()), picture("WEBP"),
        picture("WEBP", mode="RGBA", lossless=True), picture("WEBP", save_all=True, append_images=[frame]),
        picture("PNG", save_all=True, append_images=[frame]), picture("GIF"),
    ]  # fmt: skip


def _samples() -> list[Sample]:
    images = [picture("JPEG"), picture("PNG"), picture("WEBP")]
    return [
        Sample(
            f"s-{i}", image, ("a dog", "two cats")[: 1 + i % 2], "tiny", {"cocoid": i, "url": "http://x/y"}
        )
        for i, image in enumerate(images)
    ]


def _read_shard(path: Path) -> None:
    index = ShardIndex.load(path)
    load_caption_counts(path)
    assert len(index.keys) == len(index)
    for i in range(min(len(index), _SEEN)):
        try:
            sample = index.read(i)
            for caption in sample.captions:
                clean_caption(caption)
            EncodedImage(sample.image).pixels(0.5)
        except BadSample:
            continue


def _verify(path: Path) -> None:
    for problem in verify(path.parent).problems:
        str(problem).encode("utf-8", "backslashreplace")


def _prepare_shard(folder: Path) -> None:
    info = write_shard(folder / TAR, _samples(), "test")
    Manifest("tiny", {"fingerprint": "x"}, {"test": Split((info,))}, {"empty caption": 2}).save(folder)


def _read_tar(variant: str, content: bytes, folder: Path) -> None:
    path = folder / TAR
    path.write_bytes(content)
    index_path(path).unlink(missing_ok=True)
    try:
        _read_shard(path)
    finally:
        _verify(path)


def _read_index(variant: str, content: bytes, folder: Path) -> None:
    path = folder / TAR
    index_path(path).write_bytes(content)
    info = Manifest.load(folder).splits["test"].shards[0]
    is_index_of(content, info)
    caption_counts(index_path(path), info)
    _read_shard(path)


def _read_sample_json(variant: str, content: bytes, folder: Path) -> None:
    path = folder / TAR
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in (("s-0.jpg", picture("JPEG")), ("s-0.json", content)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    index_path(path).unlink(missing_ok=True)
    _read_shard(path)


def _sample_json(folder: Path) -> list[tuple[str, bytes]]:
    index = ShardIndex.load(folder / TAR)
    return [("json", index.read_bytes(i)[1]) for i in range(len(index))]


def _read_manifest(variant: str, content: bytes, folder: Path) -> None:
    (folder / FILE_NAME).write_bytes(content)
    try:
        parse_manifest(content, "https://example.com/tiny/manifest.json")
    finally:
        manifest = Manifest.load(folder)
        assert manifest.images >= 0 <= manifest.captions
        ImageTextShards.open([folder], "test")


def _read_image(variant: str, content: bytes, folder: Path) -> None:
    readers = (
        lambda: decode_image(content),
        lambda: EncodedImage(content).pixels(0.3),
        lambda: stored_image(content, CleaningConfig(), max_side=32),
        lambda: thumbnail(content),
    )
    for read in readers:
        try:
            read()
        except BadSample:
            continue


_RECORDS = ("leaks.jsonl", DOWNLOADS_NAME, SKIPPED_NAME, "list.json", "00000_stats.json")


def _records(folder: Path) -> Sequence[tuple[str, bytes]]:
    place = folder / "written"
    place.mkdir()
    sides = (Place("a", "train", "k1"), Place("b", "test", "k2"))
    write_leaks(place / "leaks.jsonl", [Leak("exact", 0, 1.0, *sides), Leak("near", 3, 0.99, *sides)])
    write_record(
        place,
        [Fetched("a.zip", "https://x/a.zip", 5, 7, "sha256", "0" * 64, True)],
        links={"failures": {"HTTP 404": 3}},
    )
    skips = [
        Skip(1, "a.jpg", "train", "truncated image", "cut"),
        Skip(2, "b.jpg", "val", "empty caption", "", 3),
    ]
    (place / SKIPPED_NAME).write_text("".join(json.dumps(vars(skip)) + "\n" for skip in skips))
    state = {
        "format": "ssmke-urls/1",
        "identity": {"--urls": "x"},
        "rows": 5,
        "shard_urls": 5,
        "bad": {"no URL": 1},
    }
    (place / "list.json").write_text(json.dumps(state))
    (place / "00000_stats.json").write_text(json.dumps({"count": 10, "successes": 9, "start_time": 1.0}))
    return [(name, (place / name).read_bytes()) for name in _RECORDS]


def _read_record(variant: str, content: bytes, folder: Path) -> None:
    path = folder / variant
    path.write_bytes(content)
    if variant == "leaks.jsonl":
        read_leaks(path)
    elif variant == DOWNLOADS_NAME:
        dead_links([folder]).most_common()
        for fetched in read_record(folder).values():
            dataclasses.asdict(fetched)
    elif variant == SKIPPED_NAME:
        left_out({folder: Manifest("n", {}, {}, {"truncated image": 1, "empty caption": 1})}, "")
    elif variant == "list.json":
        load_list_state(path)
    else:
        _successes(folder / "00000.tar")


_INFO = ShardInfo("train-00000.tar", 2, 3, 10240, "0" * 64, "1" * 64)
_IDENTITY = {"importer": "tars", "--split": "train", "--max-side": 0}


def _import_state(folder: Path) -> Sequence[tuple[str, bytes]]:
    place = folder / "written"
    place.mkdir()
    skips = [
        Skip(1, "a.jpg", "train", "truncated image", "cut"),
        Skip(1, "a.jpg", "train", "empty caption", "", 2),
    ]
    with ImportState.open(place, _IDENTITY) as state:
        state.record("train-00000.tar", "p" * 64, _INFO, skips, SourceFile("00000.tar", "f", "c"))
        state.record("train-00001.tar", "q" * 64, None, skips)
    return [("state", (place / IMPORT_STATE_NAME).read_bytes())]


def _read_import_state(variant: str, content: bytes, folder: Path) -> None:
    out = folder / "out"
    out.mkdir(exist_ok=True)
    for old in out.iterdir():
        old.unlink()
    (out / IMPORT_STATE_NAME).write_bytes(content)
    with ImportState.open(out, _IDENTITY) as state:
        state.refuse_gone([SourceFile("00000.tar", "f", "c")])
        for name in sorted(state.files()):
            shard = state.finished(name, "p" * 64)
            if shard is not None and shard.info is not None:
                Manifest("n", {}, {"train": Split((shard.info,))}, shard.skipped).save(folder)
                Manifest.load(folder)  # what it says can be stored
            for skip in state.skips(name):
                encode_json(vars(skip))
            # What `import_shards` does with those that the source has no more.
            (out / name).unlink(missing_ok=True)
            index_path(out / name).unlink(missing_ok=True)


TARGETS = (
    Target("shard-tar", ("tar",), _prepare_shard, lambda f: [("tar", (f / TAR).read_bytes())], _read_tar, ("tarfile",)),
    Target("shard-index", ("npz",), _prepare_shard, lambda f: [("npz", index_path(f / TAR).read_bytes())], _read_index,
           ("zipfile", "numpy.lib.format")),
    Target("sample-json", ("json",), _prepare_shard, _sample_json, _read_sample_json, ("json.decoder",)),
    Target("manifest", ("json",), _prepare_shard, lambda f: [("json", (f / FILE_NAME).read_bytes())],
           _read_manifest, ("json.decoder",)),
    Target("image", ("file",), lambda f: None, lambda f: [("file", data) for data in pictures()], _read_image,
           ("PIL.Image", "PIL.JpegImagePlugin", "PIL.PngImagePlugin", "PIL.WebPImagePlugin"), gigabytes=2.0),
    Target("records", _RECORDS, lambda f: None, _records, _read_record, ("json.decoder",)),
    Target("import-state", ("state",), lambda f: None, _import_state, _read_import_state, ("json.decoder",)),
)  # fmt: skip
