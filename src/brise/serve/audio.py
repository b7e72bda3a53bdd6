"""Audio of a request is checked and made into the engine's input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from brise.engine.model import LoadedModel
from brise.errors import RequestError
from brise.text import audio
from brise.text.inputs import AudioInput
from brise.text.openai_messages import Audio, Message, Part

MAX_AUDIOS = 16


def prepare_audio(messages: Sequence[Message], model: LoadedModel) -> tuple[Message, ...]:
    """The messages with every audio checked. It may take long: call it off the event loop."""
    number = sum(isinstance(part, Audio) for message in messages for part in _parts(message))
    if not number:
        return tuple(messages)
    if number > MAX_AUDIOS:
        raise RequestError(f"the request has {number} audios, allowed are {MAX_AUDIOS}", param="messages")

    def changed(part: Part) -> Part:
        return replace(part, source=_prepared(part, model)) if isinstance(part, Audio) else part

    return tuple(replace(message, content=tuple(map(changed, _parts(message)))) if _parts(message) else message
                 for message in messages)


def prepared(data: bytes, model: LoadedModel, name: str) -> AudioInput:
    """The audio in a file's bytes, for this model; RequestError if it has no audio encoder."""
    if model.audio is None:
        raise RequestError(f"{name!r} is audio, and {model.name} takes none: it has no audio encoder", param=name,
                           code="no_audio")
    with model.audio.decoding:
        return audio.prepare(data, model.audio.settings, name)


def _prepared(part: Audio, model: LoadedModel) -> AudioInput:
    assert isinstance(part.source, str), "prepared twice"
    read = audio.from_data_url if part.source.startswith("data:") else audio.from_base64
    return prepared(b"" if model.audio is None else read(part.source, part.name), model, part.name)


def _parts(message: Message) -> tuple[Part, ...]:
    return message.content if isinstance(message.content, tuple) else ()
