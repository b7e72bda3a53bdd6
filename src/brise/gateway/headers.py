"""Headers: which go upstream, and which come back to the client."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from brise.gateway.request import OWN, ClientRequest, Headers
from brise.traffic import redact
from brise.traffic.records import Mode

# Of one connection, not of the message (RFC 9110, 7.6.1); `Connection` names more.
OF_A_HOP = frozenset({b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization",
                      b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"})
# Written anew: host and length of the new message, and the encodings that are read here. `Expect` is answered here.
MADE_ANEW = frozenset({b"host", b"content-length", b"accept-encoding", b"expect"})
NO_SECRETS = frozenset({b"idempotency-key"})  # its name sounds like one; without it a repeated request is paid twice
# alt-svc would send the client around the gateway; the server writes its own date; a cookie of the upstream's would
# become one of the gateway's host, and several clients may share what it stands for.
NOT_OURS = frozenset({b"alt-svc", b"date", b"set-cookie", b"set-cookie2"})

MAX_NAME = 256  # characters of a name in a header: clients refuse long lines

def upstream(headers: Headers, host: bytes, key: Headers | None, *, is_read: bool) -> list[tuple[bytes, bytes]]:
    """Headers of a request. `key` replaces the client's own keys, and everything else that may be a secret between
    the client and somebody; None leaves those.

    An answer that `is_read` here has to come uncompressed, so that its events can be told apart.
    """
    dropped = OF_A_HOP | MADE_ANEW | _named(headers)
    kept = [(b"host", host), *((name, value) for name, value in headers
                               if name not in dropped and not name.startswith(OWN)
                               and (key is None or name in NO_SECRETS or not redact.is_secret(name)))]
    encodings = b"identity" if is_read else next((value for name, value in headers if name == b"accept-encoding"), b"")
    if encodings:
        kept.append((b"accept-encoding", encodings))
    return kept + list(key or ())


def without_secrets(target: bytes) -> bytes:
    """A target without the parameters of its query that are secrets between the client and somebody."""
    path, _, query = target.partition(b"?")
    kept = b"&".join(part for part in query.split(b"&")
                     if not redact.is_secret(unquote_to_bytes(part.partition(b"=")[0])))
    return path + (b"?" + kept if kept else b"")


def without_keys(headers: Headers) -> Headers:
    """The headers of a client whose key is one to this server, and no upstream's business."""
    return [(name, value) for name, value in headers if name in NO_SECRETS or not redact.is_secret(name)]


def downstream(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Headers of an answer, with names in lower case."""
    lowered = [(name.lower(), value) for name, value in headers]
    dropped = OF_A_HOP | NOT_OURS | _named(lowered)
    return [(name, value) for name, value in lowered if name not in dropped and not name.startswith(OWN)]


def added(request: ClientRequest, mode: Mode, model: str | None) -> Headers:
    """The headers in which the gateway describes an answer."""
    name = (model or "").strip()[:MAX_NAME].encode("ascii", "replace")
    named = [(b"x-brise-model", name)] if name.decode().isprintable() and name else []
    if request.upstream:
        named.append((b"x-brise-upstream", request.upstream[:MAX_NAME].encode()))
    return [(b"x-brise-mode", mode.encode()), (b"x-brise-id", request.id.encode()), *named]


def find(headers: Headers, name: bytes) -> bytes:
    """The value of a header, b"" if it is missing. Case does not matter."""
    return next((value for known, value in headers if known.lower() == name), b"")


def _named(headers: Headers) -> frozenset[bytes]:
    return frozenset(word.strip().lower() for name, value in headers if name == b"connection"
                     for word in value.split(b","))
