"""Targets: what importers read, tars, caption files, zips and link lists of others."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import tarfile
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.fuzzing.data import picture
from benchmarks.fuzzing.guard import Target
from ssmke.data.atomic import write_error
from ssmke.data.download.archives import _take_images
from ssmke.data.download.list_rows import read_pairs, write_url_list
from ssmke.data.download.packed import DAMAGED
from ssmke.data.download.pair_lists import SBU_CAPTIONS, SBU_JSON, SBU_URLS, _pairs, count_rows
from ssmke.data.importing import Checks
from ssmke.data.quality.cleaning import CleaningConfig
from ssmke.data.shards import write_shard
from ssmke.data.sources.coco import _parse as parse_coco
from ssmke.data.sources.flickr import _table, _tokens, _unique
from ssmke.data.sources.image_files import Archive
from ssmke.data.sources.karpathy import parse_captions
from ssmke.data.sources.layout import Document
from ssmke.data.sources.tar_samples import TarSamples
from ssmke.errors import BadSample, DataError


def _tar(members: Sequence[tuple[str, bytes]], mode: str = "w", form: int = tarfile.USTAR_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=form) as tar:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def _foreign_tars(folder: Path) -> Sequence[tuple[str, bytes]]:
    record = json.dumps(
        {"caption": "a dog", "url": "http://x/y.jpg", "key": "000000001", "original_width": 640}
    )
    members = [
        ("000000000.jpg", picture("JPEG")), ("000000000.json", record.encode()), ("000000000.txt", b"a dog"),
        ("000000001.png", picture("PNG")), ("000000001.txt", b"two cats"),
    ]  # fmt: skip
    long = [(f"{'d' * 60}/{'e' * 90}/1.jpg", picture("JPEG")), ("1.txt", b"x")]
    return [
        ("tar", _tar(members)), ("tar", _tar(long, form=tarfile.GNU_FORMAT)),
        ("tar", _tar(long, form=tarfile.PAX_FORMAT)),
    ]  # fmt: skip


def _read_foreign_tar(variant: str, content: bytes, folder: Path) -> None:
    path = folder / "00000.tar"
    path.write_bytes(content)
    checks = Checks("others", "train", 0, CleaningConfig())
    samples = list(TarSamples(path, 0, "00000", True, "", checks).samples([]))
    if samples:
        write_shard(folder / "train-00000.tar", samples, "train")  # what passed the checks can be stored


_CAPTIONS = (
    "dataset_flickr8k.json",
    "captions_train2014.json",
    "Flickr8k.token.txt",
    "flickr_annotations_30k.csv",
)


def _captions(folder: Path) -> Sequence[tuple[str, bytes]]:
    karpathy = {
        "dataset": "flickr8k",
        "images": [
            {
                "filename": "1.jpg",
                "split": "train",
                "imgid": 0,
                "sentences": [{"raw": "A dog ."}, {"raw": "Two ."}],
            },
            {
                "filename": "2.jpg",
                "filepath": "val2014",
                "split": "restval",
                "cocoid": 7,
                "sentences": [{"raw": "x"}],
            },
        ],
    }
    coco = {
        "images": [
            {"id": 1, "file_name": "COCO_train2014_000000000001.jpg"},
            {"id": 2, "file_name": "b.jpg"},
        ],
        "annotations": [
            {"id": 5, "image_id": 1, "caption": "a dog"},
            {"id": 6, "image_id": 1, "caption": "x"},
        ],
    }
    tokens = "1.jpg#0\tA dog .\n1.jpg#1\tTwo dogs .\n2.jpg#0\tA cat .\n"
    table = 'raw,split,filename,img_id\n"[""A dog ."", ""Two .""]",train,1.jpg,0\n"[""x""]",val,2.jpg,1\n'
    contents = (json.dumps(karpathy), json.dumps(coco), tokens, table)
    return [(name, text.encode()) for name, text in zip(_CAPTIONS, contents, strict=True)]


def _read_captions(variant: str, content: bytes, folder: Path) -> None:
    path = folder / variant
    path.write_bytes(content)
    if variant.startswith("dataset"):
        parse_captions(content, str(path), "train")
    elif variant.startswith("captions"):
        empty = folder / "captions_val2014.json"
        empty.write_text('{"images": [], "annotations": []}')
        parse_coco([Document(path), Document(empty)])
    elif variant.endswith("txt"):
        _unique(_tokens(Document(path), None))
    else:
        _unique(_table(Document(path)))


def _zips(folder: Path) -> Sequence[tuple[str, bytes]]:
    made = []
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", kind) as archive:
            archive.writestr("images/1.jpg", picture("JPEG"))
            archive.writestr("images/2.png", picture("PNG"))
            archive.writestr("__MACOSX/._1.jpg", b"x")
            archive.writestr("dataset_flickr8k.json", '{"images": []}')
        made.append(("zip", out.getvalue()))
    return made


def _read_zip(variant: str, content: bytes, folder: Path) -> None:
    path = folder / "images.zip"
    path.write_bytes(content)
    archive = Archive(path)
    for name in archive.names:
        try:
            archive.read(name, 1 << 24)
        except BadSample:
            continue
    archive.member("1.jpg")


_LISTS = ("links.csv", "links.tsv", "links.csv.gz", "links.tsv.gz", "links.parquet")


def _lists(folder: Path) -> Sequence[tuple[str, bytes]]:
    csv = b'url,caption,width\nhttp://x/1.jpg,a dog,5\nhttps://x/2.jpg,"two, cats",6\n,,\nftp://x,y,1\n'
    tsv = csv.replace(b",", b"\t")
    write_url_list(folder / "made.parquet", [("http://x/1.jpg", "a dog"), ("https://x/2.jpg", "two cats")])
    parquet = (folder / "made.parquet").read_bytes()
    return list(zip(_LISTS, (csv, tsv, gzip.compress(csv), gzip.compress(tsv), parquet), strict=True))


def _read_list(variant: str, content: bytes, folder: Path) -> None:
    path = folder / variant
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        count_rows(path)
    if variant.endswith(("tsv", "tsv.gz")):
        for _ in read_pairs(path, "0", "1", Counter()):
            pass
    for _ in read_pairs(path, "url", "caption", Counter()):
        pass


_SBU = ("sbu.json", "sbu.tar.gz", "sbu-plain.tar.gz")


def _sbu(folder: Path) -> Sequence[tuple[str, bytes]]:
    text = json.dumps(
        {"image_urls": ["http://x/1.jpg", "http://x/2.jpg"], "captions": ["a dog", "a cat"]}
    ).encode()
    lines = [(f"d/{SBU_URLS}", b"http://x/1.jpg\nhttp://x/2.jpg\n"), (f"d/{SBU_CAPTIONS}", b"a dog\na cat\n")]
    return list(zip(_SBU, (text, _tar([(SBU_JSON, text)], "w:gz"), _tar(lines)), strict=True))


def _read_sbu(variant: str, content: bytes, folder: Path) -> None:
    path = folder / variant
    path.write_bytes(content)
    with _pairs(path) as pairs:
        for _ in pairs:
            pass


def _image_tars(folder: Path) -> Sequence[tuple[str, bytes]]:
    members = [
        ("i/1.jpg", picture("JPEG")),
        ("i/2.png", picture("PNG")),
        ("i/._1.jpg", b"x"),
        ("readme.txt", b"y"),
    ]
    return [
        ("tar", _tar(members)),
        ("tar", _tar(members, "w:gz")),
        ("tar", _tar(members, form=tarfile.PAX_FORMAT)),
    ]


def _unpack(variant: str, content: bytes, folder: Path) -> None:
    path, into = folder / "images.tar.gz", folder / "into"
    path.write_bytes(content)
    into.mkdir(exist_ok=True)
    for old in into.iterdir():
        old.unlink()
    try:
        _take_images(path, into)
    except DAMAGED as error:  # as `unpack_images` does, which would flush every disk of the machine besides
        raise DataError(str(error)) from None
    except OSError as error:
        raise write_error(into, error) from None


TARGETS = (
    Target("foreign-tar", ("tar",), lambda f: None, _foreign_tars, _read_foreign_tar, ("tarfile",)),
    Target("captions", _CAPTIONS, lambda f: None, _captions, _read_captions, ("csv",)),
    Target("image-zip", ("zip",), lambda f: None, _zips, _read_zip, ("zipfile",)),
    Target("link-list", _LISTS, lambda f: None, _lists, _read_list, ("gzip",)),
    Target("sbu", _SBU, lambda f: None, _sbu, _read_sbu, ("tarfile", "gzip")),
    Target("unpack", ("tar",), lambda f: None, _image_tars, _unpack, ("tarfile", "gzip")),
)
