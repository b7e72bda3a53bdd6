"""How the gateway asks the small models, and which of them answers for which task.

`brise.serve.engine_models` implements `SmallModels` over the engine of this process, `gateway/remote/models.py` over
HTTP, for models behind other servers. The body is the one that the client wrote for a
large model, so it may hold fields that no small model knows. Those that do not change what a right answer is are left
out, and the answer says which (`ignored`). For all other fields, and for anything else that is wrong with a request,
the call raises RequestError.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from brise.dialects.bodies import Body, Usage
from brise.dialects.dialect import Dialect
from brise.engine.request import TokenLogprob
from brise.errors import RequestError, UnsupportedError
from brise.text.fields import NOT_KNOWN

# Fields about the service of the large model; none of them changes which answers are right.
SERVICE_FIELDS = frozenset({
    "service_tier", "store", "moderation", "prediction", "verbosity", "reasoning", "reasoning_effort", "include",
    "prompt_cache_options", "prompt_cache_retention", "prompt_cache_breakpoint", "include_obfuscation", "annotations"})
OTHER_VOCABULARY = "its token ids are of another model's vocabulary"


class SmallModelDownError(RequestError):
    """A small model does not answer now: its server is down or slow, or has to prove first which model it serves.

    That says nothing of the request, and nothing of the model's quality.
    """

    status = 503

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"the small model {name!r} is not available: {why}", code="small_model_unavailable")
        self.why = why


@dataclass(frozen=True)
class SmallAnswer:
    """A whole answer, in the dialect of the request.

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
class SmallStream:
    """An answer that is being written: the objects of a stream's events, without what ends the stream.

    Closing `chunks` cancels the answer. Whether the engine accepts the request is known with the first chunk.
    """

    chunks: AsyncGenerator[Body, None]
    ignored: Mapping[str, str] = field(default_factory=dict)
    usage: Callable[[], Usage] = Usage  # so far


@dataclass(frozen=True)
class Load:
    """How busy a model is with requests that a client waits for; background requests do not count."""

    running: int
    waiting: int
    slots: int  # answers that it writes at one time


class SmallModels(Protocol):
    """The small models, and their adapters. All methods belong to the event loop's thread."""

    def names(self) -> Sequence[str]:
        """Models and adapters that can be asked."""

    def fingerprint(self, model: str) -> str:
        """What answers under this name: a digest of the weights, the forms in which they and the cache are kept, and
        the adapter. Another adapter under the same name has another; RequestError if nothing has this name, or if
        that is not known now (SmallModelDownError)."""

    def load(self, model: str) -> Load: ...

    async def answer(self, model: str, dialect: Dialect, body: Body, *, logprobs: int | None = None,
                     background: bool = False) -> SmallAnswer:
        """A chat, a completion or a response, whole, whatever `stream` in the body says.

        `logprobs` asks for `tokens` with so many alternatives. With `background` it raises PreemptedError as soon as a
        client waits for another answer of the model. Cancelling the task cancels the answer.
        """

    async def stream(self, model: str, dialect: Dialect, body: Body, *, prefix: str | None = None) -> SmallStream:
        """The same piece by piece. With `prefix`, the answer of a chat or a completion continues that text."""


@dataclass(frozen=True)
class TaskModels:
    """Names of small models and adapters: one for each task that has its own, and one for all other tasks."""

    default: str | None = None
    by_task: Mapping[str, str] = field(default_factory=dict)

    def of(self, task: str) -> str | None:
        """The one for a task; None if there is none."""
        return self.by_task.get(task, self.default)


def parse_task_models(words: Iterable[str], known: Sequence[str], option: str) -> TaskModels:
    """From `MODEL` and `TASK=MODEL`, as an option gives them; `known` are the models that there are."""
    default: str | None = None
    by_task: dict[str, str] = {}
    for word in words:
        task, equals, model = word.rpartition("=")
        if model not in known:
            raise UnsupportedError(f"{option} {word!r}: {model!r} is not served here; there is "
                                   f"{', '.join(map(repr, known)) or 'no local model'}",
                                   hint="brise serve MODEL --upstream URL serves both")
        if (task in by_task) if equals else default is not None:
            raise UnsupportedError(f"{option} {word!r}: two models for {'the task ' + repr(task) if equals else 'all'}")
        if equals:
            by_task[task] = model
        else:
            default = model
    return TaskModels(default, by_task)


def ignored_names(ignored: Mapping[str, str]) -> list[str]:
    """For counters: the fields' own names, without their place; names that clients invented count as one."""
    return ["unknown" if why == NOT_KNOWN else path.rpartition(".")[2] for path, why in ignored.items()]
