"""Redirects and endless answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from ssmke.data.remote.fetch import RemoteConfig, fetch_bytes, fetch_file
from ssmke.errors import DataError

QUICK = RemoteConfig(retries=0, timeout_seconds=10)


class _Handler(BaseHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        parts = urlsplit(self.path)
        if parts.path == "/to":
            self.send_response(302)
            self.send_header("Location", unquote(parts.query))
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        while parts.path == "/endless":
            try:
                self.wfile.write(bytes(1 << 16))
            except OSError:
                return
        self.wfile.write(b"inner")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """Address of a server, which also serves as a proxy, and what it was asked for."""
    asked: list[str] = []
    handler = type("Handler", (_Handler,), {"asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        serving.daemon_threads = True
        threading.Thread(target=serving.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}", asked
        serving.shutdown()


def test_a_public_host_cannot_send_us_into_our_own_network(
    server: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, asked = server
    monkeypatch.setenv("http_proxy", url)  # so the public address is answered here
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for inside in (
        "http://169.254.169.254/latest",
        "http://127.0.0.1:1/x",
        "http://[::1]/x",
        "http://10.1.2.3/",
    ):
        asked.clear()
        with pytest.raises(DataError, match="in a private network"):
            fetch_bytes(f"http://93.184.216.34/to?{inside}", QUICK, 100)
        assert len(asked) == 1
    assert fetch_bytes("http://93.184.216.34/to?http://93.184.216.35/x", QUICK, 100) == b"inner"


def test_within_the_own_network_redirects_are_followed(server: tuple[str, list[str]]) -> None:
    url, _ = server
    assert fetch_bytes(f"{url}/to?{url}/x", QUICK, 100) == b"inner"


@pytest.mark.parametrize("scheme", ["file:///etc/passwd", "ftp://h/x"])
def test_no_redirect_to_other_schemes(server: tuple[str, list[str]], scheme: str) -> None:
    url, _ = server
    with pytest.raises(DataError):
        fetch_bytes(f"{url}/to?{scheme}", QUICK, 100)


def test_an_answer_without_end_ends_at_the_limit(server: tuple[str, list[str]], tmp_path: Path) -> None:
    url, _ = server
    with pytest.raises(DataError, match="has more than 3,000,000 bytes"):
        fetch_file(f"{url}/endless", tmp_path / "x", QUICK, limit=3_000_000)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*")) == 0
