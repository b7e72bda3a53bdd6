"""Steps are short while answers are written: a stub model on a clock that its steps move."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from brise.engine.engine import BACKGROUND_STEP_S, Engine, EngineSettings
from brise.engine.request import Delta, Request
from brise.engine.scheduler import MOST_PROMPT_S, PROMPT_S
from brise.engine.step_cost import load_of
from brise.models.batch import Batch
from tests.engine.stub import GREEDY, answer, run_all, stub_model, tokens_of

WRITER = Request(tuple(range(20)), max_tokens=60, ignore_eos=True, sampling=GREEDY)
LONG = Request(tuple(n % 200 for n in range(1500)), max_tokens=3, ignore_eos=True, sampling=GREEDY)


@dataclass
class SlowModel:
    """Takes `fixed_s` for a step, `token_s` for a token and `pair_s` for a position that it sees."""

    fixed_s: float = 0.028
    token_s: float = 0.005
    pair_s: float = 1e-6
    now_s: float = 0.0
    sizes: list[int] = field(default_factory=list)  # tokens of each step
    seconds: list[float] = field(default_factory=list)

    def step(self, batch: Batch) -> None:
        pairs = int((batch.positions + 1).sum())
        self.sizes.append(len(batch.tokens))
        self.seconds.append(self.fixed_s + self.token_s * len(batch.tokens) + self.pair_s * pairs)
        self.now_s += self.seconds[-1]

    def engine(self, num_pages: int = 1024) -> Engine:
        return Engine(stub_model(on_step=self.step, max_context=4096),
                      EngineSettings(page_size=16, num_pages=num_pages, max_step_tokens=512), lambda: self.now_s)


def writing(engine: Engine, model: SlowModel, count: int = 1) -> None:
    """Steps until `count` answers are written."""
    for number in range(count):
        engine.submit(Request((number, *WRITER.prompt), max_tokens=200, ignore_eos=True, sampling=GREEDY))
    for _ in range(count + 5):
        engine.step()
    model.sizes.clear()
    model.seconds.clear()


@pytest.mark.parametrize("count", [1, 4, 12])
def test_a_prompt_holds_up_running_answers_for_a_bounded_time(count: int) -> None:
    model = SlowModel()
    engine = model.engine()
    writing(engine, model, count)
    engine.submit(LONG)
    for _ in range(100):
        engine.step()
        engine.check()
    decode_s = model.fixed_s + count * model.token_s
    mixed = [seconds for size, seconds in zip(model.sizes, model.seconds, strict=True) if size > count + 1]
    assert len(mixed) > 20
    assert max(mixed[2:]) <= (decode_s + MOST_PROMPT_S) * 1.1
    assert sorted(mixed)[len(mixed) // 2] >= (decode_s + MOST_PROMPT_S) * 0.8  # and the time is used


def test_a_small_model_is_held_up_for_less() -> None:
    model = SlowModel(fixed_s=0.003, token_s=0.0005, pair_s=4e-7)
    engine = model.engine()
    writing(engine, model, 8)
    engine.submit(LONG)
    for _ in range(20):
        engine.step()
    assert max(model.seconds[2:]) <= (model.fixed_s + 8 * model.token_s + PROMPT_S) * 1.1


def test_a_prompt_alone_fills_the_steps() -> None:
    model = SlowModel()
    answer(model.engine(), LONG)
    assert model.sizes[:3] == [512, 512, 476]


def test_prompts_go_on_however_slow_the_model_is() -> None:
    model = SlowModel(fixed_s=1.0, token_s=1.0)
    engine = model.engine()
    writing(engine, model, 3)
    engine.submit(LONG)
    for _ in range(10):
        engine.step()
    assert model.sizes[1:] == [3 + 8] * 9


def test_a_deep_prompt_advances_in_smaller_chunks_than_a_shallow_one() -> None:
    model = SlowModel(pair_s=4e-6)
    engine = model.engine()
    writing(engine, model)
    engine.submit(LONG)
    for _ in range(60):
        engine.step()
    assert max(model.sizes[-8:]) < max(model.sizes[2:10])
    assert max(model.seconds[-8:]) <= (model.fixed_s + model.token_s + MOST_PROMPT_S) * 1.2


def test_answers_are_those_of_long_steps() -> None:
    slow, fast = SlowModel(), SlowModel(0.0, 0.0, 0.0)
    answers: list[list[list[int]]] = []
    for model in (slow, fast):
        engine = model.engine()
        ids = [engine.submit(WRITER), engine.submit(LONG), engine.submit(Request((9, 8, *LONG.prompt), max_tokens=4))]
        out: dict[tuple[str, int], list[Delta]] = run_all(engine)
        answers.append([tokens_of(out[request_id, 0]) for request_id in ids[:2]])
    assert answers[0] == answers[1]
    assert len(slow.sizes) > len(fast.sizes)


def first_tokens(engine: Engine, model: SlowModel) -> dict[str, float]:
    """When each request gets its first token."""
    times: dict[str, float] = {}
    while engine.has_work:
        for delta in engine.step():
            times.setdefault(delta.request_id, model.now_s)
        engine.check()
    return times


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    model = SlowModel()
    engine = model.engine()
    writing(engine, model, 2)
    start_s = model.now_s
    long = engine.submit(LONG)
    engine.step()
    short = engine.submit(Request((7,) * 40, max_tokens=2, ignore_eos=True, sampling=GREEDY))
    times = first_tokens(engine, model)
    assert times[short] - start_s < 1.2 < 8 < times[long] - start_s


def test_a_long_prompt_goes_on_however_many_short_ones_come() -> None:
    model = SlowModel()
    engine = model.engine()
    writing(engine, model, 2)
    long, number = engine.submit(LONG), 0
    for _ in range(400):
        number += 1
        engine.submit(Request((number % 200, *LONG.prompt[:30]), max_tokens=1, sampling=GREEDY))
        if any(delta.request_id == long for delta in engine.step()):
            break
    assert number < 2.5 * len(LONG.prompt) * model.token_s / PROMPT_S


def test_equal_times_give_equal_steps() -> None:
    sizes: list[list[int]] = []
    for _ in range(2):
        model = SlowModel()
        engine = model.engine()
        writing(engine, model, 3)
        engine.submit(LONG)
        run_all(engine)
        sizes.append(model.sizes)
    assert sizes[0] == sizes[1]


def test_every_waiting_prompt_ends() -> None:
    model = SlowModel(fixed_s=0.2, token_s=0.05)
    engine = model.engine(num_pages=300)
    ids = [engine.submit(Request((number, *LONG.prompt[:150]), max_tokens=5, ignore_eos=True, sampling=GREEDY))
           for number in range(12)]
    out = run_all(engine)
    assert [out[request_id, 0][-1].finish for request_id in ids] == ["length"] * 12


def test_steps_of_background_requests_are_shorter_still() -> None:
    model = SlowModel(fixed_s=0.004, token_s=0.002)
    engine = model.engine()
    answer(engine, WRITER)
    model.seconds.clear()
    answer(engine, Request(LONG.prompt[:400], max_tokens=2, background=True))
    assert np.quantile(model.seconds, 0.9) <= BACKGROUND_STEP_S * 1.2


def test_the_engine_says_what_a_step_would_cost() -> None:
    model = SlowModel()
    engine = model.engine()
    writing(engine, model, 4)
    four = load_of([(20, 21)] * 4)
    assert engine.cost.seconds(four) == pytest.approx(model.fixed_s + 4 * model.token_s, rel=0.1)
