"""Planted repeats and leaks are found, each as what it is, and none in rows that differ."""

from __future__ import annotations

from brise.data.check import inspect
from brise.data.example import TrainingExample
from brise.data.split import Split
from tests.data.rows import chat, example
from tests.data.test_near import sentences


def distinct(count: int) -> list[TrainingExample]:
    return [example(chat(text, f"answer {index}", "the same for all"), f"a:{index}")
            for index, text in enumerate(sentences(count, 12))]


def test_rows_that_differ_repeat_nothing() -> None:
    data = distinct(500)
    repeats, leakage = inspect(data, Split(tuple(range(400)), tuple(range(400, 500))))
    assert (repeats.num_same, repeats.num_contrary, repeats.num_near) == (0, 0, 0)
    assert not leakage.is_certain and leakage.near_prompt == 0


def test_planted_repeats_are_counted_by_their_kind() -> None:
    data = distinct(200)
    user = str(data[7].messages[1]["content"])
    data += [example(chat(user, "answer 7", "the same for all"), "b:0"),
             example(chat(user, "another", "the same for all"), "b:1"),
             example(chat(user + " x", "answer 7", "the same for all"), "b:2")]
    repeats, _ = inspect(data, Split(tuple(range(len(data))), ()))
    assert (repeats.same, repeats.contrary, repeats.near) == (
        (("a:7", "b:0"),), (("a:7", "b:1"),), (("a:7", "b:2"),))
    assert (repeats.num_same, repeats.num_contrary, repeats.num_near) == (1, 1, 1)


def test_planted_leaks_are_counted_by_their_kind() -> None:
    data = distinct(200)
    user, other = str(data[7].messages[1]["content"]), sentences(3, 12, seed=9)
    data += [example(chat(user, "another", "the same for all"), "b:0"),
             example(chat(user + " x", "answer", "the same for all"), "b:1"),
             example(chat(other[0], "ho", conversation="c"), "a:200"),
             example(chat(other[1], "ho", conversation="c"), "b:2"), example(chat(other[2], "ho"), "b:3")]
    held_out = tuple(index for index, each in enumerate(data) if each.place.startswith("b"))
    train = tuple(index for index in range(len(data)) if index not in held_out)
    _, leakage = inspect(data, Split(train, held_out))
    assert (leakage.same_prompt, leakage.same_conversation, leakage.near_prompt) == (1, 1, 1)
    assert leakage.places == (("a:7", "b:0"), ("a:200", "b:2"))


def test_a_conversation_that_goes_on_is_the_same_without_a_name() -> None:
    first = chat("hi there", "how can I help?")
    messages = [*first["messages"], *chat("my card is lost", "which one?")["messages"]]  # type: ignore[misc]
    data = [example(first, "a:0"), example({"messages": messages}, "b:0"), example(chat("hi there", "hello"), "b:1")]
    _, leakage = inspect(data, Split((0,), (1,)))
    assert (leakage.same_prompt, leakage.same_conversation) == (0, 1)
