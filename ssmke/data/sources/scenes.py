"""The embedded dataset: rendered scenes with captions, written as ordinary shards.

Everything is a pure function of the seed (see `scene_plan.py`, which also says why the splits are disjoint
in composition), so the shards need not be shipped: 2 cores draw the default set in a few seconds. Shards
are drawn in parallel, written atomically, and noted one by one in `progress.json`, so an interrupted or
repeated call draws only what is missing or was damaged.

Default sizes: few pairs for training, because that is where a teacher that has seen many more unlabelled
images helps; 1,000 test images make chance exactly 0.1 % of R@1.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.progress import track

from ssmke.data.atomic import make_folder, write_json
from ssmke.data.manifest import Manifest, ShardInfo, Split
from ssmke.data.shards import Sample, write_shard
from ssmke.data.sources.scene_captions import write_captions
from ssmke.data.sources.scene_plan import SPLITS, Scene, plan_scenes
from ssmke.data.sources.scene_render import encode_scene
from ssmke.errors import ConfigError, DataError

PROGRESS = "progress.json"


@dataclass(frozen=True)
class ScenesConfig:
    """Size and seed of a rendered dataset."""

    train: int = 3000
    """Images of the train split."""
    val: int = 500
    """Images of the val split."""
    test: int = 1000
    """Images of the test split."""
    captions: int = 5
    """Captions per image, taking turns in their level of detail."""
    side: int = 64
    """Width and height of an image in pixels."""
    seed: int = 0
    """Another seed gives other scenes; which compositions a split may show stays the same."""
    images_per_shard: int = 500
    """Images of one tar file."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("train", 0, 1_000_000),
            ("val", 0, 4_000),
            ("test", 0, 10_000),
            ("captions", 1, 20),
            ("side", 16, 1024),
            ("seed", 0, 2**31 - 1),
            ("images_per_shard", 1, 100_000),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} must lie between {low} and {high}, not {value}")
        if not self.train + self.val + self.test:
            raise ConfigError("--train, --val and --test are all 0: nothing to draw")


def write_scenes(out_dir: str | Path, config: ScenesConfig, workers: int | None = None) -> Manifest:
    """Draws the scenes into `out_dir` and returns its manifest; finished shards are reused.

    `workers`: processes that draw, by default one per usable core. Raises `DataError` where `out_dir` holds
    another dataset or cannot be written.
    """
    out = Path(out_dir)
    make_folder(out)
    fingerprint = _fingerprint(config)
    done = _finished(out, fingerprint)
    jobs = [job for job in _jobs(config) if job[0] not in done]
    for info in _draw_all(out, config, jobs, workers or os.cpu_count() or 1):
        done[info.file] = info
        shards = [dataclasses.asdict(shard) for shard in done.values()]
        write_json(out / PROGRESS, {"fingerprint": fingerprint, "shards": shards})
    manifest = _manifest(config, fingerprint, done)
    manifest.save(out)
    with suppress(OSError):
        (out / PROGRESS).unlink()
    return manifest


Job = tuple[str, str, int, int]  # shard file, split, first scene, end


def _jobs(config: ScenesConfig) -> Iterator[Job]:
    for split in SPLITS:
        images, step = getattr(config, split), config.images_per_shard
        for number, first in enumerate(range(0, images, step)):
            yield f"{split}-{number:05d}.tar", split, first, min(first + step, images)


def _draw_all(out: Path, config: ScenesConfig, jobs: list[Job], workers: int) -> Iterator[ShardInfo]:
    plans = {
        split: plan_scenes(config.seed, split, getattr(config, split)) for split in {job[1] for job in jobs}
    }
    tasks = [(out, file, split, first, plans[split][first:end], config) for file, split, first, end in jobs]
    if workers <= 1 or len(tasks) <= 1:
        yield from (_draw_shard(*task) for task in track(tasks, "drawing scenes", disable=not tasks))
        return
    # Spawned, not forked: the caller may have started threads (torch, MLflow).
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context) as pool:
        futures = [pool.submit(_draw_shard, *task) for task in tasks]
        try:
            for future in track(as_completed(futures), "drawing scenes", total=len(futures)):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _draw_shard(
    out: Path, file: str, split: str, first: int, scenes: list[Scene], config: ScenesConfig
) -> ShardInfo:
    samples = (scene_sample(scene, split, first + number, config) for number, scene in enumerate(scenes))
    return write_shard(out / file, samples, split)


def scene_sample(scene: Scene, split: str, number: int, config: ScenesConfig) -> Sample:
    """The stored form of one scene; its composition key is kept beside the captions."""
    return Sample(
        key=f"scene-{split}-{number:06d}",
        image=encode_scene(scene, config.side),
        captions=write_captions(scene, config.captions),
        source="scenes",
        extra={"composition": scene.key},
    )


def _fingerprint(config: ScenesConfig) -> str:
    """Digest of the options and of drawn scenes, so that a changed renderer or grammar redraws all."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(config), sort_keys=True).encode())
    for split in SPLITS:
        for scene in plan_scenes(config.seed, split, 8):
            digest.update(encode_scene(scene, config.side))
            digest.update("\n".join(write_captions(scene, config.captions)).encode())
    return digest.hexdigest()


def _finished(out: Path, fingerprint: str) -> dict[str, ShardInfo]:
    """Shards of an earlier call with the same fingerprint that are still whole."""
    known: list[ShardInfo] = []
    if (out / "manifest.json").is_file():
        manifest = Manifest.load(out)
        if manifest.name != "scenes":
            raise DataError(f"{out} already holds the dataset {manifest.name!r}; choose another --out")
        if manifest.source.get("fingerprint") == fingerprint:
            known = [shard for split in manifest.splits.values() for shard in split.shards]
    if not known and (out / PROGRESS).is_file():
        try:
            state = json.loads((out / PROGRESS).read_text())
            if state["fingerprint"] == fingerprint:
                known = [ShardInfo(**shard) for shard in state["shards"]]
        except (ValueError, KeyError, TypeError):
            known = []  # cut short or foreign: draw again, it costs seconds
    return {shard.file: shard for shard in known if _is_whole(out / shard.file, shard)}


def _is_whole(path: Path, shard: ShardInfo) -> bool:
    if not path.is_file() or path.stat().st_size != shard.bytes:
        return False
    return hashlib.sha256(path.read_bytes()).hexdigest() == shard.sha256


def _manifest(config: ScenesConfig, fingerprint: str, done: dict[str, ShardInfo]) -> Manifest:
    splits: dict[str, list[ShardInfo]] = {}
    for file, split, _, _ in _jobs(config):
        splits.setdefault(split, []).append(done[file])
    source = {"kind": "rendered scenes", **dataclasses.asdict(config), "fingerprint": fingerprint}
    return Manifest(
        name="scenes",
        source=source,
        splits={name: Split(tuple(shards)) for name, shards in splits.items()},
        skipped={},
    )
