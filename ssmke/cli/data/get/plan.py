"""What `ssmke data get` says before it does anything: terms, files, disk, time; and the question."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from ssmke.cli.data.terminal import console
from ssmke.data.download.estimate import (
    IMPORT_BYTES_PER_SECOND,
    WEB_IMAGE_BYTES,
    Need,
    Speed,
    check_disk,
    fetch_times,
    free_bytes,
    gigabytes,
)
from ssmke.data.sources.catalogue import Archive, Dataset, UrlList
from ssmke.errors import ConfigError
from ssmke.words import counted, duration


def say(text: str) -> None:
    """A line of what is going on."""
    console().print(escape(text), soft_wrap=True)


def print_terms(dataset: Dataset | UrlList) -> None:
    """Title, terms and where they are."""
    out = console()
    out.print(f"[bold]{escape(dataset.title)}[/]  {escape(dataset.home)}", soft_wrap=True)
    print_fact("terms", dataset.terms)
    print_fact("", dataset.terms_link)


def print_fact(label: str, text: str) -> None:
    """A line with its label in front, wrapped beside it."""
    table = Table.grid(padding=(0, 2))
    table.add_column(width=8, style="bold")
    table.add_column(overflow="fold")
    table.add_row(label, escape(text))
    console().print(table)


def print_files(archives: Sequence[Archive], folder: Path) -> None:
    """What is to be fetched from where, and how it is checked."""
    for number, archive in enumerate(archives):
        here = (folder / archive.name).is_file()
        size = gigabytes(archive.size) if archive.size else "size not published"
        about = "" if archive.bytes is not None or not archive.size else "about "
        check = archive.digest[0].upper().replace("SHA256", "SHA-256") if archive.digest else "first download"
        host = archive.url.partition("://")[2].partition("/")[0]
        text = f"{archive.name}: {about}{size}, checked by {check}, {'is here' if here else f'from {host}'}"
        print_fact("" if number else "files", text)


def print_needs(
    need: Need, kept: int, out: Path, speed: Speed | None, import_bytes: int, workers: int
) -> None:
    """Disk and time of a download of archives."""
    _print_disk(need, kept, out)
    times = []
    if need.downloads and speed is not None:
        if speed.bytes_per_second is None:
            times.append(f"the line could not be measured ({speed.why})")
        times.append(f"download: {fetch_times(need.downloads, speed)}")
    times.append(f"import: {_import_time(import_bytes, workers)}")
    for number, text in enumerate(times):
        print_fact("" if number else "time", text)


def print_web_needs(
    need: Need,
    out: Path,
    dataset: UrlList | None,
    links: int,
    images: int,
    list_bytes: int,
    speed: Speed | None,
    processes: int,
    workers: int,
    per_process: float,
    source: str,
) -> None:
    """Disk and time of a download of links."""
    if dataset is not None and dataset.alive is not None:
        text = f"{links:,}, of which about {images:,} will come ({dataset.alive:.0%}: {dataset.alive_source})"
    else:
        text = f"{links:,}; how many are dead nobody says, so disk and time are for all of them"
    print_fact("links", text)
    _print_disk(need, 0, out)
    print_fact("", f"at {WEB_IMAGE_BYTES / 1000:.0f} kB an image, as in img2dataset's CC12M run")
    times = []
    if list_bytes and speed is not None:
        if speed.bytes_per_second is None:
            times.append(f"the line could not be measured ({speed.why})")
        times.append(f"list: {fetch_times(list_bytes, speed)}")
    count = counted(processes, "process", "processes")
    times.append(
        f"images: {duration(links / (per_process * processes))} with {count}, if one fetches {per_process:.0f} "
        f"images/s as in {source}. A slower line or another machine takes longer."
    )
    times.append(f"import: {_import_time(images * WEB_IMAGE_BYTES, workers)}")
    for number, text in enumerate(times):
        print_fact("" if number else "time", text)


def decide(needs: dict[Path, int], flags: dict[Path, str], yes: bool, question: str) -> bool:
    """Refuse a disk that is too small, then ask; ``yes`` answers.

    Raises:
        DataError: the disk is too small.
        ConfigError: there is nobody to ask.
    """
    check_disk(needs, flags)
    if yes:
        return True
    if not sys.stdin.isatty():
        raise ConfigError(
            "nothing was fetched: there is no terminal to ask on. Add --yes to agree to the above."
        )
    try:
        answer = console().input(f"{question} \\[y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() in ("y", "yes"):
        return True
    console().print("Nothing was fetched.")
    return False


def _print_disk(need: Need, kept: int, out: Path) -> None:
    parts = [
        f"{gigabytes(size)} {what}"
        for size, what in ((need.downloads, "downloads"), (need.other, "unpacked"), (need.shards, "shards"))
        if size
    ]
    end = need.shards + kept
    text = (
        f"{gigabytes(need.peak)} at most ({' + '.join(parts) or 'all is here'}), {gigabytes(end)} in the end"
    )
    print_fact("disk", f"{text}; {gigabytes(free_bytes(out))} are free")


def _import_time(count: int, workers: int) -> str:
    rate = IMPORT_BYTES_PER_SECOND * max(1, workers)
    return f"about {duration(count / rate)} with {counted(max(1, workers), 'worker')}"
