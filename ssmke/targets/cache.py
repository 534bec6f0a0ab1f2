"""The target cache on disk: its identity, its layout, and reading it in training.

A frozen teacher and images known in advance: its targets can be computed once instead of in every epoch of
every run (online, the teacher costs up to 38 % of the thesis' training time). Layout, one folder per dataset
folder, by default ``SHARDS/targets/<teacher>-v<views>/``:

    cache.json        identity: teacher (name, weights digest, output), pixels (size, views, augmentation), dtype
    train-00000.npy   [N, V, D] fp16 rows of data shard train-00000.tar, in the order of its images
    train-00000.json  written last: the shard's image count and key digest, the file's sha256, undecodable images

A shard is complete when its JSON is there; nothing else is trusted, so a build can be killed at any moment
and goes on where it was. Whoever opens a cache says which teacher, pixels and shards it must be of; any
difference is an error that names it, before step 0.

One view (V = 1) is the canonical view's target, whatever crop the student sees. With V > 1 the student is shown
view ``epoch mod V`` and gets that very view's target; with V = epochs, a cached run equals an online one.
Size: N x V x D x 2 bytes; 2.78M images x 768 = 4.3 GB per view. Rows are read through a memory map.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ssmke import foreign_json
from ssmke.data.atomic import make_folder, write_json
from ssmke.data.augmentation import VERSION, AugmentationConfig
from ssmke.data.dataset import ImageTextShards
from ssmke.data.manifest import ShardInfo
from ssmke.differences import differences
from ssmke.errors import ConfigError, TargetCacheError

FORMAT = "ssmke-targets/1"


@dataclass
class TargetsConfig:
    """Where teacher targets come from."""

    mode: Literal["cache", "online"] = "cache"
    """`cache`: computed once per image and read back. `online`: the teacher runs in every step."""
    views: int = 1
    """Cached views per image: 1 is the canonical view; as many as epochs equals the online teacher."""
    dir: str | None = None
    """Folder of caches, one below it for each shard folder and teacher; by default inside each shard folder."""
    batch_size: int = 64
    """Images per teacher forward while building."""
    frozen_tokens: bool = False
    """Cache the tokens of a frozen image encoder too: no image is decoded or encoded in training, all are shown in
    their canonical view."""
    frozen_text: bool = False
    """Cache the pooled features of a frozen text encoder as well: training reads rows of numbers alone, so that batches
    of tens of thousands fit."""

    def __post_init__(self) -> None:
        if self.mode not in ("cache", "online"):
            raise ConfigError(f"--targets.mode {self.mode!r}: must be cache or online")
        if self.views < 1:
            raise ConfigError(f"--targets.views {self.views}: must be at least 1")
        if self.batch_size < 1:
            raise ConfigError(f"--targets.batch-size {self.batch_size}: must be at least 1")


@dataclass(frozen=True)
class CacheIdentity:
    """What cached targets depend on, besides the images."""

    teacher: dict[str, Any]
    """`Teacher.describe()`: name, weights digest, output, normalisation, width."""
    image_size: int
    """Side of the crops in pixels."""
    views: int
    augmentation: dict[str, float]
    """Version of the pixels; for more views than the canonical one, the parameters of the crops."""
    dtype: str = "float16"

    @classmethod
    def of(
        cls, teacher: dict[str, Any], image_size: int, views: int, augmentation: AugmentationConfig
    ) -> CacheIdentity:
        """The identity of a cache of ``views`` views under ``augmentation``."""
        return cls(teacher, image_size, views, augmentation.identity() if views > 1 else {"version": VERSION})

    @property
    def of_captions(self) -> bool:
        """Whether a row is a caption's, not an image's."""
        return self.teacher.get("rows") == "captions"

    def shape(self, info: ShardInfo) -> tuple[int, int, int]:
        """Of the rows of a data shard: [N, V, D]."""
        return info.captions if self.of_captions else info.images, self.views, int(self.teacher["dim"])

    @property
    def folder_name(self) -> str:
        """Name of the cache's folder: the teacher and the number of views."""
        return f"{self.teacher['name'].replace('/', '_')}-{self.teacher['output']}-v{self.views}"

    def differences(self, found: dict[str, Any]) -> list[str]:
        """One line for each fact in which a cache's identity differs from this one."""
        return [
            f"{name}: the cache has {there}, this run needs {here}"
            for name, there, here in differences(found, asdict(self))
        ]


@dataclass(frozen=True)
class ShardTargets:
    """Record of one finished shard of targets."""

    images: int
    keys_sha256: str
    shard_sha256: str
    """Digest of the data shard: the same keys may come to show other images."""
    sha256: str
    seconds: float
    """Device-seconds that it took."""
    bad: dict[str, str] = field(default_factory=dict)
    """Images without a target (their rows are NaN), by reason."""


def cache_dir(shards_dir: Path, identity: CacheIdentity, config: TargetsConfig) -> Path:
    """Folder of the cache of one dataset folder."""
    parent = shards_dir / "targets" if config.dir is None else Path(config.dir) / _unique_name(shards_dir)
    return parent / identity.folder_name


def _unique_name(folder: Path) -> str:
    path = folder.resolve()
    return f"{path.name}-{hashlib.blake2b(str(path).encode(), digest_size=4).hexdigest()}"


def load_identity(folder: Path) -> dict[str, Any] | None:
    """The identity of the cache in ``folder``, None where there is none; garbled is a `TargetCacheError`."""
    try:
        saved = foreign_json.loads((folder / "cache.json").read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TargetCacheError(f"{folder / 'cache.json'} cannot be read ({error})") from None
    except ValueError as error:
        raise TargetCacheError(f"{folder / 'cache.json'} is not JSON ({error}): {_rebuild(folder)}") from None
    if (
        not isinstance(saved, dict)
        or saved.get("format") != FORMAT
        or not isinstance(saved.get("identity"), dict)
    ):
        raise TargetCacheError(f"{folder / 'cache.json'} is not of format {FORMAT}: {_rebuild(folder)}")
    identity: dict[str, Any] = saved["identity"]
    return identity


def check_identity(folder: Path, wanted: CacheIdentity) -> bool:
    """False where no cache is; True where it matches; else a `TargetCacheError` naming the differences."""
    found = load_identity(folder)
    if found is None:
        return False
    differences = wanted.differences(found)
    if differences:
        listed = "\n  ".join(differences)
        raise TargetCacheError(
            f"the target cache {folder} was made otherwise:\n  {listed}\n"
            f"Use what it was made with, or build another: --targets.dir OTHER, or {_rebuild(folder)}"
        )
    return True


def _rebuild(folder: Path) -> str:
    return f"remove {folder} and run `ssmke targets build` again"


def save_identity(folder: Path, identity: CacheIdentity) -> None:
    """Writes cache.json atomically."""
    make_folder(folder)
    write_json(folder / "cache.json", {"format": FORMAT, "identity": asdict(identity)})


def record_path(folder: Path, shard: str) -> Path:
    """The JSON record of data shard ``shard`` ("train-00000.tar")."""
    return folder / f"{Path(shard).stem}.json"


def rows_path(folder: Path, shard: str) -> Path:
    """The rows of data shard ``shard``."""
    return folder / f"{Path(shard).stem}.npy"


def load_record(folder: Path, info: ShardInfo, identity: CacheIdentity) -> ShardTargets | None:
    """The record of a finished shard, None where unfinished; `TargetCacheError` where it is of other images."""
    path = record_path(folder, info.file)
    try:
        record = foreign_json.record(ShardTargets, foreign_json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise TargetCacheError(f"{path} is damaged ({error}): remove it and build again") from None
    if (record.keys_sha256, record.shard_sha256, record.images) != (
        info.keys_sha256,
        info.sha256,
        info.images,
    ):
        raise TargetCacheError(
            f"{path} holds targets of {record.images} images (keys {record.keys_sha256[:12]}, file "
            f"{record.shard_sha256[:12]}), but shard {info.file} now has {info.images} (keys {info.keys_sha256[:12]}, "
            f"file {info.sha256[:12]}): the shards were changed; {_rebuild(folder)}"
        )
    open_rows(rows_path(folder, info.file), identity.shape(info))
    return record


def open_rows(path: Path, shape: tuple[int, int, int]) -> npt.NDArray[np.float16]:
    """Maps a rows file; `TargetCacheError` where it is missing, cut short or of another shape."""
    try:
        rows: npt.NDArray[np.float16] = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(rows, np.memmap):
            raise ValueError("it is an archive, not an array")
    # Beside what is wrong with a file, numpy lets pass what Python's tokenizer says of a damaged header.
    except Exception as error:
        raise TargetCacheError(
            f"{path} cannot be read ({error}): remove {path.stem}.json and build again"
        ) from None
    if rows.shape != shape or rows.dtype != np.float16:
        raise TargetCacheError(
            f"{path} has shape {rows.shape} instead of {shape}: remove {path.stem}.json and build again"
        )
    return rows


def shard_folders(
    shards: ImageTextShards, identity: CacheIdentity, config: TargetsConfig
) -> Iterator[tuple[Path, ShardInfo, Path, int]]:
    """(tar path, its manifest entry, its cache folder, number of its first image) of every data shard."""
    for path, info, first in shards.shards:
        yield path, info, cache_dir(path.parent, identity, config), first


class TargetCache:
    """Reads a dataset's cached rows by number of image or pair; opened only when whole and matching."""

    def __init__(self, identity: CacheIdentity, files: Sequence[Path], firsts: Sequence[int]) -> None:
        self.identity = identity
        self.views = identity.views
        self.dim = int(identity.teacher["dim"])
        self._files = list(files)
        self._firsts = np.asarray(firsts, dtype=np.int64)
        self._maps: dict[int, npt.NDArray[np.float16]] = {}

    @classmethod
    def open(cls, shards: ImageTextShards, identity: CacheIdentity, config: TargetsConfig) -> TargetCache:
        """Checks identity and completeness of every shard; any gap is a `TargetCacheError`, before step 0."""
        files, firsts, missing = [], [], []
        work = list(shard_folders(shards, identity, config))
        exists = {folder: check_identity(folder, identity) for folder in {folder for _, _, folder, _ in work}}
        for number, (_, info, folder, first) in enumerate(work):
            if not exists[folder] or load_record(folder, info, identity) is None:
                missing.append(f"{folder}/{Path(info.file).stem}.npy")
            files.append(rows_path(folder, info.file))
            firsts.append(int(shards.first_pairs[number]) if identity.of_captions else first)
        if missing:
            raise TargetCacheError(
                f"the target cache is incomplete: {len(missing)} of {len(files)} shards have no targets (first: "
                f"{missing[0]}); run `ssmke targets build`, or train with --targets.mode online"
            )
        return cls(identity, files, firsts)

    def row(self, number: int, view: int) -> npt.NDArray[np.float16]:
        """View ``view`` of an image, or a pair's caption (view 0): fp16 [D]."""
        shard = int(np.searchsorted(self._firsts, number, side="right")) - 1
        return np.array(self._map(shard)[number - int(self._firsts[shard]), view])

    def rows(self, numbers: npt.NDArray[np.int64], view: int = 0) -> npt.NDArray[np.float16]:
        """The same of many, [len(numbers), D]."""
        found = np.empty((len(numbers), self.dim), dtype=np.float16)
        shards = np.searchsorted(self._firsts, numbers, side="right") - 1
        for shard in np.unique(shards):
            here = np.flatnonzero(shards == shard)
            found[here] = self._map(int(shard))[numbers[here] - self._firsts[shard], view]
        return found

    def _map(self, shard: int) -> npt.NDArray[np.float16]:
        if shard not in self._maps:
            self._maps[shard] = np.load(self._files[shard], mmap_mode="r", allow_pickle=False)
        return self._maps[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}
