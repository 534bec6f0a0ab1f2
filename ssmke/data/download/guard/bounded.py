"""An opener for `urllib.request` that holds one URL to its bounds, whatever the server does.

- One deadline for all of a URL: redirects, TLS, headers and body. It is enforced at every single receive
  (`sockets`), so a timeout of the whole is not needed anywhere else.
- A bound on the body, after decompression, judged by its announced length first and read in pieces: one read
  of what a header promises would reserve that much memory.
- http and https only, also where redirects lead; no address of a private network (`sockets`).
- Nothing that is no image by its type or its first bytes: an endless page of text costs one packet.

Standard library only: the python of another environment runs it. Costs 0.04 ms a URL over plain urllib (0.40 for
0.36).
"""

from __future__ import annotations

import dataclasses
import http.client
import json
import os
import re
import ssl
import string
import struct
import time
import urllib.parse
import urllib.request
import zlib
from typing import Any

if __package__:
    from ssmke.data.download.guard import sockets
else:  # another environment's python, which finds it beside this file
    import sockets  # type: ignore[import-not-found, no-redef]

VARIABLE = "SSMKE_GUARD"
PROGRESS = struct.Struct("<QQ")
"""What a process writes of itself: finished URLs, and the bytes of those that came whole."""

_PIECE = 1 << 16
_HEAD = 32
_HEADERS_BYTES = 1 << 20  # more than http.client lets through (100 lines of 64 KB) is never needed
_REFUSED_TYPES = re.compile(
    r"\s*(text/html|application/(xhtml\+xml|json|pdf|xml|javascript)|video/|audio/)", re.IGNORECASE
)


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one URL may cost."""

    seconds: float
    """For all of it, once; img2dataset's retries each get as much."""
    max_bytes: int
    """Of the body, after decompression."""
    max_pixels: int
    private_hosts: tuple[str, ...] = ()
    """Hosts (``name`` or ``name:port``) on private networks that may be asked all the same."""
    progress: str = ""
    """Folder for the counts of finished URLs; empty for none."""

    def environment(self) -> dict[str, str]:
        """The variables that carry the limits, also to workers, and those that bound libraries."""
        return {
            VARIABLE: json.dumps(dataclasses.asdict(self)),
            "OPENCV_IO_MAX_IMAGE_PIXELS": str(self.max_pixels),
            "NO_ALBUMENTATIONS_UPDATE": "1",  # it would ask the package index for news when imported
            "WANDB_MODE": "disabled",
        }

    @classmethod
    def from_environment(cls) -> Limits:
        values = json.loads(os.environ[VARIABLE])
        return cls(**(values | {"private_hosts": tuple(values["private_hosts"])}))


class _Response(http.client.HTTPResponse):
    max_bytes = 0

    def read(self, amt: int | None = None) -> bytes:
        """All of the body, within bounds; of a redirect or an error, nothing."""
        if amt is not None:
            return super().read(amt)
        if not 200 <= self.status < 300:
            self.close()
            return b""
        expected, received, body = self.length, 0, bytearray()
        packed = (self.getheader("Content-Encoding") or "").strip().lower() in ("gzip", "x-gzip", "deflate")
        inflate = zlib.decompressobj(47) if packed else None
        judged = False
        # In pieces: one read of what the header promises would reserve that much memory beforehand.
        while piece := super().read(_PIECE if body else _HEAD):
            received += len(piece)
            if inflate is not None:
                try:
                    piece = inflate.decompress(piece, self.max_bytes + 1 - len(body))
                except zlib.error:
                    raise sockets.Refused("damaged body: its compression") from None
            body += piece
            if len(body) > self.max_bytes:
                raise sockets.Refused("too many bytes")
            if not judged and len(body) >= _HEAD:
                judge_head(bytes(body[:_HEAD]))
                judged = True
        if expected is not None and received < expected:
            raise sockets.Refused(f"connection cut: after {received} of {expected} bytes")
        if inflate is not None and body and not inflate.eof:
            raise sockets.Refused("connection cut: in a compressed body")
        if not body:
            raise sockets.Refused("empty body")
        if not judged:
            judge_head(bytes(body[:_HEAD]))
        return bytes(body)


def judge_head(head: bytes) -> None:
    """Refuse what is no JPEG, PNG, WebP, GIF or BMP by its first bytes: few decoders, a small surface."""
    if head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM")):
        return
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return
    if head.startswith((b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ", b"v/1\x01")) or head[4:8] == b"ftyp":
        raise sockets.Refused("unsupported format")
    raise sockets.Refused("not an image: by its first bytes")


class _Connection(http.client.HTTPConnection):
    response_class = _Response

    def __init__(self, host: str, *, bounds: _Bounds, timeout: float, **options: Any) -> None:
        super().__init__(host, timeout=timeout, **options)
        self._bounds = bounds
        self._patience = timeout
        self._create_connection = self._open  # what connect() of every supported Python calls

    def _open(self, address: tuple[str, int], *_: Any) -> sockets.Socket:
        connected = sockets.connect(
            *address, self._bounds.deadline, self._patience, self._bounds.may_be_private
        )
        self._bound(connected)
        return connected

    def _bound(self, connected: sockets.Bounded) -> None:
        budget = self._bounds.max_bytes + _HEADERS_BYTES
        connected.bound(self._bounds.deadline, self._patience, budget)

    def getresponse(self) -> http.client.HTTPResponse:
        response = super().getresponse()
        response.max_bytes = self._bounds.max_bytes  # type: ignore[attr-defined]
        return response


class _TlsConnection(_Connection, http.client.HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        assert isinstance(self.sock, sockets.TlsSocket)
        self._bound(self.sock)


@dataclasses.dataclass(frozen=True)
class _Bounds:
    """Of one connection."""

    deadline: float
    max_bytes: int
    may_be_private: bool


class _Handler(urllib.request.HTTPSHandler, urllib.request.HTTPHandler):
    """http and https through bounded connections."""

    def __init__(self, limits: Limits) -> None:
        context = ssl.create_default_context()
        context.sslsocket_class = sockets.TlsSocket
        urllib.request.HTTPHandler.__init__(self)
        self._limits = limits
        self._tls = context

    def http_open(self, req: urllib.request.Request) -> Any:
        return self._ask(_Connection, req)

    def https_open(self, req: urllib.request.Request) -> Any:
        return self._ask(_TlsConnection, req, context=self._tls)

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def _ask(self, kind: type[_Connection], req: urllib.request.Request, **options: Any) -> Any:
        proxied = req.has_proxy() or bool(getattr(req, "_tunnel_host", None))
        allowed = _is_allowed(req.full_url, self._limits.private_hosts)
        if proxied and not allowed:
            # The proxy, which may well be on a private network, looks names up; addresses we can judge.
            sockets.refuse_private_literal(req.full_url)
        bounds = _Bounds(_deadline(req), self._limits.max_bytes, proxied or allowed)
        try:
            return self.do_open(kind, req, bounds=bounds, **options)  # type: ignore[arg-type]
        except (ConnectionError, http.client.IncompleteRead, http.client.InvalidURL):
            raise
        except http.client.HTTPException as error:
            # Its text may be anything that the server sent.
            raise sockets.Refused(f"bad HTTP answer: {type(error).__name__}") from None

    def http_response(self, request: urllib.request.Request, response: Any) -> Any:
        if 200 <= response.status < 300:
            kind = response.getheader("Content-Type") or ""
            if _REFUSED_TYPES.match(kind):
                response.close()
                raise sockets.Refused(f"not an image: Content-Type {kind[:60]}")
            if response.length is not None and response.length > self._limits.max_bytes:
                response.close()
                raise sockets.Refused(f"too many bytes: Content-Length {response.length}")
        return response

    https_response = http_response


def _deadline(req: urllib.request.Request) -> float:
    deadline: float = req.deadline  # type: ignore[attr-defined]
    return deadline


def _is_allowed(url: str, hosts: tuple[str, ...]) -> bool:
    parts = urllib.parse.urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return parts.hostname in hosts or f"{parts.hostname}:{port}" in hosts


class _Redirects(urllib.request.HTTPRedirectHandler):
    """At most ten, never to another scheme than http and https; the deadline goes with them."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urllib.parse.urlsplit(newurl).scheme.lower() not in ("http", "https"):
            raise sockets.Refused(f"redirect to another scheme: {newurl[:80]}")
        new = super().redirect_request(req, fp, 307 if code == 308 else code, msg, headers, newurl)
        if new is not None:
            new.deadline = req.deadline  # type: ignore[attr-defined]
        return new

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302


class _Opener(urllib.request.OpenerDirector):
    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self._seconds = limits.seconds
        for handler in (
            urllib.request.ProxyHandler(),
            urllib.request.UnknownHandler(),
            _Handler(limits),
            urllib.request.HTTPDefaultErrorHandler(),
            _Redirects(),
            urllib.request.HTTPErrorProcessor(),
        ):
            self.add_handler(handler)

    def open(self, fullurl: Any, data: Any = None, timeout: Any = 10.0) -> Any:
        req = fullurl if isinstance(fullurl, urllib.request.Request) else urllib.request.Request(fullurl)
        if not hasattr(req, "deadline"):
            req.deadline = time.monotonic() + self._seconds  # type: ignore[attr-defined]
        req.full_url = ascii_url(req.full_url)
        return super().open(req, data, timeout)


def ascii_url(url: str) -> str:
    """As a browser would send it: blanks and letters beyond ASCII percent-encoded, the host in IDNA."""
    parts = urllib.parse.urlsplit(url.strip())
    netloc = parts.netloc
    if not netloc.isascii():
        try:
            name = (parts.hostname or "").encode("idna").decode("ascii")
        except UnicodeError:
            raise sockets.Refused(f"invalid URL: host {parts.hostname!r}") from None
        netloc = name if parts.port is None else f"{name}:{parts.port}"
    path, query = (urllib.parse.quote(part, safe=string.punctuation) for part in (parts.path, parts.query))
    return urllib.parse.urlunsplit((parts.scheme, netloc, path, query, ""))


def build_opener(limits: Limits) -> urllib.request.OpenerDirector:
    """An opener that holds to ``limits``."""
    return _Opener(limits)
