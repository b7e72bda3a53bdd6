"""The traffic of tests/stored/v0_1: what `brise serve`, `switch`, `label`, `prove`, `cascade` and `log` leave behind.

Part of make_v0_1.py, and like it for commit 2e0fa6d only.
"""

# ruff: noqa: I001 -- it imports modules as they lay at 2e0fa6d
from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
from brise.gateway.records import Answer, Exchange, Label
from brise.gateway.rule import to_body
from brise.gateway.stores import open_store

from tests import test_stored_files as stored
from tests.evidence import logs, traffic
from tests.gateway.fake_answers import MODEL, chat_body, encode, usage
from tests.gateway.fake_messages import says
from tests.gateway.fake_upstream import Behaviour, FakeUpstream, Peer, answer, chat, cut, events, fake_upstream, refuse
from tests.gateway.small_models import rule
from tests.waiting import wait_until

OUT = Path("/tmp/v0_1")  # whose name stands in the ledger
HOME = OUT / "home"
HI = {"role": "user", "content": "Which wind blows today?"}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Tells the weather.", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}
RESPONSE = {"id": "resp_1", "object": "response", "created_at": 1_767_225_600, "model": MODEL, "status": "completed",
            "output": [{"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [
                {"type": "output_text", "text": "The föhn.", "annotations": []}]}],
            "usage": {"input_tokens": 5, "output_tokens": 3, "total_tokens": 8,
                      "input_tokens_details": {"cached_tokens": 2}}}
PRICES = """[models."hosted-1-2026-01-01"]
input = 2.50
cached_input = 1.25
output = 10.00

[models."claude-fake-1"]
input = 3.00
output = 15.00

[models.big]
input = 2.0
output = 10.0

[hardware]
price = 1400
years = 4
watts = 65
usd_per_kwh = 0.30
utilisation = 0.25
"""
def brise(*words: object, status: int = 0) -> str:
    """One command in a process of its own; what it wrote to stdout."""
    command = [sys.executable, "-m", "brise", *map(str, words)]
    ended = subprocess.run(command, cwd=OUT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
                           env=environment())
    if ended.returncode != status:
        raise SystemExit(f"{words}: {ended.returncode}\n{ended.stdout}\n{ended.stderr}")
    return ended.stdout


def environment() -> dict[str, str]:
    return {**os.environ, **stored.ENVIRONMENT, "BRISE_HOME": str(HOME), "USER": "eva", "LOGNAME": "eva"}


def captured() -> None:
    """What `brise serve`, `switch`, `label`, `prove`, `cascade` and `log` leave behind."""
    shutil.rmtree(HOME / "gateway", ignore_errors=True)
    (OUT / "certificate.json").unlink(missing_ok=True)
    (HOME / "gateway").mkdir(parents=True, mode=0o700)
    (HOME / "gateway" / "prices.toml").write_text(PRICES)
    with fake_upstream() as fake:
        _every_dialect(fake)
        _an_outage(fake)
        _a_switch(fake)
        _labels(fake)
    _planted()
    _decisions()
    for path in (HOME / "gateway").rglob("*-wal"):
        raise SystemExit(f"{path} is there: some process still has the store open")


@contextmanager
def serving(fake: FakeUpstream, *options: object) -> Iterator[httpx.Client]:
    words = ["serve", "tiny", "--upstream", fake.url, "--port", "0", "--context", "512", "--threads", "1", "--retries",
             "0", *map(str, options)]
    with subprocess.Popen([sys.executable, "-m", "brise", *words], cwd=OUT, stderr=subprocess.PIPE, text=True,
                          env=environment()) as server:
        try:
            assert server.stderr is not None
            said = list[str]()
            for line in iter(server.stderr.readline, ""):
                said.append(line)
                if match := re.search(r"at (http://\S+)/v1", line):
                    break
            else:
                raise SystemExit("".join(said))
            with httpx.Client(base_url=match[1], timeout=60, trust_env=False) as client:
                yield client
            server.send_signal(signal.SIGINT)
            _, rest = server.communicate(timeout=60)
            print(rest[-2000:])
        finally:
            server.kill()


def ask(client: httpx.Client, path: str, body: Mapping[str, object], headers: Mapping[str, str] | None = None,
        status: int = 200) -> Any:
    named = {"x-brise-task": "wind", "authorization": "Bearer key-of-a-client", **(headers or {})}
    found = client.post(path, json={"model": "hosted-1", **body}, headers=named)
    assert found.status_code == status, f"{path}: {found.status_code} {found.text}"
    return found


def talk(client: httpx.Client, *messages: object, headers: Mapping[str, str] | None = None, status: int = 200,
         **more: object) -> Any:
    body = {"messages": messages, "max_tokens": 6, "temperature": 0, **more}
    return ask(client, "/v1/chat/completions", body, headers, status)


def _every_dialect(fake: FakeUpstream) -> None:
    calls = [("weather", '{"city": "Basel"}')]
    with serving(fake, "--shadow", 1, "--reask", 1) as client:
        fake.default = chat("The bise.")
        talk(client, HI, headers={"x-brise-subject": "anna", "x-brise-label-route": "a"})
        talk(client, HI, {"role": "assistant", "content": "The bise."}, {"role": "user", "content": "And tomorrow?"},
             headers={"x-brise-subject": "anna", "x-brise-label-route": "a"})
        wait_until(lambda: len(fake.received) == 4)
        fake.default = chat("", calls)
        talk(client, {"role": "user", "content": "Weather in Basel?"}, tools=[TOOL], stream=True,
             stream_options={"include_usage": True}, headers={"x-brise-label-route": "b"})
        wait_until(lambda: len(fake.received) == 6)
        fake.default = chat("one two three")
        talk(client, {"role": "user", "content": "Count, and say \"Grüße\"."}, stream=True, user="bert")
        wait_until(lambda: len(fake.received) == 8)
        fake.default = chat("12 degrees")
        call = chat_body("", calls)["choices"][0]["message"]
        talk(client, {"role": "user", "content": "Weather in Basel?"}, call, {
            "role": "tool", "tool_call_id": "call_0", "content": "12"}, tools=[TOOL])
        wait_until(lambda: len(fake.received) == 10)
        _other_paths(client, fake)
        talk(client, HI, headers={"x-brise-capture": "off"})
        fake.then(refuse(400, "this is not to be"))
        talk(client, {"role": "user", "content": "What is wrong?"}, status=400)
        fake.then(cut(chat("a long answer that ends early"), 700))
        with httpx.Client(base_url=client.base_url, timeout=60, trust_env=False) as other:
            try:
                talk(other, {"role": "user", "content": "Tell me more."}, stream=True)
            except httpx.HTTPError as error:
                print("cut:", error)
        time.sleep(2)


def _other_paths(client: httpx.Client, fake: FakeUpstream) -> None:
    completion = {"id": "cmpl-1", "object": "text_completion", "created": 1_767_225_600, "model": MODEL, "choices": [
        {"index": 0, "text": " a time", "logprobs": None, "finish_reason": "stop"}], "usage": usage(" a time")}
    parts = [{**completion, "choices": [{**completion["choices"][0], "text": text, "finish_reason": reason}],
              "usage": None} for text, reason in ((" a", None), (" time", "stop"))]
    response = [f"event: {event['type']}\n".encode() + encode(event) for event in (
        {"type": "response.created", "response": {**RESPONSE, "output": [], "status": "in_progress", "usage": None}},
        {"type": "response.output_text.delta", "item_id": "msg_1", "output_index": 0, "content_index": 0,
         "delta": "The föhn."}, {"type": "response.completed", "response": RESPONSE})]
    embedding = {"object": "list", "model": "embedder", "usage": {"prompt_tokens": 3, "total_tokens": 3}, "data": [
        {"object": "embedding", "index": 0, "embedding": [0.25, -0.5, 0.125]}]}
    asked: Sequence[tuple[str, dict[str, Any], Behaviour]] = (
        ("/v1/completions", {"prompt": "Once upon", "max_tokens": 4}, answer(completion)),
        ("/v1/completions", {"prompt": "Twice upon", "max_tokens": 4, "stream": True}, events([*parts, "[DONE]"])),
        ("/v1/responses", {"input": "Which wind?"}, answer(RESPONSE)),
        ("/v1/responses", {"input": "Which one now?", "stream": True}, events(response)),
        ("/v1/embeddings", {"model": "embedder", "input": "a breeze"}, answer(embedding)),
        ("/v1/messages", {"model": "claude-fake-1", "max_tokens": 6, "system": "Be brief.", "messages": [HI]},
         says("The mistral.")),
        ("/v1/messages", {"model": "claude-fake-1", "max_tokens": 6, "stream": True, "messages": [HI], "tools": [
            {"name": "weather", "input_schema": {"type": "object"}}], "metadata": {"user_id": "cleo"}},
         says("I look.", [("weather", {"city": "Nîmes"})])))
    for path, body, behaviour in asked:
        fake.default, before = behaviour, len(fake.received)
        ask(client, path, body)
        print(path, len(fake.received) - before)
        time.sleep(0.3)
    fake.default = chat("The bise.")


def _an_outage(fake: FakeUpstream) -> None:
    """One request is answered by the small model and later asked again; another one waits for ever."""
    with serving(fake, "--fallback", "tiny") as client:
        fake.stop()
        talk(client, {"role": "user", "content": "Is anybody there?"})
        fake.start()
        before = len(fake.received)
        talk(client, {"role": "user", "content": "Are you back?"})
        wait_until(lambda: len(fake.received) == before + 2)  # this one, and the one of the outage
        time.sleep(1)
    with serving(fake, "--fallback", "tiny") as client:
        fake.stop()
        talk(client, {"role": "user", "content": "And is there now?"})
    fake.start()


def _a_switch(fake: FakeUpstream) -> None:
    force = ("--force", "--reason", "a trial of the small model")
    brise("switch", "wind", "--candidate", "tiny", "--share", 100, "--audit", 99, *force)
    with serving(fake) as client:
        fake.default = chat("The bise.")
        for number in (0, 13, 16, 26):  # of the last three it is sure enough
            talk(client, {"role": "user", "content": f"Which wind blew {number} days ago?"})
            time.sleep(1)
        wait_until(lambda: json.loads(brise("audit", "wind", "--json"))["tasks"][0]["audits"] > 0, 60)
    brise("switch", "wind", "--share", 10)
    brise("switch", "wind", "--back", "--reason", "the trial is over")


def _labels(fake: FakeUpstream) -> None:
    """Of people by `log label` and `label`, of an outcome, and of a judge."""
    async def judge(peer: Peer) -> None:
        shown = json.loads(peer.received.json["messages"][1]["content"])
        await answer(chat_body(json.dumps({"good": "a" if "bise" in str(shown["A"]) else "b"})))(peer)

    fake.default = judge
    brise("label", "--task", "wind", "--any-context", "--judge-endpoint", fake.url, "--judge-model", "wise")
    with_shadow = [json.loads(line) for line in brise("log", "list", "--task", "wind", "--with", "shadow", "--json",
                                                      ).splitlines()]
    first, second = (json.loads(brise("log", "show", found["id"], "--json")) for found in with_shadow[:2])
    brise("log", "label", first["id"], "--score", 1, "--note", "well said")
    brise("log", "label", second["id"], "--score", 0.5, "--answer", second["answers"][0]["id"], "--answer-score", 0,
          "--rung", "outcome", "--who", "a program")
    command = [sys.executable, "-m", "brise", "label", "--task", "wind", "--any-context", "--who", "ann"]
    subprocess.run(command, input="a\nboth\nneither\nquit\n", text=True, check=True, env=environment(), cwd=OUT)


def _planted() -> None:
    """A task with outcomes for every answer, signals that know, and costs."""
    rows = logs.rows(stored.UNITS, better=0.12, worse=0.03, seed=4)
    with closing(open_store(None, HOME)) as store:
        exchanges, answers, labels = list[Exchange](), list[Answer](), list[Label]()

        class Kept:
            def add(self, new: list[Exchange], others: list[Answer], found: list[Label]) -> None:
                exchanges.extend(new), answers.extend(others), labels.extend(found)

        traffic.fill(Kept(), rows, fingerprint="v1")  # type: ignore[arg-type]
        labels = [replace(of_large, answer=of_small.answer, answer_score=of_small.answer_score)
                  for of_large, of_small in zip(labels[::2], labels[1::2], strict=True)]
        wrong = {label.answer for label in labels if label.answer_score == 0}
        store.add([replace(each, cost_usd=0.0125) for each in exchanges], [replace(each, signals={
            "veto": 0.0, "logprob": (-3.0 if each.id in wrong else -0.5) - at % 7 / 20, "length": float(at % 5)})
            for at, each in enumerate(answers)], labels)


def _decisions() -> None:
    """Every other kind of line: proofs, an export from an open gate, a certificate, a rule, a switch in steps."""
    brise("prove", "--task", "tickets", "--plan-only")
    brise("prove", "--task", "tickets", *stored.PROVE[2:], "--delta", 0.5, status=4)
    with closing(open_store(None, HOME)) as store:  # the same of `wind`, of which there is too little to look at
        body = next(entry.body for entry in store.ledger() if entry.kind == "proof")
        store.append("proof", {**body, "task": "wind", "student": "tiny", "fingerprint": None})
    brise("log", "export", "--task", "wind", "--include-gate", "--out", "exported.jsonl")
    (OUT / "exported.jsonl").unlink()
    brise("prove", "--task", "tickets", *stored.PROVE, "--expires", 36500, "--certificate", "certificate.json")
    brise("cascade", "tickets", "--risk", 20, "--delta", 20, "--labels", "outcome")
    brise("switch", "tickets", "--certificate", "certificate.json", "--auto")
    with closing(open_store(None, HOME)) as store:
        number = max(entry.number for entry in store.ledger() if entry.kind == "switch")
        about = {"task": "tickets", "switch": number, "by": "gateway"}
        for at in range(31):
            store.append("audit", about | {"exchange": f"r{at}", "difference": -1.0 if at == 7 else 0.0,
                                           "probability": 0.5})
        store.append("step", about | {"evidence": 1.5, "share": 0.1, "from": 0.01,
                                      "reason": "31 audits with a mean of -3.2 points"})
        store.append("context", about | {
            "context": "ab" * 32, "reason": "the certificate is not of this system prompt and these tools"})
        store.append("changed", about | {"fingerprint": "v2", "reason": "another version of the candidate answers"})
        store.append("raise", about | {"reason": "confidence has drifted"})
        store.append("tighten", about | {"evidence": 120.0, "reason": "the evidence of harm reached 120"})
        store.append("cascade", to_body(rule(task="tickets", candidate="mini", fingerprint="v2")))
        store.append("void", about | {"evidence": 120.0, "reason": "the certificate has expired"})
    brise("switch", "tickets", "--certificate", "certificate.json", "--force", "--reason", "it holds all the same")
