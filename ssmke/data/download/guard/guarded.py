"""img2dataset's downloader of shards, wrapped so that it brings its bounds to whatever process it runs in.

img2dataset gives the downloader to its distributor, and that pickles it for spawned processes, or for Spark's or
Ray's workers, possibly on other machines. The wrapper holds the real one's arguments as bytes, so that a worker
bounds itself (`install`) before it imports img2dataset and with it OpenCV, which reads its limit when loaded.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import threading
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import bounded  # type: ignore[import-not-found]
import pictures  # type: ignore[import-not-found]

_PERMANENT = re.compile(
    r"HTTP Error (4(?!08|25|29)\d\d|30\d)|unknown url type|Use of image disallowed|too many bytes|not an image"
    r"|unsupported format|private address|redirect|invalid URL|empty body"
)


class Guarded:
    """Stands for ``img2dataset.downloader.Downloader(**arguments)``."""

    def __init__(self, limits: bounded.Limits, **arguments: Any) -> None:
        self._limits = limits
        self._arguments = pickle.dumps(arguments)

    def __call__(self, row: Any) -> Any:
        install(self._limits)
        from img2dataset.downloader import Downloader  # type: ignore[import-not-found]

        return Downloader(**pickle.loads(self._arguments))(row)


_installed = False


def install(limits: bounded.Limits) -> None:
    """Bound this process, once."""
    global _installed
    if _installed:
        return
    _installed = True
    os.environ.update(limits.environment())
    urllib.request.install_opener(bounded.build_opener(limits))
    import cv2  # type: ignore[import-not-found]
    import img2dataset.downloader as downloader  # type: ignore[import-not-found]

    cv2.imdecode = pictures.decoder(cv2, cv2.imdecode)
    cv2.imencode = pictures.encoder(cv2.imencode)
    downloader.download_image_with_retry = _retry(downloader.download_image, limits)


def _retry(once: Callable[..., Any], limits: bounded.Limits) -> Callable[..., Any]:
    """img2dataset's retries, without those that cannot help (a 404 twice), and counted."""
    progress = _Progress(limits.progress) if limits.progress else None

    def download_image_with_retry(row: Any, timeout: float, retries: int, *more: Any, **named: Any) -> Any:
        for _ in range(retries + 1):
            key, stream, error = once(row, timeout, *more, **named)
            if stream is not None or _PERMANENT.search(error or ""):
                break
        if progress is not None:
            progress.add(0 if stream is None else stream.getbuffer().nbytes)
        return key, stream, error

    return download_image_with_retry


class _Progress:
    """Counts finished URLs of this process in a file of its own, where the parent reads them."""

    def __init__(self, folder: str) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
        # A process id may come again, or from another machine; with the time no two are alike.
        self._file = os.open(os.path.join(folder, f"{os.getpid()}-{time.time_ns()}"), flags)  # noqa: PTH118
        self._lock = threading.Lock()
        self._urls = self._bytes = 0

    def add(self, count: int) -> None:
        with self._lock:
            self._urls += 1
            self._bytes += count
            # A full disk is for those to tell of who write what matters.
            with contextlib.suppress(OSError):
                os.pwrite(self._file, bounded.PROGRESS.pack(self._urls, self._bytes), 0)
