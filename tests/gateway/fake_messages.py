"""What a fake server of Anthropic's Messages API says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tests.gateway.fake_answers import encode
from tests.gateway.fake_upstream import Behaviour, Hold, Peer, answer, events

MODEL = "claude-fake-1"
USAGE = {"input_tokens": 10, "cache_creation_input_tokens": 3, "cache_read_input_tokens": 4}
Calls = Sequence[tuple[str, dict[str, Any]]]


def message(text: str = "", calls: Calls = (), reason: str | None = None) -> dict[str, Any]:
    """A whole answer."""
    blocks: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
    blocks += [{"type": "tool_use", "id": f"toolu_{number}", "name": name, "input": values}
               for number, (name, values) in enumerate(calls)]
    return {"id": "msg_fake", "type": "message", "role": "assistant", "model": MODEL, "content": blocks,
            "stop_reason": reason or ("tool_use" if calls else "end_turn"), "stop_sequence": None,
            "usage": {**USAGE, "output_tokens": 5}}


def message_events(text: str = "", calls: Calls = ()) -> list[bytes]:
    """The same as the events of a stream: a word each, and each call's arguments in two."""
    whole = message(text, calls)
    start = {**whole, "content": [], "stop_reason": None, "usage": {**USAGE, "output_tokens": 1}}
    said: list[dict[str, Any]] = [{"type": "message_start", "message": start}, {"type": "ping"}]
    for index, block in enumerate(whole["content"]):
        empty = {**block, "text": ""} if block["type"] == "text" else {**block, "input": {}}
        said.append({"type": "content_block_start", "index": index, "content_block": empty})
        said += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in _deltas(block)]
        said.append({"type": "content_block_stop", "index": index})
    said.append({"type": "message_delta", "delta": {"stop_reason": whole["stop_reason"], "stop_sequence": None},
                 "usage": {"output_tokens": 5}})
    said.append({"type": "message_stop"})
    return [b"event: " + each["type"].encode() + b"\n" + encode(each) for each in said]


def stream_of(said: Sequence[bytes]) -> bytes:
    """All of them."""
    return b"".join(said)


def says(text: str = "", calls: Calls = (), *, hold: Hold | None = None, hold_after: int = 1) -> Behaviour:
    """Answers so, as a stream if one is asked for."""
    async def behave(peer: Peer) -> None:
        if peer.received.json.get("stream"):
            await events(message_events(text, calls), hold=hold, hold_after=hold_after)(peer)
        else:
            await answer(message(text, calls), headers={"request-id": "req_fake"})(peer)
    return behave


def fails(status: int, kind: str, headers: dict[str, str] | None = None) -> Behaviour:
    """An error in Anthropic's shape."""
    return answer({"type": "error", "error": {"type": kind, "message": "no"}, "request_id": "req_1"}, status, headers)


def _deltas(block: dict[str, Any]) -> list[dict[str, Any]]:
    if block["type"] == "text":
        return [{"type": "text_delta", "text": word if number == 0 else f" {word}"}
                for number, word in enumerate(block["text"].split(" "))]
    written = json.dumps(block["input"], ensure_ascii=False) if block["input"] else ""
    middle = len(written) // 2
    return [{"type": "input_json_delta", "partial_json": piece} for piece in ("", written[:middle], written[middle:])]
