"""`Model`: what a program asks and gets, in one thread and in many."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pydantic
import pytest

import brise
from brise.checkpoint.open import open_checkpoint
from brise.cli.main import main
from tests.api.stub_model import saying, slow
from tests.checkpoint.make_adapter import written
from tests.checkpoint.make_gguf import write_tiny
from tests.waiting import LIMIT_S, wait_until

WEATHER = brise.Tool("weather", "The weather of a city", {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]})
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Nice"}}\n</tool_call>'


class Verdict(pydantic.BaseModel, extra="forbid"):
    """What the tests ask a model for; a random one can write it in few tokens."""

    good: bool


def test_a_question_has_the_same_greedy_answer_as_brise_chat(model: brise.Model, tiny_path: Path,
                                                             capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", str(tiny_path), "what wind?", "--temperature", "0", "--max-tokens", "24"]) == 0
    answer = model.chat("what wind?", temperature=0, max_tokens=24)
    assert capsys.readouterr().out.removesuffix("\n") == answer.text == str(answer)
    assert (answer.finish, answer.usage.completion_tokens, answer.value, answer.calls) == ("length", 24, None, ())
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 24


def test_the_pieces_of_a_stream_are_the_answer(model: brise.Model) -> None:
    with model.stream("hi", temperature=0, max_tokens=12) as stream:
        first = next(stream)
        with pytest.raises(brise.AnswerError, match="not complete"):
            assert stream.answer
        rest = "".join(map(str, stream))
    assert str(first) + rest == stream.answer.text == model.chat("hi", temperature=0, max_tokens=12).text


def test_a_seed_gives_the_same_answer_in_any_company(model: brise.Model) -> None:
    def ask(seed: int) -> str:
        return model.chat("hi", seed=seed, temperature=1, max_tokens=12).text

    alone = [ask(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, range(8))) == alone
    assert len(set(alone)) > 1
    assert model.chat("hi", temperature=1, max_tokens=12).text != model.chat("hi", temperature=1, max_tokens=12).text


def test_conversations_and_a_system_message_reach_the_model(model: brise.Model) -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    answer = model.chat(messages, temperature=0, max_tokens=8)
    assert answer.text == model.chat("hi", system="be brief", temperature=0, max_tokens=8).text
    longer = model.chat([*messages, answer.message, {"role": "user", "content": "more"}], temperature=0, max_tokens=8)
    assert longer.usage.prompt_tokens > answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stop_string_ends_the_answer_and_is_no_part_of_it() -> None:
    with saying("one, two, three") as model:
        answer = model.chat("count", stop=", th", temperature=0)
    assert (answer.text, answer.finish, answer.stop) == ("one, two", "stop", ", th")


def test_log_probabilities_are_of_every_token(model: brise.Model) -> None:
    answer = model.chat("hi", temperature=0, max_tokens=6, logprobs=3)
    assert len(answer.logprobs) == 6 and all(len(token.top) == 3 for token in answer.logprobs)
    assert all(token.logprob == max(other[2] for other in token.top) < 0 for token in answer.logprobs)
    assert model.chat("hi", temperature=0, max_tokens=6).logprobs == ()


def test_without_a_limit_an_answer_ends_where_the_context_does() -> None:
    with saying("wind " * 100, max_context=128) as model:
        answer = model.chat("hi", temperature=0)
    assert (answer.finish, answer.usage.total_tokens) == ("length", 128)


def test_calls_come_typed_and_their_results_go_back() -> None:
    with saying(f"I look.\n{CALL}\n{CALL.replace('Nice', 'Arles')}") as model:
        stream = model.stream("weather?", tools=[WEATHER], temperature=0)
        pieces = [piece.call for piece in stream if piece.call is not None]
        answer = stream.answer
    assert [(call.name, call.arguments) for call in answer.calls] == [("weather", {"city": "Nice"}),
                                                                     ("weather", {"city": "Arles"})]
    assert (answer.text, answer.finish, tuple(pieces)) == ("I look.", "tool_calls", answer.calls)
    with saying("Sunny.") as model:
        results = [call.result("sun") for call in answer.calls]
        assert model.chat([{"role": "user", "content": "weather?"}, answer.message, *results]).text == "Sunny."


def test_a_call_that_was_cut_says_so() -> None:
    with saying(CALL) as model:
        answer = model.chat("weather?", tools=[WEATHER], tool_choice="weather", temperature=0, max_tokens=60)
    assert answer.finish == "length"
    with pytest.raises(brise.AnswerError, match="not whole(.|\n)*max_tokens="):
        assert answer.calls[0].arguments


@pytest.mark.parametrize("tool", [WEATHER, WEATHER.as_json()])
def test_a_tool_may_be_written_in_two_ways(tool: brise.Tool) -> None:
    with saying(CALL) as model:
        answer = model.chat("weather?", tools=[tool], tool_choice="required", parallel_tool_calls=False, temperature=0)
    assert [call.name for call in answer.calls] == ["weather"]


def test_a_pydantic_class_gives_an_instance_back(model: brise.Model) -> None:
    answer = model.chat("good?", schema=Verdict, seed=1)
    assert isinstance(answer.value, Verdict) and answer.value is answer.value
    assert model.stream("good?", schema=Verdict, seed=1).read().value == answer.value
    assert model.chat("good?", schema=Verdict.model_json_schema(), seed=1).value == answer.value.model_dump()


def test_json_that_was_cut_is_an_error_of_its_value(model: brise.Model) -> None:
    answer = model.chat("good?", schema=Verdict, seed=1, max_tokens=2)
    assert len(answer.text) <= 10
    with pytest.raises(brise.AnswerError, match="cut after 2 tokens(.|\n)*max_tokens="):
        assert answer.value


def test_what_the_class_itself_refuses_is_its_own_error() -> None:
    class Even(pydantic.BaseModel):
        number: int

        @pydantic.field_validator("number")
        @classmethod
        def is_even(cls, number: int) -> int:
            if number % 2:
                raise ValueError("odd")
            return number

    with saying('{"number": 3}') as model, pytest.raises(pydantic.ValidationError, match="odd"):
        assert model.chat("hi", schema=Even, temperature=0).value


@pytest.mark.parametrize("text", [CALL, '{"good": true, "reason": "x"}'])
def test_with_tools_and_a_schema_the_answer_is_a_call_or_has_a_value(text: str) -> None:
    with saying(text) as model:
        answer = model.chat("good?", tools=[WEATHER], schema=Verdict, temperature=0)
    if text == CALL:
        assert answer.finish == "tool_calls" and answer.calls[0].arguments
        with pytest.raises(brise.AnswerError, match=r"calls 'weather'(.|\n)*answer\.calls"):
            assert answer.value
    else:
        assert isinstance(answer.value, Verdict) and not answer.calls


def test_what_a_schema_cannot_enforce_is_checked_and_said() -> None:
    class Tags(pydantic.BaseModel):
        tags: set[int]

    with saying('{"tags": [1, 1]}') as model:
        answer = model.chat("hi", schema=Tags, temperature=0)
        assert answer.not_enforced == ("schema.properties.tags.uniqueItems",)
        assert answer.invalid == ("text: tags: uniqueItems",) and answer.value.tags == {1}
        assert model.chat("hi", schema=Verdict, seed=1).not_enforced == ()


def test_text_is_completed_as_the_server_does(model: brise.Model) -> None:
    answer = model.complete("the wind", temperature=0, max_tokens=10, stop=["\n"])
    assert answer.text and answer.usage.completion_tokens <= 10
    assert model.complete(model.encode("the wind"), temperature=0, max_tokens=10, stop=["\n"]).text == answer.text


def test_a_score_is_what_decoding_gave(model: brise.Model) -> None:
    answer = model.complete("the wind", temperature=0, max_tokens=8, logprobs=0)
    text = model.decode(token.token for token in answer.logprobs)
    score = model.score(text, given="the wind", top=2)
    if model.encode(text) == [token.token for token in answer.logprobs]:  # bytes that are no text come back as others
        assert score.total == pytest.approx(sum(token.logprob for token in answer.logprobs), abs=1e-4)
    assert score.total == pytest.approx(sum(token.logprob for token in score.tokens))
    assert score.perplexity == pytest.approx(np.exp(-score.mean)) and len(score.tokens[0].top) == 2


def test_a_text_is_scored_behind_another_or_with_it(model: brise.Model) -> None:
    part, whole = model.score(" blows", given="the wind"), model.score("the wind blows")
    assert [token.token for token in part.tokens] == [token.token for token in whole.tokens[-len(part.tokens):]]
    assert part.total == pytest.approx(sum(token.logprob for token in whole.tokens[-len(part.tokens):]), abs=1e-4)
    with pytest.raises(brise.RequestError, match="no tokens"):
        model.score("")


def test_embeddings_are_rows_of_length_one_or_one_vector() -> None:
    with saying(None, pooling="mean") as model:
        rows = model.embed(["a", "bc", "d"])
        assert rows.shape == (3, 8) and rows.dtype == np.float32
        assert np.linalg.norm(rows, axis=1) == pytest.approx(1)
        assert (model.embed("bc") == rows[1]).all() and model.embed([]).shape == (0, 8)


def test_a_model_without_embeddings_says_so(model: brise.Model) -> None:
    with pytest.raises(brise.UnsupportedError, match="makes no embeddings"):
        model.embed("a")


def test_text_survives_its_tokens(model: brise.Model) -> None:
    assert model.decode(model.encode("the wind, été")) == "the wind, été"


def test_an_adapter_is_named_by_a_call_or_given_as_a_folder(tiny_path: Path, tmp_path: Path) -> None:
    folder = Path(written(tmp_path / "adapter", open_checkpoint(tiny_path).config))
    with brise.load(tiny_path, threads=1, adapters={"one": folder}, any_base=True) as model:
        plain, named = (model.complete("wind", temperature=0, max_tokens=12, adapter=name).text
                        for name in (None, "one"))
        assert plain != named and [info.name for info in model.adapters] == ["one"]
        model.remove_adapter("one")
        with pytest.raises(brise.RequestError, match="no adapter 'one'"):
            model.chat("hi", adapter="one")
        model.add_adapter("two", folder, any_base=True)
        assert model.complete("wind", temperature=0, max_tokens=12, adapter="two").text == named
        with pytest.raises(brise.RequestError, match="was trained on"):
            model.chat("hi", adapter=folder)


def test_leaving_a_stream_stops_the_model() -> None:
    with saying(None, on_step=slow) as model:
        with model.stream("hi") as stream:
            next(stream)
        wait_until(lambda: model.stats().running == 0)


def test_closing_ends_what_runs_and_refuses_what_comes() -> None:
    with saying(None, on_step=slow) as model:
        began, errors = threading.Event(), list[BaseException]()

        def ask() -> None:
            try:
                for _ in model.stream("hi"):
                    began.set()
            except brise.ClosedError as error:
                errors.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        assert began.wait(LIMIT_S)
        model.close()
        thread.join(LIMIT_S)
        assert [str(error).splitlines()[0] for error in errors] == ["the model 'stub' is closed"]
        for call in (lambda: model.chat("hi"), lambda: model.score("hi"), lambda: model.batch(["hi"]), model.stats,
                     lambda: model.complete("hi"), lambda: model.embed("a"), lambda: model.encode("a")):
            with pytest.raises(brise.ClosedError):
                call()
        model.close()
        assert repr(model) == "<brise.Model 'stub' (closed)>"


@pytest.mark.parametrize(("options", "message"), [
    ({"temperature": 3}, "'temperature' is 3, allowed is 0 to 2"), ({"seed": "a"}, "'seed' must be an integer"),
    ({"max_tokens": 0}, "'max_tokens' is 0"), ({"max_tokens": 10**6}, "maximum context length is 512"),
    ({"stop": [1]}, "'stop' must be"), ({"stop": {1}}, "stop is of type set"), ({"logprobs": 21}, "0 to 20"),
    ({"tools": WEATHER}, "a list is wanted"), ({"tools": [{"type": "function"}]}, r"'tools\[0\].function' is missing"),
    ({"tool_choice": "x"}, "only allowed with"),
    ({"schema": 3}, "schema is of type int"), ({"schema": int}, "the class 'int'"),
    ({"schema": {"type": "nothing"}}, "schema"), ({"logit_bias": {10**6: 1}}, "tokens go from 0 to"),
    ({"images": "a.png"}, "a list is wanted"), ({"images": ["/nope"]}, "cannot be read"),
    ({"adapter": "x"}, "no adapter 'x'")])
def test_a_wrong_argument_is_an_error_in_plain_words(model: brise.Model, options: dict[str, object],
                                                     message: str) -> None:
    with pytest.raises(brise.RequestError, match=message):
        model.chat("hi", **options)  # type: ignore[call-overload]


@pytest.mark.parametrize(("messages", "message"), [
    ({"role": "user", "content": "hi"}, "a list is wanted"), ([], "0 messages"), (3, "a list is wanted"),
    ([{"role": "wind", "content": "hi"}], r"'messages\[0\].role' is 'wind'"), ([{"role": "user"}], "is missing"),
    ([{"role": "user", "content": Path("x")}], r"messages\[0\].content is of type PosixPath"), ("\ud800", "surrogate")])
def test_wrong_messages_are_named(model: brise.Model, messages: object, message: str) -> None:
    with pytest.raises(brise.RequestError, match=message):
        model.chat(messages)  # type: ignore[arg-type]


def test_an_option_that_does_not_exist_is_a_type_error(model: brise.Model) -> None:
    with pytest.raises(TypeError, match="no option 'temprature'; did you mean 'temperature'"):
        model.chat("hi", temprature=1)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="no option 'tools'"):
        model.complete("hi", tools=[])  # type: ignore[call-arg]


def test_a_model_answers_as_its_files_say_and_a_call_wins(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "greedy.gguf", "llama", extra_metadata={"general.sampling.temp": 0.0})
    with brise.load(path, threads=1) as greedy:
        plain, again = (greedy.chat("hi", max_tokens=12).text for _ in range(2))
        assert plain == again == greedy.chat("hi", max_tokens=12, temperature=0).text
        (result,) = greedy.batch(["hi"], max_tokens=12)
        assert result.answer is not None and result.answer.text == plain
        assert greedy.complete("hi", max_tokens=12).text == greedy.complete("hi", max_tokens=12).text
        assert greedy.chat("hi", max_tokens=12, temperature=2, seed=1).text != plain
