"""Shards on the Hugging Face hub, read by its own client from a server that answers as the hub does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.remote.server import MisbehavingServer, at_random

pytest.importorskip("huggingface_hub")
ROOT = Path(__file__).resolve().parents[3]

FETCH = """
import multiprocessing, sys
from ssmke.data.manifest import Manifest
from ssmke.data.remote.fetch import RemoteConfig
from ssmke.data.remote.mirror import Mirror
from ssmke.errors import SSMKEError
config = RemoteConfig(cache_dir=sys.argv[2], retries=20, timeout_seconds=0.4)
try:
    mirror = Mirror.open(sys.argv[1], config)
except SSMKEError as error:
    sys.exit(str(error))
first, *others = [info for split in Manifest.load(mirror.folder).splits.values() for info in split.shards]
mirror.indexes([first, *others])
mirror.ensure(first)
for info in others:
    worker = multiprocessing.get_context("fork").Process(target=mirror.ensure, args=(info,))
    worker.start()
    worker.join()
    assert worker.exitcode == 0
print(mirror.folder)
"""


class Hub(MisbehavingServer):
    """The dataset ``me/toy``, in the folder ``toy``."""

    def locate(self, name: str) -> Path:
        return self.folder / name.replace("datasets/me/toy/resolve/main/", "toy/")

    def say(self, name: str) -> bytes | None:
        if name in ("api/datasets/me/toy", "api/datasets/me/toy/revision/main"):
            return json.dumps(
                {"id": "me/toy", "sha": "0" * 40, "tags": [], "downloads": 0, "likes": 0}
            ).encode()
        if name == "api/datasets/me/toy/tree/main":
            paths = sorted((self.folder / "toy").iterdir())
            return json.dumps(
                [
                    {"type": "file", "oid": "0" * 40, "size": path.stat().st_size, "path": path.name}
                    for path in paths
                ]
            ).encode()
        return None


def fetch(hub: Hub, url: str, cache: Path) -> subprocess.CompletedProcess[str]:
    # The client reads the address of its hub when it is imported.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(cache / "home"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", FETCH, url, str(cache)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_a_dataset_on_the_hub(dataset: Callable[..., Path], tmp_path: Path, share: float) -> None:
    folder = dataset("toy", {"train": [3, 2], "val": [2]})
    draw = at_random(1, share, ("stall halfway", "cut"))
    with Hub(tmp_path, draw) as hub:
        done = fetch(hub, "hf://datasets/me/toy", tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    for path in folder.iterdir():
        assert (Path(done.stdout.strip()) / path.name).read_bytes() == path.read_bytes()


def test_what_is_not_on_the_hub(tmp_path: Path) -> None:
    with Hub(tmp_path) as hub:
        done = fetch(hub, "hf://datasets/me/other", tmp_path / "cache")
    assert done.returncode == 1
    assert "hf://datasets/me/other/manifest.json cannot be fetched" in done.stderr
    assert "Traceback" not in done.stderr
