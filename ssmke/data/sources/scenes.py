"""The embedded dataset: rendered scenes with captions, written as ordinary shards.

Everything is a pure function of the seed (see `scene_plan.py`, which also says why the splits are disjoint
in composition), so the shards need not be shipped: 2 cores draw the default set in a few seconds. They are
written as an import writes its own (`ssmke.data.importing`): in parallel, noted one by one, so an interrupted or
repeated call draws only what is missing or was damaged, and never into a folder that holds anything else.

Default sizes: few pairs for training, because that is where a teacher that has seen many more unlabelled
images helps; 1,000 test images make chance exactly 0.1 % of R@1.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssmke.data.import_state import Skip
from ssmke.data.importing import ShardPlan, import_shards
from ssmke.data.manifest import FILE_NAME, IMPORT_STATE_NAME, Manifest, ShardInfo
from ssmke.data.parallel import Progress, tick
from ssmke.data.shards import Sample, file_sha256
from ssmke.data.sources.scene_captions import write_captions
from ssmke.data.sources.scene_plan import SPLITS, Scene, plan_scenes
from ssmke.data.sources.scene_render import encode_scene
from ssmke.errors import ConfigError, DataError

KIND = "rendered scenes"


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
                raise ConfigError(f"{_flag(name)} must lie between {low} and {high}, not {value}")
        if not self.train + self.val + self.test:
            raise ConfigError("--train, --val and --test are all 0: nothing to draw")


def write_scenes(
    out_dir: str | Path,
    config: ScenesConfig,
    workers: int | None = None,
    on_total: Progress = lambda images: None,
    on_items: Progress = lambda images: None,
) -> Manifest:
    """Draws the scenes into `out_dir` and returns its manifest; what is there of the same scenes is kept.

    `workers`: processes that draw, by default one per core. `on_total` is called with the number of images, if any
    are to be drawn, `on_items` with the number done since the last call. Raises `DataError` where `out_dir` holds
    anything else, or cannot be written.
    """
    out = Path(out_dir)
    fingerprint = _fingerprint(config)
    source = {"kind": KIND, **dataclasses.asdict(config), "fingerprint": fingerprint}
    finished = _finished(out, source)
    if finished is not None:
        return finished
    report = import_shards(
        name="scenes",
        plans=_plans(config, fingerprint, on_total),
        out=out,
        identity={
            "importer": KIND,
            **{_flag(name): value for name, value in dataclasses.asdict(config).items()},
        },
        source=source,
        workers=workers or os.cpu_count() or 1,
        on_items=on_items,
    )
    return report.manifest


def _finished(out: Path, source: dict[str, Any]) -> Manifest | None:
    """The dataset that is in `out` already; None if there is none, or shards of it have to be drawn again."""
    if not os.path.lexists(out / FILE_NAME):
        return None
    manifest = Manifest.load(out)
    if manifest.source.get("kind") != KIND:
        raise DataError(
            f"--out {out} holds the dataset {manifest.name!r}, made otherwise: choose another --out."
        )
    differences = [
        f"{_flag(name)} was {manifest.source.get(name)!r}, now {value!r}"
        for name, value in source.items()
        if name != "fingerprint" and manifest.source.get(name) != value
    ]
    if not differences and manifest.source.get("fingerprint") != source["fingerprint"]:
        differences = ["another version of ssmke drew them"]
    if differences:
        raise DataError(
            f"--out {out} holds other scenes: {'; '.join(differences)}. Choose another --out, or delete that folder."
        )
    damaged = [
        shard.file
        for split in manifest.splits.values()
        for shard in split.shards
        if not _is_whole(out / shard.file, shard)
    ]
    if damaged and not (out / IMPORT_STATE_NAME).exists():
        raise DataError(
            f"{out / damaged[0]} is missing or damaged, and {IMPORT_STATE_NAME} is not there, without which no "
            f"shard can be drawn again: delete the folder, then run the same command again."
        )
    return None if damaged else manifest


def _is_whole(path: Path, shard: ShardInfo) -> bool:
    try:
        return path.stat().st_size == shard.bytes and file_sha256(path) == shard.sha256
    except OSError:
        return False


def _plans(config: ScenesConfig, fingerprint: str, on_total: Progress) -> Iterator[ShardPlan]:
    # Only here is it known that they are to be drawn.
    on_total(config.train + config.val + config.test)
    for split in SPLITS:
        images, step = getattr(config, split), config.images_per_shard
        scenes = plan_scenes(config.seed, split, images)
        for number, first in enumerate(range(0, images, step)):
            drawn = DrawnScenes(tuple(scenes[first : first + step]), split, first, config)
            digest = hashlib.sha256(f"{fingerprint} {split} {first}".encode()).hexdigest()
            yield ShardPlan(f"{split}-{number:05d}.tar", split, digest, drawn)


@dataclass(frozen=True)
class DrawnScenes:
    """What a shard is made of."""

    scenes: tuple[Scene, ...]
    split: str
    first: int
    """Number of the first of them in its split."""
    config: ScenesConfig

    def samples(self, skips: list[Skip]) -> Iterator[Sample]:
        for number, scene in enumerate(self.scenes, self.first):
            yield scene_sample(scene, self.split, number, self.config)
            tick()


def scene_sample(scene: Scene, split: str, number: int, config: ScenesConfig) -> Sample:
    """The stored form of one scene; its composition key is kept beside the captions."""
    return Sample(
        key=f"scene-{split}-{number:06d}",
        image=encode_scene(scene, config.side),
        captions=write_captions(scene, config.captions),
        source="scenes",
        extra={"composition": scene.key},
    )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _fingerprint(config: ScenesConfig) -> str:
    """Digest of the options and of drawn scenes, so that a changed renderer or grammar redraws all."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(config), sort_keys=True).encode())
    for split in SPLITS:
        for scene in plan_scenes(config.seed, split, 8):
            digest.update(encode_scene(scene, config.side))
            digest.update("\n".join(write_captions(scene, config.captions)).encode())
    return digest.hexdigest()
