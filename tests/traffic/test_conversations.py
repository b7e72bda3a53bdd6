"""Requests find their conversations by what they repeat, whoever talks at the same time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brise.traffic.conversations import Conversations
from brise.traffic.records import ConversationEnd, Exchange
from brise.traffic.stores import open_store
from tests.traffic.records import PLAIN, exchange

SECRET = b"s" * 32
Message = dict[str, Any]


@dataclass
class Book:
    """A store's memory of threads."""

    known: list[ConversationEnd] = field(default_factory=list)
    asked: int = 0

    def threads(self, digests: Sequence[str]) -> Sequence[ConversationEnd]:
        self.asked += 1
        return [thread for thread in reversed(self.known) if thread.digest in digests]


class World:
    """Clients that talk through a gateway; it writes what it placed into its book."""

    def __init__(self, most_digests: int = 1000) -> None:
        self.book, self.most_digests, self.placed = Book(), most_digests, dict[str, Exchange]()
        self.restart()

    def restart(self) -> None:
        self.threads = Conversations(self.book, SECRET, self.most_digests)

    def say(self, history: Sequence[Message], answer: str, **changes: Any) -> Exchange:
        """One request and its answer."""
        made = replace(PLAIN, id=f"e{len(self.placed)}", at_s=float(len(self.placed)), kind="chat", conversation="",
                       status=200, request={"messages": list(history)},
                       response={"choices": [{"index": 0, "message": said("assistant", answer)}]})
        placed, threads = self.threads.place(replace(made, **changes))
        self.placed[placed.id] = placed
        self.book.known += threads
        return placed


def said(role: str, text: str) -> Message:
    return {"role": role, "content": text}


def chains(world: World) -> Counter[tuple[str, ...]]:
    """What users said in each conversation, from its first exchange to its last."""
    ends = set(world.placed) - {each.parent for each in world.placed.values()}
    found = Counter[tuple[str, ...]]()
    for end in ends:
        texts, at = list[str](), world.placed.get(end)
        while at is not None:
            assert at.request is not None
            texts.append(at.request["messages"][-1]["content"])
            at = world.placed.get(at.parent or "")
        found[tuple(texts[::-1])] += 1
    return found


TALKS = st.lists(st.lists(st.sampled_from("ab"), min_size=1, max_size=4), min_size=1, max_size=6)


def play(world: World, talks: list[list[str]], order: list[int], *, unique: bool, restarts: bool = False) -> None:
    """Interleaves the talks. With `unique` no two answers are the same."""
    histories: list[list[Message]] = [[] for _ in talks]
    steps = [number for number, talk in enumerate(talks) for _ in talk]
    for place, index in enumerate(order):
        number = steps.pop(index % len(steps))
        history = histories[number]
        text = talks[number][len(history) // 2]
        answer = f"{text}!{place if unique else ''}"
        world.say([*history, said("user", text)], answer)
        history += [said("user", text), said("assistant", answer)]
        if restarts:
            world.restart()


@st.composite
def interleaved(draw: st.DrawFn) -> tuple[list[list[str]], list[int]]:
    talks = draw(TALKS)
    size = sum(map(len, talks))
    return talks, draw(st.lists(st.integers(0, 50), min_size=size, max_size=size))


@given(interleaved())
def test_interleaved_conversations_stay_apart_even_if_all_say_the_same(case: tuple[list[list[str]], list[int]]) -> None:
    talks, order = case
    world = World()
    play(world, talks, order, unique=False)
    assert chains(world) == Counter(tuple(talk) for talk in talks)
    assert len({each.conversation for each in world.placed.values()}) == len(talks)


@given(interleaved(), st.integers(1, 3))
def test_neither_a_restart_nor_a_small_memory_loses_the_thread(case: tuple[list[list[str]], list[int]],
                                                               most: int) -> None:
    talks, order = case
    for restarts, world in ((True, World()), (False, World(most_digests=most))):
        play(world, talks, order, unique=True, restarts=restarts)
        assert chains(world) == Counter(tuple(talk) for talk in talks)


def test_an_edited_message_branches_from_before_it() -> None:
    world = World()
    first = world.say([said("user", "a")], "A")
    second = world.say([said("user", "a"), said("assistant", "A"), said("user", "b")], "B")
    edited = world.say([said("user", "a"), said("assistant", "A"), said("user", "c")], "C")
    after = world.say([said("user", "a"), said("assistant", "A"), said("user", "c"), said("assistant", "C"),
                       said("user", "d")], "D")
    assert (second.parent, edited.parent, after.parent) == (first.id, first.id, edited.id)
    assert {each.conversation for each in (first, second, edited, after)} == {first.id}
    assert world.say([said("user", "a")], "A").conversation != first.conversation


@pytest.mark.parametrize("echo", [
    {"role": "assistant", "content": [{"type": "text", "text": "A b"}]},
    {"role": "assistant", "content": "A b\n", "refusal": None, "annotations": [], "audio": None},
    {"role": "assistant", "content": "A b", "reasoning_content": "hm", "tool_calls": None},
    {"role": "assistant", "content": [{"type": "thinking", "thinking": "x"}, {
        "type": "text", "text": "A b", "cache_control": {"type": "ephemeral"}}]}])
def test_a_client_may_send_an_answer_back_in_another_form(echo: Message) -> None:
    world = World()
    first = world.say([said("system", "It is 10:00"), said("user", "a")], "A b")
    later = [said("system", "It is 10:01"), said("user", "a"), echo, said("user", "b")]
    assert world.say(later, "B").parent == first.id


def test_calls_and_their_results() -> None:
    world, user = World(), said("user", "weather?")
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    answer = {"choices": [{"message": {"role": "assistant", "content": None, "tool_calls": [call]}}]}
    twins = [world.say([user], "", response=answer) for _ in range(2)]
    respaced = {**call, "function": {"name": "f", "arguments": '{"x":1}'}}
    result = {"role": "tool", "tool_call_id": "call_1", "content": "12"}
    found = world.say([user, {"role": "assistant", "tool_calls": [respaced]}, result], "12 degrees")
    assert found.parent == twins[1].id and found.conversation == twins[1].conversation


def test_the_clients_own_name_wins_and_is_kept_apart() -> None:
    world = World()
    first = world.say([said("user", "a")], "A", conversation="mine")
    history = [said("user", "a"), said("assistant", "A"), said("user", "b")]
    assert world.say(history, "B", conversation="yours").parent is None
    second = world.say(history, "B", conversation="mine")
    assert (second.conversation, second.parent) == ("mine", first.id)
    assert world.say(history, "B").conversation == "mine"


def test_tasks_and_subjects_do_not_meet() -> None:
    world = World()
    world.say([said("user", "a")], "A", subject="anna")
    history = [said("user", "a"), said("assistant", "A"), said("user", "b")]
    assert world.say(history, "B", subject="eva").parent is None
    assert world.say(history, "B", subject="anna", task="other").parent is None
    assert world.say(history, "B", subject="anna").parent == "e0"


def test_failed_requests_leave_nothing_and_stray_ones_stand_alone() -> None:
    world = World()
    world.say([said("user", "a")], "A", status=502)
    assert world.say([said("user", "a"), said("assistant", "A"), said("user", "b")], "B").parent is None
    alone = world.say([], "", kind="embedding", request={"input": "x"}, response={"data": []})
    assert alone.parent is None and alone.conversation == alone.id
    assert world.say([], "", kind="other", request=None, response=None).parent is None


def test_responses_go_on_by_id_or_by_their_items() -> None:
    world = World()
    message = {"type": "message", "id": "m1", "role": "assistant", "status": "completed",
               "content": [{"type": "output_text", "text": "A", "annotations": []}]}
    call = {"type": "function_call", "id": "fc", "call_id": "c", "name": "f", "arguments": "{}", "status": "completed"}
    body = {"id": "resp_1", "output": [{"type": "reasoning", "id": "r", "summary": []}, message, call]}
    first = world.say([], "", kind="responses", request={"input": "a"}, response=body)
    result = {"type": "function_call_output", "call_id": "c", "output": "1"}
    by_items = world.say([], "", kind="responses", response={"id": "resp_2", "output": []}, request={
        "input": [{"role": "user", "content": "a"}, message, {**call, "id": None}, result]})
    by_id = world.say([], "", kind="responses", response={"id": "resp_3", "output": []}, request={
        "previous_response_id": "resp_1", "input": [result]})
    assert by_items.parent == by_id.parent == first.id
    assert world.say([], "", kind="responses", response={"id": "resp_4", "output": []}, request={
        "previous_response_id": "resp_9", "input": "b"}).parent is None


def test_anthropic_messages_with_tools() -> None:
    world = World()
    use = {"type": "tool_use", "id": "t", "name": "f", "input": {"x": 1}}
    first = world.say([said("user", "a")], "", kind="messages", response={
        "role": "assistant", "content": [{"type": "text", "text": "let me"}, use]})
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "1"}]}
    second = world.say([said("user", "a"), {"role": "assistant", "content": [{"type": "text", "text": "let me"}, use]},
                        {"role": "user", "content": [result]}], "", kind="messages",
                       response={"role": "assistant", "content": [{"type": "text", "text": "so"}]})
    assert second.parent == first.id


def test_examples_in_the_prompt_are_no_conversation_and_cost_one_question() -> None:
    world = World()
    shots = [said("user", "1+1"), said("assistant", "2")]
    found = [world.say([*shots, said("user", text)], text.upper()) for text in "abc"]
    assert [each.parent for each in found] == [None] * 3 and world.book.asked == 3


def test_it_goes_on_from_a_real_store(tmp_path: Path) -> None:
    store = open_store(tmp_path / "t.sqlite", tmp_path)
    history = [said("user", "a")]
    first = exchange("first", conversation="", request={"messages": history},
                     response={"choices": [{"message": said("assistant", "A")}]})
    placed, threads = Conversations(store, SECRET).place(first)
    store.add([placed], threads=threads)
    second = exchange("second", conversation="", request={
        "messages": [*history, said("assistant", "A"), said("user", "b")]})
    assert Conversations(store, SECRET).place(second)[0].parent == "first"
    assert Conversations(store, b"x" * 32).place(second)[0].parent is None
    store.close()


@given(st.recursive(st.none() | st.booleans() | st.integers(-2, 2) | st.text(max_size=2), lambda inner: st.lists(
    inner, max_size=3) | st.dictionaries(st.sampled_from([
        "messages", "role", "content", "type", "text", "tool_calls", "function", "arguments", "input", "output",
        "choices", "message", "conversation", "id", "previous_response_id", "refusal"]), inner, max_size=4),
    max_leaves=15),
    st.sampled_from(["chat", "completion", "embedding", "responses", "messages", "other"]))
def test_any_body_is_placed(body: Any, kind: Any) -> None:
    fields = body if isinstance(body, dict) else {"messages": body, "choices": body, "output": body, "input": body}
    World().say([], "", kind=kind, request=fields, response=fields)
