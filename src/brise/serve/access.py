"""Who may reach the server: API keys, the address it binds, and the Host header it answers to."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable
from pathlib import Path

from brise.errors import BriseError

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


class AcceptedKeys:
    """The accepted API keys, as digests: memory holds no key, and the time of a comparison tells nothing."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(hashlib.sha256(key.encode()).digest() for key in keys)

    def accept(self, key: str) -> bool:
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        found = False
        for known in self._digests:  # all of them: an early end would say where the match is
            found |= hmac.compare_digest(digest, known)
        return found


def read_keys(path: Path) -> AcceptedKeys:
    """A file with one key a line; empty lines and lines that begin with # do not count."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BriseError(f"cannot read the API keys from {str(path)!r}: {error}") from None
    keys = []
    for number, line in enumerate(lines, 1):
        key = line.strip()
        if not key or key.startswith("#"):
            continue
        if not is_key(key):
            raise BriseError(f"line {number} of {str(path)!r} is no API key: keys are ASCII without spaces",
                             hint="one key a line; comments begin with #")
        keys.append(key)
    if not keys:
        raise BriseError(f"{str(path)!r} holds no API key", hint="one key a line; comments begin with #")
    return AcceptedKeys(keys)


def is_key(text: str) -> bool:
    """Whether this can be an API key."""
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


def check_bind(host: str, has_keys: bool, force: bool) -> None:
    """Refuses to offer the server to other machines without API keys, unless told to."""
    if has_keys or force or is_loopback(host):
        return
    raise BriseError(f"refusing to listen on {host!r} without API keys: anybody who reaches it could use it",
                     hint="give keys with --api-keys FILE, or listen on 127.0.0.1, or mean it: "
                          "--allow-insecure-bind")


def is_loopback(host: str) -> bool:
    """True only if no other machine can reach it; a name other than localhost may mean anything."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def host_name(header: str) -> str:
    """The name in a Host header, without the port."""
    name, colon, port = header.rpartition(":")
    return (name if colon and port.isdecimal() else header).lower()
