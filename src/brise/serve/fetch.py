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


_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # all that IANA has given out
# IANA's registries of special-purpose addresses, where they say "not globally reachable" and Python 3.11 does not; and
# ranges that lead elsewhere: to an IPv4 address that is written inside, or to the host of a cloud.
_NOT_PUBLIC = tuple(map(ipaddress.ip_network, (
    "100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32",  # the last one: Azure's own services
    "2001::/23", "2001:db8::/32", "3fff::/20")))
# Where one may find the IPv4 address that an address of these ranges leads to: (network, bits to the right of it).
_LEADS_TO = tuple((ipaddress.IPv6Network(network), bits) for network, bits in (
    ("::ffff:0:0/96", 0), ("64:ff9b::/96", 0), ("::ffff:0:0:0/96", 0), ("2002::/16", 80)))


def is_public(address: str) -> bool:
    """Whether an address is on the public Internet, not on this machine or a private network.

    NAT64, SIIT and 6to4 addresses are what they lead to. Networks that reach IPv4 through NAT64 resolve every host of
    the Internet to such addresses.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        for network, bits in _LEADS_TO:
            if ip in network:
                return is_public(str(ipaddress.IPv4Address(int(ip) >> bits & 0xFFFFFFFF)))
        if ip not in _GLOBAL_UNICAST:
            return False
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _NOT_PUBLIC)


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
    # No compressed bodies: images are compressed already, and a few bytes can become gigabytes.
    headers = {"Host": target.netloc.decode(), "Accept-Encoding": "identity"}
    # Connects to the address that was checked; Host header and certificate are those of the host name.
    async with client.stream("GET", target.copy_with(host=address), headers=headers,
                             extensions={"sni_hostname": target.host}) as response:
        if response.status_code in REDIRECTS and "location" in response.headers:
            return str(target.join(response.headers["location"]))
        if response.status_code != httpx.codes.OK:
            raise _wrong(name, f"could not be fetched: the host answers with status {response.status_code}")
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise _wrong(name, f"comes with the content encoding {encoding[:40]!r}; images are fetched without any")
        body = bytearray()
        async for piece in response.aiter_raw():
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
