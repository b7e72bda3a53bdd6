"""Adapters in the engine: several in one batch, leased, evicted, read again and refused; pages are never mixed up."""

from __future__ import annotations

import asyncio
import random
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from brise.checkpoint.adapters.lineage import base_digest
from brise.checkpoint.adapters.merge import merged
from brise.checkpoint.adapters.peft import AdapterFile, read_adapter, write_adapter
from brise.checkpoint.open import open_checkpoint
from brise.engine import adapters as adapters_module
from brise.engine.adapter_loading import AdapterInvalidError, reading_bytes
from brise.engine.adapters import (
    AdapterExistsError,
    AdapterNotFoundError,
    Adapters,
    AdaptersBusyError,
    AdapterTooLargeError,
)
from brise.engine.engine import Engine, EngineSettings
from brise.engine.engine_thread import AdaptersOffError, EngineThread
from brise.engine.model import LoadedModel
from brise.engine.request import Delta, Request, Sampling
from brise.errors import QueueFullError, RequestError
from brise.files.digests import Located
from brise.models import lora
from brise.models.lora import LowRanks
from brise.models.weights import Lora, Weight
from tests.backends.under_test import load_on
from tests.checkpoint.make_adapter import LINEAGE, MODULES, random_low_ranks
from tests.checkpoint.make_gguf import write_tiny
from tests.engine.stub import run_all, stub_engine, tokens_of

PROMPT = tuple(range(3, 40))
GREEDY = Sampling(temperature=0)
SETTINGS = EngineSettings(max_context=256, num_pages=64, max_adapters=2, max_rank=16, cache_format="f32")
NAMES = ("one", "two", "dora")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", "llama")


@pytest.fixture(scope="module", params=["reference", "native", "vulkan"])
def model(tiny: Path, request: pytest.FixtureRequest) -> LoadedModel:
    return load_on(request.param, tiny, threads=2)


@pytest.fixture(scope="module")
def folders(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters one, two and dora, of different ranks."""
    config = open_checkpoint(tiny).config
    root = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(NAMES, 1):
        modules = MODULES if name == "dora" else lora.NAMES  # with the embedding and the output
        low_ranks = random_low_ranks(config, seed, rank=seed + 1, dora=name == "dora", modules=modules)
        write_adapter(root / name, AdapterFile(low_ranks, seed + 1, 2.0), None, config)
    return root


@pytest.fixture
def engine(model: LoadedModel, folders: Path) -> Engine:
    return engine_with(model, folders, "one", "two")


def engine_with(model: LoadedModel, folders: Path, *names: str, **settings: Any) -> Engine:
    made = Engine(model, replace(SETTINGS, **settings))
    for name in names:
        known(made).add(name, folders / name)
    return made


def known(engine: Engine) -> Adapters:
    assert engine.adapters is not None
    return engine.adapters


def ask(adapter: str | None, max_tokens: int = 6, **more: Any) -> Request:
    return Request(PROMPT, max_tokens=max_tokens, sampling=GREEDY, ignore_eos=True, logprobs=5, adapter=adapter, **more)


def answered(engine: Engine, *requests: Request) -> list[list[Delta]]:
    ids = [engine.submit(request) for request in requests]
    deltas_of = run_all(engine)
    return [deltas_of[request_id, 0] for request_id in ids]


def logprobs_of(deltas: list[Delta]) -> np.ndarray:
    return np.array([[item[2] for item in logprob.top] for delta in deltas for logprob in delta.logprobs])


def merged_model(model: LoadedModel, low_ranks: LowRanks) -> LoadedModel:
    """The model with an adapter in its matrices."""
    def put(path: str, weight: Weight) -> Weight:
        assert not isinstance(weight, Lora)
        return model.backend.place(path, merged(path, weight, low_ranks[path]) if path in low_ranks else weight)

    return replace(model, weights=lora.place_ends(open_checkpoint(model.path).weights(), put))


def test_two_adapters_and_the_base_at_once_answer_as_each_alone(model: LoadedModel, folders: Path,
                                                                engine: Engine) -> None:
    together = answered(engine, ask("one"), ask(None), ask("two"), ask("one", n=2))
    for name, deltas in zip(("one", None, "two", "one"), together, strict=True):
        alone = answered(engine_with(model, folders, "one", "two"), ask(name))[0]
        assert tokens_of(deltas) == tokens_of(alone)
        np.testing.assert_allclose(logprobs_of(deltas), logprobs_of(alone), atol=1e-4)
    assert len({tuple(tokens_of(deltas)) for deltas in together}) == 3, "all three differ"


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_answers_as_the_model_that_it_is_merged_into(model: LoadedModel, folders: Path, name: str) -> None:
    low_ranks = read_adapter(folders / name, model.config).low_ranks
    expected = answered(Engine(merged_model(model, low_ranks), SETTINGS), ask(None))[0]
    deltas = answered(engine_with(model, folders, name), ask(name))[0]
    assert tokens_of(deltas) == tokens_of(expected)
    np.testing.assert_allclose(logprobs_of(deltas), logprobs_of(expected), atol=1e-3)


def test_no_pages_are_shared_with_the_base_or_another_adapter(model: LoadedModel, folders: Path) -> None:
    engine = engine_with(model, folders, "one", "two", max_adapters=3)
    known(engine).add("one_again", folders / "one")
    cached = [answered(engine, ask(name))[0][0].cached_tokens
              for name in (None, "one", "two", None, "one", "one_again")]
    assert cached == [0, 0, 0, 32, 32, 32], "equal numbers share, whatever their name"


def test_steps_without_adapters_know_nothing_of_them(model: LoadedModel, engine: Engine,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    logits = type(engine._runner).logits
    monkeypatch.setattr(type(engine._runner), "logits", lambda self, batch, cache: (
        seen.append(batch.adapters), logits(self, batch, cache))[1])
    answered(engine, ask(None))
    assert all(adapters is None for adapters in seen)
    answered(engine, ask("one", max_tokens=1), ask(None, max_tokens=1))
    assert set(seen[-1].tolist()) == {-1, 0} and seen[-1].dtype == np.int32


def test_the_one_unused_for_longest_leaves_its_slot_and_comes_back(model: LoadedModel, folders: Path) -> None:
    engine = engine_with(model, folders, "one", "two")
    before = answered(engine, ask("one"))[0]
    known(engine).add("dora", folders / "dora")
    assert residents(engine) == {"one", "dora"}
    assert tokens_of(answered(engine, ask("two"))[0]) == tokens_of(
        answered(engine_with(model, folders, "two"), ask("two"))[0])
    assert residents(engine) == {"two", "dora"}
    after = answered(engine, ask("one"))[0]
    assert tokens_of(after) == tokens_of(before) and residents(engine) == {"two", "one"}


def residents(engine: Engine) -> set[str]:
    return {info.name for info in known(engine).list() if info.is_resident}


def test_what_answers_keeps_its_slot_and_others_are_told_to_wait(model: LoadedModel, folders: Path) -> None:
    engine = engine_with(model, folders, "one", "two", "dora")
    running = [engine.submit(ask("one")), engine.submit(ask("two"))]
    engine.step()
    with pytest.raises(AdaptersBusyError, match="all 2 slots are held"):
        engine.submit(ask("dora"))
    with pytest.raises(AdaptersBusyError):
        known(engine).add("more", folders / "dora")
    deltas_of = run_all(engine)
    assert all(deltas_of[request_id, 0][-1].finish == "length" for request_id in running)
    assert [info.name for info in known(engine).list()] == ["one", "two", "dora"]
    assert tokens_of(answered(engine, ask("dora"))[0])


def test_one_that_is_removed_takes_no_more_requests_and_finishes_those_it_has(model: LoadedModel,
                                                                              folders: Path) -> None:
    engine = engine_with(model, folders, "one")
    expected = tokens_of(answered(engine, ask("one"))[0])
    request_id = engine.submit(ask("one"))
    first = engine.step()
    assert known(engine).remove("one").users == 1
    with pytest.raises(AdapterNotFoundError):
        engine.submit(ask("one"))
    known(engine).add("one", folders / "two")  # the name is free at once, for another adapter
    assert engine.stats().adapters == 2
    rest = run_all(engine)[request_id, 0]
    assert tokens_of([*first, *rest]) == expected and engine.stats().adapters == 1
    known(engine).remove("one")
    run_all(engine)
    assert engine.stats().adapters == 0 and engine.stats().adapter_bytes == 0 and not engine.has_work


def test_a_queue_that_is_full_or_a_bad_request_holds_nothing(model: LoadedModel, folders: Path) -> None:
    engine = engine_with(model, folders, "one", max_waiting=1)
    engine.submit(ask("one"))
    with pytest.raises(QueueFullError):
        engine.submit(ask("one"))
    with pytest.raises(RequestError):
        engine.submit(ask("one", max_tokens=10**6))
    engine.cancel("request-0")
    run_all(engine)
    assert known(engine).list()[0].users == 0


def test_memory_bounds_what_is_resident_and_what_is_read(model: LoadedModel, folders: Path) -> None:
    engine = engine_with(model, folders, "one", adapter_bytes=reading_bytes(folders / "two"))
    request_id = engine.submit(ask("one"))
    engine.step()
    with pytest.raises(AdaptersBusyError, match="bytes for adapters are held"):
        known(engine).add("two", folders / "two")
    assert run_all(engine)[request_id, 0][-1].finish == "length"
    known(engine).add("two", folders / "two")
    assert residents(engine) == {"two"}, "one left before two was read"
    with pytest.raises(AdapterTooLargeError, match="adapters have 1000"):
        engine_with(model, folders, "one", adapter_bytes=1000)


@pytest.mark.parametrize(("name", "match"), [("none", "no adapter_config"), ("../x", "not allowed"),
                                             ("", "not allowed"), ("one", "is taken")])
def test_a_load_that_fails_changes_nothing(model: LoadedModel, folders: Path, name: str, match: str) -> None:
    engine = engine_with(model, folders, "one", "two")
    before, expected = known(engine).list(), tokens_of(answered(engine, ask("one"))[0])
    with pytest.raises(RequestError, match=match):
        known(engine).add(name, folders / name)
    assert known(engine).list() == before
    assert tokens_of(answered(engine, ask("one"))[0]) == expected
    engine.check()


def test_a_rank_over_the_largest_is_refused_by_its_number(model: LoadedModel, folders: Path) -> None:
    engine = engine_with(model, folders, max_rank=2)
    with pytest.raises(AdapterInvalidError, match="rank 3, allowed is 1 to 2"):
        known(engine).add("two", folders / "two")


def test_the_lineage_says_which_base(model: LoadedModel, tmp_path: Path) -> None:
    low_ranks = random_low_ranks(model.config, 1)
    own = replace(LINEAGE, base_digest=base_digest(Located("tiny", model.path)))
    write_adapter(tmp_path / "own", AdapterFile(low_ranks, 3, 6.0), own, model.config)
    write_adapter(tmp_path / "other", AdapterFile(low_ranks, 3, 6.0), LINEAGE, model.config)
    engine = engine_with(model, tmp_path, "own")
    with pytest.raises(AdapterInvalidError, match="was trained on smollm2"):
        known(engine).add("other", tmp_path / "other")
    known(engine).add("other", tmp_path / "other", any_base=True)
    assert residents(engine) == {"own", "other"}


def test_one_that_changed_on_disk_is_not_read_again(model: LoadedModel, folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "one", tmp_path / "one")
    engine = engine_with(model, tmp_path, "one")
    known(engine).add("two", folders / "two")
    known(engine).add("dora", folders / "dora")
    shutil.rmtree(tmp_path / "one")
    shutil.copytree(folders / "two", tmp_path / "one")
    with pytest.raises(AdapterInvalidError, match="has changed on disk"):
        engine.submit(ask("one"))
    shutil.rmtree(tmp_path / "one")
    with pytest.raises(AdapterInvalidError, match="no adapter_config"):
        engine.submit(ask("one"))


def test_names_are_bounded(model: LoadedModel, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters_module, "MAX_ADAPTERS", 2)
    engine = engine_with(model, folders, "one", "two")
    with pytest.raises(RequestError, match="2 adapters are registered already"):
        known(engine).add("dora", folders / "dora")
    with pytest.raises(AdapterExistsError):
        known(engine).add("one", folders / "dora")


def test_an_engine_without_room_for_adapters_refuses_them(folders: Path) -> None:
    engine = stub_engine("a reply")
    with pytest.raises(AdapterNotFoundError):
        engine.submit(ask("one"))
    thread = EngineThread(engine)
    with pytest.raises(AdaptersOffError):
        thread.add_adapter("one", folders / "one")
    assert thread.adapters == () and not thread.has_adapter("one")


@pytest.mark.parametrize("seed", range(6))
def test_any_order_of_requests_loads_and_removals_keeps_the_books(model: LoadedModel, folders: Path,
                                                                  seed: int) -> None:
    """Pages and slots are checked after each step; answers are those of each alone."""
    expected = {name: tokens_of(answered(engine_with(model, folders, *filter(None, (name,))), ask(name))[0])
                for name in (*NAMES, None)}
    choose, engine = random.Random(seed), engine_with(model, folders)
    running: dict[str, str | None] = {}
    deltas_of: dict[str, list[Delta]] = {}
    for _ in range(60):
        with suppress(AdapterExistsError, AdapterNotFoundError, AdaptersBusyError):
            act(engine, folders, choose, running)
        for delta in engine.step() if engine.has_work else ():
            deltas_of.setdefault(delta.request_id, []).append(delta)
        engine.check()
    for (request_id, _), deltas in run_all(engine).items():
        deltas_of.setdefault(request_id, []).extend(deltas)
    assert deltas_of.keys() == running.keys() and len(running) > 5
    for request_id, name in running.items():
        if deltas_of[request_id][-1].finish != "cancelled":
            assert tokens_of(deltas_of[request_id]) == expected[name]
    assert all(info.users == 0 for info in known(engine).list())


def act(engine: Engine, folders: Path, choose: random.Random, running: dict[str, str | None]) -> None:
    """Loads, removes, asks or cancels."""
    name = choose.choice((*NAMES, None))
    match choose.randrange(6):
        case 0 if name is not None:
            known(engine).add(name, folders / name)
        case 1 if name is not None:
            known(engine).remove(name)
        case 2 | 3 if len(running) < 20:
            running[engine.submit(ask(name))] = name
        case 4 if running and choose.randrange(4) == 0:
            engine.cancel(choose.choice(list(running)))


@pytest.fixture
def thread(model: LoadedModel, folders: Path) -> EngineThread:
    running = EngineThread(engine_with(model, folders, "one"))
    running.start()
    return running


def test_adapters_come_and_go_while_requests_run_and_none_is_lost(thread: EngineThread, folders: Path) -> None:
    answers: list[list[Delta]] = []
    asking = [Thread(target=lambda name=name: answers.append(list(thread.generate(ask(name, 12)))))
              for name in ("one", None, "one", None)]
    for each in asking:
        each.start()
    for _ in range(4):
        thread.add_adapter("two", folders / "two")
        answers.append(list(thread.generate(ask("two", 2))))
        thread.remove_adapter("two")
    for each in asking:
        each.join()
    thread.shutdown()
    assert len(answers) == 8 and all(deltas[-1].finish == "length" for deltas in answers)
    assert [(info.name, info.users) for info in thread.adapters] == [("one", 0)]
    thread._engine.check()


def test_an_idle_engine_frees_a_removed_adapter(thread: EngineThread) -> None:
    thread.remove_adapter("one")
    thread.shutdown()
    assert not thread._engine.has_work and thread.stats().adapters == 0


@pytest.mark.parametrize("closed", [False, True])
def test_a_consumer_that_leaves_early_holds_nothing(thread: EngineThread, closed: bool) -> None:
    async def leave() -> None:
        asking = asyncio.ensure_future(anext(thread.agenerate(ask("one", 200))))
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    if closed:
        thread.shutdown()
    asyncio.run(leave())
    thread.shutdown()
    assert thread.adapters[0].users == 0
    thread._engine.check()


def test_a_thread_that_is_shut_down_holds_nothing(thread: EngineThread) -> None:
    thread.shutdown()
    with pytest.raises(RequestError, match="shutting down"):
        thread.generate(ask("one"))
    assert thread.adapters[0].users == 0
