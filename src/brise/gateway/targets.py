"""Request targets (RFC 9112, 3.2): which are taken, and which a gateway's own key pays for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from urllib.parse import unquote_to_bytes

from brise.dialects import table
from brise.errors import RequestError
from brise.gateway.request import ClientRequest

_ABSOLUTE = re.compile(rb"https?://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)
_VISIBLE = re.compile(rb"[!-~]*")
_HALF = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_CONTROLS = re.compile(rb"[\x00-\x1f\x7f]")
DECODINGS = 3  # a target may be percent-encoded again and again, and a server may decode as often
# What a gateway's own key pays for besides the dialects: what only reads, and not what other clients left there.
READ_ONLY = (("GET", "/v1/models"), ("HEAD", "/v1/models"), ("POST", "/v1/messages/count_tokens"))


class TargetError(RequestError):
    """The request target is not one that is sent on."""

    def __init__(self, why: str) -> None:
        super().__init__(f"the request target {why}", code="invalid_target")


class UnpaidPathError(RequestError):
    """A path that the gateway's own key does not pay for."""

    status = 403

    def __init__(self, request: ClientRequest) -> None:
        super().__init__(f"{request.method} {request.path[:200]!r} is not among the paths that the gateway's own key "
                         "pays for", code="path_not_allowed",
                         hint="brise serve --upstream-path PATH adds it, --upstream-path '/v1/audio/*' all below it")


def origin_form(raw_path: bytes) -> bytes:
    """The path of a target, percent-encoded: it begins with one slash, and no server may find dot segments in it.

    Of the absolute form, as clients of proxies send it, the path is taken, and the rest forgotten.
    """
    absolute = _ABSOLUTE.fullmatch(raw_path)
    if absolute is not None:
        if b"@" in absolute[1]:
            raise TargetError("names a user")
        raw_path = absolute[2] or b"/"
    if not raw_path.startswith(b"/") or raw_path.startswith(b"//"):
        raise TargetError("does not begin with one slash")
    if _VISIBLE.fullmatch(raw_path) is None or b"#" in raw_path:
        raise TargetError("holds a character that must be percent-encoded")
    if _HALF.search(raw_path):
        raise TargetError("holds a percent sign that encodes nothing")
    decoded = raw_path
    for _ in range(DECODINGS):
        _check(decoded)
        before, decoded = decoded, unquote_to_bytes(decoded)
        if before == decoded:
            return raw_path
    raise TargetError("is percent-encoded again and again")


def is_paid(request: ClientRequest, more: Sequence[str]) -> bool:
    """Whether the gateway's own key pays for a request; `more` are paths that its operator has added."""
    if request.dialect is not table.UNKNOWN and request.target.startswith(request.dialect.path.encode()):
        return True
    plain = request.path.removesuffix("/")
    if (request.method, plain) in READ_ONLY or request.method in ("GET", "HEAD") and _is_model(plain):
        return True
    return is_listed(plain, more)


def is_listed(path: str, patterns: Sequence[str]) -> bool:
    """Whether the operator's list has a path."""
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def _is_model(path: str) -> bool:
    return path.startswith("/v1/models/") and len(path) > len("/v1/models/")


def _check(decoded: bytes) -> None:
    try:
        decoded.decode()
    except UnicodeDecodeError:  # such as %c0%ae, which some servers take for a dot
        raise TargetError("is not UTF-8") from None
    if _CONTROLS.search(decoded):
        raise TargetError("holds a control character")
    for segment in decoded.replace(b"\\", b"/").split(b"/"):
        if segment.partition(b";")[0] in (b".", b".."):
            raise TargetError("holds a dot segment")
