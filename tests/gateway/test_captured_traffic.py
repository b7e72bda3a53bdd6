"""What a client does over real sockets, found in the store afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from brise.gateway.gateway import Components
from brise.traffic.capture import Capture
from brise.traffic.records import Exchange
from brise.traffic.sql_store import SqlStore
from brise.traffic.stores import open_store, open_threads
from tests.gateway.fake_answers import chat_body
from tests.gateway.fake_upstream import chat, refuse
from tests.gateway.rig import Rig, rig
from tests.waiting import wait_until

CALLS = [("weather", '{"city": "Basel"}')]
HI = {"role": "user", "content": "hi"}


@dataclass
class Captured:
    rig: Rig
    store: SqlStore
    capture: Capture

    def chat(self, *messages: object, headers: dict[str, str] | None = None, **more: object) -> None:
        answer = self.rig.live.post("/v1/chat/completions", {"model": "hosted-1", "messages": messages, **more},
                                    headers=headers or {})
        assert answer.status_code == 200

    def exchanges(self, number: int) -> list[Exchange]:
        """As soon as there are so many: a row is written when its client has the answer already."""
        wait_until(lambda: self.store.count() >= number)
        return list(self.store.exchanges())


@contextmanager
def captured(tmp_path: Path) -> Iterator[Captured]:
    store = open_store(tmp_path / "t.sqlite", tmp_path)
    capture = Capture(store, threads=open_threads(store, tmp_path))
    with rig(parts=Components(capture=capture)) as running:
        yield Captured(running, store, capture)
    capture.drain()
    store.close()


def test_a_stream_is_written_as_the_body_that_it_makes(tmp_path: Path) -> None:
    with captured(tmp_path) as made:
        made.rig.fake.then(chat("one two", CALLS))
        made.chat(HI, stream=True, stream_options={"include_usage": True})
        found, = made.exchanges(1)
        assert found.streamed and found.response == chat_body("one two", CALLS) and found.error is None
        assert found.usage is not None and found.usage.completion_tokens == 2 and found.request is not None
        assert found.request["messages"] == [HI] and found.first_token_s is not None


def test_a_conversation_is_found_without_its_client_naming_it(tmp_path: Path) -> None:
    with captured(tmp_path) as made:
        made.rig.fake.then(chat("", CALLS), chat("12 degrees"))
        made.chat(HI, stream=True)
        call = chat_body("", CALLS)["choices"][0]["message"]
        made.chat(HI, call, {"role": "tool", "tool_call_id": "call_0", "content": "12"})
        made.chat({"role": "user", "content": "something else"})
        first, second, third = made.exchanges(3)
        assert second.parent == first.id and second.conversation == first.conversation == first.id
        assert third.parent is None and third.conversation == third.id


def test_headers_say_what_belongs_together(tmp_path: Path) -> None:
    with captured(tmp_path) as made:
        made.chat(HI, headers={"x-brise-task": "triage", "x-brise-subject": "anna", "x-brise-conversation": "talk",
                               "x-brise-label-route": "a"})
        made.chat(HI, user="eva")
        first, second = made.exchanges(2)
        assert (first.task, first.subject, first.conversation, first.labels) == (
            "triage", "anna", "talk", {"route": "a"})
        assert (second.task, second.subject) == ("hosted-1", "eva")


def test_what_is_not_to_be_captured_leaves_its_count_only(tmp_path: Path) -> None:
    with captured(tmp_path) as made:
        made.chat(HI, headers={"x-brise-capture": "off"})
        made.chat({"role": "user", "content": "ok"})
        assert [found.request and found.request["messages"][0]["content"] for found in made.exchanges(1)] == ["ok"]
        wait_until(lambda: made.store.skipped() == {"off": 1})


def test_neither_keys_nor_content_are_in_the_files_in_clear(tmp_path: Path) -> None:
    with captured(tmp_path) as made:
        made.rig.fake.then(chat("the answer is Rumpelstilzchen"))
        made.rig.live.post("/v1/chat/completions", {"model": "hosted-1", "messages": [
            {"role": "user", "content": "guess Sesamstrasse"}]}, headers={"authorization": "Bearer key-of-a-client"})
        assert made.exchanges(1)
    content = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for secret in (b"Rumpelstilzchen", b"Sesamstrasse", b"key-of-a-client"):
        assert secret not in content


def test_errors_of_the_upstream_are_written_too(tmp_path: Path) -> None:
    with captured(tmp_path) as made:
        made.rig.fake.then(refuse(400))
        made.rig.live.post("/v1/chat/completions", {"model": "hosted-1", "messages": [HI]})
        found, = made.exchanges(1)
        assert found.status == 400 and found.error and found.conversation == found.id
