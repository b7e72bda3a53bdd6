"""Input inside a chat: messages, commands, settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from brise.checkpoint.generation import Generation
from brise.cli import chat, chat_commands, chat_options
from brise.cli.chat_commands import ChatSession
from brise.cli.chat_input import LineReader, Typed, edited
from brise.cli.chat_options import ChatSettings
from brise.cli.conversation import Conversation
from brise.engine.engine import Engine, EngineSettings
from brise.engine.model import LoadedModel, load
from brise.engine.request import Sampling
from brise.errors import ContextLengthError, RequestError, UnsupportedError
from brise.text.answer_events import Parsed, ParsedText, joined
from brise.text.inputs import PartialSampling

OPTIONS = ChatSettings(temperature=0, max_tokens=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    make_gguf = pytest.importorskip("tests.checkpoint.make_gguf")
    return load(make_gguf.write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf", "llama"), name="tiny")


@pytest.fixture
def session(model: LoadedModel) -> ChatSession:
    return ChatSession(Conversation(model, Engine(model, EngineSettings(num_pages=32)), None), OPTIONS)


def converse(session: ChatSession, *inputs: str | Typed | type[BaseException]) -> None:
    """Runs a chat in which these are typed, and then Ctrl-D."""
    left = [Typed(item) if isinstance(item, str) else item for item in inputs]

    class Typist(LineReader):
        def __init__(self) -> None:
            """Without readline."""

        def read(self) -> Typed:
            if not left:
                raise EOFError
            item = left.pop(0)
            if isinstance(item, Typed):
                return item
            raise item

    chat._converse(session, Typist())


def test_turns_are_kept_and_the_prefix_cache_has_them(session: ChatSession) -> None:
    converse(session, "the first question is long enough for a page or two of the cache", "the second one")
    turns = session.conversation.turns
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2
    assert session.last is not None and session.last.cached_tokens >= 16
    session.conversation.engine.check()


def test_help_names_every_command_and_setting(session: ChatSession, capsys: pytest.CaptureFixture[str]) -> None:
    converse(session, "/help")
    err = capsys.readouterr().err
    for name in (*chat_commands.names(), *(option.name for option in chat_options.options())):
        assert name in err


def test_clear_forgets_the_turns_and_keeps_the_system_prompt(session: ChatSession) -> None:
    converse(session, "/system Be brief.", "hello", "/clear")
    assert session.conversation.messages == [{"role": "system", "content": "Be brief."}]


def test_system_shows_sets_and_takes_away(session: ChatSession, capsys: pytest.CaptureFixture[str]) -> None:
    converse(session, "/system", "/system Be brief.", "/system -")
    assert capsys.readouterr().err.splitlines()[:3] == [
        "system prompt: (the default of the model)", "system prompt: Be brief.",
        "system prompt: (the default of the model)"]
    assert session.conversation.messages == []


def test_set_changes_what_the_next_answer_uses(session: ChatSession, capsys: pytest.CaptureFixture[str]) -> None:
    converse(session, "/set max-tokens 2", "/set stats on", "hello")
    assert session.options == ChatSettings(temperature=0, max_tokens=2, stats=True)
    assert session.last is not None and session.last.completion_tokens == 2
    assert "[2 tokens," in capsys.readouterr().err


@pytest.mark.parametrize(("line", "message"), [
    ("/set temperature hot", "a number from 0 to 100"), ("/set temperature nan", "a number from"),
    ("/set top_k -1", "a whole number from 0"), ("/set max_tokens 0", "a whole number from 1"),
    ("/set stats maybe", "'on' or 'off'"), ("/set wings 2", "there is no setting"),
    ("/set seed", "seed is ''"), ("/save", "needs the name of a file"), ("/retry", "no question"),
    ("/stats now", "takes no argument"),
    ("/image", "needs the path"), ("/image ~nobody-of-that-name/x", "takes no images"),
    ("/nonsense", "/help lists the commands"), ("/save /no/such/folder/x", "cannot write"),
    ("/save ~nobody-of-that-name/x", "cannot write")])
def test_a_wrong_command_says_what_is_allowed_and_the_chat_goes_on(
        session: ChatSession, capsys: pytest.CaptureFixture[str], line: str, message: str) -> None:
    converse(session, line, "hello")
    assert message in capsys.readouterr().err
    assert session.last is not None and session.options == OPTIONS


def test_retry_asks_the_last_question_again(session: ChatSession, capsys: pytest.CaptureFixture[str]) -> None:
    converse(session, "one", "two", "/retry")
    turns = session.conversation.turns
    assert [turn["content"] for turn in turns[::2]] == ["one", "two"]
    assert "the answer will be the same" in capsys.readouterr().err


def test_a_retry_that_is_refused_or_stopped_keeps_the_old_answer(
        session: ChatSession, capsys: pytest.CaptureFixture[str]) -> None:
    converse(session, "one", "two")
    before = [*session.conversation.turns]
    converse(session, "/set max_tokens 100000", "/retry")
    assert "context_length" not in capsys.readouterr().err and session.conversation.turns == before
    session.conversation.ask_again(ChatSettings(temperature=0), lambda item: None, lambda: True)
    assert session.conversation.turns == before


def test_save_writes_the_messages_and_never_over_a_file(
        session: ChatSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "chat.json"
    converse(session, "/system Be brief.", "hello", f"/save {file}", f"/save {file}")
    saved = json.loads(file.read_text())
    assert saved["model"] == "tiny"
    assert [message["role"] for message in saved["messages"]] == ["system", "user", "assistant"]
    assert "File exists" in capsys.readouterr().err


def test_stats_shows_the_last_answer(session: ChatSession, capsys: pytest.CaptureFixture[str]) -> None:
    converse(session, "/stats", "hello", "/stats")
    err = capsys.readouterr().err
    assert "there is no answer yet" in err and "[4 tokens," in err


def test_exit_leaves(session: ChatSession) -> None:
    converse(session, "/exit", "never asked")
    assert session.last is None


def test_a_block_and_an_empty_line_are_no_commands(session: ChatSession) -> None:
    converse(session, "", "  ", Typed("/exit is a command", is_block=True), "hello")
    assert [turn["content"] for turn in session.conversation.turns[::2]] == ["/exit is a command", "hello"]


def test_ctrl_c_twice_at_the_prompt_leaves_but_not_with_something_between(session: ChatSession) -> None:
    converse(session, KeyboardInterrupt, "hello", KeyboardInterrupt, KeyboardInterrupt, "never asked")
    assert len(session.conversation.turns) == 2


@pytest.mark.parametrize("num_pieces", [0, 3])
def test_a_stopped_answer_stays_as_far_as_it_came(session: ChatSession, num_pieces: int) -> None:
    pieces: list[Parsed] = []
    stopped: Callable[[], bool] = lambda: len(pieces) >= num_pieces  # noqa: E731
    answer = session.conversation.ask("hello", ChatSettings(temperature=0), pieces.append, stopped)
    assert answer.finish == "cancelled" and [ParsedText(answer.text)] * bool(pieces) == joined(pieces)
    assert len(session.conversation.turns) == (2 if answer.text else 0)
    session.conversation.engine.check()
    assert not session.conversation.engine.has_work


def test_a_question_that_does_not_fit_leaves_no_trace(session: ChatSession) -> None:
    with pytest.raises(ContextLengthError, match="ask something shorter"):
        session.conversation.ask("long " * 400, OPTIONS, lambda text: None, lambda: False)
    assert session.conversation.turns == [] and not session.conversation.engine.has_work


@pytest.mark.parametrize(("turns", "question", "max_tokens", "hint"), [
    (0, "hi", 100000, "--max-tokens N with N up to {room}"), (0, "long " * 600, None, "ask something shorter"),
    (1, "long " * 600, None, "/clear forgets the conversation so far")])
def test_the_hint_about_the_context_fits_the_case(
        session: ChatSession, turns: int, question: str, max_tokens: int | None, hint: str) -> None:
    conversation = session.conversation
    for _ in range(turns):
        conversation.turns += [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(ContextLengthError) as refused:
        conversation.ask(question, replace(OPTIONS, max_tokens=max_tokens), lambda text: None, lambda: False)
    room = refused.value.limit - refused.value.prompt_tokens
    assert (refused.value.hint or "").startswith(hint.format(room=room))


def test_an_answer_cut_by_the_context_says_so(session: ChatSession, capsys: pytest.CaptureFixture[str]) -> None:
    converse(session, "/set temperature 1", "/set max_tokens 100000")
    with pytest.raises(ContextLengthError):
        session.conversation.ask("hello", session.options, lambda text: None, lambda: False)
    session.options = ChatSettings(temperature=0)
    converse(session, "and on and on")
    assert session.last is not None
    assert ("the context is full" in capsys.readouterr().err) == (session.last.finish == "length")


def test_a_model_without_a_chat_template_is_refused(model: LoadedModel) -> None:
    with pytest.raises(UnsupportedError, match="'tiny' has no chat template"):
        Conversation(replace(model, chat=None), Engine(model, EngineSettings(num_pages=1)), None)


def test_every_setting_has_an_option_and_a_field() -> None:
    assert [option.name for option in chat_options.options()] == list(vars(ChatSettings()))
    with pytest.raises(RequestError, match="there is no setting"):
        chat_options.change(ChatSettings(), "absent", "1")


def test_settings_are_the_models_own_until_they_are_set(
        session: ChatSession, capsys: pytest.CaptureFixture[str]) -> None:
    own = PartialSampling(temperature=0.6, top_k=20)
    session.conversation.generation, session.options = Generation(own, "generation_config.json"), ChatSettings()
    converse(session, "/set top_k 5")
    lines = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert ["temperature", "0.6", "(from", "generation_config.json)"] in lines and ["top_k", "5"] in lines
    assert ["top_p", "1.0"] in lines and ["seed", "-"] in lines
    assert session.options.sampling(own) == Sampling(0.6, 5)
    assert chat_options.change(session.options, "temperature", "0").sampling(own) == Sampling(0.0, 5)


@pytest.mark.parametrize(("typed", "line"), [
    ("what is it?\n", "what is it?"), ("one\ntwo\r\n", "one two"), ("ab\x7f\x7fc", "c"), ("drop this\x15keep", "keep"),
    ("some words\x17 more", "some  more"), ("\x1b[A\x1b[1;5Cup\x1bOP\x1b", "up"), ("\x04\x03\x00", ""),
    ("é\ufffd", "é\ufffd")])
def test_keys_pressed_during_an_answer_are_a_line_to_go_on_with(typed: str, line: str) -> None:
    assert edited(typed) == line
