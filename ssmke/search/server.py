"""The page to search on: a small web server for one index.

Starlette and uvicorn, three static files of this package, and four addresses:

    GET  /api/about             what is indexed
    GET  /api/search?q=TEXT     &to=images|captions &top=12
    POST /api/search            the body is the picture
    GET  /thumbs/ROW            a thumbnail

It is meant for one machine. Against other web sites open in the same browser: the Host header has to be one of ours (a
name that is rebound to 127.0.0.1 is not), requests of other sites are refused by what browsers say of them
(Sec-Fetch-Site), and no CORS header is sent. Against hostile contents: text is put into the page as text, the content
security policy allows the page's own files alone, uploads are bounded in bytes while they come and in pixels before
they are decoded. Against load: the model embeds one query at a time in a thread, so the server answers while it works.
It asks nobody who they are: whoever reaches the port sees every thumbnail and caption.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from importlib import resources
from typing import Any

import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ssmke.errors import BadSample, ConfigError, SSMKEError
from ssmke.search.find import Finder, Query, Target
from ssmke.search.index import Hit
from ssmke.words import printable

MOST_UPLOAD = 20_000_000
"""Bytes of a picture."""
MOST_CHARACTERS = 1000
"""Of a text: far more than a text encoder reads."""
MOST_RESULTS = 60
TOP = 12

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
_STATIC = {
    "/": ("index.html", "text/html"),
    "/app.js": ("app.js", "text/javascript"),
    "/app.css": ("app.css", "text/css"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_BAD_PICTURE = {
    "unsupported format": "This kind of picture is not read: give a JPEG, PNG or WebP.",
    "not an image": "This file is not a picture: give a JPEG, PNG or WebP.",
    "empty file": "This file is empty: give a JPEG, PNG or WebP.",
    "too many pixels": "This picture has too many pixels (89 million at most).",
    "too small": "This picture is too small to see anything in it.",
    "truncated image": "This picture is damaged: its end is missing, or its data make no sense.",
}

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class SafeHeaders:
    """Sends the headers that keep a browser from doing more than the page needs, and refuses other sites' requests."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        site = dict(scope["headers"]).get(b"sec-fetch-site", b"none")
        # A link from elsewhere to the page itself does no harm.
        if site not in (b"none", b"same-origin") and scope["path"] != "/":
            await _error(403, "This request comes from another site.")(scope, receive, with_headers)
            return
        await self._app(scope, receive, with_headers)


def application(finder: Finder, hosts: list[str]) -> Starlette:
    """The server as an ASGI application; ``hosts``: names and addresses that it may be asked by."""
    index = finder.index

    async def about(_: Request) -> Response:
        manifest = index.manifest
        return JSONResponse(
            {
                "pictures": len(index),
                "captions": manifest.captions["vectors"] if manifest.captions else 0,
                "model": _name(manifest.model),
                "kind": manifest.images["kind"],
                "top": TOP,
                "most_characters": MOST_CHARACTERS,
                "most_upload": MOST_UPLOAD,
            }
        )

    async def search(request: Request) -> Response:
        target, top = _target(request, index.has_captions), _top(request)
        if request.method == "POST":
            query = Query("picture", image=await _body(request))
        else:
            text = request.query_params.get("q", "")
            if len(text) > MOST_CHARACTERS:
                raise HTTPException(
                    400,
                    f"This text is too long: {MOST_CHARACTERS:,} characters at most, it has {len(text):,}.",
                )
            query = Query(text)
        try:
            answer, timing = await anyio.to_thread.run_sync(finder.find, query, top, target)
        except BadSample as bad:
            raise HTTPException(400, _BAD_PICTURE.get(bad.reason) or "Type what you look for.") from None
        return JSONResponse(
            {
                "to": target,
                "hits": [_shown(hit) for hit in answer.hits],
                "encode_ms": round(timing.encode_ms, 1),
                "search_ms": round(timing.search_ms, 1),
            },
            headers={"cache-control": "no-store"},
        )

    async def thumb(request: Request) -> Response:
        try:
            content = index.thumbnail(request.path_params["row"])
        except IndexError:
            raise HTTPException(404, "There is no such picture.") from None
        # Of another index on the same port the same number is another picture.
        return Response(content, media_type="image/jpeg", headers={"cache-control": "no-cache"})

    routes = [
        Route("/api/about", about),
        Route("/api/search", search, methods=["GET", "POST"]),
        Route("/thumbs/{row:int}", thumb),
        *(Route(path, _static(*file)) for path, file in _STATIC.items()),
    ]
    return Starlette(
        routes=routes,
        middleware=[
            Middleware(SafeHeaders),
            Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False),
        ],
        exception_handlers={
            HTTPException: _told,  # type: ignore[dict-item] # handlers take the exception that they are for
            SSMKEError: _broken,  # type: ignore[dict-item]
            ClientDisconnect: _gone,  # type: ignore[dict-item]
        },
    )


def bind(host: str, port: int) -> socket.socket:
    """A socket on that address, so that what is wrong with it is said before the model is loaded.

    Raises:
        ConfigError: the port is in use or not allowed, or the address is not of this machine.
    """
    if not 0 <= port <= 65_535:
        raise ConfigError(f"--port {port}: must be from 0 (any that is free) to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"--host {host}: it is no address of this machine ({error}). Give 127.0.0.1."
        ) from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"--host {host} --port {port}: {error.strerror or error}. Give another --port, or 0 for any that is free."
        ) from None
    return listening


def allowed_hosts(host: str, more: tuple[str, ...] = ()) -> list[str]:
    """What the Host header of a request may be, for a server that is bound to ``host``."""
    names = {"localhost", "127.0.0.1", "[::1]", "::1", host.lower(), *(name.lower() for name in more)}
    if not is_loopback(host):
        import psutil

        names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
        names |= {facts.address for all_of_it in psutil.net_if_addrs().values() for facts in all_of_it}
    return sorted(name for name in names if "*" not in name and name not in ("", "0.0.0.0", "::"))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def serve(app: Starlette, listening: socket.socket) -> None:
    """Answers requests until Ctrl-C."""
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=64,
        timeout_keep_alive=20,
        timeout_graceful_shutdown=3,
        ws="none",
        lifespan="off",
    )
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])


def _static(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    content = (resources.files("ssmke.search") / "page" / name).read_bytes()

    async def answer(_: Request) -> Response:
        return Response(content, media_type=kind, headers={"cache-control": "no-cache"})

    return answer


async def _body(request: Request) -> bytes:
    """The uploaded picture; given up as soon as it is too large, whatever its headers say."""
    too_large = HTTPException(
        413, f"This file is too large: {MOST_UPLOAD // 1_000_000} MB at most.", {"connection": "close"}
    )
    stated = request.headers.get("content-length", "0")
    if stated.isdigit() and int(stated) > MOST_UPLOAD:
        raise too_large
    content = bytearray()
    async for piece in request.stream():
        content += piece
        if len(content) > MOST_UPLOAD:
            raise too_large
    return bytes(content)


def _target(request: Request, has_captions: bool) -> Target:
    target = request.query_params.get("to", "images")
    if target == "captions" and has_captions:
        return "captions"
    if target == "captions":
        raise HTTPException(400, "This index has no captions: only pictures can be found.")
    if target != "images":
        raise HTTPException(400, "Pictures or captions can be found, nothing else.")
    return "images"


def _top(request: Request) -> int:
    asked = request.query_params.get("top", str(TOP))
    if not (asked.isascii() and asked.isdigit() and len(asked) < 4 and 1 <= int(asked) <= MOST_RESULTS):
        raise HTTPException(400, f"1 to {MOST_RESULTS} results can be shown.")
    return int(asked)


def _shown(hit: Hit) -> dict[str, Any]:
    captions = [hit.caption] if hit.caption else hit.item.captions[:5]
    return {
        "row": hit.row,
        "score": round(hit.score, 4),
        "id": printable(hit.item.id),
        "captions": [printable(caption) for caption in captions],
        "width": hit.item.width,
        "height": hit.item.height,
    }


def _name(model: str) -> str:
    """The end of a folder's path: where it is on the disk is nobody's business."""
    return "/".join(model.rstrip("/").split("/")[-2:]) if model.startswith("/") else model


def _error(status: int, sentence: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": sentence}, status, headers)


async def _told(_: Request, error: HTTPException) -> Response:
    plain = {404: "There is nothing at this address.", 405: "This address does not take such requests."}
    detail = (
        plain.get(error.status_code, error.detail)
        if error.detail in ("Not Found", "Method Not Allowed")
        else error.detail
    )
    return _error(error.status_code, detail, dict(error.headers or {}))


async def _broken(_: Request, error: SSMKEError) -> Response:
    # Whoever serves it reads the file's name; whoever searches does not.
    print(f"error: {printable(str(error))}", file=sys.stderr, flush=True)
    return _error(500, "The index cannot be read; the terminal that serves it says why.")


async def _gone(_: Request, error: ClientDisconnect) -> Response:
    return _error(499, "The request was given up.")
