"""`ssmke data import`: files on disk become a dataset; never needs the network.

Every source ends the same way: with the table of the dataset, what was skipped, and the next command.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from rich.markup import escape
from tyro.conf import OmitArgPrefixes, arg

from ssmke.cli.data.terminal import CORES, console, print_dataset, print_next, progress
from ssmke.data.importing import StorageConfig
from ssmke.data.quality.cleaning import CleaningConfig

if TYPE_CHECKING:
    from ssmke.data.importing import ImportReport


@dataclasses.dataclass(frozen=True)
class ImportConfig:
    """Where to, and how."""

    out: Path
    """Folder to write the dataset to."""
    clean: CleaningConfig = dataclasses.field(default_factory=CleaningConfig)
    """What is left out."""
    workers: int = CORES
    """Processes."""


@dataclasses.dataclass(frozen=True)
class ImageImport(ImportConfig):
    """Where to, and how, of images whose shards are dealt here."""

    storage: OmitArgPrefixes[StorageConfig] = dataclasses.field(default_factory=StorageConfig)
    """How images are stored."""


@dataclasses.dataclass(frozen=True)
class TarsImport(ImportConfig):
    """Where to, and how, of tars, each of which becomes one shard."""

    max_side: int = 0
    """Scale images with a longer side down to this one, re-encoded as JPEG; 0 stores all as they are."""


Images = Annotated[ImageImport, arg(name="")]
"""Its flags without a prefix; those of ``clean`` keep theirs."""
Tars = Annotated[TarsImport, arg(name="")]
"""The same."""
Import = Callable[[Callable[[int], None], Callable[[int], None]], "ImportReport"]
"""An import that lacks only ``on_total`` and ``on_items``."""


def import_karpathy(
    images: Path,
    captions: Path,
    config: Images,
    restval: Literal["train", "keep", "skip"] = "train",
) -> int:
    """Import Flickr8k, Flickr30K or COCO from Karpathy's JSON; stopped, the same command goes on.

    Args:
        images: folder of the image files, or a zip archive of them.
        captions: the JSON file with captions and splits.
        restval: what COCO's split "restval" becomes: part of train, a split of its own, or nothing.
        config: where to, and how.
    """
    from ssmke.data.sources import karpathy

    source = karpathy.KarpathyConfig(images, captions, config.out, restval, config.storage, config.clean)
    return run_import(
        config.out, lambda total, items: karpathy.import_karpathy(source, config.workers, total, items)
    )


def import_coco_captions(
    root: Path,
    config: Images,
    splits: tuple[str, ...] = (),
) -> int:
    """Import COCO captions as distributed, archives not unpacked; stopped, the same command goes on.

    Images are read from train2014 and val2014, each a folder or a zip. Captions are Karpathy's
    dataset_coco.json (plain, or in caption_datasets.zip), else COCO's captions_train2014.json and
    captions_val2014.json (plain, or in annotations_trainval2014.zip).

    Args:
        root: folder that all of it is in, also some levels below.
        splits: import only these (train, val, test) and need only their images; default all.
        config: where to, and how.
    """
    from ssmke.data import sources

    return _import_images(sources.import_coco, root, config, splits)


def import_flickr30k(
    root: Path,
    config: Images,
    splits: tuple[str, ...] = (),
) -> int:
    """Import Flickr30k as distributed, archives not unpacked; stopped, the same command goes on.

    Images are read from flickr30k-images/ or flickr30k-images.zip (a tar.gz has to be unpacked). Captions are
    Karpathy's dataset_flickr30k.json (plain, or in caption_datasets.zip), else flickr_annotations_30k.csv, else
    results_20130124.token with the lists train.txt, val.txt and test.txt.

    Args:
        root: folder that all of it is in, also some levels below.
        splits: import only these (train, val, test); default all.
        config: where to, and how.
    """
    from ssmke.data import sources

    return _import_images(sources.import_flickr30k, root, config, splits)


def import_flickr8k(
    root: Path,
    config: Images,
    splits: tuple[str, ...] = (),
) -> int:
    """Import Flickr8k as distributed, archives not unpacked; stopped, the same command goes on.

    Images are read from Flicker8k_Dataset/ or Flickr8k_Dataset.zip. Captions are Karpathy's
    dataset_flickr8k.json (plain, or in caption_datasets.zip), else Flickr8k.token.txt with the lists
    Flickr_8k.trainImages.txt, devImages.txt and testImages.txt (plain, or in Flickr8k_text.zip).

    Args:
        root: folder that all of it is in, also some levels below.
        splits: import only these (train, val, test); default all.
        config: where to, and how.
    """
    from ssmke.data import sources

    return _import_images(sources.import_flickr8k, root, config, splits)


def import_tars(
    tars: Path,
    config: Tars,
    name: str = "",
    split: str = "train",
    caption_field: str = "",
) -> int:
    """Import webdataset tars: img2dataset's, open_clip's, or others of key.jpg with key.txt or key.json.

    One tar becomes one shard. Stopped, the same command goes on; tars that came since are added. Also takes the
    folders of img2dataset's "files" format.

    Args:
        tars: folder of the tars.
        name: of the dataset; default the folder's.
        split: of tars whose names have no train, validation or test in them.
        caption_field: field of the JSON that holds the caption or captions; default: captions, caption or text,
            else the .txt.
        config: where to, and how.
    """
    from ssmke.data.sources import tars as source

    storage = StorageConfig(max_side=config.max_side)
    found = source.TarsConfig(tars, config.out, name, split, caption_field, storage, config.clean)
    return run_import(
        config.out, lambda total, items: source.import_tars(found, config.workers, total, items)
    )


def import_cc3m(tars: Path, config: Tars) -> int:
    """Import Conceptual Captions 3M from webdataset tars; stopped, the same command goes on.

    Takes what img2dataset made of the URL list (00000.tar ...), or the tars that the hub has (cc3m-train-0000.tar
    ..., cc3m-validation-0000.tar ...); the latter's validation becomes the split val.

    Args:
        tars: folder of the tars.
        config: where to, and how.
    """
    return import_tars(tars, config, "cc3m")


def import_cc12m(tars: Path, config: Tars) -> int:
    """Import Conceptual 12M from webdataset tars; stopped, the same command goes on.

    Takes what img2dataset made of the URL list (00000.tar ...), or the tars that the hub has
    (cc12m-train-0000.tar ...).

    Args:
        tars: folder of the tars.
        config: where to, and how.
    """
    return import_tars(tars, config, "cc12m")


def import_sbu(tars: Path, config: Tars) -> int:
    """Import SBU Captions from webdataset tars; stopped, the same command goes on.

    Takes what img2dataset made of the URL list, or the tars that the hub has (both 00000.tar ...).

    Args:
        tars: folder of the tars.
        config: where to, and how.
    """
    return import_tars(tars, config, "sbu")


def _import_images(
    importer: Callable[..., ImportReport], root: Path, config: ImageImport, splits: tuple[str, ...]
) -> int:
    run = functools.partial(
        importer, root, config.out, config.storage, config.clean, config.workers, splits=splits
    )
    return run_import(config.out, run)


def run_import(out: Path, run: Import) -> int:
    """Run an import under a progress bar, and say what came of it."""
    from ssmke.data.importing import SKIPPED_NAME

    with progress("importing") as on:
        report = run(*on)
    print_dataset(out, report.manifest)
    kept = f", {report.reused} kept from before" if report.reused else ""
    shards = "shard" if report.written == 1 else "shards"
    console().print(f"{report.written} {shards} written{kept}; {report.seconds:.1f} s.")
    for note in report.notes:
        console().print(f"Note: {escape(note)}", soft_wrap=True)
    if report.manifest.skipped:
        console().print(f"What was skipped, line by line: {escape(str(out / SKIPPED_NAME))}", soft_wrap=True)
    print_next("ssmke", "data", "show", out, "--out", "sheet.png")
    return 0
