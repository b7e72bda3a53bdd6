"""The bytes of images and audio, from the base64 of a message or from a file. RequestError has the code of the kind."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Literal

from brise.errors import RequestError

MediaKind = Literal["image", "audio"]


def wrong(kind: MediaKind, name: str, what: str) -> RequestError:
    """What is wrong with the field or file `name`."""
    return RequestError(f"{name} {what}", param=name, code=f"invalid_{kind}")


def from_base64(kind: MediaKind, text: str, name: str) -> bytes:
    """The bytes of base64, which may have lines as in mails."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise wrong(kind, name, f"is not base64: {error}") from None


def from_data_url(kind: MediaKind, url: str, name: str, allowed: str) -> bytes:
    """The bytes in data:KIND/...;base64,... `allowed` stands in the error for a media type that is read."""
    head, comma, body = url.partition(",")
    if not comma or not head.startswith(f"data:{kind}/") or not head.endswith(";base64"):
        raise wrong(kind, name, f"is {head[:64]!r}..., allowed is data:{allowed};base64,DATA")
    return from_base64(kind, body, name)


def from_path(kind: MediaKind, path: Path, most_bytes: int) -> bytes:
    """The bytes of a file, `most_bytes` at most."""
    try:
        with path.open("rb") as file:
            data = file.read(most_bytes + 1)  # a device has no size, and may have no end
            size = max(len(data), path.stat().st_size)
    except OSError as error:
        raise RequestError(f"the {kind} {str(path)!r} cannot be read: {error.strerror or error}",
                           code=f"invalid_{kind}") from None
    if size > most_bytes:
        raise wrong(kind, str(path), f"has {size} bytes, allowed are {most_bytes}")
    return data
