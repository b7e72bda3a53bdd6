"""The engine on the stub model: every field of a request, and the ways in which answers end."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from brise.engine.engine import Engine, EngineSettings
from brise.engine.request import Delta, Request, Sampling
from brise.errors import ContextLengthError, QueueFullError, RequestError, UnsupportedError
from brise.models.batch import Batch
from brise.text.inputs import Grammar
from brise.text.special_tokens import END_CALL
from tests.engine.stub import (
    GREEDY,
    IM_END,
    VOCAB_SIZE,
    answer,
    run_all,
    stub_engine,
    stub_model,
    text_of,
    tokens_of,
)

PROMPT = tuple(b"The quick brown fox jumps")


def test_the_answer_ends_at_the_end_token() -> None:
    deltas = answer(stub_engine("Grüße, 世界!"), Request(PROMPT, sampling=GREEDY))
    assert text_of(deltas) == "Grüße, 世界!"
    assert deltas[-1].finish == "stop" and deltas[-1].tokens == (IM_END,)
    assert all("\ufffd" not in delta.text for delta in deltas)


def test_max_tokens_ends_with_length_and_leaves_half_a_character_out() -> None:
    deltas = answer(stub_engine("aé"), Request(PROMPT, max_tokens=2, sampling=GREEDY))
    assert text_of(deltas) == "a"
    assert deltas[-1].finish == "length" and deltas[-1].completion_tokens == 2


def test_without_max_tokens_the_context_is_the_limit() -> None:
    engine = stub_engine(num_pages=10)
    deltas = answer(engine, Request(PROMPT, sampling=Sampling(seed=1), ignore_eos=True))
    assert deltas[-1].finish == "length"
    assert len(tokens_of(deltas)) == 40 - len(PROMPT)


def test_a_stop_string_over_several_tokens_is_cut_out() -> None:
    deltas = answer(stub_engine("one two three"), Request(PROMPT, sampling=GREEDY, stop=("o th", "zzz")))
    assert text_of(deltas) == "one tw"
    assert deltas[-1].finish == "stop" and deltas[-1].stop_string == "o th"


def test_text_held_for_a_stop_string_that_does_not_come_is_given_out() -> None:
    deltas = answer(stub_engine("one tw"), Request(PROMPT, sampling=GREEDY, stop=("two",)))
    assert text_of(deltas) == "one tw"


def test_tokens_and_strings_that_end_an_answer() -> None:
    def said(**more: object) -> tuple[str, str | None, int]:
        deltas = answer(stub_engine("good day"), Request(PROMPT, max_tokens=12, sampling=GREEDY,
                                                         **more))  # type: ignore[arg-type]
        return text_of(deltas), deltas[-1].finish, deltas[-1].completion_tokens

    assert said() == ("good day", "stop", 9)
    assert said(stop_tokens=frozenset(b"d")) == ("goo", "stop", 4)
    assert said(stop_tokens=frozenset(b"y"), ignore_eos=True) == ("good da", "stop", 8)
    assert said(stop=("od",)) == ("go", "stop", 4) and said(stop=("od",), keeps_stop=True) == ("good", "stop", 4)
    text, finish, num_tokens = said(min_tokens=11)
    assert text.startswith("good day") and num_tokens >= 11 and finish in ("stop", "length")
    only_end = Request(PROMPT, sampling=GREEDY, min_tokens=5, grammar=Grammar("lark", 'start: "ab"'))
    assert text_of(answer(stub_engine(), only_end)) == "ab"
    with pytest.raises(RequestError, match="stop_token_ids has 259; tokens go from 0 to 258"):
        stub_engine().submit(Request(PROMPT, stop_tokens=frozenset({259})))


def test_ignore_eos_goes_on_and_a_mark_stands_for_its_token() -> None:
    request = Request(PROMPT, max_tokens=4, sampling=GREEDY, ignore_eos=True, sentinels={IM_END: END_CALL})
    assert text_of(answer(stub_engine("ab"), request)).startswith(f"ab{END_CALL}")


def test_equal_seeds_give_equal_answers_and_others_differ() -> None:
    def tokens(seed: int | None) -> list[int]:
        return tokens_of(answer(stub_engine(), Request(PROMPT, max_tokens=12, sampling=Sampling(seed=seed))))

    assert tokens(3) == tokens(3) != tokens(4)
    assert tokens(None) != tokens(None)


def test_answers_of_one_request_differ_and_share_the_prompt() -> None:
    engine = stub_engine()
    request_id = engine.submit(Request(PROMPT, max_tokens=12, n=3, sampling=Sampling(seed=3)))
    out = run_all(engine)
    answers = [tokens_of(out[request_id, index]) for index in range(3)]
    assert len({tuple(tokens) for tokens in answers}) == 3
    alone = answer(stub_engine(), Request(PROMPT, max_tokens=12, sampling=Sampling(seed=3)))
    assert answers[0] == tokens_of(alone)
    runner = engine.model.backend.runners[0]
    assert runner.num_tokens == len(PROMPT) + 2 * (len(PROMPT) % 4) + 3 * 11


def test_a_prompt_seen_before_is_taken_from_the_cache() -> None:
    engine = stub_engine()
    first = answer(engine, Request(PROMPT, max_tokens=3, sampling=GREEDY))
    second = answer(engine, Request(PROMPT, max_tokens=3, sampling=GREEDY))
    assert first[0].cached_tokens == 0 and second[0].cached_tokens == 24
    assert tokens_of(first) == tokens_of(second)
    assert engine.stats().cached_tokens == 24


def test_a_prompt_of_whole_pages_keeps_one_token_to_compute() -> None:
    engine = stub_engine()
    for cached in (0, 20):
        assert answer(engine, Request(PROMPT[:24], max_tokens=1, sampling=GREEDY))[0].cached_tokens == cached


def test_logprobs_are_of_the_plain_softmax() -> None:
    request = Request(PROMPT, max_tokens=5, logprobs=3, sampling=Sampling(seed=1, temperature=0.3))
    for delta in answer(stub_engine(), request):
        (entry,) = delta.logprobs
        assert entry.token == delta.tokens[0] and entry.text == bytes([entry.token])
        assert len(entry.top) == 3 and entry.top[0][2] >= entry.top[1][2] >= entry.top[2][2]
        assert entry.logprob <= entry.top[0][2]


@pytest.mark.parametrize("max_step_tokens", [3, 512])
def test_what_was_decoded_scores_the_same_as_a_prompt(max_step_tokens: int) -> None:
    engine = stub_engine(max_step_tokens=max_step_tokens)
    decoded = answer(engine, Request(PROMPT, max_tokens=20, logprobs=2, sampling=Sampling(seed=5)))
    whole = (*PROMPT, *tokens_of(decoded))
    (scored,) = answer(engine, Request(whole, max_tokens=0, prompt_logprobs=2))
    assert scored.finish == "length" and scored.prompt_logprobs is not None
    assert scored.prompt_logprobs[0] is None and len(scored.prompt_logprobs) == len(whole)
    assert scored.prompt_logprobs[len(PROMPT):] == tuple(delta.logprobs[0] for delta in decoded)


def test_prompt_logprobs_come_once_with_each_answer() -> None:
    engine = stub_engine()
    request_id = engine.submit(Request(PROMPT, max_tokens=3, n=2, prompt_logprobs=0, ignore_eos=True))
    for deltas in run_all(engine).values():
        assert [delta.prompt_logprobs is not None for delta in deltas] == [True, False, False]
        assert deltas[0].request_id == request_id


def test_scoring_a_long_prompt_bounds_the_rows_of_a_step() -> None:
    rows: list[int] = []
    engine = stub_engine(num_pages=128, on_step=lambda batch: rows.append(len(batch.rows)))
    answer(engine, Request(tuple(range(200)), max_tokens=0, prompt_logprobs=0))
    assert max(rows) == 64 and sum(rows) == 200


def test_logit_bias_bans_and_forces() -> None:
    bias = {ord("x"): 100.0}
    deltas = answer(stub_engine("hello"), Request(PROMPT, max_tokens=3,
                                                  sampling=Sampling(seed=1, logit_bias=bias)))
    assert text_of(deltas) == "xxx"


def test_a_frequency_penalty_ends_repetition() -> None:
    sampling = Sampling(temperature=0, logit_bias={ord("x"): 50.0}, frequency_penalty=30.0)
    text = text_of(answer(stub_engine(), Request(PROMPT, max_tokens=4, sampling=sampling)))
    assert text.startswith("xx") and text != "xxxx"


def test_cancelling_frees_the_pages_and_ends_all_answers() -> None:
    engine = stub_engine()
    request_id = engine.submit(Request(PROMPT, n=2, ignore_eos=True))
    engine.step()
    engine.cancel(request_id)
    engine.cancel(request_id)
    engine.cancel("unknown")
    out = run_all(engine)
    assert [out[request_id, index][-1].finish for index in (0, 1)] == ["cancelled", "cancelled"]
    assert engine.stats().pages_free == 64


def test_a_failing_step_ends_its_requests_and_the_engine_goes_on() -> None:
    def fail_on_long(batch: Batch) -> None:
        if len(batch.tokens) > 40:
            raise MemoryError("too long")

    engine = stub_engine("fine", on_step=fail_on_long)
    bad = engine.submit(Request(tuple(range(50))))
    out = run_all(engine)
    assert out[bad, 0][-1].finish == "error" and out[bad, 0][-1].error == "MemoryError: too long"
    assert engine.stats().pages_free == 64 and engine.stats().failures == 1
    assert text_of(answer(engine, Request(PROMPT, sampling=GREEDY))) == "fine"


def test_damaged_logits_end_one_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = stub_engine("fine")
    runner = engine.model.backend.runners[0]
    honest = runner.logits

    def damaged(batch: Batch, cache: object) -> np.ndarray:
        out = honest(batch, cache).copy()
        out[batch.tokens[batch.rows] == ord("!")] = math.nan
        return out

    monkeypatch.setattr(runner, "logits", damaged)
    good, bad = (engine.submit(Request(prompt, sampling=GREEDY)) for prompt in (PROMPT, tuple(b"hey!")))
    out = run_all(engine)
    assert text_of(out[good, 0]) == "fine" and out[good, 0][-1].finish == "stop"
    assert [delta.finish for delta in out[bad, 0]] == ["error"]


def test_a_prompt_that_does_not_fit_is_refused_with_the_numbers() -> None:
    engine = stub_engine(num_pages=8)
    with pytest.raises(ContextLengthError) as caught:
        engine.submit(Request(PROMPT, max_tokens=10))
    error = caught.value
    assert (error.prompt_tokens, error.max_tokens, error.limit) == (25, 10, 32)
    with pytest.raises(ContextLengthError):
        engine.submit(Request(tuple(range(32))))
    engine.submit(Request(PROMPT, max_tokens=7))


def test_a_full_queue_is_an_error() -> None:
    engine = stub_engine(max_waiting=2)
    for _ in range(2):
        engine.submit(Request(PROMPT))
    with pytest.raises(QueueFullError):
        engine.submit(Request(PROMPT))
    engine.step()
    engine.submit(Request(PROMPT))


BAD: list[tuple[dict[str, object], str]] = [
    ({"prompt": ()}, "prompt"), ({"prompt": (VOCAB_SIZE,)}, "prompt"), ({"prompt": (-1,)}, "prompt"),
    ({"n": 0}, "n"), ({"n": 1000}, "n"), ({"max_tokens": -1}, "max_tokens"), ({"stop": ("a", "")}, "stop"),
    ({"logprobs": -1}, "logprobs"), ({"logprobs": 10**6}, "logprobs"),
    ({"prompt_logprobs": -1}, "prompt_logprobs")]
BAD_SAMPLING: list[dict[str, object]] = [
    {"temperature": -0.1}, {"temperature": math.nan}, {"temperature": math.inf}, {"top_k": -1},
    {"top_p": 1.1}, {"min_p": -0.1}, {"repetition_penalty": 0.0}, {"presence_penalty": math.inf},
    {"frequency_penalty": math.nan}, {"seed": 1 << 63}, {"logit_bias": {VOCAB_SIZE: 1.0}},
    {"logit_bias": {1: math.nan}}]


@pytest.mark.parametrize(("fields", "param"), [
    *BAD, *(({"sampling": Sampling(**bad)}, next(iter(bad))) for bad in BAD_SAMPLING)])  # type: ignore[arg-type]
def test_a_bad_field_is_refused_by_name(fields: dict[str, object], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        stub_engine().submit(replace(Request(PROMPT), **fields))  # type: ignore[arg-type]
    assert caught.value.param == param


def test_a_context_beyond_the_models_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="4096"):
        Engine(stub_model(), EngineSettings(max_context=5000))


def test_the_cache_is_sized_by_its_budget() -> None:
    model = stub_model()
    engine = Engine(model, EngineSettings(cache_bytes=128 * 100 + 5))  # 8 bytes a token, 16 tokens a page
    assert engine.stats().pages == 100 and engine.max_context == 1600
    assert Engine(model).max_context == 4096
    with pytest.raises(UnsupportedError, match="128"):
        Engine(model, EngineSettings(cache_bytes=127))


def test_abort_ends_everything() -> None:
    engine = stub_engine()
    ids = [engine.submit(Request(PROMPT, n=2, ignore_eos=True)) for _ in range(2)]
    engine.step()
    engine.abort("broken")
    out = run_all(engine)
    ends: list[Delta] = [out[request_id, index][-1] for request_id in ids for index in (0, 1)]
    assert all(delta.finish == "error" and delta.error == "broken" for delta in ends)
