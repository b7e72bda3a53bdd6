"""The routes of the page in the browser: its files, under names that change with what is in them, and its data.

A browser that shows it loads nothing from elsewhere and runs nothing but these files, whatever stands in the data.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from brise.errors import BriseError, RequestError
from brise.page import access, captured, labelling, machine, proof, switches
from brise.page.endpoint import Download, PageEndpoint, PageOptions, PageRequest
from brise.report.html import components
from brise.serve import ollama_models
from brise.serve.body import read_json
from brise.serve.error_response import NotFoundError, error_body, respond
from brise.serve.serving import PAGE, PAGE_DATA, ServerState

FOLDER = Path(__file__).parent
# DOMPurify makes the only policy that may turn text into HTML: of what it has cleaned.
POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
          "frame-ancestors 'none'; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; "
          "trusted-types dompurify")
HEADERS: Mapping[str, str] = MappingProxyType({
    "Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()"})
TYPES: Mapping[str, str] = MappingProxyType({
    ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".html": "text/html; charset=utf-8"})
FOREVER, ALWAYS_ASK = "public, max-age=31536000, immutable", "no-cache"
COMMENT = re.compile(rb"^ *//.*|/\*.*?\*/", re.MULTILINE)  # browsers need none; lines keep their numbers
FILES_MARK = "{files}"  # in index.html: the folder whose name changes with what is in the files
HAS_STORE_ERROR = 409
SLOW_THREADS = 2  # each waits for a process


Page = Callable[[ServerState], Sequence[Route]]


def page(options: PageOptions) -> Page:
    """What `ServeSettings.page` takes: the page over this store."""
    return partial(routes, options)


def routes(options: PageOptions, serving: ServerState) -> Sequence[Route]:
    """All routes of the page. A browser that asks at the root is led to it; other clients get what they got before."""
    files, data = PageFiles(), _PageData(serving)
    endpoints = [*proof.endpoints(options), *switches.endpoints(options), *captured.endpoints(options),
                 *labelling.endpoints(options), *machine.endpoints(options)]
    return [
        Route("/", _root, methods=["GET"]),
        Route(PAGE, _to_page, methods=["GET"]),
        Route(f"{PAGE}/", files.index, methods=["GET"]),
        Route(f"{PAGE}/files/{{digest}}/{{name:path}}", files.file, methods=["GET"]),
        *(Route(f"{PAGE_DATA}{each.path}", partial(data.answer, each), methods=[each.method]) for each in endpoints),
        Route(f"{PAGE}/{{rest:path}}", _nothing, methods=["GET", "POST"])]


@dataclass(frozen=True)
class PageFile:
    """One file: its bytes, and the media type by its name."""

    content: bytes
    media_type: str

    @cached_property
    def packed(self) -> bytes:
        return gzip.compress(self.content, 6, mtime=0)

    @cached_property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'


class PageFiles:
    """The files of the page, read once. Their folder is named by a digest of all of them."""

    def __init__(self) -> None:
        paths = [*FOLDER.glob("*.js"), *FOLDER.glob("vendor/*.js")]
        self.files = {path.relative_to(FOLDER).as_posix(): PageFile(
            path.read_bytes() if path.parent != FOLDER else COMMENT.sub(b"", path.read_bytes()), TYPES[path.suffix])
            for path in sorted(paths)}
        style = components() + (FOLDER / "page.css").read_text(encoding="utf-8")
        self.files["page.css"] = PageFile(COMMENT.sub(b"", style.encode()), TYPES[".css"])
        whole = hashlib.sha256()
        for name, each in self.files.items():
            whole.update(f"{name} {each.etag}\n".encode())
        self.digest = whole.hexdigest()[:16]
        html = (FOLDER / "index.html").read_text(encoding="utf-8").replace(FILES_MARK, f"files/{self.digest}")
        self._index = PageFile(html.encode(), TYPES[".html"])

    async def index(self, request: Request) -> Response:
        return _sent(self._index, request, ALWAYS_ASK)

    async def file(self, request: Request) -> Response:
        found = self.files.get(request.path_params["name"])
        if found is None or request.path_params["digest"] != self.digest:  # the page of another version asks
            return await _nothing(request)
        return _sent(found, request, FOREVER)


def _sent(file: PageFile, request: Request, caching: str) -> Response:
    headers = {**HEADERS, "Cache-Control": caching, "ETag": file.etag, "Vary": "Accept-Encoding"}
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"
        return Response(file.packed, headers=headers, media_type=file.media_type)
    return Response(file.content, headers=headers, media_type=file.media_type)


class _PageData:
    """Answers what the page asks for, on threads of its own."""

    def __init__(self, serving: ServerState) -> None:
        self._serving = serving
        self._quick = ThreadPoolExecutor(1, thread_name_prefix="brise-page")
        self._slow = ThreadPoolExecutor(SLOW_THREADS, thread_name_prefix="brise-page-slow")

    async def answer(self, endpoint: PageEndpoint, request: Request) -> Response:
        try:
            access.check(self._serving, request, endpoint.needs)
            read = await self._read(endpoint, request)
            threads = self._slow if endpoint.is_slow else self._quick
            found = await asyncio.get_running_loop().run_in_executor(threads, _answered, endpoint, read)
        except RequestError as error:
            return _with_headers(respond(error, request.url.path))
        except BriseError as error:  # of the store or the evidence: what the command would have printed
            body = error_body(RequestError(str(error), code=_code(error)))
            found = json.dumps(body).encode()
            return Response(found, HAS_STORE_ERROR, {**HEADERS, "Cache-Control": "no-store"}, "application/json")
        return _data(found, request)

    async def _read(self, endpoint: PageEndpoint, request: Request) -> PageRequest:
        settings, scopes = self._serving.settings, access.scopes_of(request)
        body = None
        if endpoint.method == "POST":
            body = await read_json(request, min(endpoint.most_bytes, settings.max_body_bytes), settings.body_timeout_s)
        return PageRequest(self._serving, request.path_params, dict(request.query_params), body, "content" in scopes,
                           "operate" in scopes, access.sender(request), access.key_name(request))


def _answered(endpoint: PageEndpoint, request: PageRequest) -> bytes | Download:
    found = endpoint.answer(request)
    return found if isinstance(found, Download) else json.dumps(found, allow_nan=False).encode()


def _data(found: bytes | Download, request: Request) -> Response:
    headers = {**HEADERS, "Cache-Control": "no-store", "Vary": "Accept-Encoding"}
    if isinstance(found, Download):
        headers["Content-Disposition"] = f'attachment; filename="{found.name}"'
        return Response(found.content, headers=headers, media_type="application/json")
    headers["ETag"] = etag = f'"{hashlib.sha256(found).hexdigest()[:32]}"'
    if request.method == "GET" and request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    if len(found) > 1 << 12 and "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"], found = "gzip", gzip.compress(found, 1, mtime=0)
    return Response(found, headers=headers, media_type="application/json")


def _code(error: BriseError) -> str:
    """store_error for a StoreError: what the page chooses its words by."""
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in type(error).__name__).strip("_")


def _with_headers(response: Response) -> Response:
    response.headers.update(HEADERS)
    response.headers["Cache-Control"] = "no-store"
    return response


async def _root(request: Request) -> Response:
    if "text/html" not in request.headers.get("accept", ""):
        return await ollama_models.root(request)
    led = _with_headers(RedirectResponse(f"{PAGE[1:]}/", 307))
    led.headers["Vary"] = "Accept"
    return led


async def _to_page(request: Request) -> Response:
    return _with_headers(RedirectResponse(f"{PAGE[1:]}/", 307))


async def _nothing(request: Request) -> Response:
    return _with_headers(respond(NotFoundError(f"there is no {request.method} {request.url.path[:200]!r}")))


