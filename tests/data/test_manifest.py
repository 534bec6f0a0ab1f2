from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssmke.data.manifest import IMPORT_STATE_NAME, Manifest, ShardInfo, Split
from ssmke.errors import DataError


@pytest.fixture
def manifest() -> Manifest:
    shards = tuple(
        ShardInfo(f"train-0000{i}.tar", 10 + i, 50 + i, 1000 + i, f"{i}" * 64, "f" * 64) for i in range(2)
    )
    return Manifest("Größe", {"fingerprint": "abc"}, {"train": Split(shards)}, {"truncated image": 3})


def test_what_is_saved_is_loaded(tmp_path: Path, manifest: Manifest) -> None:
    manifest.save(tmp_path)
    loaded = Manifest.load(tmp_path)
    assert loaded == manifest
    assert (loaded.images, loaded.captions) == (21, 101)
    text = (tmp_path / "manifest.json").read_text(encoding="utf-8")
    assert "Größe" in text
    assert list(json.loads(text)) == sorted(json.loads(text))


def test_a_folder_that_is_no_dataset_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no manifest\.json.*ssmke data make scenes"):
        Manifest.load(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        Manifest.load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file"):
        Manifest.load(tmp_path / "file")


def test_an_unfinished_import_is_recognised(tmp_path: Path) -> None:
    (tmp_path / IMPORT_STATE_NAME).write_text("{}")
    with pytest.raises(DataError, match="has not finished: run the same"):
        Manifest.load(tmp_path)


def test_an_unknown_format_names_both(tmp_path: Path, manifest: Manifest) -> None:
    path = manifest.save(tmp_path)
    path.write_text(
        path.read_text(encoding="utf-8").replace("ssmke-shards/1", "ssmke-shards/7"), encoding="utf-8"
    )
    with pytest.raises(DataError, match=r"'ssmke-shards/7'.*reads 'ssmke-shards/1'"):
        Manifest.load(tmp_path)


def _shard(content: dict[str, Any]) -> dict[str, Any]:
    shard: dict[str, Any] = content["splits"]["train"]["shards"][1]
    return shard


SPOILERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "format": lambda c: c.pop("format"),
    "name is missing": lambda c: c.pop("name"),
    "source is not of type dict": lambda c: c.update(source="web"),
    "splits.train is not an object": lambda c: c["splits"].update(train=[]),
    r"splits.train.shards\[1\].sha256 is missing": lambda c: _shard(c).pop("sha256"),
    r"splits.train.shards\[1\].images is not of type int": lambda c: _shard(c).update(images="11"),
    r"splits.train.shards\[1\].bytes is negative": lambda c: _shard(c).update(bytes=-1),
    "must be a plain file name": lambda c: _shard(c).update(file="../../etc/passwd"),
    "splits.train.images is 99, but its shards have 21": lambda c: c["splits"]["train"].update(images=99),
    "split name '../x'": lambda c: c["splits"].update({"../x": c["splits"].pop("train")}),
    "skipped.r is not of type int": lambda c: c.update(skipped={"r": None}),
}


@pytest.mark.parametrize("message", SPOILERS)
def test_damage_names_the_field(tmp_path: Path, manifest: Manifest, message: str) -> None:
    path = manifest.save(tmp_path)
    content = json.loads(path.read_text(encoding="utf-8"))
    SPOILERS[message](content)
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=f"{path} is damaged: .*{message}"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".tar",
        "..tar",
        ".hidden.tar",
        "a\0b.tar",
        "\ud800.tar",
        "a/b.tar",
        "a b.tar",
        "a.tar\n",
        "a.zip",
        "x" * 300 + ".tar",
        "größe.tar",
    ],
)
def test_a_shard_with_an_odd_name_is_refused(tmp_path: Path, manifest: Manifest, name: str) -> None:
    path = manifest.save(tmp_path)
    content = json.loads(path.read_text(encoding="utf-8"))
    _shard(content)["file"] = name
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"manifest\.json is damaged") as error:
        Manifest.load(tmp_path)
    str(error.value).encode()  # can be printed


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: c.update(name="half \ud800 of one"),
        lambda c: c.update(skipped={"\udfff": 3}),
        lambda c: c["source"].update(inputs=[{"\ud800": 1}]),
        lambda c: c.update(format="\ud800"),
    ],
)
def test_text_that_cannot_be_printed_is_damage(
    tmp_path: Path, manifest: Manifest, spoil: Callable[[dict[str, Any]], object]
) -> None:
    path = manifest.save(tmp_path)
    content = json.loads(path.read_text(encoding="utf-8"))
    spoil(content)
    path.write_text(json.dumps(content))
    with pytest.raises(
        DataError, match=r"is damaged: the text after '.*' is not Unicode\. Restore it"
    ) as error:
        Manifest.load(tmp_path)
    str(error.value).encode()


def test_a_folder_in_place_of_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(DataError, match=r"manifest\.json is damaged: it is a folder.*make the dataset again"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"\xff\xfe{}", b"null", b"[" * 200_000, b'{"format":' * 90_000]
)
def test_what_is_not_a_manifest_at_all(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(data)
    with pytest.raises(DataError, match="is damaged"):
        Manifest.load(tmp_path)
