"""Datasets that come as lists of links: CC3M, CC12M, SBU, and any list; or as tars that the hub has of them.

Links are asked one by one, so what comes is another dataset every year; the hub's tars are the same for everybody,
but somebody else fetched and chose them. Both end as webdataset tars that are then imported, so the disk holds each
image twice until the import is done. The two lie in folders of their own below ``--downloads``, also those of two
datasets, and only what this command brought is imported.

A list is hashed first (about a second a gigabyte): that is how another list under the same name is noticed.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssmke.cli.data.get.config import GetConfig, WebConfig
from ssmke.cli.data.get.folders import is_done, keep_record, throw_away
from ssmke.cli.data.get.plan import (
    decide,
    print_fact,
    print_files,
    print_terms,
    print_web_needs,
    say,
)
from ssmke.cli.data.get.tars import get_tars, import_tars_of
from ssmke.cli.data.terminal import bytes_bar
from ssmke.data.sources import catalogue
from ssmke.data.sources.catalogue import UrlList
from ssmke.errors import ConfigError, DataError

if TYPE_CHECKING:
    from ssmke.data.download.archives import Fetched
    from ssmke.data.download.report import DownloadReport
    from ssmke.data.remote.fetch import RemoteConfig

IMAGES = "images"
"""Folder of the tars that links become, below that of the downloads."""
_OPEN_WEB = "The images belong to the owners of the pages: whether you may use them is for you to find out."


def get_listed(
    dataset: UrlList,
    config: GetConfig,
    web: WebConfig,
    urls: Path | None = None,
    source: str = "links",
    remote: RemoteConfig | None = None,
) -> int:
    """Fetch the list of ``dataset`` (or take ``urls``), fetch its images, import them; gives the exit code.

    With ``source`` "hub" the tars of its copy are fetched instead.

    Raises:
        ConfigError: a flag is wrong, or nobody agreed.
        DataError: the disk is too small, something did not come, or the folder is of another request; what is
            done is kept.
    """
    from ssmke.data.download.archives import absent_bytes, fetch_archives, missing_bytes
    from ssmke.data.download.estimate import probe
    from ssmke.data.download.pair_lists import count_rows, list_sha256
    from ssmke.data.remote.fetch import RemoteConfig

    if source == "hub":
        if urls is not None:
            raise ConfigError(
                f"--urls {urls}: --source hub takes the tars that others made and asks no links; give one of the two"
            )
        return get_tars(dataset, config, web, remote or RemoteConfig())
    published = dict([dataset.archive.digest] if dataset.archive.digest else [])
    digest = published.get("sha256", "") if urls is None else list_sha256(urls)
    request = _links_request(config, web, digest, source="links")
    if is_done(dataset.name, config, request, config.folder / IMAGES):
        return 0
    folder, archives = config.folder, [dataset.archive] if urls is None else []
    missing, rows = missing_bytes(archives, folder), dataset.pairs
    print_terms(dataset)
    if urls is None:
        print_files(archives, folder)
        print_fact(
            "", f"If it cannot be fetched: take it from {dataset.by_hand}, and give it with --urls FILE."
        )
    else:
        rows = count_rows(urls)
        print_fact("files", f"{urls}, about {rows:,} rows")
    links = min(web.max_pairs or rows, rows)
    speed = probe(dataset.archive.url) if missing else None
    if not _agree(dataset, links, missing, speed, config, web):
        return 1
    fetched: list[Fetched] = []
    if urls is None:
        with bytes_bar("fetching", absent_bytes(archives, folder)) as on_bytes:
            fetched = fetch_archives(archives, folder, remote or RemoteConfig(), config.out, say, on_bytes)
        urls = folder / dataset.archive.name
    columns = dataset.url_column, dataset.caption_column
    return _get_images(dataset.name, urls, *columns, config, web, request, fetched)


def get_links(
    name: str,
    urls: Path,
    url_column: str,
    caption_column: str,
    config: GetConfig,
    web: WebConfig,
) -> int:
    """Fetch and import the images of a list that the user has; gives the exit code. Raises as `get_listed`."""
    from ssmke.data.download.list_rows import kind_of
    from ssmke.data.download.pair_lists import count_rows, list_sha256

    kind_of(urls)
    columns = {"url_column": url_column, "caption_column": caption_column}
    request = _links_request(config, web, list_sha256(urls), **columns)
    if is_done(name, config, request, config.folder / IMAGES):
        return 0
    rows = count_rows(urls)
    print_fact("terms", _OPEN_WEB)
    print_fact("files", f"{urls}, about {rows:,} rows")
    if not _agree(None, min(web.max_pairs or rows, rows), 0, None, config, web):
        return 1
    return _get_images(name, urls, url_column, caption_column, config, web, request, [])


def _links_request(config: GetConfig, web: WebConfig, digest: str, **others: str) -> dict[str, Any]:
    request = config.request(max_pairs=web.max_pairs, image_size=web.image_size, **others)
    return {**request, "--urls (SHA-256)": digest}


def _agree(
    dataset: UrlList | None, links: int, list_bytes: int, speed: Any, config: GetConfig, web: WebConfig
) -> bool:
    from ssmke.data.dealing import SAMPLE_OVERHEAD
    from ssmke.data.download.estimate import WEB_IMAGE_BYTES, Need

    like = dataset or catalogue.CC12M
    alive = dataset.alive if dataset is not None and dataset.alive is not None else 1.0
    images = round(alive * links)
    here = sum(path.stat().st_size for path in (config.folder / IMAGES).glob("*.tar"))
    done = sum(path.stat().st_size for path in config.out.glob("*.tar"))
    whole = images * (WEB_IMAGE_BYTES + SAMPLE_OVERHEAD)
    need = Need(list_bytes + max(0, whole - here), max(0, whole - done))
    print_web_needs(
        need, config.out, dataset, links, images, list_bytes, speed, web.processes, config.workers,
        like.images_per_second, like.speed_source,
    )  # fmt: skip
    needs = {config.folder: need.downloads, config.out: need.shards}
    flags = {config.folder: "--downloads", config.out: "--out"}
    return decide(needs, flags, config.yes, f"Ask {links:,} addresses on the open web for images?")


def _get_images(
    name: str,
    urls: Path,
    url_column: str,
    caption_column: str,
    config: GetConfig,
    web: WebConfig,
    request: Mapping[str, Any],
    fetched: Sequence[Fetched],
) -> int:
    from ssmke.data.download.img2dataset import download_urls
    from ssmke.data.download.pair_lists import is_sbu_form, make_pairs
    from ssmke.data.download.report import NOT_FINISHED
    from ssmke.data.download.url_list import UrlListConfig

    folder = config.folder
    made, bad = [IMAGES], Counter[str]()
    if is_sbu_form(urls) or web.max_pairs:
        pairs = make_pairs(urls, url_column, caption_column, folder, web.max_pairs, say)
        made += [pairs.path.name, pairs.note.name]
        bad.update(pairs.bad)
        urls, url_column, caption_column = pairs.path, "url", "caption"
    report = download_urls(
        UrlListConfig(
            urls=urls,
            out=folder / IMAGES,
            url_column=url_column,
            caption_column=caption_column,
            image_size=web.image_size,
            processes=web.processes,
            threads=web.threads,
            private_hosts=web.private_hosts,
            distributor=web.distributor,
            command=web.img2dataset,
        ),
        say,
    )
    report = _with_bad_rows(report, bad)
    say(report.text())
    if not report.successes:
        raise DataError(
            f"not one of {report.asked:,} links gave an image; the reasons are above. To ask all of them again, "
            f"delete {folder / IMAGES} and run the same command."
        )
    code = import_tars_of(name, folder / IMAGES, config)
    unfinished = report.failures.get(NOT_FINISHED, 0)
    if unfinished:
        say(f"{unfinished:,} links were not finished: run the same command again to go on with them.")
        return 1
    keep_record(config.out, name, request, fetched, links=_plain(report))
    if not config.keep_downloads:
        throw_away(folder, fetched, made=made)
    return code


def _with_bad_rows(report: DownloadReport, bad: Counter[str]) -> DownloadReport:
    """``report``, with the rows that never came to the list which was asked."""
    failures = Counter(report.failures) + bad
    ordered = sorted(failures.items(), key=lambda item: (-item[1], item[0]))
    return dataclasses.replace(report, asked=report.asked + bad.total(), failures=dict(ordered))


def _plain(report: DownloadReport) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(report).items() if name != "tars"}
