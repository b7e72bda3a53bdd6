"""What the small model is sure of goes out; what it is unsure of goes to the large model, and nothing goes twice."""

from __future__ import annotations

import asyncio
import io
import json
from dataclasses import replace
from typing import Any

import pytest
from starlette.types import Message

from brise.dialects import answers
from brise.dialects.bodies import Body
from brise.dialects.openai_chat import chunks_of
from brise.dialects.sse import events
from brise.dialects.streams import assemble
from brise.dialects.table import CHAT
from brise.errors import StoreError
from brise.gateway import request as requests
from brise.gateway.exchange import exchange_of
from brise.gateway.interfaces import Decision, Escalated, RequestOutcome
from brise.switch.audit import Auditor
from brise.switch.drift import DriftWatch
from brise.switch.ledger_follower import Follower
from brise.switch.route import SwitchRouter
from brise.switch.rule import Term, _digest, to_body
from brise.switch.small_model import SmallModel
from brise.switch.state import Action, fold
from brise.traffic.records import Exchange, LedgerEntry, RecordedAnswer
from tests.gateway.fake_answers import chat_body
from tests.switch.ledger_lines import Lines, switched
from tests.switch.small_models import FakeSmall, rule

WARRANT = {"digest": "d", "expires_s": 1e12, "teachers": [], "contexts": [], "dimensions": [], "proven": []}


def sure_of_yes(body: Any) -> tuple[str, float]:
    text = body["messages"][-1]["content"]
    return f"answer to {text}", -0.1 if text.startswith("easy") else -5.0


class Scene:
    """A task that is switched to a fake small model, without a server around it."""

    def __init__(self, small: FakeSmall | None = None, lines: Lines | None = None, **changes: Any) -> None:
        self.lines = lines or Lines()
        certified = rule()
        self.lines.append("cascade", to_body(certified))
        self.lines.append("switch", switched(**{"rule": certified.digest, **changes}))
        self.small = small or FakeSmall(sure_of_yes)
        self.follower = Follower(self.lines, clock=lambda: self.lines.now_s)  # type: ignore[arg-type]
        self.router = SwitchRouter(self.follower, clock=lambda: self.lines.now_s)
        self.keeper = SmallModel(self.small, self.follower, DriftWatch(), clock=lambda: self.lines.now_s)
        self.sent: list[Message] = []

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def ask(self, text: str, **more: Any) -> tuple[requests.ClientRequest, RequestOutcome | Escalated | None]:
        """None: the router says hosted."""
        body = {"model": "calls", "messages": [{"role": "user", "content": text}], **more}
        asked = requests.read("POST", "/v1/chat/completions", b"/v1/chat/completions", (), json.dumps(body).encode())
        await self.follower.refresh()
        decision = self.router.decide(asked)
        return asked, await self.keeper.answer(asked, decision, self.send) if decision.where == "small" else None

    @property
    def data(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


def outcome(scene: Scene, text: str, **more: Any) -> RequestOutcome | Escalated | None:
    return asyncio.run(scene.ask(text, **more))[1]


def test_a_sure_answer_is_kept_and_says_who_gave_it() -> None:
    scene = Scene()
    served = outcome(scene, "easy one")
    assert isinstance(served, RequestOutcome) and served.mode == "small" and served.served_by == "small"
    assert served.audit_probability == 0.05 and served.signals["logprob"] == -0.1
    headers = dict(scene.sent[0]["headers"])
    assert headers[b"x-brise-mode"] == b"small" and headers[b"x-brise-model"] == b"small"
    assert json.loads(scene.data) == served.response
    assert scene.small.asked[0]["messages"][0]["content"] == "easy one"


def test_an_unsure_answer_is_not_sent_and_stays_as_a_draft() -> None:
    scene = Scene()
    escalated = outcome(scene, "hard one")
    assert isinstance(escalated, Escalated) and not scene.sent
    assert escalated.draft is not None and escalated.draft.role == "draft" and escalated.signals["logprob"] == -5.0


def test_a_vetoed_answer_escalates_also_without_a_rule() -> None:
    scene = Scene(rule=None)
    format = {"type": "json_object"}
    assert isinstance(outcome(scene, "easy one", response_format=format), Escalated)
    assert isinstance(outcome(Scene(rule=None), "hard one"), RequestOutcome), "without a threshold nothing is unsure"


def test_what_the_small_model_cannot_do_escalates() -> None:
    scene = Scene(FakeSmall(sure_of_yes, error="images are not read"))
    assert outcome(scene, "easy one") == Escalated() and not scene.sent


def test_a_kept_stream_comes_whole_in_the_shape_of_a_stream() -> None:
    scene = Scene()
    served = outcome(scene, "easy one", stream=True, stream_options={"include_usage": True})
    assert isinstance(served, RequestOutcome)
    assert dict(scene.sent[0]["headers"])[b"content-type"].startswith(b"text/event-stream")
    found = list(events(scene.data))
    chunks = [event.fields for event in found[:-1]]
    assert found[-1].data == "[DONE]" and all(chunk is not None for chunk in chunks)
    assert chunks[0]["choices"][0]["delta"]["content"] == "answer to easy one"  # type: ignore[index]
    assert chunks[1]["choices"][0]["finish_reason"] == "stop"  # type: ignore[index]
    assert chunks[2]["usage"]["prompt_tokens"] == 10  # type: ignore[index]


@pytest.mark.parametrize("body", [
    chat_body("two words"), chat_body(calls=[("weather", '{"city": "Ulm"}'), ("time", "{}")]),
    {**chat_body("a"), "choices": [{**chat_body(text)["choices"][0], "index": at} for at, text in enumerate("ab")]}])
def test_a_stream_made_of_a_body_makes_that_body(body: dict[str, Any]) -> None:
    stream = b"".join(f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks_of(body, {})) + b"data: [DONE]\n\n"
    found = assemble(CHAT, stream)
    assert found.error is None and found.body is not None
    for was, made in zip(body["choices"], found.body["choices"], strict=True):
        assert made["finish_reason"] == was["finish_reason"]
        assert answers.of({"choices": [made]}) == answers.of({"choices": [was]})


def test_without_a_threshold_a_stream_is_passed_on_as_it_is_written() -> None:
    scene = Scene(rule=None)
    served = outcome(scene, "hard one", stream=True)
    assert isinstance(served, RequestOutcome) and served.error is None
    assert len(scene.sent) > 5 and scene.data.endswith(b"data: [DONE]\n\n")
    assert served.response is not None
    assert served.response["choices"][0]["message"]["content"] == "answer to hard one"


def test_a_roll_back_by_another_gateway_holds_for_the_next_request() -> None:
    scene = Scene()

    async def run() -> RequestOutcome | Escalated:
        asked, first = await scene.ask("easy one")
        assert isinstance(first, RequestOutcome)
        scene.lines.append("back", {"task": "calls", "reason": "enough", "by": "user"})
        return await scene.keeper.answer(asked, Decision("small", "small"), scene.send)

    assert asyncio.run(run()) == Escalated()


def test_another_model_under_the_certified_name_answers_nobody() -> None:
    certified = rule(fingerprint="f1")
    for changes in ({"certificate": WARRANT | {"fingerprint": "f1"}, "rule": None}, {"rule": certified.digest}):
        lines = Lines()
        lines.append("cascade", to_body(certified))
        scene = Scene(lines=lines, **changes)
        served = outcome(scene, "easy one")
        assert isinstance(served, RequestOutcome) and served.fingerprint == "f1"
        scene.small.version = "f2"  # retrained, and loaded under the same name
        assert outcome(scene, "easy one") == Escalated() and len(scene.small.asked) == 1
        assert scene.keeper.refused["calls", "changed_model"] == 1
        assert outcome(scene, "easy two", stream=True) == Escalated()
        asyncio.run(scene.follower.refresh())
        told = [entry.body for entry in scene.lines.entries if entry.kind == "changed"]
        assert [body["fingerprint"] for body in told] == ["f2"] and "was certified" in told[0]["reason"]
        scene.small.version = "f1"  # and back
        assert isinstance(outcome(scene, "easy one"), RequestOutcome)


def test_a_model_that_is_replaced_while_it_answers_is_not_believed() -> None:
    def say(body: Any) -> tuple[str, float]:
        scene.small.version = "f2"
        return "yes", -0.1

    scene = Scene(FakeSmall(say), certificate=WARRANT | {"fingerprint": "f1"}, rule=None)
    assert outcome(scene, "easy one") == Escalated() and not scene.sent


def test_a_rule_of_brise_0_1_with_a_head_keeps_nothing_and_says_why() -> None:
    certified = to_body(rule(terms=(Term("head", 0.0, 1.0, 1.0),), bias=0.0)) | {"head": [0.0] * 65}
    certified["digest"] = _digest({name: value for name, value in certified.items() if name != "digest"})
    lines = Lines()
    lines.append("cascade", certified)
    scene = Scene(FakeSmall(sure_of_yes), lines, rule=certified["digest"])
    assert not isinstance(outcome(scene, "easy one"), RequestOutcome) and not scene.small.asked
    state = fold(lines.entries).tasks["calls"]
    assert state.rule is not None and state.rule.removed_signal == "head"
    assert not state.is_on and "'head'" in (state.ended or "")


def test_caution_keeps_surer_answers_only() -> None:
    scene = Scene(FakeSmall(lambda body: ("yes", -0.5)))
    assert isinstance(outcome(scene, "a"), RequestOutcome)
    scene.lines.append("tighten", {"task": "calls", "reason": "doubt", "by": "gateway"})
    assert isinstance(outcome(scene, "a"), Escalated)


def exchange(scene: Scene, text: str, number: int) -> tuple[requests.ClientRequest, Exchange]:
    asked, served = asyncio.run(scene.ask(text))
    assert isinstance(served, RequestOutcome)
    asked = replace(asked, id=f"id{number}")
    return asked, exchange_of(asked, served, 0.1)


def hosted_says(text: str, status: int = 200) -> Any:
    async def ask(asked: requests.ClientRequest, probability: float) -> RecordedAnswer:
        body = chat_body(text) if status == 200 else None
        error = None if status == 200 else f"status {status}"
        return RecordedAnswer(f"a-{asked.id}", asked.id, 0.0, "audit", "hosted", None, status, error,
                              probability=probability,
                              response=body)
    return ask


def run_until_empty(auditor: Auditor) -> None:
    async def run() -> None:
        running = asyncio.create_task(auditor.run())
        while auditor.waiting and not running.done():
            await asyncio.sleep(0)
        running.cancel()
    asyncio.run(run())


def test_an_audit_becomes_a_line_and_disagreement_rings_the_alarm() -> None:
    scene, written = Scene(audit=1.0), list[RecordedAnswer]()
    auditor = Auditor(scene.follower, hosted_says("something else"), written.append)
    for number in range(60):
        found = asyncio.run(scene.ask("easy one"))
        if not isinstance(found[1], RequestOutcome):
            break
        auditor.observe(replace(found[0], id=f"id{number}"), exchange_of(found[0], found[1], 0.1))
        run_until_empty(auditor)
    lines = [entry for entry in scene.lines.entries if entry.kind == "audit"]
    assert lines[0].body["difference"] == -1.0 and lines[0].body["probability"] == 1.0
    assert written[0].role == "audit" and len(written) == len(lines) < 60
    kinds = [entry.kind for entry in scene.lines.entries]
    assert kinds.index("tighten") < kinds.index("back") and kinds[-1] == "back"
    assert "alarm" in scene.lines.entries[-1].body["reason"]


def test_agreement_counts_as_no_difference() -> None:
    scene = Scene(audit=1.0)
    auditor = Auditor(scene.follower, hosted_says("answer  to easy one"), lambda answer: None)
    auditor.observe(*exchange(scene, "easy one", 1))
    run_until_empty(auditor)
    assert scene.lines.entries[-1].kind == "audit" and scene.lines.entries[-1].body["difference"] == 0.0


def test_audits_wait_while_the_hosted_model_is_down_and_are_bounded() -> None:
    scene, waits = Scene(audit=1.0), list[float]()
    behaviour = [hosted_says("", 503), hosted_says("", 503), hosted_says("answer to easy one")]

    async def ask(asked: requests.ClientRequest, probability: float) -> RecordedAnswer:
        found: RecordedAnswer = await (behaviour.pop(0) if len(behaviour) > 1 else behaviour[0])(asked, probability)
        return found

    async def wait(seconds: float) -> None:
        waits.append(seconds)

    auditor = Auditor(scene.follower, ask, lambda answer: None, max_waiting=2, wait=wait)
    for number in range(3):
        auditor.observe(*exchange(scene, "easy one", number))
    assert auditor.waiting == 2 and auditor.counts["dropped"] == 1
    run_until_empty(auditor)
    assert waits == [1.0, 2.0] and auditor.counts["audited"] == 2


def test_a_request_that_the_hosted_model_never_answers_does_not_hold_up_the_others() -> None:
    scene = Scene(audit=1.0)

    async def ask(asked: requests.ClientRequest, probability: float) -> RecordedAnswer | None:
        is_poison = "poison" in str(asked.fields)
        return await hosted_says("answer to easy one", 500 if is_poison else 200)(asked, probability)

    async def wait(seconds: float) -> None:
        pass

    auditor = Auditor(scene.follower, ask, lambda answer: None, wait=wait)
    for number, text in enumerate(("easy poison", "easy one")):
        auditor.observe(*exchange(scene, text, number))
    run_until_empty(auditor)
    assert auditor.counts["audited"] == 1 and auditor.counts["unanswered"] == 1


def test_an_audit_waits_as_long_as_the_hosted_model_is_out_of_reach() -> None:
    scene, asks = Scene(audit=1.0), list[int]()

    async def ask(asked: requests.ClientRequest, probability: float) -> RecordedAnswer | None:
        asks.append(len(asks))
        return None if len(asks) < 50 else await hosted_says("answer to easy one")(asked, probability)

    async def wait(seconds: float) -> None:
        assert seconds <= 60

    auditor = Auditor(scene.follower, ask, lambda answer: None, wait=wait)
    auditor.observe(*exchange(scene, "easy one", 1))
    run_until_empty(auditor)
    assert len(asks) == 50 and auditor.counts["audited"] == 1


def test_an_audit_that_a_locked_ledger_does_not_take_is_written_later() -> None:
    scene, asks, waits, written = Scene(audit=1.0), list[int](), list[float](), list[RecordedAnswer]()
    append = scene.lines.append

    def locked(kind: str, body: Body) -> LedgerEntry:
        if len(waits) < 3:
            raise StoreError("database is locked")
        return append(kind, body)

    async def ask(asked: requests.ClientRequest, probability: float) -> RecordedAnswer:
        asks.append(1)
        found: RecordedAnswer = await hosted_says("answer to easy one")(asked, probability)
        return found

    async def wait(seconds: float) -> None:
        waits.append(seconds)

    log = io.StringIO()
    auditor = Auditor(scene.follower, ask, written.append, wait=wait, log=log)
    auditor.observe(*exchange(scene, "easy one", 1))
    scene.lines.append = locked  # type: ignore[method-assign]
    run_until_empty(auditor)
    lines = [entry for entry in scene.lines.entries if entry.kind == "audit"]
    assert len(lines) == len(asks) == len(written) == 1 and waits == [1.0, 2.0, 4.0]
    assert auditor.counts["audited"] == 1 and auditor.counts["unwritten"] == 3
    assert log.getvalue().count("audits cannot be written") == 1


def test_audits_are_drawn_with_their_probability() -> None:
    scene = Scene(audit=0.2)
    auditor = Auditor(scene.follower, hosted_says(""), lambda answer: None, max_waiting=10_000)
    asked, kept = exchange(scene, "easy one", 0)
    for number in range(3000):
        auditor.observe(asked, replace(kept, id=f"exchange {number}"))
    assert abs(auditor.waiting / 3000 - 0.2) < 0.03


def test_what_a_locked_ledger_does_not_take_is_written_later() -> None:
    scene = Scene()
    append, action = scene.lines.append, Action("raise", {"task": "calls", "by": "gateway", "reason": "a sign"})

    def locked(kind: str, body: Body) -> LedgerEntry:
        raise StoreError("the store is locked")

    scene.follower.write(action)
    scene.lines.append = locked  # type: ignore[method-assign]
    asyncio.run(scene.follower.refresh())
    assert scene.follower.failures == 1
    scene.lines.append = append  # type: ignore[method-assign]
    for _ in range(2):
        asyncio.run(scene.follower.refresh())
    assert [line.kind for line in scene.lines.entries] == ["cascade", "switch", "raise"]


def test_a_hosted_model_that_the_certificate_does_not_know_voids_it() -> None:
    scene = Scene(certificate={"digest": "c", "expires_s": 1e12, "teachers": ["hosted-1 fp"], "contexts": [],
                               "dimensions": [], "proven": []})
    auditor = Auditor(scene.follower, hosted_says(""), lambda answer: None)
    asked, kept = exchange(scene, "easy one", 0)
    large = replace(kept, mode="hosted", served_by="hosted-1", fingerprint="fp")
    for found, ends in ((large, False), (replace(large, served_by="hosted-2"), True)):
        auditor.observe(asked, found)
        asyncio.run(scene.follower.refresh())
        assert (scene.lines.entries[-1].kind == "void") is ends
    assert outcome(scene, "easy one") is None
