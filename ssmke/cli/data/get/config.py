"""What `ssmke data get` is asked for.

Two kinds of options: those that a finished dataset depends on, and those of how it gets here. The first are the
*request*, kept with the dataset, so that the same command for something else is not answered with what is there.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from ssmke.cli.data.terminal import CORES
from ssmke.data.importing import StorageConfig
from ssmke.data.quality.cleaning import CleaningConfig
from ssmke.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class GetConfig:
    """Where to, and how."""

    out: Path
    """Folder to write the dataset to."""
    yes: bool = False
    """Agree to the terms, the disk and the time that are printed, without being asked."""
    downloads: Path | None = None
    """Folder for what is fetched; by default OUT.downloads beside OUT. Files put there by hand are used."""
    keep_downloads: bool = False
    """Do not delete what was fetched once it is imported."""
    max_side: int = 0
    """Scale images with a longer side down to this one, re-encoded as JPEG; 0 stores all as they are."""
    workers: int = CORES
    """Processes that import."""
    clean: CleaningConfig = dataclasses.field(default_factory=CleaningConfig)
    """What is left out."""

    @property
    def folder(self) -> Path:
        """Of what is fetched."""
        return self.downloads or self.out.absolute().with_name(f"{self.out.absolute().name}.downloads")

    @property
    def storage(self) -> StorageConfig:
        return StorageConfig(max_side=self.max_side)

    def request(self, **others: Any) -> dict[str, Any]:
        """Value of each flag that decides what the dataset holds; ``others`` are those of one command."""
        flags = {f"--{name.replace('_', '-')}": value for name, value in others.items()}
        return {"--max-side": self.max_side, **self.clean.identity(), **flags}


Flat = Annotated[GetConfig, arg(name="")]
"""Its flags without a prefix; those of ``clean`` keep theirs."""


@dataclasses.dataclass(frozen=True)
class WebConfig:
    """How links are fetched (see `ssmke.data.download`)."""

    max_pairs: int = 0
    """Take the first so many links only; 0 takes all."""
    image_size: int = 256
    """Images are scaled down so that their short side has this many pixels, and keep their shape."""
    processes: int = CORES
    """Processes that fetch."""
    threads: int = 32
    """Downloads at a time of one process."""
    distributor: Literal["multiprocessing", "pyspark", "ray"] = "multiprocessing"
    """What img2dataset spreads its work with."""
    img2dataset: str | None = None
    """Python of an environment with img2dataset; by default one is made."""
    private_hosts: tuple[str, ...] = ()
    """Hosts on a private network (NAME or NAME:PORT) that may be asked; others there are refused."""

    def __post_init__(self) -> None:
        if self.max_pairs < 0:
            raise ConfigError(f"--max-pairs {self.max_pairs}: must be 0 (all) or more")
        if not 32 <= self.image_size <= 4096:
            raise ConfigError(f"--image-size {self.image_size}: must be 32 to 4096")
        for flag, count in (("--processes", self.processes), ("--threads", self.threads)):
            if not 1 <= count <= 1024:
                raise ConfigError(f"{flag} {count}: must be 1 to 1,024")
