"""A web server that does to a download what the web does, and worse, and a run of a whole list against it.

`HostileWeb` listens on this machine and answers ``/KIND/NUMBER`` as its kind says: `KINDS` has them all, with
what a download must make of each. ``python -m tests.faults.hostile_web --out DIR`` downloads 2,000 URLs from it,
checks the outcome, and prints the report with time and memory.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gzip
import io
import json
import random
import socket
import ssl
import struct
import tarfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
import pyarrow.parquet as pq
from PIL import Image

from ssmke.data.decode import decode_image
from ssmke.data.download.img2dataset import download_urls
from ssmke.data.download.list_rows import write_url_list
from ssmke.data.download.report import DownloadReport
from ssmke.data.download.url_list import UrlListConfig

SUCCESS = "success"
MAX_BYTES = 2 << 20
COLOURS = ((200, 60, 20), (20, 160, 90))
"""Of the left and the right half of every picture."""


def picture(width: int = 400, height: int = 300) -> Image.Image:
    """Two halves of plain colours, so that what a decoder did to it can be told from the pixels."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:, : width // 2], pixels[:, width // 2 :] = COLOURS
    return Image.fromarray(pixels)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour_type: int, row: bytes) -> bytes:
    """A PNG that PIL cannot write, of equal rows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    pack, packed = zlib.compressobj(), b""
    for _ in range(height):
        packed += pack.compress(b"\0" + row)
    end = packed + pack.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", end) + chunk(b"IEND", b"")


def png16() -> bytes:
    """The usual picture with 16 bits a channel."""
    half = [struct.pack(">HHH", *(value * 257 for value in colour)) * 200 for colour in COLOURS]
    return png(400, 300, 16, 2, b"".join(half))


def on_its_side() -> bytes:
    """The usual picture turned, with the EXIF that says so."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    return encoded(picture().transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=95)


def half_transparent() -> bytes:
    """The right half of a palette picture is transparent: white, when it is shown."""
    image = picture().convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    return encoded(image, "PNG", transparency=image.getpixel((399, 0)))


def animated(format: str) -> bytes:
    later = [Image.new("RGB", (400, 300), grey) for grey in ("black", "white")]
    return encoded(picture(), format, save_all=True, append_images=later, duration=100)


class _Files:
    """The bodies, made once."""

    def __init__(self) -> None:
        usual = picture()
        self.jpeg = encoded(usual, "JPEG", quality=95)
        self.other_jpeg = encoded(usual.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "JPEG", quality=95)
        self.png = encoded(usual, "PNG")
        self.webp = encoded(usual, "WEBP", quality=95)
        self.gif = animated("GIF")
        self.animated_webp = animated("WEBP")
        self.cmyk = encoded(usual.convert("CMYK"), "JPEG", quality=95)
        self.png16 = png16()
        self.exif = on_its_side()
        self.palette = half_transparent()
        self.bomb = png(10_000, 10_000, 1, 0, bytes(1250))
        self.wide = png(70_000, 16, 8, 0, bytes(70_000))
        self.tiny = encoded(Image.new("RGB", (1, 1)), "GIF")
        self.tiff = encoded(usual, "TIFF")
        self.gzipped = gzip.compress(self.jpeg)
        self.gzip_bomb = gzip.compress(self.jpeg + bytes(64 << 20))


@functools.cache
def _files() -> _Files:
    return _Files()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        self.close_connection = True
        # A proxy is asked with the whole URL.
        self.path = urlsplit(self.path).path
        kind = self.path.split("/")[1]
        with contextlib.suppress(OSError):
            KINDS[kind].answer(self)

    def log_message(self, *arguments: Any) -> None:
        pass

    # What answers are made of.

    def start(self, status: int = 200, **headers: Any) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def body(self, data: bytes, kind: str = "image/jpeg", **headers: Any) -> None:
        self.start(Content_Type=kind, Content_Length=len(data), **headers)
        self.wfile.write(data)

    def redirect(self, place: str, status: int = 302) -> None:
        self.start(status, Location=place, Content_Length=0)

    def pump(self, piece: bytes, pause: float = 0.0) -> None:
        """Send ``piece`` again and again, until nobody listens."""
        while not self.server.ending.wait(pause) if pause else not self.server.ending.is_set():
            self.wfile.write(piece)
            self.wfile.flush()

    @property
    def number(self) -> int:
        return int(self.path.split("/")[2])

    @property
    def call(self) -> int:
        """How often this path has been asked for, with this time."""
        with self.server.lock:
            self.server.calls[self.path] += 1
            return self.server.calls[self.path]


Answer = Callable[[_Handler], None]


class Kind:
    """What the server does, and what a download must make of it."""

    def __init__(self, outcome: str, answer: Answer, share: int = 1, url: str = "") -> None:
        self.outcome = outcome
        """`SUCCESS`, or the reason of the failure."""
        self.answer = answer
        self.share = share
        """Of the list."""
        self.url = url or "http://{host}/{kind}/{number}"


def _file(name: str, kind: str = "image/jpeg", **headers: Any) -> Answer:
    return lambda web: web.body(getattr(web.server.files, name), kind, **headers)


def _status(code: int) -> Answer:
    return lambda web: web.start(code, Content_Length=0)


def _to(place: str, status: int = 302) -> Answer:
    return lambda web: web.redirect(place.format(number=web.number), status)


def _endless_chunks(web: _Handler) -> None:
    web.start(Content_Type="image/jpeg", Transfer_Encoding="chunked")
    web.wfile.write(b"10\r\n\xff\xd8\xff" + bytes(13) + b"\r\n")
    web.pump(b"10000\r\n" + bytes(1 << 16) + b"\r\n")


def _endless(head: bytes, **headers: Any) -> Answer:
    def answer(web: _Handler) -> None:
        web.start(**headers)
        web.wfile.write(head)
        web.pump(bytes(1 << 16))

    return answer


def _endless_redirect(web: _Handler) -> None:
    web.start(302, Location=f"/jpeg/{web.number}")
    web.pump(bytes(1 << 16))


def _chain(web: _Handler) -> None:
    step = int(web.path.split("/")[3]) if web.path.count("/") > 2 else 0
    web.redirect(f"/chain/{web.number}/{step + 1}")


def _slow_chain(web: _Handler) -> None:
    """Each step is fast enough, all of them are not."""
    step = int(web.path.split("/")[3]) if web.path.count("/") > 2 else 0
    if not web.server.ending.wait(0.9):
        web.redirect(f"/slow-chain/{web.number}/{step + 1}")


def _endless_trailers(web: _Handler) -> None:
    web.start(Content_Type="image/jpeg", Transfer_Encoding="chunked")
    web.wfile.write(b"10\r\n\xff\xd8\xff" + bytes(13) + b"\r\n0\r\n")
    web.pump(b"X-More: more\r\n" * 1000)


def _drip_body(web: _Handler) -> None:
    web.start(Content_Type="image/jpeg", Content_Length=len(web.server.files.jpeg))
    web.wfile.write(web.server.files.jpeg[:40])
    web.pump(b"\0", 1.0)


def _drip_headers(web: _Handler) -> None:
    web.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    web.pump(b"x", 1.0)


def _cut(web: _Handler) -> None:
    web.start(Content_Type="image/jpeg", Content_Length=len(web.server.files.jpeg))
    web.wfile.write(web.server.files.jpeg[:1000])


def _reset(web: _Handler) -> None:
    web.start(Content_Type="image/jpeg", Content_Length=len(web.server.files.jpeg))
    web.wfile.write(web.server.files.jpeg[:1000])
    web.wfile.flush()
    # Closing with this option sends a reset instead of an end.
    web.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    web.connection.close()


def _short_length(web: _Handler) -> None:
    data = web.server.files.jpeg
    web.start(Content_Type="image/jpeg", Content_Length=len(data) // 2)
    web.wfile.write(data)


def _changing(web: _Handler) -> None:
    """Half of one file, and another one when asked again."""
    if web.call == 1:
        _cut(web)
    else:
        web.body(web.server.files.other_jpeg)


def _recovering(web: _Handler) -> None:
    if web.call == 1:
        web.start(503, Content_Length=0)
    else:
        web.body(web.server.files.jpeg)


def _half(web: _Handler) -> None:
    """Half a file, as if it were whole."""
    web.start(Content_Type="image/jpeg")
    web.wfile.write(web.server.files.jpeg[: len(web.server.files.jpeg) // 2])


def _html(kind: str) -> Answer:
    return lambda web: web.body(b"<!DOCTYPE html><html><body>gone</body></html>" * 20, kind)


def _slow(web: _Handler) -> None:
    if web.call and not web.server.ending.wait(0.2):
        web.body(web.server.files.jpeg)


_NOBODY: Answer = lambda web: None  # noqa: E731 - no server is there, or none is to be asked

KINDS: dict[str, Kind] = {
    "jpeg": Kind(SUCCESS, _file("jpeg"), 12),
    "png": Kind(SUCCESS, _file("png", "image/png"), 4),
    "webp": Kind(SUCCESS, _file("webp", "image/webp"), 4),
    "gif": Kind(SUCCESS, _file("gif", "image/gif"), 2),
    "animated-webp": Kind(SUCCESS, _file("animated_webp", "image/webp")),
    "cmyk": Kind(SUCCESS, _file("cmyk"), 2),
    "png16": Kind(SUCCESS, _file("png16", "image/png"), 2),
    "exif": Kind(SUCCESS, _file("exif"), 2),
    "palette": Kind(SUCCESS, _file("palette", "image/png"), 2),
    "wrong-type": Kind(SUCCESS, _file("png", "text/plain")),
    "gzipped": Kind(SUCCESS, _file("gzipped", Content_Encoding="gzip")),
    "moved": Kind(SUCCESS, _to("/jpeg/{number}", 301)),
    "moved-308": Kind(SUCCESS, _to("/jpeg/{number}", 308)),
    "endless-redirect": Kind(SUCCESS, _endless_redirect),
    "changing": Kind(SUCCESS, _changing, 2),
    "recovering": Kind(SUCCESS, _recovering),
    "unicode": Kind(SUCCESS, _file("jpeg"), url="http://{host}/{kind}/{number}/Hündchen 猫.jpg?q=a b"),
    "odd": Kind(SUCCESS, _file("jpeg"), url="  http://{host}/{kind}/{number}/a%zz|b[c]\\d.jpg?x={{}}#part"),
    "slow": Kind(SUCCESS, _slow, share=0),  # for tests that need time to disturb a download
    "404": Kind("HTTP 404", _status(404), 6),
    "410": Kind("HTTP 410", _status(410), 2),
    "500": Kind("HTTP 500", _status(500), 2),
    "circle": Kind("redirect loop", _to("/circle/{number}/again")),
    "chain": Kind("redirect loop", _chain),
    "to-file": Kind("redirect to another scheme", _to("file:///etc/passwd")),
    "to-ftp": Kind("redirect to another scheme", _to("ftp://127.0.0.1/x.jpg")),
    "to-private": Kind("private address", _to("http://127.0.0.1:9/secret.jpg")),
    "to-metadata": Kind("private address", _to("http://169.254.169.254/latest/meta-data/")),
    "private": Kind("private address", _NOBODY, url="http://localhost:{secret}/{kind}/{number}"),
    "html": Kind("not an image", _html("text/html; charset=utf-8"), 3),
    "html-as-jpeg": Kind("not an image", _html("image/jpeg")),
    "endless-text": Kind("not an image", _endless(b"words " * 10)),
    "tiff": Kind("unsupported format", _file("tiff", "image/tiff")),
    "endless-chunks": Kind("too many bytes", _endless_chunks),
    "endless": Kind("too many bytes", _endless(b"\xff\xd8\xff" + bytes(40), Content_Type="image/jpeg")),
    "endless-trailers": Kind("too many bytes", _endless_trailers),
    "endless-continue": Kind("too many bytes", lambda web: web.pump(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)),
    "huge-length": Kind("too many bytes", _endless(b"\xff\xd8\xff", Content_Length=10 << 30)),
    "gzip-bomb": Kind("too many bytes", _file("gzip_bomb", Content_Encoding="gzip")),
    "bomb": Kind("too many pixels", _file("bomb", "image/png"), 2),
    "wide": Kind("image encoding failed", _file("wide", "image/png")),
    "tiny": Kind("too small", _file("tiny", "image/gif")),
    "half": Kind("image decoding failed", _half),
    "short-length": Kind("image decoding failed", _short_length),
    "empty": Kind("empty body", lambda web: web.body(b"")),
    "cut": Kind("connection cut", _cut),
    "reset": Kind("connection cut", _reset),
    "hang-up": Kind("connection cut", lambda web: None),
    "drip": Kind("timed out", _drip_body),
    "drip-headers": Kind("timed out", _drip_headers),
    "slow-chain": Kind("timed out", _slow_chain),
    "silent": Kind("timed out", lambda web: web.server.ending.wait()),
    "babble": Kind("bad HTTP answer", lambda web: web.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")),
    "many-headers": Kind("bad HTTP answer", lambda web: web.start(**{f"X_{i}": i for i in range(200)})),
    "no-robots": Kind("disallowed by X-Robots-Tag", _file("jpeg", X_Robots_Tag="noai")),
    "refused": Kind("connection refused", _NOBODY, url="http://{closed}/{kind}/{number}"),
    "no-host": Kind("name not resolved", _NOBODY, url="http://no-such-host.invalid/{number}"),
    "bad-url": Kind("invalid URL", _NOBODY, url="http://[half/{number}"),
}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = _files()
        self.calls: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.ending = threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients hang up here all the time


class HostileWeb:
    """``with HostileWeb() as web: ...``: the server, and two ports that are none."""

    def __enter__(self) -> HostileWeb:
        self._server = _Server()
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        # A port that is taken and does not listen refuses; one that listens, and must never be asked.
        self._closed = socket.socket()
        self._closed.bind(("127.0.0.1", 0))
        self._secret = socket.create_server(("127.0.0.1", 0))
        self._secret.setblocking(False)
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self.closed = f"127.0.0.1:{self._closed.getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.ending.set()
        self._server.shutdown()
        self._server.server_close()
        self._closed.close()
        self._secret.close()

    @property
    def private_hosts(self) -> tuple[str, ...]:
        """What a download must be allowed to ask on this machine."""
        return (self.host, self.closed)

    @property
    def calls(self) -> Counter[str]:
        """Requests by path, of kinds that count them."""
        return self._server.calls

    def use_tls(self, context: ssl.SSLContext) -> None:
        """Speak TLS from now on."""
        # Hands are shaken in each connection's thread, not where connections are accepted.
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )

    def secret_was_asked(self) -> bool:
        """Whether anybody came to the port that is off limits."""
        try:
            self._secret.accept()
        except BlockingIOError:
            return False
        return True

    def url(self, kind: str, number: int = 0) -> str:
        secret = self._secret.getsockname()[1]
        return KINDS[kind].url.format(
            host=self.host, closed=self.closed, secret=secret, kind=kind, number=number
        )

    def urls(self, count: int, seed: int = 0) -> list[tuple[str, str]]:
        """``count`` kinds and their URLs: every kind by its share, mixed."""
        shares = [kind for kind, what in KINDS.items() for _ in range(what.share)]
        kinds = [shares[i % len(shares)] for i in range(count)]
        random.Random(seed).shuffle(kinds)
        return [(kind, self.url(kind, number)) for number, kind in enumerate(kinds)]


def download(
    web: HostileWeb, out: Path, count: int, say: Callable[[str], None], **options: Any
) -> tuple[DownloadReport, Counter[str]]:
    """Download a list of the server, and what should come of it: counts by outcome."""
    listed = web.urls(count)
    out.mkdir(parents=True, exist_ok=True)
    write_url_list(out / "hostile.parquet", ((url, kind) for kind, url in listed))
    config = UrlListConfig(
        urls=out / "hostile.parquet",
        out=out / "tars",
        private_hosts=web.private_hosts,
        max_image_bytes=MAX_BYTES,
        **options,
    )
    return download_urls(config, say), Counter(KINDS[kind].outcome for kind, _ in listed)


def check(report: DownloadReport, expected: Counter[str], count: int) -> int:
    """Raise where the outcome is not the expected one; gives the number of images that were looked at."""
    assert report.asked == count == report.successes + sum(report.failures.values()), report
    outcome = Counter(report.failures) + Counter({SUCCESS: report.successes})
    assert outcome == expected, f"more {outcome - expected}, fewer {expected - outcome}"
    seen = 0
    for tar in sorted(report.tars.glob("*.tar")):
        seen += sum(1 for kind, data in images(tar) if not _judge(kind, data))
    assert seen == report.successes
    return seen


def images(tar: Path) -> list[tuple[str, bytes]]:
    """Kind (which is the caption) and file of each image of a tar."""
    with tarfile.open(tar) as file:
        members = {name: file.extractfile(name) for name in file.getnames()}
        contents = {name: member.read() for name, member in members.items() if member is not None}
    return [
        (json.loads(contents[name.removesuffix(".jpg") + ".json"])["caption"], data)
        for name, data in contents.items()
        if name.endswith(".jpg")
    ]


def _judge(kind: str, data: bytes) -> None:
    image = decode_image(data)
    assert image.size == (341, 256), (kind, image.size)
    left, right = COLOURS
    if kind == "changing":
        left, right = right, left
    if kind == "palette":
        right = (255, 255, 255)
    for x, colour in ((60, left), (280, right)):
        got = image.getpixel((x, 128))
        assert isinstance(got, tuple)
        # Colours cross CMYK, WebP and JPEG on their way.
        assert all(abs(a - b) <= 8 for a, b in zip(got, colour, strict=True)), (kind, x, got, colour)


class PeakMemory:
    """``with PeakMemory() as peak: ...``: most memory that this process and its children held together."""

    def __enter__(self) -> PeakMemory:
        self.total = self.largest = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._end.wait(0.25):
            sizes = []
            for process in me.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    sizes.append(process.memory_info().rss)
            self.total = max(self.total, sum(sizes))
            self.largest = max(self.largest, max(sizes, default=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--urls", type=int, default=2000)
    parser.add_argument("--img2dataset", default=None, help="python of an environment with img2dataset")
    parser.add_argument(
        "--distributor", default="multiprocessing", choices=["multiprocessing", "pyspark", "ray"]
    )
    arguments = parser.parse_args()
    begin = time.monotonic()
    with HostileWeb() as web, PeakMemory() as peak:
        report, expected = download(
            web,
            arguments.out,
            arguments.urls,
            lambda line: print(line, flush=True),
            processes=2,
            threads=32,
            timeout_seconds=3.0,
            seconds_per_image=6.0,
            command=arguments.img2dataset,
            distributor=arguments.distributor,
        )
        assert not web.secret_was_asked()
    seconds = time.monotonic() - begin
    print(report.text())
    looked_at = check(report, expected, arguments.urls)
    rows = sum(pq.read_metadata(path).num_rows for path in report.tars.glob("*.parquet"))
    print(f"as expected: every reason, {looked_at:,} images by their pixels, {rows:,} rows")
    print(
        f"{seconds:.0f} s in all; children: {peak.total / 1e6:.0f} MB at most, the largest {peak.largest / 1e6:.0f} MB"
    )


if __name__ == "__main__":
    main()
