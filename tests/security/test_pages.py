"""Pages in a real browser: hostile text is text, and what an escape would let through is refused by the policy."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ssmke.cost.dashboard.page import page
from ssmke.cost.render.html import escaped, render
from ssmke.cost.report import report

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((found for name in NAMES if (found := shutil.which(name))), "")
ACTIVE = (
    '<script>document.title = "TAKEN"</script><img src="x" onerror="document.title = \'TAKEN\'">'
    "<svg onload=\"document.title = 'TAKEN'\"></svg><style>h1 { display: none }</style>"
    '<p id="late">h</p><iframe srcdoc="<script>parent.document.title = \'TAKEN\'</script>"></iframe>'
)


def looked_at(html: str, folder: Path) -> str:
    """The document that a browser makes of ``html``."""
    file = folder / "page.html"
    file.write_text(html, encoding="utf-8")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={folder}/user",
    ]
    command = [BROWSER, *flags, "--virtual-time-budget=1000", "--dump-dom", file.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.skipif(not BROWSER, reason="there is no Chromium here")
def test_a_browser_runs_nothing_of_what_an_escape_let_through(tmp_path: Path) -> None:
    html = page("Cost", "ours", "", f'<div style="height:7px">{ACTIVE}</div>', "foot")
    assert "<title>Cost</title>" in looked_at(html, tmp_path)
    # The same page without its policy is taken over, so the browser would have run it.
    bare = re.sub(r"<meta http-equiv[^>]*>", "", html)
    assert "<title>TAKEN</title>" in looked_at(bare, tmp_path)


def test_policies_name_one_style_and_nothing_else(tmp_path: Path) -> None:
    dashboard = page(
        "Cost", "ours", "", '<div style="height:7px"></div><i style="flex-grow:0.500000"></i>', "foot"
    )
    for html in (dashboard, render(report(tmp_path))):
        [policy] = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert "base-uri 'none'" in policy
        assert "form-action 'none'" in policy
        assert re.search(r"style-src 'sha256-[A-Za-z0-9+/=]{44}';", policy)
        assert html.count("<style>") == 1
        assert ' style="' not in html
    assert '[data-style="0"] { height:7px }' in dashboard
    assert '[data-style="1"] { flex-grow:0.500000 }' in dashboard


def test_an_injected_style_attribute_becomes_no_rule() -> None:
    html = page("Cost", "ours", "", '<p style="height:7px} body {display:none"></p>', "foot")
    assert "body {display:none" not in html.partition("</style>")[0]


@pytest.mark.parametrize(
    "name", ["<script>x</script>", '" onmouseover="x()', "'><img src=x>", "\x1b]0;x\x07"]
)
def test_text_stays_text(name: str) -> None:
    assert not re.search(r"[<>\"'\x1b\x07]", escaped(name))
