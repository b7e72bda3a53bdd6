"""What parity asks a server with OpenAI's API: greedy answers with log-probabilities, and the tokens of a prompt.

vLLM, llama.cpp, SGLang, Ollama and brise itself differ in what they give; what one does not give is missing by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from types import TracebackType
from typing import Any

import httpx

from brise.errors import NetworkError
from brise.evals.endpoint import Endpoint, sent
from brise.evals.logprobs import NamedToken, steps_of
from brise.text.protocols import Message

LEAST_LOGPROB = -60.0  # so that sums stay finite; it makes a divergence smaller, never larger
NO_LOGPROBS = "the server gives no log-probabilities"


@dataclass(frozen=True)
class ServerAnswer:
    """A greedy answer: at each step the chosen token, then the most likely ones. `problem` says why there is none."""

    steps: tuple[tuple[NamedToken, ...], ...] = ()
    prompt_tokens: int | None = None
    problem: str | None = None


@dataclass
class ServerClient:
    """A connection to one model of a server. `top` is how many of the most likely tokens it names, at most.

    `transport` is for tests.
    """

    endpoint: Endpoint
    top: int
    transport: httpx.BaseTransport | None = None
    _tokenize: bool = True  # until the server says that it has none
    _client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        headers = {} if self.endpoint.key is None else {"Authorization": f"Bearer {self.endpoint.key}"}
        self._client = httpx.Client(timeout=self.endpoint.timeout_s, headers=headers, transport=self.transport,
                                    trust_env=not self.endpoint.is_here)

    def __enter__(self) -> ServerClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._client.close()

    def only_model(self) -> str:
        """The name of the server's model; NetworkError unless it has exactly one."""
        body = self._json(self._get("/models"))
        names = [str(item.get("id")) for item in body.get("data") or () if isinstance(item, dict)]
        if len(names) != 1:
            raise NetworkError(f"{self.endpoint.url} has {len(names)} models: {', '.join(names[:20])}",
                               hint="--name says which is meant: that of the adapter, where adapters have names")
        return names[0]

    def answer(self, messages: Sequence[Message], tools: Sequence[Mapping[str, object]], prompt: Sequence[int],
               place: str, max_tokens: int) -> ServerAnswer:
        """A greedy answer of `max_tokens` at most, with log-probabilities.

        With tools the prompt goes to /completions as tokens: in a chat the server would read calls out of the answer,
        and some servers leave their tokens out of what they show.
        """
        common = {"model": self.endpoint.model, "temperature": 0, "max_tokens": max_tokens}
        if tools:
            return self._answer("/completions", {**common, "prompt": list(prompt), "logprobs": min(self.top, 5)})
        body = {**common, "messages": [sent(message, place) for message in messages], "logprobs": True}
        answer = self._answer("/chat/completions", {**body, "top_logprobs": self.top})
        if answer.problem is not None and self.top > 5 and "logprobs" in answer.problem:
            self.top = 5  # Some servers allow fewer.
            return self._answer("/chat/completions", {**body, "top_logprobs": self.top})
        return answer

    def prompt_tokens(self, messages: Sequence[Message], tools: Sequence[Mapping[str, object]],
                      place: str) -> list[int] | None:
        """The tokens that the server makes of a conversation, by /tokenize (vLLM, brise) or /apply-template and
        /tokenize (llama.cpp); None where it tells neither."""
        if not self._tokenize:
            return None
        body: dict[str, object] = {"messages": [sent(message, place) for message in messages]}
        if tools:
            body["tools"] = [dict(tool) for tool in tools]
        root = self.endpoint.url.rstrip("/").removesuffix("/v1")
        tokens = self._tokens(root, {**body, "model": self.endpoint.model, "add_generation_prompt": True})
        if tokens is None:
            shown = self._try(f"{root}/apply-template", body)
            if shown is not None and isinstance(shown.get("prompt"), str):
                tokens = self._tokens(root, {"content": shown["prompt"], "add_special": True, "parse_special": True})
        self._tokenize = tokens is not None
        return tokens

    def _tokens(self, root: str, body: Mapping[str, object]) -> list[int] | None:
        answer = self._try(f"{root}/tokenize", body)
        tokens = None if answer is None else answer.get("tokens")
        is_list = isinstance(tokens, list) and all(type(token) is int for token in tokens)
        return list(tokens) if is_list and tokens else None

    def _try(self, url: str, body: Mapping[str, object]) -> Mapping[str, Any] | None:
        try:
            response = self._client.post(url, json=body)
            answer = response.json() if response.status_code == 200 else None
        except (httpx.TransportError, ValueError):
            return None
        return answer if isinstance(answer, dict) else None

    def _answer(self, path: str, body: Mapping[str, object]) -> ServerAnswer:
        url = f"{self.endpoint.url.rstrip('/')}{path}"
        try:
            response = self._client.post(url, json=body)
        except httpx.TransportError as error:
            raise NetworkError(f"{url} did not answer: {type(error).__name__}: {error}") from None
        if response.status_code in (400, 413, 422, 501):
            return ServerAnswer(problem=f"{path} is refused with status {response.status_code}: {self._said(response)}")
        read = self._json(response)
        choice = next((item for item in read.get("choices") or () if isinstance(item, dict)), None)
        if choice is None:
            return ServerAnswer(problem="the server's answer has no choices")
        usage: Mapping[str, Any] = read["usage"] if isinstance(read.get("usage"), dict) else {}
        steps = _steps(choice.get("logprobs"))
        prompt_tokens = _count(usage.get("prompt_tokens"))
        if not steps:
            return ServerAnswer((), prompt_tokens, NO_LOGPROBS)
        completion = _count(usage.get("completion_tokens"))
        if completion is not None and not len(steps) <= completion <= len(steps) + 1:  # one more: the end
            return ServerAnswer((), prompt_tokens, f"the server counts {completion} tokens of the answer and shows "
                                                   f"log-probabilities of {len(steps)}")
        return ServerAnswer(steps, prompt_tokens)

    def _get(self, path: str) -> httpx.Response:
        url = f"{self.endpoint.url.rstrip('/')}{path}"
        try:
            return self._client.get(url)
        except httpx.TransportError as error:
            raise NetworkError(f"{url} did not answer: {type(error).__name__}: {error}") from None

    def _json(self, response: httpx.Response) -> Mapping[str, Any]:
        if response.status_code != 200:
            raise NetworkError(f"{response.url} refuses with status {response.status_code}: {self._said(response)}",
                               hint="is the URL right (it ends in /v1), the model's name, and the key (--key-env)?")
        try:
            body = response.json()
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise NetworkError(f"{response.url} gave no JSON object")
        return body

    def _said(self, response: httpx.Response) -> str:
        text = response.text
        return (text.replace(self.endpoint.key, "[key]") if self.endpoint.key else text)[:300]


def _steps(logprobs: object) -> tuple[tuple[NamedToken, ...], ...]:
    """The steps up to the first that cannot be read: what follows it cannot be placed."""
    readable = takewhile(lambda step: step is not None, steps_of(logprobs))
    return tuple(tuple(replace(token, logprob=max(token.logprob, LEAST_LOGPROB)) for token in (step.chosen, *step.top))
                 for step in readable if step is not None)


def _count(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None
