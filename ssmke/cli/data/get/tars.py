"""Tars that were fetched become a dataset: those that img2dataset made of links, and those that the hub has.

The hub's tars lie in a folder of their own for each dataset. What an earlier, fuller run or the user left beside
them is not imported: importing takes all tars of a folder, so it is then given one with links to the right ones.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssmke.cli.data.get.config import GetConfig, WebConfig
from ssmke.cli.data.get.folders import is_done, keep_record, throw_away
from ssmke.cli.data.get.plan import decide, print_fact, print_needs, print_terms
from ssmke.cli.data.imports import run_import
from ssmke.cli.data.terminal import bytes_bar
from ssmke.data.atomic import TEMPORARY_SUFFIX, make_folder, write_error
from ssmke.data.losses import DOWNLOADS_NAME
from ssmke.data.sources.catalogue import Archive, UrlList
from ssmke.errors import ConfigError, DataError

if TYPE_CHECKING:
    from ssmke.data.importing import ImportReport
    from ssmke.data.remote.fetch import RemoteConfig


def get_tars(dataset: UrlList, config: GetConfig, web: WebConfig, remote: RemoteConfig) -> int:
    """The hub's copy, tar by tar."""
    from ssmke.data.download.archives import absent_bytes, fetch_archives, missing_bytes
    from ssmke.data.download.estimate import Need, probe

    if not dataset.hub:
        raise ConfigError(f"--source hub: no copy of {dataset.name} is known; use --source links.")
    request = config.request(max_pairs=web.max_pairs, source="hub")
    folder = config.folder / f"{dataset.name}-hub"
    if is_done(dataset.name, config, request, folder):
        return 0
    archives = list_tars(dataset.hub)
    if web.max_pairs:
        archives = archives[: max(1, -(-web.max_pairs * len(archives) // dataset.hub_pairs))]
    missing = missing_bytes(archives, folder)
    whole = sum(archive.size for archive in archives)
    need = Need(missing, max(0, whole - sum(path.stat().st_size for path in config.out.glob("*.tar"))))
    print_terms(dataset)
    print_fact("files", f"{len(archives):,} tars of {dataset.hub}, by others than the dataset's authors")
    if any(archive.digest is None for archive in archives):
        print_fact("", "no digests are stated there: those of the first download are recorded, and must stay")
    speed = probe(archives[0].url) if missing else None
    print_needs(need, whole if config.keep_downloads else 0, config.out, speed, whole, config.workers)
    needs = {config.folder: need.downloads, config.out: need.shards}
    flags = {config.folder: "--downloads", config.out: "--out"}
    if not decide(needs, flags, config.yes, "Fetch and import?"):
        return 1
    with bytes_bar("fetching", absent_bytes(archives, folder)) as on_bytes:
        fetched = fetch_archives(archives, folder, remote, config.out, lambda text: None, on_bytes)
    with _only(folder, [archive.name for archive in archives]) as tars:
        code = import_tars_of(dataset.name, tars, config)
    keep_record(config.out, dataset.name, request, fetched)
    if not config.keep_downloads:
        throw_away(folder, fetched)
        throw_away(config.folder, [])
    return code


@contextlib.contextmanager
def _only(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """``folder``; or, where more lies in it than ``names``, a folder beside it with links to those alone."""
    others = {child.name for child in folder.iterdir() if not child.name.startswith(".")}
    if others <= {*names, DOWNLOADS_NAME}:
        yield folder
        return
    chosen = folder.with_name(f".{folder.name}{TEMPORARY_SUFFIX}")
    shutil.rmtree(chosen, ignore_errors=True)  # of a run that was killed
    make_folder(chosen)
    try:
        try:
            for name in names:
                (chosen / name).symlink_to((folder / name).absolute())
        except OSError as error:
            raise write_error(chosen, error) from error
        yield chosen
    finally:
        shutil.rmtree(chosen, ignore_errors=True)


def list_tars(folder: str) -> list[Archive]:
    """The training tars of a folder at a store, with what the store says of their sizes and digests.

    Raises:
        DataError: it cannot be listed.
    """
    import fsspec

    try:
        file_system, path = fsspec.core.url_to_fs(folder)
        found: dict[str, dict[str, Any]] = file_system.find(path, maxdepth=1, detail=True)
    except Exception as error:  # whatever a store's package raises
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"{folder} cannot be listed: {reason}. Check the network; or use --source links."
        ) from None
    tars = {name.rpartition("/")[2]: facts for name, facts in found.items() if name.endswith(".tar")}
    training = {
        name: facts for name, facts in tars.items() if "validation" not in name and "test" not in name
    }
    if not training:
        raise DataError(f"{folder} has no tars: it was moved or changed. Use --source links.")
    return [
        Archive(name, f"{folder}/{name}", facts.get("size"), _lfs_digest(facts), about=facts.get("size") or 0)
        for name, facts in sorted(training.items())
    ]


def _lfs_digest(facts: dict[str, Any]) -> tuple[str, str] | None:
    digest = getattr(facts.get("lfs"), "sha256", None)
    return ("sha256", digest) if isinstance(digest, str) else None


def import_tars_of(name: str, folder: Path, config: GetConfig) -> int:
    from ssmke.data.sources import TarsConfig, import_tars

    tars = TarsConfig(folder, config.out, name, storage=config.storage, clean=config.clean)
    run: Callable[..., ImportReport] = lambda *on: import_tars(tars, config.workers, *on)  # noqa: E731
    return run_import(config.out, run)
