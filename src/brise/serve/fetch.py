"""Images behind http(s) URLs are fetched here, from public addresses only.

Clients must not reach the server's own network through it (SSRF). Every host is resolved once, refused if any of its
addresses is not public, and connected to at the address that was checked. Redirects are checked in the same way, and
proxies from the environment are not used.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable

import httpx

from brise.errors import RequestError
from brise.text.images import MAX_BYTES

TIMEOUT_S = 10.0  # for one image, including redirects
MAX_REDIRECTS = 3
REDIRECTS = (301, 302, 303, 307, 308)


def is_public(address: str) -> bool:
    """Whether an address is on the public Internet, not on this machine or a private network."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is not None and not inner.is_global:
            return False
    return ip.is_global and not ip.is_multicast


async def fetch(url: str, name: str, allows: Callable[[str], bool] = is_public) -> bytes:
    """The body behind the URL. RequestError says what is wrong with the field `name`."""
    try:
        async with asyncio.timeout(TIMEOUT_S), httpx.AsyncClient(trust_env=False, timeout=TIMEOUT_S) as client:
            for _ in range(1 + MAX_REDIRECTS):
                body = await _get(client, url, name, allows)
                if isinstance(body, bytes):
                    return body
                url = body
    except TimeoutError:
        raise _wrong(name, f"could not be fetched within {TIMEOUT_S:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise _wrong(name, f"could not be fetched: {error or type(error).__name__}") from None
    raise _wrong(name, f"is redirected more than {MAX_REDIRECTS} times")


async def _get(client: httpx.AsyncClient, url: str, name: str, allows: Callable[[str], bool]) -> bytes | str:
    """The body, or the URL of the redirect."""
    target = httpx.URL(url)
    if target.scheme not in ("http", "https") or not target.host:
        raise _wrong(name, "leads to a URL that is neither http nor https")
    address = await _address(target, name, allows)
    # Connects to the address that was checked; Host header and certificate are those of the host name.
    async with client.stream("GET", target.copy_with(host=address), headers={"Host": target.netloc.decode()},
                             extensions={"sni_hostname": target.host}) as response:
        if response.status_code in REDIRECTS and "location" in response.headers:
            return str(target.join(response.headers["location"]))
        if response.status_code != httpx.codes.OK:
            raise _wrong(name, f"could not be fetched: the host answers with status {response.status_code}")
        body = bytearray()
        async for piece in response.aiter_bytes():
            body += piece
            if len(body) > MAX_BYTES:
                raise _wrong(name, f"has more than {MAX_BYTES} bytes, the most allowed")
        return bytes(body)


async def _address(target: httpx.URL, name: str, allows: Callable[[str], bool]) -> str:
    port = target.port or {"http": 80, "https": 443}[target.scheme]
    try:
        infos = await asyncio.get_running_loop().getaddrinfo(target.host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise _wrong(name, f"could not be fetched: {error.strerror or error}") from None
    addresses = [str(entry[4][0]) for entry in infos]
    if not addresses or not all(allows(address) for address in addresses):
        raise _wrong(name, f"leads to {target.host!r}, which is not a public address")
    return addresses[0]


def _wrong(name: str, what: str) -> RequestError:
    return RequestError(f"{name!r} {what}", param=name, code="invalid_image")
