"""The same for an event loop: twins, many calls at one time, cancelling."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

import brise
from tests.api.stub_model import saying, slow
from tests.api.test_model import Verdict
from tests.waiting import until


def test_the_twins_give_what_the_others_give(model: brise.Model) -> None:
    async def ask() -> None:
        options = brise.ChatOptions(temperature=0, max_tokens=8)
        answer = await model.achat("hi", **options)
        assert answer == model.chat("hi", **options)
        stream = model.astream("hi", **options)
        assert "".join([str(piece) async for piece in stream]) == stream.answer.text == answer.text
        completion = await model.acomplete("wind", temperature=0, max_tokens=8)
        assert completion.text == model.complete("wind", temperature=0, max_tokens=8).text
        assert await model.ascore("the wind") == model.score("the wind")
        verdict = await model.achat("good?", schema=Verdict, seed=1)
        assert isinstance(verdict.value, Verdict)

    asyncio.run(ask())


def test_many_calls_at_one_time_are_answered_as_if_each_were_alone(model: brise.Model) -> None:
    async def ask_all() -> list[str]:
        answers = await asyncio.gather(*(model.achat(f"number {number}", temperature=0, max_tokens=3)
                                         for number in range(300)))
        return [answer.text for answer in answers]

    assert asyncio.run(ask_all())[::50] == [model.chat(f"number {number}", temperature=0, max_tokens=3).text
                                            for number in range(0, 300, 50)]


def test_embeddings_have_a_twin() -> None:
    with saying(None, pooling="mean") as model:
        assert (asyncio.run(model.aembed(["a", "b"])) == model.embed(["a", "b"])).all()


def test_cancelling_a_task_stops_the_model() -> None:
    async def cancel(model: brise.Model) -> None:
        task = asyncio.create_task(model.achat("hi"))
        await until(lambda: model.stats().running > 0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: model.stats().running == 0)

    with saying(None, on_step=slow) as model:
        asyncio.run(cancel(model))


def test_wrong_arguments_and_closed_models_are_the_same_errors(model: brise.Model) -> None:
    async def ask(other: brise.Model) -> None:
        with pytest.raises(brise.RequestError, match="temperature"):
            await model.achat("hi", temperature=9)
        with pytest.raises(TypeError, match="no option"):
            model.astream("hi", tempo=1)  # type: ignore[call-overload]
        async with other:
            pass
        with pytest.raises(brise.ClosedError):
            await other.achat("hi")

    with saying("hello") as other:
        asyncio.run(ask(other))


def test_a_batch_of_an_asynchronous_iterator_is_ordered() -> None:
    async def prompts() -> AsyncIterator[str]:
        for number in range(100):
            yield "x" * (1 + number % 7)

    async def ask(model: brise.Model) -> list[int]:
        return [result.index async for result in model.abatch(prompts(), temperature=0, max_tokens=3) if result.ok]

    with saying(None, max_sequences=4) as model:
        assert asyncio.run(ask(model)) == list(range(100))


def test_leaving_an_asynchronous_batch_stops_the_model() -> None:
    async def leave(model: brise.Model) -> None:
        async with model.abatch(["hi"] * 50) as batch:
            waiting = asyncio.create_task(anext(batch))
            await until(lambda: model.stats().running > 0)
            waiting.cancel()
        await until(lambda: (model.stats().running, model.stats().waiting) == (0, 0))

    with saying(None, on_step=slow, max_sequences=4) as model:
        asyncio.run(leave(model))
