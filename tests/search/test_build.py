"""Indexing: what is in the index, what is skipped, and that an interruption loses nothing."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssmke.data.captions import clean_caption
from ssmke.data.dataset import ImageTextShards
from ssmke.data.decode import decode_image
from ssmke.data.locks import locked
from ssmke.errors import ConfigError, DataError, WeightsError
from ssmke.models.dual_encoder import DualEncoder
from ssmke.models.student import SSMKE
from ssmke.search.build import IndexConfig, build_index, thumbnail
from ssmke.search.find import Finder
from ssmke.search.index import SearchIndex
from ssmke.search.sources import Sources, open_sources

GOOD = sorted(set(range(23)) - {3, 11, 12})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def reference(model_dir: Path, shards_dir: Path) -> tuple[np.ndarray, list[str]]:
    """Embeddings and keys, each picture by itself, of the splits in the order of their names."""
    model = SSMKE.from_pretrained(model_dir)
    rows, keys = [], []
    for split in ("test", "val"):
        shards = ImageTextShards.open([shards_dir], split)
        for number in GOOD if split == "test" else range(6):
            sample = shards.read(number)
            rows.append(model.encode_image([decode_image(sample.image)]).numpy())
            keys.append(sample.key)
    return np.concatenate(rows), keys


def test_finds_in_both_directions_what_one_at_a_time_finds(
    index_dir: Path, model_dir: Path, shards_dir: Path, encoder: DualEncoder
) -> None:
    index = SearchIndex(index_dir)
    images, keys = reference(model_dir, shards_dir)
    assert [index.item(row).key for row in range(len(index))] == keys
    captions = sorted({caption for row in range(len(index)) for caption in index.item(row).captions})
    model = SSMKE.from_pretrained(model_dir)
    texts = np.concatenate([model.encode_text([caption]).numpy() for caption in captions])
    scores = texts @ images.T
    for hits, of_text in zip(index.images(texts, 5), scores, strict=True):
        assert [hit.item.key for hit in hits] == [keys[i] for i in np.argsort(-of_text, kind="stable")[:5]]
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(of_text)[::-1][:5], atol=1e-5)
    for hits, of_image in zip(index.captions(images, 3), scores.T, strict=True):
        assert [hit.caption for hit in hits] == [
            captions[i] for i in np.argsort(-of_image, kind="stable")[:3]
        ]
        assert all(hit.caption in hit.item.captions for hit in hits)


def test_what_cannot_be_used_is_counted_by_reason(
    encoder: DualEncoder, shards_dir: Path, tmp_path: Path
) -> None:
    report = build_index(encoder, open_sources([str(shards_dir)], ["test"]), tmp_path / "i")
    assert report.items == 20
    assert report.skipped == {"truncated image": 3, "empty caption": 1}
    assert report.images is not None
    assert report.images.kind == "flat"
    shards = ImageTextShards.open([shards_dir], "test")
    distinct = [
        {clean_caption(c) for c in shards.read(number).captions if c.strip()} for number in GOOD
    ]  # of one picture, equal captions count once
    assert report.captions == sum(map(len, distinct))
    left = {path.name for path in (tmp_path / "i").rglob("*.npy")}
    assert not left, "FAISS holds the embeddings"


class Stop(KeyboardInterrupt):
    pass


class Interrupting:
    """A model that stops before its ``at``-th batch of pictures."""

    def __init__(self, encoder: DualEncoder, at: int) -> None:
        self._encoder = encoder
        self._left = at
        self.pictures = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._encoder, name)

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        self._left -= 1
        if self._left < 0:
            raise Stop
        self.pictures += len(pixels)
        return self._encoder.encode_image(pixels)


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_interrupted_it_goes_on_and_gives_the_same_index(
    kind: str, encoder: DualEncoder, shards_dir: Path, tmp_path: Path
) -> None:
    sources = open_sources([str(shards_dir)])
    config = IndexConfig(batch_size=4, threads=1, kind=kind, pictures=8)
    build_index(encoder, sources, tmp_path / "whole", config)
    computed = 0
    for at in (0, 1, 3):  # nothing; a part that is not full; a full part and the next one's beginning
        stopping = Interrupting(encoder, at)
        with pytest.raises(Stop):
            build_index(stopping, sources, tmp_path / "again", config)  # type: ignore[arg-type]
        computed += stopping.pictures
        with pytest.raises(DataError, match="is not finished: run the same"):
            SearchIndex(tmp_path / "again")
    last = Interrupting(encoder, 1000)
    report = build_index(last, sources, tmp_path / "again", config)  # type: ignore[arg-type]
    assert report.reused == 16
    assert computed + last.pictures == 26, "nothing that was computed is computed again"
    whole, again = SearchIndex(tmp_path / "whole"), SearchIndex(tmp_path / "again")
    assert [whole.item(row) for row in range(26)] != [], "there is something to compare"
    for row in range(26):
        one, other = whole.item(row), again.item(row)
        assert (one.key, one.captions, one.member) == (other.key, other.captions, other.member)
        assert whole.thumbnail(row) == again.thumbnail(row)
    for name in ("images.faiss", "captions.faiss"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_killed_while_writing_a_part_costs_that_part(
    encoder: DualEncoder, shards_dir: Path, tmp_path: Path
) -> None:
    sources = open_sources([str(shards_dir)])
    config = IndexConfig(batch_size=4, threads=1, pictures=8)
    with pytest.raises(Stop):
        build_index(Interrupting(encoder, 4), sources, tmp_path / "i", config)  # type: ignore[arg-type]
    (tmp_path / "i" / "parts" / "00001.json").unlink()
    assert build_index(encoder, sources, tmp_path / "i", config).reused == 8
    assert len(SearchIndex(tmp_path / "i")) == 26


def test_a_complete_index_is_left_as_it_is(
    index_dir: Path, encoder: DualEncoder, shards_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(index_dir, tmp_path / "i")
    before = contents(tmp_path / "i")
    report = build_index(Interrupting(encoder, 0), open_sources([str(shards_dir)]), tmp_path / "i")  # type: ignore[arg-type]
    assert (report.reused, report.pictures, report.items) == (29, 0, 26)
    assert contents(tmp_path / "i") == before
    with pytest.raises(DataError, match="is a complete index of kind flat, not hnsw"):
        build_index(encoder, open_sources([str(shards_dir)]), tmp_path / "i", IndexConfig(kind="hnsw"))


def test_another_model_is_refused_when_indexing_and_when_searching(
    index_dir: Path, encoder: DualEncoder, model_dir: Path, shards_dir: Path, tmp_path: Path
) -> None:
    from ssmke.models.dual_encoder import Student

    model = SSMKE.from_pretrained(model_dir)
    with torch.no_grad():
        next(iter(model.parameters())).add_(1e-3)
    other = Student(model, "other")
    assert other.digest != encoder.digest
    with pytest.raises(DataError, match=f"model digest differ .*{encoder.digest[:12]}.*{other.digest[:12]}"):
        build_index(other, open_sources([str(shards_dir)]), index_dir)
    with pytest.raises(WeightsError, match=f"made by another model than other.*{other.digest[:12]}"):
        Finder(SearchIndex(index_dir), other)


def test_other_pictures_are_refused(
    encoder: DualEncoder, shards_dir: Path, index_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="was begun otherwise: pictures differ"):
        build_index(encoder, open_sources([str(shards_dir)], ["val"]), index_dir)
    (tmp_path / "photo.txt").write_text("mine")
    with pytest.raises(DataError, match=r"holds other files \(photo\.txt\): give a new folder"):
        build_index(encoder, open_sources([str(shards_dir)]), tmp_path)


def test_two_at_once_are_refused(encoder: DualEncoder, shards_dir: Path, tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(DataError, match="is being written by another process"):
        build_index(encoder, open_sources([str(shards_dir)]), tmp_path)


def picture(path: Path, seed: int, size: tuple[int, int] = (50, 40)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for seed, name in enumerate(("b.jpg", "a.PNG", "deep/er/c.webp", ".thumbnails/x.jpg")):
        picture(root / name, seed)
    (root / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    (root / "old.gif").write_bytes(b"GIF89a and so on")
    (root / "notes.txt").write_text("no picture")
    return root


def test_a_folder_is_gone_through_with_all_below_it(encoder: DualEncoder, photos: Path) -> None:
    out = photos / "index"  # in the folder itself: must not be indexed
    report = build_index(encoder, open_sources([str(photos)], without=out), out)
    assert report.skipped == {"truncated image": 1, "unsupported format": 1}
    index = SearchIndex(out)
    assert [index.item(row).key for row in range(len(index))] == ["a.PNG", "b.jpg", "deep/er/c.webp"]
    assert not index.has_captions
    again = build_index(encoder, open_sources([str(photos)], without=out), out)
    assert (again.items, again.pictures) == (3, 0)


def test_a_name_that_is_no_text_is_indexed(encoder: DualEncoder, photos: Path, tmp_path: Path) -> None:
    name = b"caf\xe9 \xff\n<b>.jpg".decode("utf-8", "surrogateescape")
    picture(photos / name, 9)
    build_index(encoder, open_sources([str(photos)]), tmp_path / "i")
    index = SearchIndex(tmp_path / "i")
    assert name in [index.item(row).key for row in range(len(index))]


def test_nothing_usable_says_why(encoder: DualEncoder, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    with pytest.raises(DataError, match="has no pictures"):
        open_sources([str(photos)])
    with pytest.raises(DataError, match="nowhere does not exist"):
        open_sources([str(tmp_path / "nowhere")])
    (photos / "a.jpg").write_bytes(b"no")
    with pytest.raises(DataError, match=r"not one of 1 pictures is usable \(not an image: 1\)"):
        build_index(encoder, open_sources([str(photos)]), tmp_path / "i")


def test_a_split_that_is_nowhere_is_named(shards_dir: Path) -> None:
    with pytest.raises(DataError, match="has no split dev; its splits: test, val"):
        open_sources([str(shards_dir)], ["dev"])


def test_damaged_weights_are_told_before_faiss_gets_them(
    encoder: DualEncoder, photos: Path, tmp_path: Path
) -> None:
    class Broken(Interrupting):
        def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
            return self._encoder.encode_image(pixels) * float("nan")

    with pytest.raises(WeightsError, match="embeddings that are not numbers"):
        build_index(Broken(encoder, 9), open_sources([str(photos)]), tmp_path / "i")  # type: ignore[arg-type]


@pytest.mark.parametrize("option", [{"batch_size": 0}, {"threads": -1}, {"thumbnail": 9}, {"kind": "pq"}])
def test_options_out_of_range_are_named(option: dict[str, int]) -> None:
    name = next(iter(option)).replace("_", "-")
    with pytest.raises(ConfigError, match=f"--{name}"):
        IndexConfig(**option)  # type: ignore[arg-type]


def test_thumbnails_keep_the_shape() -> None:
    for size, expected in (((640, 480), (320, 240)), ((30, 20), (30, 20)), ((3, 4000), (1, 320))):
        told, data = thumbnail(Image.new("RGB", size, "red"), 320)
        with Image.open(io.BytesIO(data)) as small:
            assert told == small.size == expected


DAMAGES = {
    "index.json is cut": ("index.json", lambda old: old[:-30]),
    "another format": ("index.json", lambda old: old.replace(b"ssmke-search-1", b"ssmke-search-9")),
    "a list": ("index.json", lambda old: b"[]"),
    "a text for a number": ("index.json", lambda old: old.replace(b'"dim": 32', b'"dim": "32"')),
    "parts are missing": ("index.json", lambda old: json.dumps({**json.loads(old), "parts": []}).encode()),
    "another kind": ("index.json", lambda old: old.replace(b'"kind": "flat"', b'"kind": "pickle"')),
    "items are cut": ("parts/00000.items.jsonl", lambda old: old[:-1]),
    "thumbnails are cut": ("parts/00000.thumbs", lambda old: old[:-1]),
    "FAISS is cut": ("images.faiss", lambda old: old[:-1]),
    "captions are changed": ("captions.faiss", lambda old: old[:-1] + bytes([old[-1] ^ 1])),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_is_refused_naming_the_file(damage: str, index_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(index_dir, tmp_path / "i")
    name, change = DAMAGES[damage]
    path = tmp_path / "i" / name
    before = path.read_bytes()
    path.write_bytes(change(before))
    assert path.read_bytes() != before
    with pytest.raises(DataError, match=path.name.replace(".", r"\.")):
        SearchIndex(tmp_path / "i")


@pytest.mark.parametrize(
    "line",
    [b"{", b"[]", b'{"key": 1}', b"[" * 5000, b"\xff\xfe"],
    ids=["cut", "list", "fields", "deep", "bytes"],
)
def test_a_damaged_line_is_refused_when_it_is_read(line: bytes, index_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(index_dir, tmp_path / "i")
    path = tmp_path / "i" / "parts" / "00000.items.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    room = len(lines[0]) + len(lines[1]) - 2
    # Two lines in the room of the first two, so that the size stays what the record says.
    lines[:2] = [line[: room - 1] + b"\n", b" " * (room - len(line[: room - 1])) + b"\n"]
    path.write_bytes(b"".join(lines))
    index = SearchIndex(tmp_path / "i")
    with pytest.raises(DataError, match=r"line 1 of .*00000\.items\.jsonl is damaged"):
        index.item(0)


def test_sources_count_through() -> None:
    class Few:
        def __init__(self, place: str, count: int) -> None:
            self.place, self.count, self.fingerprint = place, count, place

        def __len__(self) -> int:
            return self.count

        def read(self, number: int) -> tuple[str, int]:
            return self.place, number

    sources = Sources([Few("a", 2), Few("b", 3)])  # type: ignore[list-item]
    assert [sources.read(number) for number in range(5)] == [
        ("a", 0),
        ("a", 1),
        ("b", 0),
        ("b", 1),
        ("b", 2),
    ]
