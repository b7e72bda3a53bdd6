"""`POST /v1/audio/transcriptions` writes down what is said in an audio file."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from types import MappingProxyType

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from brise.dialects import sse
from brise.engine.model import LoadedModel
from brise.engine.request import Request, Sampling
from brise.errors import RequestError
from brise.serve.access import is_foreign
from brise.serve.audio import prepared
from brise.serve.body import MediaTypeError, read_bytes
from brise.serve.error_response import CrossSiteError
from brise.serve.generation import Entry, GenerationTask, deltas
from brise.serve.ignored import ignored_header, report
from brise.serve.in_flight import RequestStats
from brise.serve.multipart import FormPart, read_form
from brise.serve.serving import ServerState
from brise.serve.sse import EventStream, unless_gone
from brise.text.chat import require
from brise.text.fields import Ignored, RequestFields
from brise.text.json_text import Json
from brise.text.transcription import transcription

PATH = "/v1/audio/transcriptions"
FORMATS = ("json", "text")
_LANGUAGE = re.compile(r"[a-z]{2}")
_NO_TIMES = "the models here give no times"
# What would make another answer, with the values that ask for nothing.
ACTS: Mapping[str, tuple[str, tuple[object, ...]]] = MappingProxyType({
    "prompt": ("the prompt with which Voxtral transcribes has no place for a text", ("",)),
    "timestamp_granularities": (_NO_TIMES, ([],)), "timestamp_granularities[]": (_NO_TIMES, ("",)),
    "include[]": ("there are no log-probabilities of a transcription", ("",)),
    "include": ("there are no log-probabilities of a transcription", ([], "")),
    "diarize": ("the models here tell no speakers apart", ("false",)),
    "known_speaker_names[]": ("the models here tell no speakers apart", ("",)),
    "known_speaker_references[]": ("the models here tell no speakers apart", ("",)),
    "context_bias": ("the prompt with which Voxtral transcribes has no place for words", ("",)),
    "file_url": ("this server fetches no audio; send 'file'", ("",)),
    "file_id": ("this server stores no files; send 'file'", ("",))})
# The whole audio is in one prompt: nothing is cut.
NOTES: Mapping[str, tuple[object, ...]] = MappingProxyType({"chunking_strategy": ("auto",), "user": ()})
NUMBERS = ("temperature", "top_p", "seed", "max_completion_tokens")


@dataclass(frozen=True)
class TranscriptionRequest:
    """What a form asks for."""

    model: str
    audio: bytes
    language: str | None
    format: str
    sampling: Sampling
    max_tokens: int | None
    stream: bool


async def transcribe(serving: ServerState, http: HttpRequest) -> Response:
    """The response: the text, as JSON, as text, or as events while it grows."""
    settings = serving.settings
    ignored = None if settings.strict else Ignored()
    kind = http.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "multipart/form-data":
        raise MediaTypeError(f"the content type is {kind[:64]!r}, it must be 'multipart/form-data'",
                             code="unsupported_media_type", hint="curl -F file=@speech.wav -F model=NAME")
    if serving.local_only and http.headers.get("origin") not in settings.cors_origins and is_foreign(http.headers):
        raise CrossSiteError("make this machine work")  # browsers send forms to any address without asking first
    body = await read_bytes(http, settings.max_body_bytes, settings.body_timeout_s)
    asked = parse_transcription(read_form(kind, body), ignored)
    served, stats = serving.find(asked.model), http.scope["brise.stats"]
    stats.model = asked.model
    request = await asyncio.to_thread(engine_request, asked, served.worker.model)
    answer = Transcription(GenerationTask(served, (request,), stats, {"prompt": "file", "audio": "file"}), stats,
                           sum(len(chunk.tokens) for audio in request.audios for chunk in audio.chunks))
    headers = ignored_header(ignored)
    if asked.stream:
        return EventStream(answer.stream(), headers)
    whole = await unless_gone(http.receive, answer.collect())
    if asked.format == "text":
        return PlainTextResponse(f"{whole['text']}\n", headers=headers)
    said = report(ignored)
    return JSONResponse({**whole, **({"brise": said} if said else {})}, headers=headers)


def parse_transcription(form: Sequence[FormPart], ignored: Ignored | None = None) -> TranscriptionRequest:
    """The typed request, or a RequestError that names the field."""
    audio, values = _split(form)
    fields = RequestFields(values, ignored=ignored)
    model, language = fields.required_text("model"), fields.text("language") or None
    if language is not None and not _LANGUAGE.fullmatch(language):
        raise fields.error("language", f"is {language[:32]!r}, allowed are two letters of ISO 639-1, such as 'en'")
    format = fields.text("response_format") or "json"
    if format not in FORMATS:
        raise fields.unsupported("response_format", f"{format[:32]!r}; there are 'json' and 'text', and no times")
    temperature = fields.number("temperature", 0, 2)
    top_p = fields.number("top_p", 0, 1)
    sampling = Sampling(temperature=temperature or 0.0, top_p=1.0 if top_p is None else top_p,
                        seed=fields.whole("seed", -(1 << 63), (1 << 63) - 1))
    max_tokens = fields.whole("max_completion_tokens", 1, 1 << 20)
    stream = fields.choice("stream", ("true", "false", "True", "False", "1", "0", "")) or ""
    for name, (why, neutral) in ACTS.items():
        fields.only(name, neutral, why)
    for name, silent in NOTES.items():
        fields.note(name, silent)
    fields.done()
    if audio is None:
        raise fields.missing("file")
    return TranscriptionRequest(model, audio, language, format, sampling, max_tokens,
                                stream.lower() in ("true", "1"))


def engine_request(asked: TranscriptionRequest, model: LoadedModel) -> Request:
    """The engine's request. A long audio takes time: call it off the event loop."""
    audio = prepared(asked.audio, model, "file")
    prompt = transcription(require(model.chat), model.tokenizer, audio, asked.language)
    return Request(prompt.tokens, asked.max_tokens, asked.sampling, audios=prompt.audios, begins_text=True)


@dataclass(frozen=True)
class Transcription:
    """The text that grows, and what it took."""

    task: GenerationTask
    stats: RequestStats
    num_audio_tokens: int

    async def collect(self) -> Entry:
        """The body, once the text is complete."""
        texts: list[str] = []
        async with aclosing(deltas(self.task)) as numbered:
            async for _, delta in numbered:
                texts.append(delta.text)
        return {"text": "".join(texts).strip(), "usage": self.usage()}

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """OpenAI's events: the text in pieces, and once more as a whole. Space before the text and after it is none of
        it."""
        whole, held = "", ""
        async with aclosing(deltas(self.task)) as numbered:
            async for _, delta in numbered:
                text = held + delta.text if whole else (held + delta.text).lstrip()
                piece = text.rstrip()
                held = text[len(piece):]
                if piece:
                    whole += piece
                    yield sse.encode({"type": "transcript.text.delta", "delta": piece}, None)
        yield sse.encode({"type": "transcript.text.done", "text": whole, "usage": self.usage()}, None)

    def usage(self) -> Entry:
        """OpenAI's usage of a transcription."""
        stats = self.stats
        return {"type": "tokens", "input_tokens": stats.prompt_tokens, "output_tokens": stats.completion_tokens,
                "total_tokens": stats.prompt_tokens + stats.completion_tokens,
                "input_token_details": {"audio_tokens": self.num_audio_tokens,
                                        "text_tokens": stats.prompt_tokens - self.num_audio_tokens}}


def _split(form: Sequence[FormPart]) -> tuple[bytes | None, dict[str, Json]]:
    """The file, and all other fields as text or numbers."""
    audio: bytes | None = None
    values: dict[str, Json] = {}
    for part in form:
        if part.name in values or part.name == "file" and audio is not None:
            if part.name.endswith("[]"):
                continue
            raise RequestError(f"{part.name[:64]!r} is given more than once", param=part.name[:64],
                               code="invalid_form")
        if part.name == "file":
            audio = part.content
        else:
            values[part.name] = _number(part) if part.name in NUMBERS else part.text()
    return audio, values


def _number(part: FormPart) -> Json:
    text = part.text().strip()
    if not text:
        return None
    try:
        return int(text) if text.lstrip("+-").isdecimal() else float(text)
    except ValueError:
        raise RequestError(f"{part.name!r} is {text[:32]!r}, it must be a number", param=part.name,
                           code="invalid_type") from None
