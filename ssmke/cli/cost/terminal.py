"""Printing what comes from folders: names may hold control characters, or what a terminal cannot encode."""

from __future__ import annotations

import sys
from typing import TextIO

from ssmke.words import printable


def write(text: str) -> None:
    """To standard output, what it cannot encode replaced; nothing if it is closed."""
    _write(sys.stdout, text)


def say(line: str) -> None:
    """One line to standard output, control characters masked."""
    _write(sys.stdout, printable(line) + "\n")


def complain(line: str) -> None:
    """One line to standard error, likewise."""
    _write(sys.stderr, printable(line) + "\n")


def _write(stream: TextIO | None, text: str) -> None:
    if stream is None:
        return
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "replace").decode(encoding))
