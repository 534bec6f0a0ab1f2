"""Download a list of URLs with img2dataset, in an environment of its own, bounded and watched.

`ssmke.data.download.url_list` prepares the list, `ssmke.data.download.environment` the Python, and
`ssmke.data.download.guard` bounds each URL from inside. This module starts it all, tells how far it is, and sees
to its end:

- Resumable by shard: img2dataset skips shards that have statistics. Ours are checked first (a half-written file
  of a crash would count as finished); what is not whole is deleted and downloaded again.
- No hang: img2dataset waits for ever for a worker that was killed (out of memory). Every URL ends by its
  deadline, so a time in which not one ends means that something died. The process group is then killed and
  started again for what is missing, at most `ATTEMPTS` times, and no more when a start brings nothing.
- Nothing left behind: the process group ends with us (`ssmke.data.download.group`), and no unfinished tar stays.

Beyond one machine: ``distributor="pyspark"`` or ``"ray"``, in an environment that has them beside img2dataset
(``--img2dataset PYTHON``, the same on every node). Spark's own configuration (``SPARK_CONF_DIR``) names its master,
``RAY_ADDRESS`` names Ray's cluster; without, they run on this machine. The guard travels with the work. ``--out``
must be on a file system that all nodes have under the same path.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssmke.data.atomic import make_folder, new_folder, write_error
from ssmke.data.decode import MAX_PIXELS, MIN_SIDE
from ssmke.data.download.environment import child_environment, img2dataset_python, require
from ssmke.data.download.group import ProcessGroup
from ssmke.data.download.guard.bounded import PROGRESS, Limits
from ssmke.data.download.report import DownloadReport, ShardFiles, make_report
from ssmke.data.download.url_list import URLS_FOLDER, ListParts, UrlListConfig, prepare_parts
from ssmke.data.locks import locked
from ssmke.errors import ConfigError, DataError
from ssmke.words import duration, percent

ATTEMPTS = 5
SAY_SECONDS = 10.0
_START_SECONDS = 300.0  # imports of a slow disk, a first shard of a large list
_SPARE_SECONDS = 60.0  # beyond the deadline of a URL: looking up its name, decoding, closing a tar
_POLL_SECONDS = 0.5
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Invalid)\b")
_GUARD = Path(__file__).parent / "guard" / "main.py"


def download_urls(config: UrlListConfig, say: Callable[[str], None] = lambda line: None) -> DownloadReport:
    """Download what ``config`` lists to tars in its ``out``; run again, it goes on where it was.

    Args:
        config: the list and how to download it.
        say: called with lines for the user: what is being done, and how far it is.

    Returns:
        What was got and why the rest was lost, over all runs. Rows of shards that could not be finished are
        among its failures.

    Raises:
        ConfigError: ``out`` has a name that img2dataset cannot take.
        DataError: the list or the environment cannot be used, another process downloads to ``out``, or not one
            shard could be finished.
    """
    if any(mark in str(config.out.resolve()) for mark in ("*", "?", "[", "::")):
        # It would take them for patterns and find none of its finished shards.
        raise ConfigError(
            f"--out {config.out.resolve()}: must not hold any of * ? [ :: (img2dataset reads them)"
        )
    with new_folder(config.out), locked(config.out, wait=False, needed=False) as ours:
        if not ours:
            raise DataError(f"another process is downloading to {config.out}: wait for it, or stop it.")
        say(f"Reading {config.urls} ...")
        parts = prepare_parts(config)
        finished = _sweep(parts, config.out)
        say(
            f"{parts.rows:,} URLs in {parts.shards:,} shards"
            + (f", {len(finished):,} of them finished before" if finished else "")
        )
        if len(finished) < parts.shards:
            python = img2dataset_python(config.command, say)
            if config.distributor != "multiprocessing":
                require(python, config.distributor)
            try:
                finished = _finish(config, parts, python, finished, say)
            finally:
                shutil.rmtree(config.out / "_tmp", ignore_errors=True)
                shutil.rmtree(config.out / URLS_FOLDER / "progress", ignore_errors=True)
        return make_report(parts, config.out, finished)


def _finish(
    config: UrlListConfig, parts: ListParts, python: Path, finished: list[int], say: Callable[[str], None]
) -> list[int]:
    """Start img2dataset until all shards are finished, or no start brings any more."""
    for attempt in range(1, ATTEMPTS + 1):
        before = len(finished)
        why, lines = _run(config, parts, python, finished, say)
        finished = _sweep(parts, config.out)
        if len(finished) == parts.shards:
            return finished
        if any("No space left" in line or "Disk quota" in line for line in lines):
            raise DataError(
                f"cannot write {config.out}: the disk is full, or the quota used up. Free some space, then run the "
                f"same command again: {len(finished):,} of {parts.shards:,} shards are finished and kept."
            )
        if not finished:
            raise DataError(
                f"img2dataset finished no shard of {config.urls}: {why}. It said: {_essence(lines)}. All of it is in "
                f"{_log(config)}."
            )
        missing = parts.shards - len(finished)
        if len(finished) == before and attempt > 1:
            break
        if attempt < ATTEMPTS:
            say(f"{missing:,} shards are not finished ({why}): starting img2dataset again for them.")
    say(
        f"{parts.shards - len(finished):,} shards could not be finished; the reasons are in {_log(config)}. Run "
        f"the same command again to try them once more."
    )
    return finished


def _essence(lines: list[str]) -> str:
    """Of the last lines of output, those that name an exception: several processes end in each other's words."""
    named = [line for line in lines if _EXCEPTION.match(line)]
    return " | ".join(list(dict.fromkeys(named))[:3] or lines[-1:])[:1000] or "nothing"


def _run(
    config: UrlListConfig, parts: ListParts, python: Path, finished: list[int], say: Callable[[str], None]
) -> tuple[str, list[str]]:
    """One run of img2dataset: how it ended, and its last lines of output."""
    shutil.rmtree(config.out / "_tmp", ignore_errors=True)
    progress = config.out / URLS_FOLDER / "progress"
    shutil.rmtree(progress, ignore_errors=True)
    make_folder(progress)
    limits = Limits(
        seconds=config.seconds_per_image,
        max_bytes=config.max_image_bytes,
        max_pixels=MAX_PIXELS,
        private_hosts=config.private_hosts,
        progress=str(progress.resolve()),
    )
    # The C library's looking up of names, which no timeout of Python reaches; the user's own setting wins.
    environment = {"RES_OPTIONS": "timeout:3 attempts:2"} | child_environment(limits.environment())
    command = [str(python), str(_GUARD), json.dumps(_arguments(config, parts))]
    try:
        group = ProcessGroup(command, environment, log=_log(config))
    except OSError as error:
        raise DataError(f"img2dataset cannot be started with {python}: {error}.") from error
    with group:
        watch = _Watch(config, parts, finished, progress, say)
        while (status := group.wait(_POLL_SECONDS)) is None:
            if watch.look():
                return f"not one URL ended in {watch.patience:.0f} s, so it was killed", group.last_lines
    return ("it ended" if status == 0 else f"it ended with status {status}"), group.last_lines


def _arguments(config: UrlListConfig, parts: ListParts) -> dict[str, Any]:
    """Of ``img2dataset.download``."""
    return {
        "url_list": str(parts.folder.resolve()),
        "input_format": "parquet",
        "url_col": "url",
        "caption_col": "caption",
        "output_folder": str(config.out.resolve()),
        "output_format": "webdataset",
        "number_sample_per_shard": parts.shard_urls,
        "processes_count": config.processes,
        "thread_count": config.threads,
        "image_size": config.image_size,
        "resize_mode": "keep_ratio",
        "resize_only_if_bigger": True,
        "min_image_size": MIN_SIDE,
        "timeout": config.timeout_seconds,
        "retries": config.retries,
        "distributor": config.distributor,
        "incremental_mode": "incremental",
        "extract_exif": False,
        "enable_wandb": False,
    }


class _Watch:
    """Tells the user how far it is, and us whether it still moves."""

    def __init__(
        self,
        config: UrlListConfig,
        parts: ListParts,
        finished: list[int],
        progress: Path,
        say: Callable[[str], None],
    ) -> None:
        self._parts, self._progress, self._say = parts, progress, say
        self._before = sum(parts.shard_rows(number) for number in finished)
        self.patience = _START_SECONDS
        self._patience = (config.retries + 1) * config.seconds_per_image + _SPARE_SECONDS
        self._seen = 0
        self._moved = self._said = time.monotonic()
        self._first: tuple[float, int] | None = None

    def look(self) -> bool:
        """Whether nothing has moved for too long."""
        now = time.monotonic()
        urls, size = _counts(self._progress)
        if urls != self._seen:
            self._seen, self._moved = urls, now
        if urls and self._first is None:
            # Speed is counted from here: before, Pythons were starting.
            self._first = now, urls
            self.patience = self._patience
        if now - self._said >= SAY_SECONDS and self._first is not None:
            self._said = now
            done = min(self._before + urls, self._parts.rows)
            line = f"{done:,} of {self._parts.rows:,} URLs ({percent(done / self._parts.rows)})"
            seconds, more = now - self._first[0], urls - self._first[1]
            if more:
                left = (self._parts.rows - done) * seconds / more
                line += f", {more / seconds:,.0f}/s, about {duration(left)} to go"
            self._say(f"{line}, {size / 1e6:,.1f} MB fetched")
        return now - self._moved > self.patience


def _counts(progress: Path) -> tuple[int, int]:
    """Finished URLs and bytes of all processes of this run."""
    urls = size = 0
    for path in progress.iterdir():
        with contextlib.suppress(OSError):
            record = path.read_bytes()
            if len(record) == PROGRESS.size:
                more = PROGRESS.unpack(record)
                urls, size = urls + more[0], size + more[1]
    return urls, size


def _sweep(parts: ListParts, out: Path) -> list[int]:
    """The finished shards; what there is of others is deleted, so that nobody takes it for whole."""
    finished = []
    try:
        for number in range(parts.shards):
            shard = ShardFiles(out, number)
            if shard.is_finished(parts.shard_rows(number)):
                finished.append(number)
            else:
                shard.remove()
    except OSError as error:
        raise write_error(out, error) from error
    return finished


def _log(config: UrlListConfig) -> Path:
    return config.out / URLS_FOLDER / "img2dataset.log"
