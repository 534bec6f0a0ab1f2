"""What others wrote cannot steer the terminal."""

from __future__ import annotations

import io
import logging

import pytest
from rich.table import Table

from ssmke.cli.main import main
from ssmke.console import CleanConsole
from ssmke.screen import clean, clean_warnings

HOSTILE = "\x1b]0;mine\x07\x1b[2J\x9b1m\rover\u202egnp.exe"


def test_tables_and_lines_keep_styles_and_lose_controls() -> None:
    out = io.StringIO()
    console = CleanConsole(file=out, force_terminal=True, color_system="standard", width=80, markup=True)
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    console.print(table)
    console.print(f"[red]{HOSTILE}[/]")
    shown = out.getvalue()
    assert "\x1b[31m" in shown  # its own
    assert "\x1b]" not in shown
    assert "\x1b[2J" not in shown
    assert not set("\x07\x9b\r\u202e") & set(shown)


def test_errors_are_cleaned(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", f"/nowhere/{HOSTILE}"]) == 2
    said = capsys.readouterr().err
    assert "/nowhere/" in said
    assert not set("\x1b\x07\x9b\r\u202e") & set(said)


def test_warnings_are_cleaned(capsys: pytest.CaptureFixture[str]) -> None:
    assert logging.lastResort is not None
    clean_warnings()
    record = logging.LogRecord("ssmke", logging.WARNING, "", 0, "%s https://u:pw@h/x", (HOSTILE,), None)
    said = logging.lastResort.format(record)
    assert "\x1b" not in said
    assert "pw" not in said


def test_letters_of_all_scripts_and_line_breaks_stay() -> None:
    text = "Straße 東京 עברית\n\tзима \N{NO-BREAK SPACE}👩\u200d🚀"
    assert clean(text) == text
