"""Images behind URLs are fetched from public addresses only and within limits; everything else is a clear error."""

from __future__ import annotations

import asyncio
import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from brise.errors import RequestError
from brise.serve import fetch
from brise.serve.fetch import is_public


class Site(BaseHTTPRequestHandler):
    """A site with a few pages, which records the Host headers of its requests."""

    hosts: list[str] = []  # noqa: RUF012 - one server in this module

    def do_GET(self) -> None:
        self.hosts.append(self.headers["Host"])
        match self.path:
            case "/image":
                self._send(200, b"an image")
            case "/moved":
                self._send(302, b"", Location="/image")
            case "/elsewhere":
                self._send(302, b"", Location="http://10.0.0.1/image")
            case "/ftp":
                self._send(302, b"", Location="ftp://example.com/image")
            case "/loop":
                self._send(307, b"", Location="/loop")
            case "/gzip":
                once = gzip.compress(gzip.compress(b"x" * 1_000_000))
                self._send(200, once, **{"Content-Encoding": "gzip, gzip"})
            case "/large":
                self._send(200, b"x" * 2000)
            case _:
                self._send(404, b"nothing")

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing to stderr."""


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def get(url: str) -> bytes:
    """Fetches a URL; this machine is allowed besides public addresses."""
    return asyncio.run(fetch.fetch(url, "url", lambda address: address in ("127.0.0.1", "::1") or is_public(address)))


def test_an_image_comes_under_its_own_host(site: str) -> None:
    assert get(f"{site}/image") == b"an image"
    assert Site.hosts[-1] == site.removeprefix("http://")


def test_a_redirect_is_followed(site: str) -> None:
    assert get(f"{site}/moved") == b"an image"


@pytest.mark.parametrize(("path", "message"), [
    ("/nothing", "status 404"), ("/gzip", "content encoding 'gzip, gzip'"),
    ("/elsewhere", "10.0.0.1', which is not a public address"),
    ("/ftp", "neither http nor https"), ("/loop", "redirected more than 3 times")])
def test_urls_that_lead_to_no_image_are_refused(site: str, path: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as refused:
        get(f"{site}{path}")
    assert (refused.value.code, refused.value.param) == ("invalid_image", "url")


def test_a_body_that_is_too_large(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "MAX_BYTES", 1000)
    with pytest.raises(RequestError, match="more than 1000 bytes"):
        get(f"{site}/large")


@pytest.mark.parametrize("url", [
    "http://127.0.0.1/", "http://localhost/", "http://10.1.2.3/", "http://169.254.169.254/latest/meta-data/",
    "http://192.168.0.1/", "http://[::1]/", "http://[fe80::1]/", "http://[::ffff:10.0.0.1]/", "http://0.0.0.0/",
    "http://2130706433/", "http://[2002:7f00:1::]/"])
def test_private_addresses_are_refused(url: str) -> None:
    with pytest.raises(RequestError, match="not a public address|could not be fetched"):
        asyncio.run(fetch.fetch(url, "url"))


@pytest.mark.parametrize(("address", "expected"), [
    ("8.8.8.8", True), ("2606:4700:4700::1111", True), ("127.0.0.1", False), ("10.0.0.1", False), ("::1", False),
    ("169.254.169.254", False), ("fd00::1", False), ("100.64.0.1", False), ("224.0.0.1", False),
    ("::ffff:192.168.0.1", False), ("fe80::1%eth0", False), ("0.0.0.0", False), ("255.255.255.255", False)])
def test_public_addresses(address: str, expected: bool) -> None:
    assert is_public(address) == expected


@pytest.mark.parametrize(("address", "expected"), [
    ("64:ff9b::808:808", True), ("64:ff9b::a9fe:a9fe", False), ("64:ff9b::7f00:1", False),
    ("64:ff9b:1::808:808", False),
    ("::808:808", False), ("::a9fe:a9fe", False), ("::7f00:1", False), ("::ffff:0:a9fe:a9fe", False),
    ("::ffff:0:808:808", True), ("2002:a9fe:a9fe::", False), ("2002:808:808::1", True), ("fec0::1", False),
    ("168.63.129.16", False), ("::ffff:168.63.129.16", False), ("192.88.99.1", False), ("192.0.0.9", False),
    ("100::1", False), ("100:0:0:1::1", False), ("2001:2::1", False), ("2001:20::1", False),
    ("2001:0:5ef5:79fb::1", False),
    ("2001:db8::1", False), ("3fff::1", False), ("5f00::1", False), ("ff0e::1", False), ("4000::1", False),
    ("198.18.0.1", False), ("203.0.113.1", False), ("240.0.0.1", False), ("192.31.196.1", True),
    ("2a00:1450:4001:81b::200e", True)])
def test_addresses_are_what_they_lead_to(address: str, expected: bool) -> None:
    assert is_public(address) == expected


@pytest.mark.parametrize("url", ["http://", "https:///x", "http://exa mple/", "http://[::1", "http://a:99999/"])
def test_malformed_urls(url: str) -> None:
    with pytest.raises(RequestError):
        asyncio.run(fetch.fetch(url, "url"))
