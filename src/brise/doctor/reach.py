"""Whether servers can be reached. Only here does the examination open connections, and only to what was asked for."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

import httpx

from brise import settings
from brise.doctor import stores
from brise.doctor.findings import Finding
from brise.doctor.stores import without_secrets
from brise.hub.pypi import DEFAULT_INDEX_URL
from brise.traffic.stores import POSTGRES

TIMEOUT_S, POSTGRES_PORT = 10.0, 5432


def examine(urls: Sequence[str], store: str | None) -> Iterator[Finding]:
    """Asks each URL, and the store's server; without URLs the package index that `brise pull` asks."""
    for url in list(urls) or [settings.read().index_url or DEFAULT_INDEX_URL]:
        yield _postgres(url) if url.startswith(POSTGRES) else _http(url)
    if store is not None and store.startswith(POSTGRES):
        yield from stores.examine_server(store)


def _http(url: str) -> Finding:
    name = without_secrets(url)
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        return Finding("reach", name, "FAIL", "no URL; allowed are http://..., https://... and postgresql://...")
    proxy = settings.proxy(url)
    way = f" through the proxy {without_secrets(proxy)}" if proxy else ""
    began_s = time.perf_counter()
    try:
        with (httpx.Client(timeout=TIMEOUT_S, proxy=proxy, trust_env=False) as client,
              client.stream("GET", url) as answer):
            status = answer.status_code
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        return Finding("reach", name, "FAIL", f"no answer{way}: {str(error) or type(error).__name__}",
                       "is the network there, and the address right?")
    text = f"answers {status} after {1e3 * (time.perf_counter() - began_s):.0f} ms{way}"
    return Finding("reach", name, "WARN" if status >= 500 else "PASS", text)


def _postgres(url: str) -> Finding:
    """Whether somebody listens there; nobody is logged in."""
    name = without_secrets(url)
    try:
        parts = urlsplit(url)
        began_s = time.perf_counter()
        with socket.create_connection((parts.hostname or "localhost", parts.port or POSTGRES_PORT), TIMEOUT_S):
            wait_ms = 1e3 * (time.perf_counter() - began_s)
        return Finding("reach", name, "PASS", f"takes connections, after {wait_ms:.0f} ms")
    except (OSError, ValueError) as error:
        return Finding("reach", name, "FAIL", f"no connection: {error}")
