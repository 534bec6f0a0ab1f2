"""Datasets that come as archives: COCO, Flickr8k, Flickr30k.

Archives are imported from where they were fetched to, zips without unpacking them, so the disk holds each image
twice at most: in its archive and in a shard. A compressed tar has to be unpacked (the disk holds its images three
times then), unless the user has the folder of its images already: that one is used as it is and never deleted,
and the archive is not fetched. Nothing is known of what such a folder should hold; what it lacks, the import counts.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from ssmke.cli.data.get.config import GetConfig
from ssmke.cli.data.get.folders import is_done, keep_record, throw_away
from ssmke.cli.data.get.plan import decide, print_fact, print_files, print_needs, print_terms, say
from ssmke.cli.data.imports import run_import
from ssmke.cli.data.terminal import bytes_bar
from ssmke.data.sources.catalogue import Dataset
from ssmke.errors import ConfigError

if TYPE_CHECKING:
    from ssmke.data.remote.fetch import RemoteConfig


def get_archived(
    dataset: Dataset,
    config: GetConfig,
    splits: tuple[str, ...] = (),
    remote: RemoteConfig | None = None,
) -> int:
    """Fetch, check and import ``dataset`` (all splits, or ``splits``); gives the exit code.

    Raises:
        ConfigError: a flag is wrong, or nobody agreed.
        DataError: the disk is too small, an archive did not come or is another, or the folder is of another
            request; what is done is kept.
    """
    from ssmke.data import sources
    from ssmke.data.dealing import SAMPLE_OVERHEAD
    from ssmke.data.download.archives import (
        absent_bytes,
        fetch_archives,
        is_unpacked,
        missing_bytes,
        unpack_images,
    )
    from ssmke.data.download.estimate import Need, probe
    from ssmke.data.remote.fetch import RemoteConfig

    unknown = sorted(set(splits) - dataset.split_images.keys())
    if unknown:
        raise ConfigError(f"--splits {unknown[0]}: must be of {', '.join(dataset.split_images)}")
    # In one order, and none if they are all: the same request is the same however it was typed.
    splits = tuple(sorted(set(splits))) if set(splits) < dataset.split_images.keys() else ()
    request = config.request(splits=list(splits))
    if is_done(dataset.name, config, request):
        return 0
    remote = remote or RemoteConfig()
    folder = config.folder
    needed = dataset.archives_for(splits)
    own = [
        folder / archive.images_in
        for archive in needed
        if archive.images_in
        and (folder / archive.images_in).is_dir()
        and not is_unpacked(folder / archive.images_in)
    ]
    archives = [archive for archive in needed if folder / archive.images_in not in own]
    missing = missing_bytes(archives, folder)
    unpacked = [archive for archive in archives if archive.images_in]
    images = sum(number for name, number in dataset.split_images.items() if not splits or name in splits)
    shards = dataset.bytes_of(splits) + SAMPLE_OVERHEAD * images
    left = max(0, shards - sum(path.stat().st_size for path in config.out.glob("*.tar")))
    need = Need(missing, left, sum(a.size for a in unpacked if not (folder / a.images_in).is_dir()))

    print_terms(dataset)
    print_files(archives, folder)
    for mine in own:
        print_fact("", f"{mine}: is yours, so it is used as it is, and stays")
    largest = max(archives, key=lambda archive: archive.size)
    speed = probe(largest.url) if missing else None
    kept = sum(archive.size for archive in archives) if config.keep_downloads else 0
    print_needs(need, kept, config.out, speed, dataset.bytes_of(splits), config.workers)
    needs = {folder: need.downloads + need.other, config.out: need.shards}
    flags = {folder: "--downloads", config.out: "--out"}
    if not decide(needs, flags, config.yes, "Fetch and import?"):
        return 1

    with bytes_bar("fetching", absent_bytes(archives, folder)) as on_bytes:
        fetched = fetch_archives(archives, folder, remote, config.out, say, on_bytes)
    for archive in unpacked:
        say(f"unpacking {archive.name}")
        unpack_images(folder / archive.name, folder, archive.images_in)
    importers = {
        "coco-captions": sources.import_coco,
        "flickr30k": sources.import_flickr30k,
        "flickr8k": sources.import_flickr8k,
    }
    importer = importers[dataset.name]
    run = functools.partial(
        importer, folder, config.out, config.storage, config.clean, config.workers, splits=splits
    )
    code = run_import(config.out, run)
    keep_record(config.out, dataset.name, request, fetched, own_folders=[str(mine) for mine in own])
    if not config.keep_downloads:
        throw_away(folder, fetched, [archive.images_in for archive in unpacked])
    return code
