"""The site builds without a broken link, and every command line that README and docs show exists, flags and all."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import os
import re
import shlex
from pathlib import Path
from unittest import mock

import pytest

from ssmke.cli import cost
from ssmke.cli.main import GROUPS, main

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
TAKES_A_RECIPE = ("ssmke targets build", "ssmke targets verify")
"""Their flags are those of a training run, and are checked where those are."""


@pytest.mark.skipif(importlib.util.find_spec("material") is None, reason="mkdocs-material is not installed")
def test_the_site_builds_strictly(tmp_path: Path) -> None:
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True))
    page = (tmp_path / "reference" / "python" / "index.html").read_text()
    assert "encode_image" in page
    assert (tmp_path / "benchmarks" / "results" / "step-cpu" / "index.html").is_file()
    assert "fonts.googleapis.com" not in page


def commands(page: Path) -> list[str]:
    """Command lines in code, continued lines joined, from `ssmke` or `ssmke-cost` on."""
    text = re.sub(r" *\\\n\s*", " ", page.read_text(encoding="utf-8"))
    found = re.findall(r"^ {4}(?:\$ )?(ssmke(?:-cost)? .*)$", text, re.MULTILINE)
    return [*found, *re.findall(r"`(ssmke(?:-cost)? [^`]*)`", text)]


@functools.cache
def help_of(words: tuple[str, ...]) -> str | None:
    """What ``words --help`` prints; None if there is no such command."""
    run = cost.main if words[0] == "ssmke-cost" else main
    if words[0] == "ssmke" and len(words) > 1 and words[1] not in GROUPS:
        return None
    out = io.StringIO()
    with (
        mock.patch.dict(os.environ, COLUMNS="1000"),  # or long flags are broken over lines
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        try:
            code = run([*words[1:], "--help"])
        except SystemExit as ended:
            code = ended.code
    return out.getvalue() if code == 0 else None


def problem(line: str) -> str | None:
    words = shlex.split(line, comments=True)
    flags = [word.partition("=")[0] for word in words if word.startswith("--")]
    command = list(words[:1])
    for word in words[1:4]:
        if not re.fullmatch(r"[a-z][a-z0-9-]*", word) or help_of((*command, word)) in (
            None,
            help_of(tuple(command)),
        ):
            break
        command.append(word)
    if len(command) == 1 and len(words) > 1 and not words[1].startswith("-"):
        return f"there is no {' '.join(words[:2])}"
    if " ".join(words[:3]) in TAKES_A_RECIPE:
        return None
    shown = help_of(tuple(command)) or ""
    rest = words[len(command) : len(command) + 1]
    # A heading in a box, of lines or, where the terminal has none, of blanks.
    if re.search(r"(?m)^\W*subcommands\W*$", shown) and rest and not rest[0].startswith("-"):
        return f"there is no {' '.join([*command, *rest])}"
    known = set(re.findall(r"--[\w.-]+", shown))
    unknown = [flag for flag in flags if flag not in known and flag.replace("_", "-") not in known]
    return f"{' '.join(command)} has no {' '.join(unknown)}" if unknown else None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_that_is_shown_exists(page: Path) -> None:
    wrong = [f"{line}: {what}" for line in commands(page) if (what := problem(line))]
    assert wrong == []


@pytest.mark.parametrize(
    "line", ["ssmke finds x", "ssmke data gets", "ssmke export onnx --modle x", "ssmke-cost reports"]
)
def test_a_command_that_does_not_exist_is_found(line: str) -> None:
    assert problem(line) is not None
