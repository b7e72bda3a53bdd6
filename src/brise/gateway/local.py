"""How the gateway asks a small model on this machine. `brise.serve.local_answers` does it over the engine.

The body is the one that the client wrote for a hosted model, so it may hold fields that no small model knows.
Those that ask for nothing an answer is judged by are left out, and the answer says which (`ignored`); for the
others, and for everything else that is wrong with a request, the call raises RequestError.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from brise.dialects.bodies import Body, Usage
from brise.dialects.dialect import Dialect
from brise.engine.request import TokenLogprob
from brise.text.fields import NOT_KNOWN


@dataclass(frozen=True)
class LocalAnswer:
    """A whole answer, in the dialect that was asked in.

    `tokens` are those of the only choice, with at least as many alternatives as were asked for; empty if there are
    several choices. `body` holds only what the client asked for.
    """

    body: Body
    usage: Usage
    tokens: tuple[TokenLogprob, ...] = ()
    first_token_s: float | None = None
    total_s: float = 0.0
    ignored: Mapping[str, str] = field(default_factory=dict)  # path of a field, and why it was left out


@dataclass(frozen=True)
class LocalStream:
    """An answer on its way: the objects of a stream's events, without the `[DONE]`.

    Closing `chunks` cancels the answer. Whether the engine takes the request in shows with the first chunk.
    """

    chunks: AsyncGenerator[Body, None]
    ignored: Mapping[str, str] = field(default_factory=dict)
    usage: Callable[[], Usage] = Usage  # so far


@dataclass(frozen=True)
class Load:
    """How busy a model is with requests that somebody waits for; those in the background do not count."""

    running: int
    waiting: int
    slots: int  # answers that it writes at one time


def ignored_names(ignored: Mapping[str, str]) -> list[str]:
    """For counters: the fields' own names, without their place; clients' inventions under one name."""
    return ["unknown" if why == NOT_KNOWN else path.rpartition(".")[2] for path, why in ignored.items()]


class LocalModels(Protocol):
    """The small models of this process, and their adapters. All methods belong to the event loop's thread."""

    def names(self) -> Sequence[str]:
        """Models and adapters that can be asked."""

    def fingerprint(self, model: str) -> str:
        """What answers under this name: a digest of the weights, the forms in which they and the cache are kept, and
        the adapter. Another adapter under the same name has another; RequestError if nothing has this name."""

    def load(self, model: str) -> Load: ...

    async def answer(self, model: str, dialect: Dialect, body: Body, *, logprobs: int | None = None,
                     background: bool = False) -> LocalAnswer:
        """A chat, a completion or a response, whole, whatever `stream` in the body says.

        `logprobs` asks for `tokens` with so many alternatives. With `background` it raises PreemptedError as soon as
        somebody waits for another answer of the model. Cancelling the task cancels the answer.
        """

    async def stream(self, model: str, dialect: Dialect, body: Body, *, prefix: str | None = None) -> LocalStream:
        """The same piece by piece. With `prefix` a chat's or a completion's answer goes on behind that text."""
