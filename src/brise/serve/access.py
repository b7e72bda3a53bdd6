"""Access rules of the server: API keys, the address it binds to, and the Host headers it accepts."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from starlette.datastructures import Headers

from brise.errors import BriseError

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


class AcceptedKeys:
    """The accepted API keys, as digests. No key stays in memory, and comparisons take constant time."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(hashlib.sha256(key.encode()).digest() for key in keys)

    def accept(self, key: str) -> bool:
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        is_accepted = False
        for accepted in self._digests:  # all of them: stopping early would reveal the position of the match
            is_accepted |= hmac.compare_digest(digest, accepted)
        return is_accepted


def read_keys(path: Path) -> AcceptedKeys:
    """The keys in a file that only its owner may read: one on each line. Empty lines and lines that begin with # are
    skipped."""
    try:
        with path.open(encoding="utf-8") as file:
            about = os.fstat(file.fileno())
            if stat.S_ISREG(about.st_mode) and about.st_mode & 0o077:  # a pipe is nobody else's
                raise BriseError(f"the API keys in {str(path)!r} are open to others than its owner "
                                 f"(mode {stat.S_IMODE(about.st_mode):03o}; 600 is allowed)", hint=f"chmod 600 {path}")
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BriseError(f"cannot read the API keys from {str(path)!r}: {error}") from None
    keys = []
    for number, line in enumerate(lines, 1):
        key = line.strip()
        if not key or key.startswith("#"):
            continue
        if not is_key(key):
            raise BriseError(f"line {number} of {str(path)!r} is not an API key: keys are ASCII without spaces",
                             hint="one key on each line; comments begin with #")
        keys.append(key)
    if not keys:
        raise BriseError(f"{str(path)!r} holds no API key", hint="one key on each line; comments begin with #")
    return AcceptedKeys(keys)


def is_key(text: str) -> bool:
    """Whether the text can be an API key."""
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


def check_bind(host: str, has_keys: bool, force: bool) -> None:
    """Refuses to listen for other machines without API keys, unless `force` is set."""
    if has_keys or force or is_loopback(host):
        return
    raise BriseError(f"refusing to listen on {host!r} without API keys: anyone who can reach it could use it",
                     hint="give keys with --api-keys FILE, or listen on 127.0.0.1, or force it with "
                          "--allow-insecure-bind")


def is_loopback(host: str) -> bool:
    """Whether no other machine can reach the host. Names other than localhost may resolve to anything."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def host_name(header: str) -> str:
    """The name in a Host header, without the port."""
    name, colon, port = header.rpartition(":")
    return (name if colon and port.isdecimal() else header).lower()


def is_foreign(headers: Headers) -> bool:
    """Whether a browser sent the request for another site's page. Programs send no such headers."""
    origin = headers.get("origin")
    return headers.get("sec-fetch-site", "none") not in ("none", "same-origin") or (
        origin is not None and origin.partition("//")[2] != headers.get("host"))
