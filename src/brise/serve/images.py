"""Images of a request: from the client's URLs to what the engine takes."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import httpx

from brise.engine.model import LoadedModel
from brise.errors import MissingExtraError, RequestError
from brise.text import images
from brise.text.images import MAX_BYTES
from brise.text.inputs import ImageInput
from brise.text.openai_messages import Image, Message, Part

MAX_IMAGES = 64
LOW_DETAIL_SIZE = 512  # OpenAI's own for "detail": "low"


async def fetched(messages: Sequence[Message], *, allows_urls: bool) -> tuple[Message, ...]:
    """The messages with images that lie elsewhere brought here, one after the other."""
    bodies: dict[str, bytes] = {}
    for image in _images(messages):
        if isinstance(image.source, str) and not image.source.startswith("data:"):
            bodies[image.name] = await _fetch(image.source, image.name, allows_urls)
    return _with_images(messages, lambda image: replace(image, source=bodies.get(image.name, image.source)))


def prepared(messages: Sequence[Message], model: LoadedModel) -> tuple[Message, ...]:
    """The messages with every image decoded and found good. It may take long, so off the event loop."""
    number = sum(1 for _ in _images(messages))
    if number > MAX_IMAGES:
        raise RequestError(f"the request has {number} images, allowed are {MAX_IMAGES}", param="messages")
    return _with_images(messages, lambda image: _prepared(image, model))


def _prepared(image: Image, model: LoadedModel) -> Image:
    if model.vision is None:
        raise RequestError(f"{image.name!r} is an image, and {model.name} sees none: it has no vision tower",
                           param=image.name, code="no_vision")
    settings = model.vision.settings
    if image.detail == "low":
        settings = replace(settings, image_size=min(LOW_DETAIL_SIZE, settings.image_size))
    assert not isinstance(image.source, ImageInput), "prepared twice"
    data = image.source if isinstance(image.source, bytes) else images.from_data_url(image.source, image.name)
    try:
        with model.vision.decoding:
            return replace(image, source=images.prepare(data, settings, image.name))
    except MissingExtraError as error:  # the operator's to mend, but the client must hear of it
        raise RequestError(error.args[0], param=image.name, code="no_vision", hint=error.hint) from None


async def _fetch(url: str, name: str, allows_urls: bool) -> bytes:
    if not url.startswith(("http://", "https://")):
        raise RequestError(f"{name!r} is neither a data: URL nor an http(s) URL", param=name, code="invalid_image")
    if not allows_urls:
        raise RequestError(f"{name!r} is an http(s) URL, which this server does not fetch", param=name,
                           code="image_urls_not_allowed",
                           hint="send the image itself, as data:image/...;base64,...; or start the server with "
                                "--allow-image-urls")
    return await fetch(url, name)


def _images(messages: Sequence[Message]) -> Iterator[Image]:
    for message in messages:
        if isinstance(message.content, tuple):
            yield from (part for part in message.content if isinstance(part, Image))


def _with_images(messages: Sequence[Message], change: Callable[[Image], Image]) -> tuple[Message, ...]:
    def changed(part: Part) -> Part:
        return change(part) if isinstance(part, Image) else part

    return tuple(replace(message, content=tuple(map(changed, message.content)))
                 if isinstance(message.content, tuple) else message for message in messages)


TIMEOUT_S = 10.0  # for one image, redirects and all
MAX_REDIRECTS = 3
REDIRECTS = (301, 302, 303, 307, 308)


def is_public(address: str) -> bool:
    """Whether an address is anybody's on the Internet, and not of this machine or a network behind it."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is not None and not inner.is_global:
            return False
    return ip.is_global and not ip.is_multicast


async def fetch(url: str, name: str, allows: Callable[[str], bool] = is_public) -> bytes:
    """The body of the answer to a GET; RequestError says what was wrong with `name`."""
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
    """The body, or the URL that the answer points to."""
    target = httpx.URL(url)
    if target.scheme not in ("http", "https") or not target.host:
        raise _wrong(name, "leads to a URL that is neither http nor https")
    address = await _address(target, name, allows)
    # The connection goes to the address that was checked; name and certificate are those of the host.
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
        found = await asyncio.get_running_loop().getaddrinfo(target.host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise _wrong(name, f"could not be fetched: {error.strerror or error}") from None
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(allows(address) for address in addresses):
        raise _wrong(name, f"leads to {target.host!r}, which is no public address")
    return addresses[0]


def _wrong(name: str, what: str) -> RequestError:
    return RequestError(f"{name!r} {what}", param=name, code="invalid_image")
