"""Bodies for a remote small model, and what its answers say: fields left out, texts continued, tokens as signals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from brise.dialects.bodies import Body, Fields, first_choice, objects
from brise.dialects.dialect import Dialect
from brise.engine.request import TokenLogprob
from brise.errors import RequestError
from brise.evals.logprobs import NamedToken, steps_of
from brise.gateway.remote.engines import CONTINUATION, GRAMMAR, EngineIdentity
from brise.gateway.small_models import OTHER_VOCABULARY, SERVICE_FIELDS

SERVICE = "it is about the service of the large model"
PERSON = "it names the person behind the request, whom the small model does not know"
OURS = frozenset({"model", "stream", "stream_options"})
PERSONS = frozenset({"user", "safety_identifier", "metadata"})
NO_TEXT = frozenset({"json_object", "json_schema"})
TOKEN_BYTES = 4  # of a text whose tokens nobody counts


def sent(dialect: Dialect, body: Body, model: str) -> tuple[Fields, Mapping[str, str]]:
    """The request as the small model's server gets it, and the fields that were left out, with the reason.

    `max_completion_tokens` goes by its older name, which every engine knows.
    """
    fields: Fields = {"model": model}
    ignored = dict[str, str]()
    for name, value in body.items():
        if name in OURS or value is None:
            continue
        if name in SERVICE_FIELDS:
            ignored[name] = SERVICE
        elif name in PERSONS:
            ignored[name] = PERSON
        elif name == "logit_bias":
            if value:
                ignored[name] = OTHER_VOCABULARY
        else:
            fields[name] = value
    if dialect.name == "chat" and "max_completion_tokens" in fields:
        fields["max_tokens"] = fields.pop("max_completion_tokens")
    return fields, ignored


def with_logprobs(dialect: Dialect, fields: Fields, num_top: int) -> Fields:
    """The request with the question for so many alternatives of each token, if its dialect can ask."""
    asked = fields.get("top_logprobs") if dialect.name == "chat" else fields.get("logprobs")
    number = max(num_top, asked if isinstance(asked, int) and not isinstance(asked, bool) else 0)
    match dialect.name:
        case "chat":
            return {**fields, "logprobs": True, "top_logprobs": number}
        case "completion":
            return {**fields, "logprobs": number}
        case _:
            return fields


def continued(dialect: Dialect, fields: Fields, prefix: str, identity: EngineIdentity, num_tokens: int) -> Fields:
    """The request for the rest of an answer that begins with `prefix`; RequestError if this server cannot."""
    with_prefix = dialect.with_prefix(fields, prefix)
    if with_prefix is None:
        raise RequestError(f"an answer to this request of the kind {dialect.name!r} cannot be continued",
                           code="unsupported_parameter")
    rest: dict[str, Any] = {**with_prefix}
    if dialect.name == "chat":
        if identity.continues is None:
            raise _missing(identity, CONTINUATION)
        format = fields.get("response_format")
        if isinstance(format, dict) and format.get("type") in NO_TEXT and not identity.kind.grammar:
            raise _missing(identity, GRAMMAR)
        if identity.continues != "prefix":
            *before, last = rest["messages"]
            rest["messages"] = [*before, {name: value for name, value in last.items() if name != "prefix"}]
        if identity.continues == "flags":
            rest |= {"continue_final_message": True, "add_generation_prompt": False}
    limit = rest.get("max_tokens")
    if isinstance(limit, int) and not isinstance(limit, bool):
        rest["max_tokens"] = max(limit - num_tokens, 1)
    return rest


def limits_length(fields: Body) -> bool:
    """Whether the length of the answer is limited, so that what it began with counts."""
    return isinstance(fields.get("max_tokens"), int)


def usual_count(said: str) -> int:
    """About how many tokens a text has, where its server does not count them."""
    return -(-len(said.encode("utf-8", "replace")) // TOKEN_BYTES)


def _missing(identity: EngineIdentity, what: str) -> RequestError:
    return RequestError(f"the small model's server ({identity.kind.name}) has no {what}, so it cannot go on in this "
                        "answer", code="missing_ability", hint="--small-engine NAME=ENGINE says what it is")


def tokens_of(response: Body) -> tuple[TokenLogprob, ...]:
    """The tokens of the only choice, with their log-probabilities; empty if the server gives none.

    Servers name tokens by their text. Their numbers here tell them apart within one answer, and mean nothing else.
    """
    choices = response.get("choices")
    choice = first_choice(response)
    logprobs = choice.get("logprobs") if choice is not None else None
    if not isinstance(logprobs, dict) or not isinstance(choices, list) or len(choices) != 1:
        return ()
    steps, numbers = steps_of(logprobs), dict[bytes, int]()
    if any(step is None for step in steps):  # such as the first token of an echoed prompt
        return ()

    def numbered(token: NamedToken) -> tuple[int, bytes, float]:
        return numbers.setdefault(token.bytes, len(numbers)), token.bytes, token.logprob

    return tuple(TokenLogprob(*numbered(step.chosen), tuple(map(numbered, step.top)))
                 for step in steps if step is not None)


def shown(dialect: Dialect, response: Body, body: Body, name: str) -> Body:
    """The answer as its client gets it: under the model's name here, and without log-probabilities that only the
    gateway asked for."""
    answer = {**response, "model": name}
    if dialect.name not in ("chat", "completion"):
        return answer
    asked = body.get("logprobs")
    if asked in (None, False):
        answer["choices"] = [{**choice, "logprobs": None} for choice in objects(response.get("choices"))]
    elif dialect.name == "chat":
        number = body.get("top_logprobs") or 0
        answer["choices"] = [_cut(choice, number) for choice in objects(response.get("choices"))]
    return answer


def _cut(choice: Body, number: int) -> Body:
    logprobs = choice.get("logprobs")
    if not isinstance(logprobs, dict):
        return choice
    content = [{**entry, "top_logprobs": objects(entry.get("top_logprobs"))[:number]}
               for entry in objects(logprobs.get("content"))]
    return {**choice, "logprobs": {**logprobs, "content": content}}


class WithoutEcho:
    """Takes out the beginning that a server repeats when it continues a text: older llama.cpp servers do.

    Text is held back only while it equals the beginning of the prefix, letter by letter.
    """

    def __init__(self, prefix: str) -> None:
        self._left: str | None = prefix
        self._held = ""

    def push(self, piece: str) -> str:
        """The part of a piece that is new."""
        if self._left is None:
            return piece
        self._held += piece
        if self._left.startswith(self._held):
            if len(self._held) < len(self._left):
                return ""
            self._left = None
            return ""
        prefix, held, self._left = self._left, self._held, None
        return held.removeprefix(prefix)

    def rest(self) -> str:
        """What was held back, at the end: it was no repetition."""
        held, self._held = ("" if self._left is None else self._held), ""
        self._left = None
        return held
