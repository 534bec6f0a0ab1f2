"""Builds the benchmark tables into the site: pages link to them as files of the repository, which readers there follow.

`../benchmarks/results/x.md` in a page becomes `benchmarks/results/x.md`, a page made of that very file. So a link to a
table that is not there fails a strict build as any other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
TABLES = "benchmarks/results"


def on_files(files: Files, config: Any) -> Files:
    """Adds the tables."""
    for path in sorted((ROOT / TABLES).glob("*.md")):
        files.append(File.generated(config, f"{TABLES}/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Points the links of a page in docs/ to them, and those of a table back."""
    if page.file.src_uri.startswith(TABLES):
        return markdown.replace("](../../docs/", "](../../")
    return markdown.replace("](../benchmarks/", "](benchmarks/")
