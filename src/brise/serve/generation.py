"""From the engine's deltas to what all text endpoints need: counted, checked, with log-probabilities."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from brise.engine.request import Delta, Request, TokenLogprob
from brise.errors import PreemptedError, RequestError
from brise.serve.error_response import GenerationError, UnavailableError
from brise.serve.in_flight import Ticket
from brise.serve.serving import ModelHandle
from brise.text.protocols import TextTokenizer


@dataclass(frozen=True)
class GenerationTask:
    """Engine requests of one HTTP request: one for a chat, one for each prompt of a completion."""

    served: ModelHandle
    requests: tuple[Request, ...]
    ticket: Ticket
    names: Mapping[str, str]  # what the endpoint calls the engine's fields, for its errors
    watch: Callable[[Delta], None] | None = None  # sees every delta first; what it raises ends the answer


async def deltas(job: GenerationTask) -> AsyncGenerator[tuple[int, Delta], None]:
    """(number of the prompt, delta), in the order in which they come. Closing it cancels what still runs."""
    if len(job.requests) == 1:
        async with aclosing(_checked(job, job.requests[0])) as news:
            async for delta in news:
                yield 0, delta
        return
    queue = asyncio.Queue[tuple[int, Delta] | Exception | None]()
    tasks = [asyncio.create_task(_forward(job, number, queue)) for number in range(len(job.requests))]
    try:
        num_open = len(tasks)
        while num_open:
            match await queue.get():
                case None:
                    num_open -= 1
                case Exception() as error:
                    raise error
                case item:
                    yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _forward(job: GenerationTask, number: int, queue: asyncio.Queue[tuple[int,
                                                                                Delta] | Exception | None]) -> None:
    try:
        async with aclosing(_checked(job, job.requests[number])) as news:
            async for delta in news:
                queue.put_nowait((number, delta))
        queue.put_nowait(None)
    except Exception as error:  # handed to the one who reads the queue
        queue.put_nowait(error)


async def _checked(job: GenerationTask, request: Request) -> AsyncGenerator[Delta, None]:
    """The deltas of one engine request; a failed answer is raised, for there is no such finish_reason."""
    is_first = True
    try:
        async with aclosing(job.served.worker.agenerate(replace(request, adapter=job.served.adapter))) as news:
            async for delta in news:
                if is_first:
                    is_first = False
                    job.ticket.prompt_tokens += delta.prompt_tokens
                    job.ticket.cached_tokens += delta.cached_tokens
                job.ticket.saw(delta)
                if job.watch is not None:
                    job.watch(delta)
                if delta.finish == "error":
                    raise GenerationError(delta.error or "the engine failed", code="generation_failed")
                if delta.finish == "cancelled":
                    raise UnavailableError("the server shut down before the answer was complete",
                                           code="shutting_down")
                if delta.finish == "preempted":
                    raise PreemptedError
                yield delta
    except RequestError as error:
        if error.param is None or error.param not in job.names:
            raise
        name = job.names[error.param]
        raise RequestError(error.args[0], param=name, code=error.code, hint=error.hint) from None


def usage(ticket: Ticket) -> dict[str, object]:
    """OpenAI's usage object. Prompt tokens count once, however many answers they got."""
    return {"prompt_tokens": ticket.prompt_tokens, "completion_tokens": ticket.completion_tokens,
            "total_tokens": ticket.prompt_tokens + ticket.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": ticket.cached_tokens}}


def logprob_entries(tokenizer: TextTokenizer, items: Sequence[TokenLogprob], num_top: int,
                    ) -> list[dict[str, object]]:
    """Chat's form: text, bytes and log-probability of each token, and the best `num_top` alternatives."""
    return [_entry(tokenizer, item.token, item.text, item.logprob) | {
        "top_logprobs": [_entry(tokenizer, *other) for other in item.top[:num_top]]} for item in items]


def _entry(tokenizer: TextTokenizer, token: int, text: bytes, logprob: float) -> dict[str, object]:
    """A control token goes by its name, and has no bytes: it is not in the text."""
    return {"token": text.decode(errors="replace"), "logprob": logprob,
            "bytes": None if tokenizer.is_control(token) else list(text)}
