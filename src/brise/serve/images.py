"""Images of a request are fetched, checked and decoded into the engine's inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from brise.engine.model import LoadedModel
from brise.errors import MissingExtraError, RequestError
from brise.text import images
from brise.text.inputs import ImageInput
from brise.text.openai_messages import Image, Message, Part

MAX_IMAGES = 64
LOW_DETAIL_SIZE = 512  # OpenAI's size for "detail": "low"


async def fetch_images(messages: Sequence[Message], *, allows_urls: bool) -> tuple[Message, ...]:
    """The messages with every http(s) image replaced by its bytes. Images are fetched one after the other."""
    bodies: dict[str, bytes] = {}
    for image in _images(messages):
        if isinstance(image.source, str) and not image.source.startswith("data:"):
            bodies[image.name] = await _fetch(image.source, image.name, allows_urls)
    return _with_images(messages, lambda image: replace(image, source=bodies.get(image.name, image.source)))


def prepare_images(messages: Sequence[Message], model: LoadedModel) -> tuple[Message, ...]:
    """The messages with every image checked and decoded. It may take long: call it off the event loop."""
    number = sum(1 for _ in _images(messages))
    if number > MAX_IMAGES:
        raise RequestError(f"the request has {number} images, allowed are {MAX_IMAGES}", param="messages")
    return _with_images(messages, lambda image: _prepared(image, model))


def _prepared(image: Image, model: LoadedModel) -> Image:
    if model.vision is None:
        raise RequestError(f"{image.name!r} is an image, and {model.name} takes none: it has no vision encoder",
                           param=image.name, code="no_vision")
    settings = model.vision.settings
    if image.detail == "low":
        settings = settings.limited(LOW_DETAIL_SIZE)
    assert not isinstance(image.source, ImageInput), "prepared twice"
    data = image.source if isinstance(image.source, bytes) else images.from_data_url(image.source, image.name)
    try:
        with model.vision.decoding:
            return replace(image, source=images.prepare(data, settings, image.name))
    except MissingExtraError as error:  # only the operator can install the extra, but the client must see the error
        raise RequestError(error.args[0], param=image.name, code="no_vision", hint=error.hint) from None


async def _fetch(url: str, name: str, allows_urls: bool) -> bytes:
    if not url.startswith(("http://", "https://")):
        raise RequestError(f"{name!r} is neither a data: URL nor an http(s) URL", param=name, code="invalid_image")
    if not allows_urls:
        raise RequestError(f"{name!r} is an http(s) URL, which this server does not fetch", param=name,
                           code="image_urls_not_allowed",
                           hint="send the image itself, as data:image/...;base64,...; or start the server with "
                                "--allow-image-urls")
    from brise.serve.fetch import fetch  # noqa: PLC0415 - loads httpx, which no other image needs

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
