"""`ssmke data get` from a server with archives of the real layout to a dataset that verifies."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import re
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tyro.extras import SubcommandApp

from ssmke.cli.data import get
from ssmke.cli.data.get import archived
from ssmke.cli.data.get.archived import get_archived
from ssmke.cli.data.get.config import GetConfig, WebConfig
from ssmke.cli.data.get.listed import get_links, get_listed
from ssmke.data.dataset import ImageTextShards
from ssmke.data.download import img2dataset
from ssmke.data.download.environment import img2dataset_python
from ssmke.data.download.list_rows import read_pairs
from ssmke.data.download.report import DownloadReport
from ssmke.data.download.url_list import UrlListConfig
from ssmke.data.manifest import Manifest
from ssmke.data.quality.cleaning import CleaningConfig
from ssmke.data.remote.fetch import RemoteConfig
from ssmke.data.sources import TarsConfig, import_tars
from ssmke.data.sources.catalogue import CC3M, CC12M, COCO, FLICKR30K, SBU, Archive, Dataset, UrlList
from ssmke.data.verify import verify
from ssmke.errors import ConfigError, DataError
from tests.data.remote.server import MisbehavingServer

REMOTE = RemoteConfig(retries=1, timeout_seconds=5)


def picture(seed: int) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(noise).resize((48, 40)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MisbehavingServer]:
    """With what COCO's and Karpathy's hosts have, made small."""
    host = tmp_path / "host"
    host.mkdir()
    entries: list[dict[str, Any]] = []
    zips: dict[str, dict[str, bytes]] = {"train2014": {}, "val2014": {}}
    flickr: dict[str, bytes] = {}
    for i, split in enumerate(("train", "train", "restval", "val", "test")):
        folder = "train2014" if split == "train" else "val2014"
        name = f"COCO_{folder}_{i:012d}.jpg"
        zips[folder][f"{folder}/{name}"] = picture(i) if i else picture(i)[:300]
        sentences = [{"raw": f"caption {j} of {i}"} for j in range(5)]
        entries.append(
            {"filepath": folder, "filename": name, "cocoid": i, "split": split, "sentences": sentences}
        )
        flickr[f"flickr30k-images/{i}.jpg"] = picture(10 + i)
    flickr_entries = [
        entry | {"filename": f"{i}.jpg", "filepath": "", "split": entry["split"].replace("restval", "train")}
        for i, entry in enumerate(entries)
    ]
    with zipfile.ZipFile(host / "caption_datasets.zip", "w") as archive:
        archive.writestr("dataset_coco.json", json.dumps({"dataset": "coco", "images": entries}))
        archive.writestr(
            "dataset_flickr30k.json", json.dumps({"dataset": "flickr30k", "images": flickr_entries})
        )
    for folder, files in zips.items():
        with zipfile.ZipFile(host / f"{folder}.zip", "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    with tarfile.open(host / "flickr30k-images.tar.gz", "w:gz") as tar:
        for name, data in flickr.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with MisbehavingServer(host) as server:
        yield server


def at(server: MisbehavingServer, archive: Archive) -> Archive:
    data = (server.folder / archive.name).read_bytes()
    digest = ("sha256", hashlib.sha256(data).hexdigest())
    return dataclasses.replace(archive, url=f"{server.url}/{archive.name}", bytes=len(data), digest=digest)


@pytest.fixture
def small(server: MisbehavingServer) -> Callable[[Dataset], Dataset]:
    """A dataset of the catalogue as it is at the server."""

    def make(dataset: Dataset) -> Dataset:
        archives = tuple(at(server, archive) for archive in dataset.archives)
        return dataclasses.replace(dataset, archives=archives, image_bytes=10_000)

    return make


@pytest.fixture
def config(tmp_path: Path) -> GetConfig:
    return GetConfig(tmp_path / "out", yes=True, workers=1)


def images(folder: Path) -> dict[str, int]:
    return {name: split.images for name, split in Manifest.load(folder).splits.items()}


def test_coco_from_nothing_to_shards(
    small: Callable[[Dataset], Dataset],
    server: MisbehavingServer,
    config: GetConfig,
    capsys: pytest.CaptureFixture[str],
) -> None:
    coco = small(COCO)
    assert get_archived(coco, config, remote=REMOTE) == 0
    text = capsys.readouterr().out
    for said in (
        "Creative Commons",
        "train2014.zip",
        "SHA-256",
        "at most",
        "in the end",
        "Next: ssmke data show",
    ):
        assert said in text
    assert "skipped 1: truncated image" in text
    assert images(config.out) == {"train": 2, "val": 1, "test": 1}
    assert verify(config.out).ok
    # The downloads are gone, what they were is not.
    assert not config.folder.exists()
    record = json.loads((config.out / "downloads.json").read_text())
    assert record["dataset"] == "coco-captions"
    expected = [(a.name, a.url, a.bytes, a.digest[1] if a.digest else "") for a in coco.archives]
    assert [(f["name"], f["url"], f["bytes"], f["digest"]) for f in record["files"]] == expected

    requests = dict(server.requests)
    assert get_archived(coco, config, remote=REMOTE) == 0
    assert "is there already" in capsys.readouterr().out
    assert server.requests == requests


def test_evaluation_splits_fetch_what_they_need(
    small: Callable[[Dataset], Dataset], server: MisbehavingServer, config: GetConfig
) -> None:
    assert get_archived(small(COCO), config, splits=("val", "test"), remote=REMOTE) == 0
    assert images(config.out) == {"val": 1, "test": 1}
    assert "train2014.zip" not in server.requests
    with pytest.raises(ConfigError, match="--splits dev: must be of train, val, test"):
        get_archived(small(COCO), config, splits=("dev",))


def test_a_download_that_failed_goes_on_where_it_was(
    small: Callable[[Dataset], Dataset], server: MisbehavingServer, config: GetConfig
) -> None:
    coco = small(COCO)
    server.misbehave = lambda name, number: "404" if name == "train2014.zip" else ""
    with pytest.raises(DataError, match=r"train2014\.zip cannot be fetched.* put it into .*out\.downloads"):
        get_archived(coco, config, remote=REMOTE)
    assert sorted(path.name for path in config.folder.iterdir()) == [
        "caption_datasets.zip",
        "downloads.json",
        "val2014.zip",
    ]
    # As told, by other means; what the user put there is not deleted afterwards.
    (config.folder / "train2014.zip").write_bytes((server.folder / "train2014.zip").read_bytes())
    before = server.requests["val2014.zip"]
    assert get_archived(coco, config, remote=REMOTE) == 0
    assert server.requests["val2014.zip"] == before
    assert [path.name for path in config.folder.iterdir()] == ["train2014.zip"]


def test_flickr30k_is_unpacked_and_may_be_kept(
    small: Callable[[Dataset], Dataset], config: GetConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(config, downloads=tmp_path / "kept", keep_downloads=True)
    assert get_archived(small(FLICKR30K), config, remote=REMOTE) == 0
    assert images(config.out) == {"train": 3, "val": 1, "test": 1}
    assert (tmp_path / "kept" / "flickr30k-images.tar.gz").is_file()
    assert len(list((tmp_path / "kept" / "flickr30k-images").glob("*.jpg"))) == 5
    # Kept, it is found again, and still known not to be the user's.
    config = dataclasses.replace(config, out=tmp_path / "again", keep_downloads=False)
    assert get_archived(small(FLICKR30K), config, remote=REMOTE) == 0
    assert not (tmp_path / "kept").exists()


def test_the_users_own_folder_of_images_is_used_and_stays(
    small: Callable[[Dataset], Dataset],
    server: MisbehavingServer,
    config: GetConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine = tmp_path / "mine" / "flickr30k-images"
    mine.mkdir(parents=True)
    for i in range(5):
        (mine / f"{i}.jpg").write_bytes(picture(10 + i))
    (mine / "notes.txt").write_text("precious")
    config = dataclasses.replace(config, downloads=tmp_path / "mine")

    def stop(*arguments: Any) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(archived, "run_import", stop)
        with pytest.raises(KeyboardInterrupt):
            get_archived(small(FLICKR30K), config, remote=REMOTE)
    assert get_archived(small(FLICKR30K), config, remote=REMOTE) == 0
    assert "flickr30k-images:isyours" in "".join(capsys.readouterr().out.split())
    assert images(config.out) == {"train": 3, "val": 1, "test": 1}
    assert "flickr30k-images.tar.gz" not in server.requests
    assert [path.name for path in mine.parent.iterdir()] == ["flickr30k-images"]
    assert len(list(mine.iterdir())) == 6


@pytest.mark.parametrize(
    ("before", "now", "splits", "said"),
    [
        ({}, {}, (("test",), ()), "--splits was test, now all"),
        ({}, {}, ((), ("test", "val")), "--splits was all, now test val"),
        ({}, {"max_side": 64}, ((), ()), "--max-side was 0, now 64"),
        (
            {"clean": CleaningConfig(min_side=32)},
            {},
            ((), ()),
            "--clean.min-side was 32, now not given",
        ),
    ],
)
def test_another_request_is_not_answered_with_what_is_there(
    small: Callable[[Dataset], Dataset],
    server: MisbehavingServer,
    config: GetConfig,
    before: dict[str, Any],
    now: dict[str, Any],
    splits: tuple[tuple[str, ...], tuple[str, ...]],
    said: str,
) -> None:
    coco = small(COCO)
    first, second = (dataclasses.replace(config, **flags) for flags in (before, now))
    assert get_archived(coco, first, splits=splits[0], remote=REMOTE) == 0
    held, requests = images(config.out), dict(server.requests)
    # Finished, and (without its record) when an import of it was only begun: before anything is fetched.
    for _ in range(2):
        with pytest.raises(DataError, match=re.escape(said)) as refused:
            get_archived(coco, second, splits=splits[1], remote=REMOTE)
        assert "Choose another --out" in str(refused.value)
        for name in ("downloads.json", "manifest.json"):
            (config.out / name).unlink(missing_ok=True)
    assert server.requests == requests
    # As it was asked for the first time it goes on, in whatever order the splits are typed.
    assert get_archived(coco, first, splits=(*splits[0][::-1], *splits[0]), remote=REMOTE) == 0
    assert images(config.out) == held


def test_without_a_terminal_and_without_yes_nothing_is_fetched(
    small: Callable[[Dataset], Dataset], config: GetConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=r"no terminal to ask on\. Add --yes"):
        get_archived(small(COCO), dataclasses.replace(config, yes=False), remote=REMOTE)
    assert "Creative Commons" in capsys.readouterr().out
    assert not config.out.exists()
    assert not config.folder.exists()


@pytest.mark.parametrize(("answer", "goes_on"), [("n", False), ("", False), ("y", True), ("Yes", True)])
def test_on_a_terminal_the_user_is_asked(
    small: Callable[[Dataset], Dataset],
    config: GetConfig,
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    goes_on: bool,
) -> None:
    keyboard, terminal = os.openpty()
    os.write(keyboard, f"{answer}\n".encode())
    with os.fdopen(terminal, "r") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        code = get_archived(small(COCO), dataclasses.replace(config, yes=False), remote=REMOTE)
    os.close(keyboard)
    assert code == (0 if goes_on else 1)
    assert config.out.exists() == goes_on


def test_a_disk_that_is_too_small_is_refused_before_anything_is_fetched(
    small: Callable[[Dataset], Dataset], config: GetConfig
) -> None:
    huge = dataclasses.replace(small(COCO), image_bytes=10**18)
    with pytest.raises(DataError, match=r"out: 1,000,000,000\.\d GB are needed there, .* are free"):
        get_archived(huge, config, remote=REMOTE)
    assert not config.folder.exists()


def test_folders_that_cannot_be_used_are_refused_before_anything_is_fetched(
    small: Callable[[Dataset], Dataset], server: MisbehavingServer, config: GetConfig, tmp_path: Path
) -> None:
    coco, some = small(COCO), tmp_path / "some"
    some.mkdir()
    (some / "letter.txt").touch()
    with pytest.raises(DataError, match=r"some is not empty \(it holds 'letter.txt'\)"):
        get_archived(coco, dataclasses.replace(config, out=some))
    with pytest.raises(DataError, match=r"letter\.txt is a file"):
        get_archived(coco, dataclasses.replace(config, out=some / "letter.txt"))
    with pytest.raises(ConfigError, match=r"--downloads .*new/in is in --out"):
        get_archived(
            coco, dataclasses.replace(config, out=tmp_path / "new", downloads=tmp_path / "new" / "in")
        )
    assert not server.requests
    assert get_archived(coco, config, remote=REMOTE) == 0
    with pytest.raises(DataError, match="holds the dataset 'coco"):
        get_archived(small(FLICKR30K), config)


def write_tar(path: Path, first: int, count: int = 3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for i in range(first, first + count):
            for suffix, data in (("jpg", picture(i)), ("txt", f"caption {i}".encode())):
                member = tarfile.TarInfo(f"{i:09d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def at_hub(folder: Path, dataset: UrlList) -> UrlList:
    """Two tars of three images each."""
    for i in range(2):
        write_tar(folder / f"{dataset.name}-train-000{i}.tar", 3 * i)
    return dataclasses.replace(dataset, hub=f"file://{folder}", hub_pairs=6)


def keys(folder: Path) -> list[str]:
    shards = ImageTextShards.open([folder], "train")
    return sorted(shards.key(i) for i in range(shards.images))


def test_the_hubs_tars_and_those_of_links_are_kept_apart(tmp_path: Path, config: GetConfig) -> None:
    # What `get cc3m` leaves when it is stopped: a finished tar of img2dataset's.
    write_tar(config.folder / "images" / "00000.tar", 50)
    (config.folder / "images" / "00000_stats.json").write_text('{"successes": 3, "count": 3}')
    assert get_listed(at_hub(tmp_path / "hub", CC3M), config, WebConfig(), source="hub", remote=REMOTE) == 0
    assert images(config.out) == {"train": 6}
    assert not Manifest.load(config.out).skipped
    # They are the links', so they stay; all that the hub had sent is gone.
    assert sorted(path.name for path in config.folder.rglob("*")) == [
        "00000.tar",
        "00000_stats.json",
        "images",
    ]


def test_an_import_that_was_begun_of_links_is_not_replaced_by_the_hubs_tars(
    tmp_path: Path, config: GetConfig
) -> None:
    write_tar(config.folder / "images" / "00000.tar", 50)
    import_tars(TarsConfig(config.folder / "images", config.out, "cc3m"))
    nowhere = dataclasses.replace(CC3M, hub=f"file://{tmp_path}/nowhere")
    with pytest.raises(
        DataError, match=r"holds an import that was begun of other tars.* choose another --out"
    ):
        get_listed(nowhere, config, WebConfig(), source="hub", remote=REMOTE)
    assert images(config.out) == {"train": 3}


def test_a_shared_folder_of_downloads_does_not_mix_datasets(tmp_path: Path, config: GetConfig) -> None:
    kept = dataclasses.replace(config, downloads=tmp_path / "kept", keep_downloads=True)
    for dataset in (CC3M, CC12M):
        out = dataclasses.replace(kept, out=tmp_path / dataset.name)
        there = at_hub(tmp_path / f"hub-{dataset.name}", dataset)
        assert get_listed(there, out, WebConfig(), source="hub", remote=REMOTE) == 0
        assert images(out.out) == {"train": 6}
    # All tars lie there, but only the first was asked for.
    some = dataclasses.replace(kept, out=tmp_path / "some")
    cc3m = at_hub(tmp_path / "hub-cc3m", CC3M)
    assert get_listed(cc3m, some, WebConfig(max_pairs=3), source="hub", remote=REMOTE) == 0
    assert keys(some.out) == [f"cc3m-train-0000-{i:09d}" for i in range(3)]
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["cc12m-hub", "cc3m-hub"]
    with pytest.raises(DataError, match="--max-pairs was 3, now 0"):
        get_listed(cc3m, some, WebConfig(), source="hub", remote=REMOTE)
    with pytest.raises(DataError, match="--source was hub, now links"):
        get_listed(cc3m, some, WebConfig(max_pairs=3), remote=REMOTE)
    with pytest.raises(ConfigError, match=r"--urls list\.tsv: --source hub takes the tars"):
        get_listed(cc3m, some, WebConfig(), urls=Path("list.tsv"), source="hub", remote=REMOTE)


def test_the_hubs_tars_are_taken_with_their_captions(tmp_path: Path, config: GetConfig) -> None:
    hub = tmp_path / "hub"
    for name, first in (("cc3m-train-0000", 0), ("cc3m-train-0001", 3), ("cc3m-validation-0000", 6)):
        write_tar(hub / f"{name}.tar", first)
    cc3m = dataclasses.replace(CC3M, hub=f"file://{hub}", hub_pairs=6)
    assert get_listed(cc3m, config, WebConfig(), source="hub", remote=REMOTE) == 0
    assert images(config.out) == {"train": 6}
    assert not config.folder.exists()
    assert sorted(path.name for path in hub.iterdir())[0] == "cc3m-train-0000.tar"

    some = dataclasses.replace(config, out=tmp_path / "some")
    assert get_listed(cc3m, some, WebConfig(max_pairs=3), source="hub", remote=REMOTE) == 0
    assert images(some.out) == {"train": 3}
    some = dataclasses.replace(config, out=tmp_path / "other")
    with pytest.raises(DataError, match=r"nowhere (cannot be listed|has no tars)"):
        get_listed(
            dataclasses.replace(cc3m, hub=f"file://{tmp_path}/nowhere"), some, WebConfig(), source="hub"
        )
    with pytest.raises(ConfigError, match="--source hub: no copy of sbu is known"):
        get_listed(SBU, some, WebConfig(), source="hub")


def test_the_disk_and_the_question_come_before_any_link_is_asked(tmp_path: Path, config: GetConfig) -> None:
    (tmp_path / "list.csv").write_text("url,caption\nhttp://127.0.0.1:9/1.jpg,one\n")
    asking = dataclasses.replace(config, yes=False)
    with pytest.raises(ConfigError, match="no terminal to ask on"):
        get_links("toy", tmp_path / "list.csv", "url", "caption", asking, WebConfig())
    with pytest.raises(ConfigError, match=r"list\.doc: must end in"):
        get_links("toy", tmp_path / "list.doc", "url", "caption", asking, WebConfig())
    with pytest.raises(DataError, match="there is no such file"):
        get_links("toy", tmp_path / "none.csv", "url", "caption", asking, WebConfig())
    with pytest.raises(ConfigError, match="--max-pairs -1"):
        WebConfig(max_pairs=-1)
    assert not config.folder.exists()


def test_links_become_shards_with_every_loss_told(
    tmp_path: Path, config: GetConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        python = img2dataset_python(None)
    except DataError as error:
        pytest.skip(f"img2dataset cannot be had: {error}")
    host = tmp_path / "web"
    host.mkdir()
    for i in range(4):
        (host / f"{i}.jpg").write_bytes(picture(i))
    (host / "page.jpg").write_text("<html>no picture</html>")
    with MisbehavingServer(host) as web:
        names = ["0.jpg", "1.jpg", "missing.jpg", "2.jpg", "page.jpg", "3.jpg"]
        rows = [f"caption of {name}\t{web.url}/{name}" for name in names]
        (host / CC3M.archive.name).write_text("\n".join([rows[0], "no link\t", *rows[1:]]) + "\n")
        cc3m = dataclasses.replace(CC3M, archive=at(web, CC3M.archive), pairs=7)
        address = web.url.removeprefix("http://")
        options = WebConfig(
            max_pairs=5, processes=1, threads=4, img2dataset=str(python), private_hosts=(address,)
        )
        assert get_listed(cc3m, config, options, remote=REMOTE) == 0
    text = capsys.readouterr().out
    # The row without a link was passed over while the list was shortened, and is told all the same.
    assert "3 of 6 images (50.0 %)" in text
    for said in (
        "Google lets anybody",
        "5, of which about 4 will come (70%",
        "Train_GCC-training.tsv",
        "HTTP 404",
    ):
        assert said in " ".join(text.split())
    assert "not an image" in text
    assert images(config.out) == {"train": 3}
    assert verify(config.out).ok
    record = json.loads((config.out / "downloads.json").read_text())
    assert [file["name"] for file in record["files"]] == ["Train_GCC-training.tsv"]
    links = record["links"]
    assert (links["asked"], links["successes"]) == (6, 3)
    assert sum(links["failures"].values()) == 3
    assert links["failures"]["no URL"] == 1
    assert not config.folder.exists()
    # What is there is of that list, and of no other.
    (tmp_path / "other.tsv").write_text("caption\thttp://host/1.jpg\n")
    with pytest.raises(DataError, match=r"--urls \(SHA-256\) was .{64}, now"):
        get_listed(cc3m, config, options, urls=tmp_path / "other.tsv", remote=REMOTE)
    with pytest.raises(DataError, match="--image-size was 256, now 384"):
        get_listed(cc3m, config, dataclasses.replace(options, image_size=384), remote=REMOTE)


def test_a_shortened_list_is_not_taken_for_that_of_another(
    tmp_path: Path, config: GetConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def stopped(options: UrlListConfig, say: Callable[[str], None]) -> DownloadReport:
        pairs = read_pairs(options.urls, options.url_column, options.caption_column, Counter())
        asked.append([url for url, _ in pairs])
        raise KeyboardInterrupt

    monkeypatch.setattr(img2dataset, "download_urls", stopped)
    for name in "ab":
        urls = tmp_path / f"{name}.csv"
        urls.write_text("url,caption\n" + "".join(f"http://{name}/{i}.jpg,one\n" for i in range(3)))
        with pytest.raises(KeyboardInterrupt):
            get_links("toy", urls, "url", "caption", config, WebConfig(max_pairs=2))
    assert asked == [[f"http://{name}/{i}.jpg" for i in range(2)] for name in "ab"]


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    app = SubcommandApp()
    get.register(app)
    for name in ("coco-captions", "flickr30k", "flickr8k", "cc3m", "cc12m", "sbu", "urls"):
        with pytest.raises(SystemExit) as stop:
            app.cli(args=[name, "--help"])
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert "--out PATH" in text
        assert "--clean.min-side" in text
