"""Answers with a grammar: they match it, end with it, and their log-probabilities include it."""

from __future__ import annotations

import json
import math

import pytest

from brise.engine.engine import Engine
from brise.engine.grammar import Grammars
from brise.engine.request import Request, Sampling
from brise.errors import RequestError
from brise.text.inputs import Grammar
from tests.engine.stub import GREEDY, IM_START, answer, run_all, stub_engine, stub_model, text_of

PROMPT = tuple(b"Give me JSON: ")
SCHEMA = json.dumps({"type": "object", "additionalProperties": False, "required": ["ok", "kind"], "properties": {
    "ok": {"type": "boolean"}, "kind": {"enum": ["cat", "dog"]}}})


@pytest.fixture(scope="module")
def engine() -> Engine:
    return stub_engine(num_pages=512)


@pytest.mark.parametrize("seed", range(5))
def test_a_schema_is_followed_to_its_end(engine: Engine, seed: int) -> None:
    request = Request(PROMPT, sampling=Sampling(seed=seed), grammar=Grammar("json_schema", SCHEMA))
    deltas = answer(engine, request)
    value = json.loads(text_of(deltas))
    assert deltas[-1].finish == "stop"
    assert set(value) == {"ok", "kind"} and value["kind"] in ("cat", "dog")


def test_an_object_of_any_kind_comes_out_as_json() -> None:
    engine = stub_engine('{"a": [1, 2], "b": "x"} and more text', num_pages=64)
    deltas = answer(engine, Request(PROMPT, sampling=Sampling(temperature=0), grammar=Grammar("json_object")))
    assert text_of(deltas) == '{"a": [1, 2], "b": "x"}' and deltas[-1].finish == "stop"


@pytest.mark.parametrize("reply", ['{"ok":true,"kind":"cat"}', '{\n  "ok": true,\n  "kind": "cat"\n}'])
def test_json_is_written_as_json_dumps_writes_it(reply: str) -> None:
    request = Request(PROMPT, sampling=GREEDY, grammar=Grammar("json_schema", SCHEMA))
    assert text_of(answer(stub_engine(reply), request)) == '{"ok": true, "kind": "cat"}'


def test_a_schema_may_have_spacing_of_its_own() -> None:
    compact = json.dumps({**json.loads(SCHEMA), "x-guidance": {"item_separator": ",", "key_separator": ":"}})
    request = Request(PROMPT, sampling=GREEDY, grammar=Grammar("json_schema", compact))
    assert text_of(answer(stub_engine('{"ok":true,"kind":"cat"}'), request)) == '{"ok":true,"kind":"cat"}'


@pytest.mark.parametrize("begun", ['{"ok":true', '{\n  "ok": true,', '{ "ok" : ', '{"ok": true, '])
def test_json_that_was_begun_with_other_white_space_goes_on(begun: str) -> None:
    engine = stub_engine(num_pages=256)
    request = Request((*PROMPT, *begun.encode()), sampling=GREEDY, max_tokens=200,
                      grammar=Grammar("json_schema", SCHEMA, begun=begun))
    assert set(json.loads(begun + text_of(answer(engine, request)))) == {"ok", "kind"}


def test_what_the_schema_forbids_is_refused_with_any_white_space() -> None:
    with pytest.raises(RequestError, match="does not fit its json_schema"):
        stub_engine().submit(Request(PROMPT, grammar=Grammar("json_schema", SCHEMA, begun='{"ok":1')))


def test_most_of_the_tokens_between_values_are_forced() -> None:
    grammars = Grammars(stub_model().tokenizer)
    constraint, text = grammars.constraint(Grammar("json_schema", SCHEMA)), b'{"ok": true, "kind": "dog"}'
    num_forced = 0
    for token in text:
        num_forced += constraint.forced()[:1] == [token]
        constraint.advance(token)
    assert num_forced == len(text) - 2  # the first letters of the two values are free


def test_a_warm_engine_builds_nothing_for_the_first_grammar(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = stub_engine()
    engine.warm()
    monkeypatch.setattr("brise.engine.grammar.LLTokenizer", None)
    engine.submit(Request(PROMPT, grammar=Grammar("json_schema", SCHEMA)))


def test_a_lark_grammar_with_a_control_token_works(engine: Engine) -> None:
    request = Request(PROMPT, sampling=Sampling(seed=1), sentinels={IM_START: "<|im_start|>"},
                      grammar=Grammar("lark", 'start: <|im_start|> "yes"'))
    assert text_of(answer(engine, request)) == "<|im_start|>yes"


def test_logprobs_are_after_the_constraint(engine: Engine) -> None:
    request = Request(PROMPT, sampling=Sampling(seed=1), logprobs=3, grammar=Grammar("lark", 'start: "a" /[bc]/'))
    first, second = answer(engine, request)
    assert first.logprobs[0].logprob == pytest.approx(0) and len(first.logprobs[0].top) == 1
    assert {entry[0] for entry in second.logprobs[0].top} == {ord("b"), ord("c")}
    assert sum(math.exp(entry[2]) for entry in second.logprobs[0].top) == pytest.approx(1)


def test_each_of_several_answers_has_its_own_place_in_the_grammar(engine: Engine) -> None:
    request_id = engine.submit(Request(PROMPT, n=4, sampling=Sampling(seed=2),
                                       grammar=Grammar("json_schema", SCHEMA)))
    out = run_all(engine)
    for index in range(4):
        json.loads(text_of(out[request_id, index]))


def test_preemption_keeps_the_place_in_the_grammar() -> None:
    small = stub_engine(num_pages=18)
    ids = [small.submit(Request(PROMPT, max_tokens=45, sampling=Sampling(seed=seed),
                                grammar=Grammar("json_schema", SCHEMA))) for seed in range(4)]
    out = run_all(small)
    assert small.stats().preemptions > 0
    for seed, request_id in enumerate(ids):
        alone = answer(stub_engine(), Request(PROMPT, max_tokens=45, sampling=Sampling(seed=seed),
                                              grammar=Grammar("json_schema", SCHEMA)))
        assert text_of(out[request_id, 0]) == text_of(alone)


@pytest.mark.parametrize("grammar", [
    Grammar("json_schema", "{"), Grammar("json_schema", '{"type": "nothing"}'), Grammar("lark", "start: missing"),
    Grammar("json_schema", '{"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}')])
def test_what_is_no_grammar_is_refused(engine: Engine, grammar: Grammar) -> None:
    with pytest.raises(RequestError) as caught:
        engine.submit(Request(PROMPT, grammar=grammar))
    assert caught.value.param == "grammar"


def test_a_schema_may_free_its_white_space() -> None:
    free = {"item_separator": ",", "key_separator": ":", "whitespace_flexible": True}
    reply = '{\n  "ok":true,\n  "kind": "cat"\n}'
    request = Request(PROMPT, sampling=GREEDY, grammar=Grammar("json_schema", json.dumps(
        {**json.loads(SCHEMA), "x-guidance": free})))
    assert text_of(answer(stub_engine(reply), request)) == reply
