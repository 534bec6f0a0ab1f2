"""One URL is held to its bounds, whatever the server does."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import tracemalloc
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from ssmke.data.download.guard.bounded import Limits, ascii_url, build_opener
from ssmke.data.download.guard.sockets import Refused
from ssmke.data.download.report import reason_of
from tests.faults.hostile_web import KINDS, MAX_BYTES, SUCCESS, HostileWeb

# What the decoder finds out, what the second attempt mends, and what img2dataset itself looks at.
ELSEWHERE = {"too many pixels", "image encoding failed", "too small", "image decoding failed"}
AGAIN = {"changing", "recovering"}
IMG2DATASETS = {"no-robots"}
# What goes on until its deadline, which may as well be soon.
ENDLESS = {"drip", "drip-headers", "slow-chain"}


def fetch(url: str, web: HostileWeb, **limits: Any) -> bytes:
    """What img2dataset does with a URL."""
    bounds = {"seconds": 2.5, "max_bytes": MAX_BYTES, "max_pixels": 10**6, "private_hosts": web.private_hosts}
    with build_opener(Limits(**(bounds | limits))).open(urllib.request.Request(url), timeout=1.3) as response:
        data: bytes = response.read()
        return data


@pytest.mark.parametrize("kind", sorted(set(KINDS) - AGAIN - IMG2DATASETS))
def test_every_kind_of_answer(kind: str, web: HostileWeb) -> None:
    outcome = KINDS[kind].outcome
    if outcome == SUCCESS or outcome in ELSEWHERE:
        data = fetch(web.url(kind), web)
        assert data[:4] in (
            b"\xff\xd8\xff\xe0",
            b"\xff\xd8\xff\xe1",
            b"\xff\xd8\xff\xee",
            b"\x89PNG",
            b"RIFF",
            b"GIF8",
        )
        if kind == "gzipped":
            assert data == fetch(web.url("jpeg"), web)
        return
    with pytest.raises(Exception) as failure:
        fetch(web.url(kind), web, **({"seconds": 0.8} if kind in ENDLESS else {}))
    assert reason_of(str(failure.value)) == outcome, failure.value
    assert not web.secret_was_asked()


def test_a_length_that_is_announced_is_never_reserved(web: HostileWeb) -> None:
    for kind in ("huge-length", "endless", "endless-chunks", "gzip-bomb"):
        tracemalloc.start()
        with pytest.raises(Refused, match="too many bytes"):
            fetch(web.url(kind), web)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        # The bytes of the body, their growth, and in this process the server as well.
        assert peak < 5 * MAX_BYTES, (kind, peak)


def test_bodies_up_to_the_bound_are_taken(web: HostileWeb) -> None:
    size = len(fetch(web.url("jpeg"), web))
    assert len(fetch(web.url("jpeg"), web, max_bytes=size)) == size
    for kind in ("jpeg", "gzipped"):
        with pytest.raises(Refused, match="too many bytes"):
            fetch(web.url(kind), web, max_bytes=size - 1)


@pytest.mark.parametrize(
    "host", ["localhost", "127.1", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]"]
)
def test_no_spelling_of_this_machine_gets_by(host: str, web: HostileWeb) -> None:
    port = web.host.partition(":")[2]
    with pytest.raises(Refused, match="private address"):
        fetch(f"http://{host}:{port}/jpeg/0", web, private_hosts=())


def test_the_address_that_was_judged_is_the_one_that_is_asked(
    web: HostileWeb, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    answers = ["10.0.0.1", "127.0.0.1"]

    def rebinding(host: str, port: int, *_: Any) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers.pop(), port))]

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    port = web.host.partition(":")[2]
    assert fetch(f"http://two.faces:{port}/jpeg/0", web, private_hosts=("two.faces",))
    assert asked == ["two.faces"]
    with pytest.raises(Refused, match=r"private address: two.faces is 10.0.0.1"):
        fetch(f"http://two.faces:{port}/jpeg/0", web, private_hosts=())


def test_a_proxy_looks_names_up_but_gets_no_private_address(
    web: HostileWeb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://{web.host}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    # The proxy is on this machine, and the name is known to nobody else.
    assert fetch("http://only.the.proxy.knows.invalid/jpeg/0", web, private_hosts=())
    for host in ("10.0.0.1", "localhost.", "[::1]", "127.1", "%31%32%37.0.0.1"):
        with pytest.raises(Refused, match="private address"):
            fetch(f"http://{host}/jpeg/0", web, private_hosts=())


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("http://a.org/ü b.jpg?x=ä#f", "http://a.org/%C3%BC%20b.jpg?x=%C3%A4"),
        ("http://bücher.de:81/x", "http://xn--bcher-kva.de:81/x"),
        ("http://a.org/%20%zz+(1)", "http://a.org/%20%zz+(1)"),
        (" https://a.org ", "https://a.org"),
    ],
)
def test_urls_are_sent_as_browsers_send_them(url: str, sent: str) -> None:
    assert ascii_url(url) == sent


def test_limits_reach_workers_through_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(1.5, 10, 20, ("a", "b:1"), "/somewhere")
    for name, value in limits.environment().items():
        monkeypatch.setenv(name, value)
    assert Limits.from_environment() == limits
    assert json.loads(limits.environment()["OPENCV_IO_MAX_IMAGE_PIXELS"]) == 20


@pytest.fixture
def tls_web(web: HostileWeb, tmp_path: Path) -> HostileWeb:
    """The server behind TLS, with a certificate of its own at ``tmp_path / "cert.pem"``."""
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        "key.pem",
        "-out",
        "cert.pem",
    ]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    try:
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the openssl program")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    web.use_tls(context)
    return web


def test_tls_is_checked_and_bounded_too(
    tls_web: HostileWeb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def url(kind: str) -> str:
        return tls_web.url(kind).replace("http:", "https:")

    with pytest.raises(urllib.error.URLError) as failure:
        fetch(url("jpeg"), tls_web)
    assert reason_of(str(failure.value)) == "TLS error"
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    assert fetch(url("jpeg"), tls_web).startswith(b"\xff\xd8")
    for kind in ("drip", "drip-headers", "silent"):
        with pytest.raises(Exception, match="timed out"):
            fetch(url(kind), tls_web, seconds=0.8)
    with pytest.raises(Refused, match="too many bytes"):
        fetch(url("endless"), tls_web)
    with pytest.raises(Refused, match="private address"):
        fetch(url("jpeg"), tls_web, private_hosts=())


def test_a_server_that_never_ends_its_handshake(web: HostileWeb) -> None:
    """It takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        host = f"127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(Exception, match="timed out"):
            fetch(f"https://{host}/x", web, private_hosts=(host,))
