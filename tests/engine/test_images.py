"""Images in requests: encoded between steps, shared if equal, and dropped with their request."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from threading import Event

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brise.engine.engine import Engine, EngineSettings
from brise.engine.engine_thread import EngineThread
from brise.engine.features import WORK_S, Features, spans
from brise.engine.request import Request, Sampling
from brise.engine.sequence import Sequence
from brise.errors import RequestError
from brise.models.batch import Batch
from brise.text.inputs import ImageInput
from tests.engine.stub import answer, run_all, stub_engine, stub_model, text_of, tokens_of
from tests.engine.stub_vision import BREAK, IMAGE, stub_image, stub_vision
from tests.engine.test_random_schedules import Arrival, check_ends, play
from tests.profiles import examples

SIZES = ((1, 1), (1, 3), (2, 3), (3, 2))


def asking(*parts: bytes | ImageInput, max_tokens: int = 6, seed: int = 0, n: int = 1,
           prompt_logprobs: int | None = None) -> Request:
    """A request whose prompt is these texts and images one after the other."""
    tokens = [tuple(part) if isinstance(part, bytes) else part.tokens for part in parts]
    images = tuple(part for part in parts if isinstance(part, ImageInput))
    return Request(sum(tokens, ()), max_tokens, Sampling(seed=seed), n=n, ignore_eos=True, images=images,
                   prompt_logprobs=prompt_logprobs)


def seeing(**options: int | bool) -> Engine:
    return stub_engine(vision=stub_vision(), **options)


def alone(request: Request) -> list[int]:
    return tokens_of(answer(seeing(num_pages=256), request))


def test_features_reach_the_model_at_the_image_tokens() -> None:
    batches: list[Batch] = []
    image = stub_image(2, 3)
    answer(stub_engine(vision=stub_vision(), on_step=batches.append), asking(b"ab", image, b"c", max_tokens=1))
    expected = stub_vision().encode([image.pixels()])[0]
    features, tokens = [], []
    for batch in batches:
        if batch.feature_rows is not None:
            places = np.flatnonzero(batch.feature_rows >= 0)
            features.append(batch.features[batch.feature_rows[places]])
            tokens.append(batch.tokens[places])
    got, at = np.concatenate(features), np.concatenate(tokens)
    assert np.allclose(got[at == IMAGE], expected, atol=1e-6)
    assert (got[at == BREAK] == stub_vision().break_row).all() and (at == BREAK).sum() == 1


def test_another_image_gives_another_answer_and_the_same_one_the_same() -> None:
    first, other = asking(b"abcd", stub_image(2, 3, 1), b"e"), asking(b"abcd", stub_image(2, 3, 2), b"e")
    assert alone(first) == alone(first) != alone(other)


def test_the_prefix_cache_tells_images_apart() -> None:
    engine = seeing()
    for seed in (1, 2, 1):
        request = asking(b"abcd", stub_image(3, 4, seed), b"a question", max_tokens=8)
        assert tokens_of(answer(engine, request)) == alone(request)
    assert engine.stats().images == 2


def test_a_cached_image_is_not_encoded_again() -> None:
    engine = seeing(feature_bytes=0)
    image = stub_image(2, 2)
    answer(engine, asking(image, b"the first question"))
    deltas = answer(engine, asking(image, b"the first question, and another one"))
    assert engine.stats().images == 1 and deltas[-1].cached_tokens >= 16


def test_features_are_found_again_without_a_prefix_cache() -> None:
    engine = seeing(prefix_cache=False)
    for _ in range(3):
        answer(engine, asking(b"a", stub_image(2, 2), b"b"))
    assert engine.stats().images == 1


def test_kept_features_stay_within_their_bytes() -> None:
    engine = seeing(prefix_cache=False, feature_bytes=4 * 8 * 4)  # one image of 2 x 2
    for seed in (1, 2, 1):
        answer(engine, asking(stub_image(2, 2, seed), b"b"))
    assert engine.stats().images == 3


def test_others_go_on_while_an_image_is_encoded() -> None:
    seconds = count()  # every look at the clock is a second later, so that each turn does one piece of work
    engine = Engine(stub_model(vision=stub_vision()), EngineSettings(page_size=4, num_pages=64), lambda: next(seconds))
    quick = engine.submit(asking(b"quick", max_tokens=8))
    slow = engine.submit(asking(stub_image(3, 3), b"slow"))
    ids = [delta.request_id for _ in range(8) for delta in engine.step()]
    assert ids.count(quick) == 8 and slow not in ids  # two layers are some twenty pieces
    assert [request_id for request_id, _ in run_all(engine)] == [slow]


def test_others_go_on_while_an_image_is_decoded() -> None:
    may_end = Event()

    def pixels() -> np.ndarray:
        assert may_end.wait(30)
        return image.pixels()

    engine, image = seeing(), stub_image(2, 2)
    quick = engine.submit(asking(b"quick", max_tokens=8))
    slow = engine.submit(asking(replace(image, pixels=pixels), b"slow"))
    ids = [delta.request_id for _ in range(8) for delta in engine.step()]
    assert ids == [quick] * 8
    may_end.set()
    assert tokens_of(run_all(engine)[slow, 0]) == alone(asking(image, b"slow"))


def test_a_turn_ends_when_its_time_is_over() -> None:
    seconds = count(0, WORK_S / 4)
    features = Features(stub_vision(), None, 1 << 20, lambda: next(seconds))
    image = stub_image(3, 3)
    sequence = Sequence((0, 0), image.tokens, spans=spans(asking(image), stub_vision(), None, "stub"))
    turns = 0
    while sequence.awaited is not None:
        assert features.advance([sequence]) is None
        turns += 1
    assert 2 < turns < 20 and features.num_images == 1


def test_a_cancelled_request_is_not_encoded() -> None:
    engine = seeing()
    request_id = engine.submit(asking(stub_image(2, 2), b"b"))
    engine.step()
    engine.cancel(request_id)
    run_all(engine)
    assert engine.stats().images == 0 and engine.stats().running == 0


def test_an_image_that_fails_ends_its_request_only() -> None:
    def broken() -> np.ndarray:
        raise ValueError("it cannot be decoded")

    engine = seeing()
    bad = engine.submit(asking(replace(stub_image(2, 2), digest=b"bad", pixels=broken), b"b"))
    good = engine.submit(asking(stub_image(2, 2), b"b"))
    out = run_all(engine)
    assert out[bad, 0][-1].finish == "error" and "it cannot be decoded" in str(out[bad, 0][-1].error)
    assert out[good, 0][-1].finish == "length"


def test_answers_to_one_image_share_it() -> None:
    engine = seeing()
    request_id = engine.submit(asking(b"a", stub_image(2, 3), b"b", n=3))
    out = run_all(engine)
    assert len(out) == 3 and all(key[0] == request_id for key in out) and engine.stats().images == 1


@pytest.mark.parametrize("last", [b"", b"x"])
def test_a_prompt_may_end_with_an_image(last: bytes) -> None:
    request = asking(b"ab", stub_image(1, 1), last)
    assert tokens_of(answer(seeing(max_step_tokens=1), request)) == alone(request)


def test_an_image_needs_a_vision_encoder() -> None:
    with pytest.raises(RequestError, match="stub has no vision encoder") as refused:
        stub_engine().submit(asking(stub_image(1, 1), b"b"))
    assert (refused.value.code, refused.value.status) == ("no_vision", 400)


@pytest.mark.parametrize(("prompt", "images"), [
    ((1, 2, 3), (stub_image(1, 1),)), (stub_image(1, 2).tokens, (stub_image(1, 1),)),
    (stub_image(1, 1).tokens * 2, (stub_image(1, 1),)), ((IMAGE,), (stub_image(1, 1),))])
def test_tokens_and_images_must_agree(prompt: tuple[int, ...], images: tuple[ImageInput, ...]) -> None:
    with pytest.raises(RequestError, match="image"):
        seeing().submit(Request(prompt, images=images))


def test_an_engine_thread_answers_about_images() -> None:
    thread = EngineThread(seeing())
    thread.start()
    request = asking(b"ab", stub_image(2, 2), b"c")
    assert tokens_of(list(thread.generate(request))) == alone(request)
    thread.shutdown()


images = st.builds(lambda size, seed: stub_image(*size, seed), st.sampled_from(SIZES), st.integers(0, 1))
texts = st.sampled_from([b"", b"abcd", b"abcdefgh", b"xyz"])
requests = st.builds(
    lambda first, one, second, two, last, **options: asking(
        *(part for part in (first, one, second, two, last) if part is not None), **options),
    texts, st.one_of(st.none(), images), texts, st.one_of(st.none(), images), st.sampled_from([b"q", b"question"]),
    max_tokens=st.integers(0, 9), seed=st.integers(0, 3), n=st.sampled_from([1, 1, 2]),
    prompt_logprobs=st.sampled_from([None, None, 0]))
arrivals = st.builds(Arrival, request=requests, steps_before=st.integers(0, 4),
                     cancelled_after=st.one_of(st.none(), st.none(), st.integers(0, 8)))


@settings(max_examples=examples(60))
@given(schedule=st.lists(arrivals, min_size=1, max_size=7), num_pages=st.integers(16, 40),
       max_step_tokens=st.sampled_from([1, 3, 7, 64]), max_sequences=st.sampled_from([1, 3, 16]),
       prefix_cache=st.booleans(), feature_bytes=st.sampled_from([0, 200, 1 << 20]))
def test_random_schedules_with_images(schedule: list[Arrival], num_pages: int, max_step_tokens: int, max_sequences: int,
                                      prefix_cache: bool, feature_bytes: int) -> None:
    engine = seeing(num_pages=num_pages, max_step_tokens=max_step_tokens, max_sequences=max_sequences,
                    prefix_cache=prefix_cache, feature_bytes=feature_bytes)
    out, ids = play(engine, schedule)
    for arrival, request_id in zip(schedule, ids, strict=True):
        whole = seeing(num_pages=256)
        expected, (expected_id,) = play(whole, [Arrival(arrival.request, 0, None)])
        for index in range(arrival.request.n):
            deltas, wanted = out[request_id, index], expected[expected_id, index]
            check_ends(deltas)
            assert tokens_of(wanted)[:len(tokens_of(deltas))] == tokens_of(deltas)
            if deltas[-1].finish != "cancelled":
                assert (text_of(deltas), deltas[-1].finish) == (text_of(wanted), wanted[-1].finish)
                assert deltas[0].prompt_logprobs == wanted[0].prompt_logprobs
    stats = engine.stats()
    assert stats.pages_free == num_pages and stats.running == stats.waiting == 0
