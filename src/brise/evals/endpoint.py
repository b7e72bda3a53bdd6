"""The answerer of an endpoint: any server with OpenAI's /chat/completions, with retries where waiting helps."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from brise.errors import NetworkError, UnsupportedError
from brise.evals.answering import AnswerSettings
from brise.evals.example import AnsweredCall, EvalAnswer, EvalExample
from brise.text.finish_reasons import common
from brise.text.protocols import Message, parts_of

if TYPE_CHECKING:  # a server, which may never ask one, starts sooner
    import httpx

Wait = Callable[[float], Awaitable[object]]

RETRIED = (408, 409, 429, 500, 502, 503, 504, 529)  # 529: overloaded, in Anthropic's API
OF_THE_ROW = (400, 413, 422)  # too long, not allowed: other rows may succeed
ATTEMPTS, FIRST_WAIT_S, LONGEST_WAIT_S = 6, 1.0, 300.0


@dataclass(frozen=True)
class Endpoint:
    """A model at a server. `url` is the base URL before /chat/completions, as in OpenAI's clients; `key` is secret."""

    url: str
    model: str
    key: str | None = None
    timeout_s: float = 120.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UnsupportedError(f"the endpoint is {self.url!r}, allowed is http(s)://HOST/PATH",
                                   hint="such as http://127.0.0.1:8080/v1")

    @property
    def is_here(self) -> bool:
        """Whether it runs on this machine, so that no proxy is used."""
        return urlsplit(self.url).hostname in ("localhost", "127.0.0.1", "::1")

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r}, {self.model!r})"


class EndpointAnswerer:
    """Requests run in an event loop of their own, so that Ctrl-C ends them at once without waiting for a slow server.

    `transport` is for tests, and so is `wait`, which sleeps by default.
    """

    def __init__(self, endpoint: Endpoint, asked: AnswerSettings, *, parallel: int = 16,
                 transport: httpx.AsyncBaseTransport | None = None, wait: Wait = asyncio.sleep) -> None:
        import httpx  # noqa: PLC0415 - see TYPE_CHECKING

        if asked.scores:
            raise UnsupportedError("perplexity needs the model itself: endpoints give no likelihood of a given answer",
                                   hint="--model MODEL")
        self._endpoint, self._asked, self._wait = endpoint, asked, wait
        headers = {} if endpoint.key is None else {"Authorization": f"Bearer {endpoint.key}"}
        limits = httpx.Limits(max_connections=parallel, max_keepalive_connections=parallel)
        self._client = httpx.AsyncClient(timeout=endpoint.timeout_s, headers=headers, limits=limits,
                                         transport=transport, trust_env=not endpoint.is_here)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = Lock()  # no request is started in a loop that ends
        self.name, self.parallel = endpoint.model, parallel

    def identity(self) -> Mapping[str, object]:
        """The endpoint, its model, and the settings of the answers."""
        return {"endpoint": self._endpoint.url, "model": self._endpoint.model, **self._asked.identity()}

    def prepare(self, examples: Sequence[EvalExample]) -> None:
        """Refuses messages that cannot be sent, before any request."""
        for example in examples:
            for message in example.prompt:
                sent(message, example.place)
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="brise-eval-endpoint", daemon=True)
        self._thread.start()

    def answer(self, example: EvalExample) -> EvalAnswer:
        """Sends one request, and repeats it while the server is busy; NetworkError if it gives no answer at all."""
        with self._lock:
            if self._loop is None:
                raise NetworkError("the run was stopped")
            future = asyncio.run_coroutine_threadsafe(self._answer(example), self._loop)
        return future.result()

    def close(self) -> None:
        """Cancels all requests, and closes the connections."""
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is not None:
            asyncio.run_coroutine_threadsafe(self._end(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join()
            loop.close()

    async def _end(self) -> None:
        running = asyncio.all_tasks() - {asyncio.current_task()}
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._client.aclose()

    async def _answer(self, example: EvalExample) -> EvalAnswer:
        body, busy = self._body(example), _Busy("it was not asked")
        for attempt in range(ATTEMPTS):
            outcome = await self._ask(body)
            if isinstance(outcome, EvalAnswer):
                return outcome
            busy = outcome
            wait_s = FIRST_WAIT_S * 2**attempt if busy.wait_s is None else busy.wait_s
            if attempt == ATTEMPTS - 1 or wait_s > LONGEST_WAIT_S:
                break
            await self._wait(wait_s)
        raise NetworkError(f"{self._endpoint.url} did not answer in {attempt + 1} attempts: {busy.reason}",
                           hint="the answers so far are kept with --out; try again later, or with --parallel 1")

    def _body(self, example: EvalExample) -> dict[str, object]:
        body: dict[str, object] = {
            "model": self._endpoint.model, "messages": [sent(message, example.place) for message in example.prompt],
            "temperature": 0, "max_tokens": self._asked.max_tokens}
        if example.tools:
            body["tools"] = [dict(tool) for tool in example.tools]
        if self._asked.schema is not None:
            body["response_format"] = {"type": "json_schema", "json_schema": {
                "name": "answer", "strict": True, "schema": json.loads(self._asked.schema)}}
        return body

    async def _ask(self, body: Mapping[str, object]) -> EvalAnswer | _Busy:
        import httpx  # noqa: PLC0415 - see TYPE_CHECKING

        try:
            response = await self._client.post(f"{self._endpoint.url.rstrip('/')}/chat/completions", json=body)
        except httpx.TransportError as error:
            return _Busy(f"{type(error).__name__}: {error}")
        reason = _reason(response, self._endpoint.key)
        if response.status_code == 200:
            return _Busy(reason) if _is_error(response) else _read(response, self._endpoint.url)
        if response.status_code in RETRIED:
            return _Busy(reason, _retry_after(response.headers.get("retry-after")))
        if response.status_code in OF_THE_ROW:
            return EvalAnswer(finish="error", error=reason)
        raise NetworkError(f"{self._endpoint.url} refuses: {reason}",
                           hint="is the URL right (it ends in /v1), and the key (--key-env)?")


@dataclass(frozen=True)
class _Busy:
    """The reason for having no answer yet, and the wait that the server asks for."""

    reason: str
    wait_s: float | None = None


def sent(message: Message, place: str) -> dict[str, object]:
    """The message in OpenAI's form; UnsupportedError for parts that cannot be sent."""
    sent: dict[str, object] = {**message}
    if not isinstance(message["content"], str):
        parts = parts_of(message["content"])
        if any(part["type"] != "text" for part in parts):
            kinds = ", ".join(sorted({str(part["type"]) for part in parts} - {"text"}))
            raise UnsupportedError(f"{place} has parts of type {kinds}; only text is sent to an endpoint")
        sent["content"] = [dict(part) for part in parts]
    calls: Any = message.get("tool_calls")
    if calls:
        sent["tool_calls"] = [{**call, "function": {**call["function"], "arguments": json.dumps(
            call["function"]["arguments"], ensure_ascii=False)}} for call in calls]
    return sent


def _is_error(response: httpx.Response) -> bool:
    """Whether a success holds an error in the answer's place, as aggregators of models send one."""
    try:
        body = response.json()
    except ValueError:
        return False
    return isinstance(body, dict) and bool(body.get("error")) and not body.get("choices")


def _text(content: object) -> str:
    """Text, or the texts of parts: models that think send their answer so."""
    if not isinstance(content, list):
        return str(content or "")
    return "".join(str(part["text"]) for part in content if isinstance(part, dict) and part.get("type") == "text")


def _read(response: httpx.Response, url: str) -> EvalAnswer:
    try:
        body = response.json()
        choice = body["choices"][0]
        message, usage = choice["message"], body.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        calls = tuple(AnsweredCall(str(call["function"]["name"]), str(call["function"]["arguments"]))
                      for call in message.get("tool_calls") or ())
        finish = str(choice.get("finish_reason") or "stop")
        failed = f"it ended with the finish reason {finish[:40]!r}" if common(finish) == "error" else None
        return EvalAnswer(_text(message.get("content")), calls, finish, failed,
                          _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise NetworkError(f"{url} gave no chat completion: {type(error).__name__} at {error}",
                           hint="the endpoint must speak OpenAI's /chat/completions") from None


def _count(value: object) -> int:
    """A count of tokens; 0 where the server gives none that can be."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _reason(response: httpx.Response, key: str | None) -> str:
    """The server's reason, without the key, which some servers quote: files of answers contain it."""
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = response.text
    said = str(message).replace(key, "[key]") if key else str(message)
    return f"status {response.status_code}: {said[:300]}"


def _retry_after(value: str | None) -> float | None:
    """The seconds to wait, from a number or a date."""
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return None
