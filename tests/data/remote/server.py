"""A web server that serves a folder, with ranges, and misbehaves as it is told."""

from __future__ import annotations

import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TRANSIENT = (
    "stall", "stall halfway", "cut", "reset", "500", "503", "whole", "wrong", "drip", "other range", "page"
)  # fmt: skip
"""Faults after which asking again may help. "whole" (ignores the range) is no fault, but a kind of server."""


class MisbehavingServer:
    """Use as a context manager; ``url`` is that of ``folder``.

    ``misbehave(name, number)`` gives the fault of the ``number``-th request (from 0) of the file ``name``: one of
    `TRANSIENT`, "403", "404", or "" for none.
    """

    def __init__(self, folder: Path, misbehave: Callable[[str, int], str] = lambda name, number: "") -> None:
        self.folder, self.misbehave = folder, misbehave
        self.served: Counter[str] = Counter()
        """Bytes sent of each file."""
        self.requests: Counter[str] = Counter()
        """Requests of each file."""
        self.faults: Counter[str] = Counter()
        self.drip_bytes, self.drip_seconds = 1, 0.05
        self.ends = threading.Event()
        self.guard = threading.Lock()

    def locate(self, name: str) -> Path:
        """The file behind an address."""
        return self.folder / name

    def say(self, name: str) -> bytes | None:
        """The answer to an address that is not a file's."""
        return None

    def __enter__(self) -> MisbehavingServer:
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.ends.set()
        self._server.shutdown()
        self._server.server_close()


def at_random(seed: int, share: float, faults: tuple[str, ...] = TRANSIENT) -> Callable[[str, int], str]:
    """A ``misbehave`` that draws a fault for a ``share`` of all requests; the same for the same seed."""

    def misbehave(name: str, number: int) -> str:
        generator = random.Random(f"{seed} {name} {number}")
        return generator.choice(faults) if generator.random() < share else ""

    return misbehave


class _Handler(BaseHTTPRequestHandler):
    owner: MisbehavingServer

    def do_GET(self) -> None:
        owner, name = self.owner, self.path.partition("?")[0].lstrip("/")
        with owner.guard:
            fault = owner.misbehave(name, owner.requests[name])
            owner.requests[name] += 1
            owner.faults[fault] += 1
        if fault == "stall":
            owner.ends.wait(30)
            return
        if fault == "page":  # what a proxy says instead, with every sign of success
            self._answer(200, b"<html>please come back later</html>", {})
            return
        if fault.isdigit():
            self._answer(int(fault), b"no", {})
            return
        said = owner.say(name)
        if said is not None:
            self._answer(200, said, {"Content-Type": "application/json"}, fault, name)
            return
        path = owner.locate(name)
        if not path.is_file():
            self._answer(404, b"no such file", {})
            return
        content = path.read_bytes()
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start = int(match[1]) if match else 0
        end = min(int(match[2]) + 1, len(content)) if match and match[2] else len(content)
        headers = {"ETag": f'"{path.stat().st_mtime_ns}-{len(content)}"'}
        if self.command == "HEAD":
            self._answer(200, content, headers)
        elif match is None or fault == "whole":
            self._answer(200, content, headers, fault, name)
        elif start >= len(content):
            self._answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        else:
            off = 1 if fault == "other range" else 0
            headers["Content-Range"] = f"bytes {start + off}-{end - 1}/{len(content)}"
            self._answer(206, content[start:end], headers, fault, name)

    do_HEAD = do_GET

    def _answer(
        self, status: int, body: bytes, headers: dict[str, str], fault: str = "", name: str = ""
    ) -> None:
        if fault == "wrong" and body:
            at = random.Random(self.owner.requests[name]).randrange(len(body))
            body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            self._send(body, fault, name)
        except OSError:
            self.close_connection = True

    def _send(self, body: bytes, fault: str, name: str) -> None:
        owner = self.owner
        if fault in ("cut", "reset", "stall halfway"):
            self._put(body[: len(body) // 2], name)
            if fault == "stall halfway":
                owner.ends.wait(30)
            if fault == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
        elif fault == "drip":
            for at in range(0, len(body), owner.drip_bytes):
                self._put(body[at : at + owner.drip_bytes], name)
                time.sleep(owner.drip_seconds)
                if owner.ends.is_set():
                    return
        else:
            for at in range(0, len(body), 1 << 16):
                self._put(body[at : at + (1 << 16)], name)

    def _put(self, data: bytes, name: str) -> None:
        self.wfile.write(data)
        self.wfile.flush()
        with self.owner.guard:
            self.owner.served[name] += len(data)

    def log_message(self, *args: Any) -> None:
        pass
