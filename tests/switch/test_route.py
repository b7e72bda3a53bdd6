"""Which way a request goes is decided by the state and the request alone."""

from __future__ import annotations

import json
from typing import Any

from brise.dialects.bodies import context_digest
from brise.gateway import request as requests
from brise.gateway.request import ClientRequest
from brise.switch import route
from brise.switch.state import TaskState, fold
from tests.switch.ledger_lines import Lines, audit, certified, switched

NOW_S = 1000.0


def state(*lines: tuple[str, dict[str, Any]], **changes: Any) -> TaskState:
    ledger = Lines()
    ledger.append("switch", switched(**changes))
    for kind, body in lines:
        ledger.append(kind, body)
    return fold(ledger.ledger()).tasks["calls"]


def asked(text: str = "hello", path: str = "/v1/chat/completions", system: str | None = None,
          headers: tuple[tuple[bytes, bytes], ...] = ()) -> ClientRequest:
    messages = [] if system is None else [{"role": "system", "content": system}]
    body = {"model": "calls", "messages": [*messages, {"role": "user", "content": text}]}
    return requests.read("POST", path, path.encode(), headers, json.dumps(body).encode())


def test_a_switched_task_goes_to_the_small_model() -> None:
    assert route.decide(state(), asked(), NOW_S).is_small


def test_what_ended_or_expired_or_rang_goes_to_the_hosted_one() -> None:
    back = state(("back", {"task": "calls", "reason": "enough", "by": "user"}))
    assert route.decide(back, asked(), NOW_S).why == "switched back: enough"
    rang = state(*[("audit", audit(-1.0))] * 40)
    assert route.decide(rang, asked(), NOW_S).why == "switched back: the alarm rang"
    assert route.decide(state(certificate=certified()), asked(), 1999.0).is_small
    assert route.decide(state(certificate=certified()), asked(), 2000.0).why == "the certificate has expired"


def test_other_kinds_of_requests_go_to_the_hosted_one() -> None:
    for path in ("/v1/embeddings", "/v1/responses", "/v1/unheard-of"):
        assert not route.decide(state(), asked(path=path), NOW_S).is_small


def test_a_share_holds_what_a_smaller_one_held() -> None:
    texts = [f"request {number}" for number in range(1500)]
    small = {share: {text for text in texts if route.decide(state(share=share), asked(text), NOW_S).is_small}
             for share in (0.01, 0.1, 0.5, 1.0)}
    assert small[0.01] < small[0.1] < small[0.5] < small[1.0] == set(texts)
    for share, found in small.items():
        assert abs(len(found) / 1500 - share) < 0.03


def test_a_conversation_stays_on_one_side() -> None:
    half = state(share=0.5)
    for number in range(50):
        opening = {"role": "user", "content": f"opening {number}"}
        later = [opening, {"role": "assistant", "content": "yes?"}, {"role": "user", "content": "go on"}]
        bodies = [{"model": "calls", "messages": messages} for messages in ([opening], later)]
        ways = {route.decide(half, requests.read("POST", "/v1/chat/completions", b"", (), json.dumps(body).encode()),
                             NOW_S).is_small for body in bodies}
        assert len(ways) == 1
    named = ((b"x-brise-conversation", b"c7"),)
    assert len({route.decide(half, asked(f"{number}", headers=named), NOW_S).is_small for number in range(20)}) == 1


def test_an_unproven_slice_goes_to_the_hosted_one() -> None:
    sliced = state(certificate=certified(dimensions=["language"], proven=["language=de", "language=fr"]))
    german, polish = ((b"x-brise-label-language", b"de"),), ((b"x-brise-label-language", b"pl"),)
    assert route.decide(sliced, asked(headers=german), NOW_S).is_small
    assert route.decide(sliced, asked(headers=polish), NOW_S).why == "no certificate for language=pl"
    assert not route.decide(sliced, asked(), NOW_S).is_small, "without the label nothing is proven"
    short = state(certificate=certified(dimensions=["length"], proven=["length=to 200"]))
    assert route.decide(short, asked("hi"), NOW_S).is_small
    assert route.decide(short, asked("hi " * 100), NOW_S).why == "no certificate for length=to 1000"


def test_a_certificate_is_bound_to_its_system_prompt() -> None:
    known = context_digest({"messages": [{"role": "system", "content": "Be brief."}]})
    bound = state(certificate=certified(contexts=[known]))
    assert route.decide(bound, asked(system="Be brief."), NOW_S).is_small
    other = route.decide(bound, asked(system="Be long."), NOW_S)
    assert not other.is_small and other.action is not None and other.action.kind == "context"
    warned = state((other.action.kind, dict(other.action.body)), certificate=certified(contexts=[known]))
    assert route.decide(warned, asked(system="Be long."), NOW_S).action is None, "it is written down once"
