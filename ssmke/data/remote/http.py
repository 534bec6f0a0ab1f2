"""A file on a web server: one request, read as a stream, and taken up where it broke off.

fsspec's HTTP file system asks for every range anew and takes whatever comes: from a server that ignores
``Range`` (``python -m http.server``) each range would be the whole file, in memory. Here one request runs from
the byte that is missing to the end; where the server starts at the beginning, what we have already is read
past. What had arrived when a connection broke is kept. Sessions are made by fsspec's file system (so its
configuration holds: headers, authentication, proxies of the environment), one for each file, so that an idle
process holds no connection that a fork could share.

Bytes are taken as they come: unpacking a ``Content-Encoding`` that nobody asked for would give other bytes than those
that sizes and offsets are of. A redirect may not lead from a public host into a private network, where this machine
may be let in and its sender is not.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import aiohttp
import fsspec.asyn
from fsspec.exceptions import FSTimeoutError
from yarl import URL

from ssmke.data.download.guard.sockets import is_private
from ssmke.data.remote.sources import Facts, Interrupted, Refused, sort_out

PIECE_BYTES = 1 << 20
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")


class HttpSource:
    """See `ssmke.data.remote.sources.Source`."""

    def __init__(self, file_system: Any, url: str, size: int | None, timeout: float) -> None:
        self._fs, self._url, self._size, self._timeout = file_system, url, size, timeout
        self._stream: _Stream | None = None
        self._version: str | None = None

    def facts(self) -> Facts:
        stream = self._stream_at(0)
        self._version = stream.version
        return Facts(stream.size, stream.version)

    def read(self, start: int, want: int) -> bytes:
        stream = self._stream_at(start)
        self._run(stream, stream.read, min(want, PIECE_BYTES))
        return stream.take()

    def close(self) -> None:
        if self._stream is not None:
            stream, self._stream = self._stream, None
            _close(self._fs.loop, stream)

    def _stream_at(self, start: int) -> _Stream:
        if self._stream is None or self._stream.position != start:
            self.close()
            self._stream = _Stream(self._fs, self._url)
            self._run(self._stream, self._stream.open, start, self._size)
            if self._version not in (None, self._stream.version):
                raise Refused("it was replaced while it was being fetched")
        # Bytes that are thrown away must not cost the deadline of those that are kept.
        while self._stream.behind(start):
            self._run(self._stream, self._stream.read_past, start)
        return self._stream

    def _run(self, stream: _Stream, method: Any, *args: Any) -> None:
        try:
            fsspec.asyn.sync(self._fs.loop, method, *args, timeout=self._timeout)
            return
        except (FSTimeoutError, TimeoutError):
            error: Refused | Interrupted = Interrupted(
                f"too little came within {self._timeout:g} s", late=True
            )
        except (Refused, Interrupted) as known:
            error = known
        except aiohttp.ClientConnectorCertificateError as cause:
            error = Refused(f"its certificate is not trusted: {cause}")
        except (aiohttp.InvalidURL, aiohttp.TooManyRedirects) as cause:
            error = Refused(f"{type(cause).__name__}: {cause}")
        except Exception as cause:
            error = sort_out(cause)
        except BaseException:
            self.close()
            raise
        if isinstance(error, Interrupted):
            error.data = stream.take()
        self.close()
        raise error


class _Stream:
    """One response. Its coroutines run in fsspec's loop; after a failure it is only closed."""

    def __init__(self, file_system: Any, url: str) -> None:
        self._fs, self._url = file_system, url
        self._session: aiohttp.ClientSession | None = None
        self._response: aiohttp.ClientResponse | None = None
        self._arrived: list[bytes] = []
        self._at = 0  # in the file: of the next byte that will come
        self.position = -1  # in the file: of the next byte that will be taken
        self.size: int | None = None
        self.version = ""

    async def open(self, start: int, size: int | None) -> None:
        trace = aiohttp.TraceConfig()
        trace.on_request_redirect.append(_follow)
        options = {
            "trust_env": True,
            "timeout": aiohttp.ClientTimeout(total=None),
            "auto_decompress": False,
            "trace_configs": [trace],
        } | self._fs.client_kwargs
        self._session = await self._fs.get_client(loop=self._fs.loop, **options)
        request = dict(self._fs.kwargs)
        # Compressed on the way, offsets would mean something else.
        headers = {**request.pop("headers", {}), "Accept-Encoding": "identity", "Range": f"bytes={start}-"}
        self._response = await self._session.get(self._fs.encode_url(self._url), headers=headers, **request)
        self._check(self._response, start, size)
        self.position = start

    def _check(self, response: aiohttp.ClientResponse, start: int, size: int | None) -> None:
        status, headers = response.status, response.headers
        said = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
        total = int(said[2]) if said and said[2] != "*" else None
        if status == 206:
            if said is None or said[1] is None or int(said[1]) != start:
                raise Interrupted(f"a wrong range came: {headers.get('Content-Range', 'none')}")
            if None not in (total, size) and total != size:
                raise Refused(f"it has {total:,} bytes where {size:,} were expected, so it was replaced")
            self._at, self.size = start, total
        elif status == 200:
            self._at = 0
            self.size = response.content_length
            if None not in (self.size, size) and self.size != size:
                raise Interrupted(
                    f"{self.size:,} bytes are offered where {size:,} were expected (a proxy's page, which passes, or "
                    "the dataset was replaced, and must be opened again)"
                )
        elif status == 416 and total == start:
            self._at = self.size = total  # an empty rest
            response.close()
        else:
            error = aiohttp.ClientResponseError(
                response.request_info, (), status=status, message=response.reason or ""
            )
            raise _answered(error)
        self.version = headers.get("ETag") or headers.get("Last-Modified") or ""

    async def read(self, want: int) -> None:
        """Until ``want`` bytes have come, or the end has."""
        while (missing := want - sum(map(len, self._arrived))) > 0:
            try:
                data = await self._next(missing)
            except Exception:
                self._arrived.append(self._unread()[:missing])
                raise
            if not data:
                return
            self._arrived.append(data)

    async def read_past(self, start: int) -> None:
        """Drop bytes before ``start``, at most some MB."""
        for _ in range(64):
            if not self.behind(start):
                return
            if not await self._next(start - self._at):
                raise Interrupted(f"it ended after {self._at:,} bytes, before byte {start:,}")

    def behind(self, start: int) -> bool:
        return self._at < start

    async def _next(self, most: int) -> bytes:
        assert self._response is not None
        data = await self._response.content.read(min(most, 1 << 16))
        self._at += len(data)
        return data

    def _unread(self) -> bytes:
        """What had come when the connection broke, which aiohttp reports before it hands that out.

        It has no public way to it. Over a line that breaks often, half a megabyte may be all that ever comes.
        """
        content = self._response.content if self._response is not None else None
        chunks = list(getattr(content, "_buffer", ()))
        return b"".join(chunks)[getattr(content, "_buffer_offset", 0) :]

    def take(self) -> bytes:
        data = b"".join(self._arrived)
        self._arrived = []
        self.position += len(data)
        return data

    async def close(self) -> None:
        if self._response is not None:
            self._response.close()
        if self._session is not None:
            await self._session.close()


async def _follow(
    session: aiohttp.ClientSession, context: Any, redirect: aiohttp.TraceRequestRedirectParams
) -> None:
    """Called by aiohttp before it follows a redirect; raises `Refused` for one that it must not follow."""
    here = redirect.response.url
    try:
        there = here.join(URL(redirect.response.headers.get("Location", "")))
    except ValueError:
        return  # aiohttp says so better
    if there.host and there.host != here.host and await _inside(there) and not await _inside(here):
        raise Refused(f"{here.host} redirects to {there.host}, which is in a private network")


async def _inside(url: URL) -> bool:
    """Whether the host of ``url`` is this machine, or in a private network, by any of its addresses.

    The name is looked up once more for the connection, and a sender who controls it could answer differently then;
    what would come from there is compared with a digest, or must be a manifest.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(url.host or "", url.port or 0)
    except OSError:
        return False  # then there is nothing to connect to, or a proxy looks it up
    return any(is_private(str(address[0])) for *_, address in found)


def _answered(error: aiohttp.ClientResponseError) -> Refused | Interrupted:
    sorted_out = sort_out(error)
    what = f"the server answered {error.status} {error.message}".strip()
    if isinstance(sorted_out, Refused):
        return Refused(what, denied=sorted_out.denied, missing=sorted_out.missing)
    return Interrupted(what)


def _close(loop: Any, stream: _Stream) -> None:
    try:
        fsspec.asyn.sync(loop, stream.close, timeout=1)
    except Exception:
        return  # the connection is given up either way
