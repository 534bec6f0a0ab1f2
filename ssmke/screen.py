"""What comes from files of others, on its way to a terminal or log: no control characters, and no credentials.

A caption, a key or a file's name may hold escape sequences that rename the window, rewrite what was said before, or, in
some terminals, type commands. Messages quote them, tables show them (`ssmke.console`). Costs some 20 microseconds a
line.
"""

from __future__ import annotations

import logging

from ssmke.credentials import masked
from ssmke.words import on_screen


def clean(text: str) -> str:
    """``text`` for a terminal or log."""
    return on_screen(masked(text))


class _CleanFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return clean(super().format(record))


def clean_warnings() -> None:
    """Lets Python's handler of last resort, which prints our warnings where nobody set up logging, clean them."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_CleanFormatter())
