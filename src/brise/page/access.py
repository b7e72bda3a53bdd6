"""Who may do what on the page: by the key that a request comes with, and never for another site's page."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import get_args
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request

from brise.errors import RequestError, UnsupportedError
from brise.serve.access import is_loopback
from brise.serve.error_response import KeyForbiddenError
from brise.serve.serving import ServerState
from brise.traffic.virtual_keys import PageScope

EVERYTHING: Collection[PageScope] = frozenset(get_args(PageScope))
WHAT: Mapping[PageScope, str] = MappingProxyType({
    "view": "see the page", "content": "read what requests and answers say", "operate": "change anything"})


class ForeignPageError(RequestError):
    """Another site's web page makes a browser send the request."""

    status = 403

    def __init__(self) -> None:
        super().__init__("the page's data are for the page itself: another site's page asked for them",
                         code="cross_site", hint="open the page at the address that the server printed")


class KeylessPageError(RequestError):
    """The server listens for other machines, and has no keys any more that would protect the page."""

    status = 403

    def __init__(self, host: str) -> None:
        super().__init__(f"the server listens on {host!r} without API keys, so it shows no page's data",
                         code="page_needs_keys", hint="give it keys: --api-keys FILE, or brise keys add NAME")


def shows_page(asked: bool | None, host: str, has_keys: bool) -> bool:
    """Whether a server on `host` has the page. `asked` is what its user says; None: where nobody else can read it."""
    is_safe = has_keys or is_loopback(host)
    if asked and not is_safe:
        raise UnsupportedError(f"--page on {host!r} without API keys: everybody could read your traffic",
                               hint="give keys with --api-keys FILE, or listen on 127.0.0.1")
    return is_safe if asked is None else asked


def scopes_of(request: Request) -> Collection[PageScope]:
    """What the sender may do. Keys of --api-keys may do everything, and so may everybody on a server without keys,
    which answers this machine only; a virtual key may do what it says."""
    caller = request.scope.get("brise.caller")
    if caller is None:
        return EVERYTHING
    return frozenset(caller.key.limits.page or ())


def check(serving: ServerState, request: Request, needed: PageScope) -> None:
    """Raises if another site sent the request, or if its key does not have the scope that is `needed`."""
    if is_foreign(request.headers):
        raise ForeignPageError
    if not serving.has_keys and not is_loopback(serving.settings.host):
        raise KeylessPageError(serving.settings.host)
    if needed not in scopes_of(request):
        name = request.scope["brise.caller"].key.name
        raise KeyForbiddenError(f"the API key {name!r} may not {WHAT[needed]}", code="key_not_allowed",
                                hint=f"brise keys change {name} --page {needed}; or use a key of --api-keys")


def is_foreign(headers: Headers) -> bool:
    """Whether a browser sent the request for another site's page. Programs send neither of these headers."""
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
        return True
    return headers.get("sec-fetch-site", "none") not in ("none", "same-origin")


def sender(request: Request) -> str:
    """Who sends the request, for the ledger."""
    key = key_name(request)
    return "on the page" if key is None else f"on the page, with the key {key}"


def key_name(request: Request) -> str | None:
    """The name of the virtual key that came with the request; None if none did."""
    caller = request.scope.get("brise.caller")
    return None if caller is None else str(caller.key.name)
