"""Items of OpenAI's Responses API become messages: texts, images and audio, calls and their results, and reasoning."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from brise.serve.turns import Turns, earlier_call
from brise.text.fields import RequestFields
from brise.text.openai_messages import DETAILS, Image, Message, Part, TextPart, input_audio, joined

# What this server's items have besides, and what clients add to them before they send them back.
LEFTOVERS = ("id", "status", "phase", "parsed", "parsed_arguments", "namespace", "created_by", "caller")


def read_items(items: Iterable[RequestFields]) -> tuple[Message, ...]:
    """The messages of a conversation."""
    turns = Turns()
    for item in items:
        kind = item.text("type")
        for name in LEFTOVERS:
            item.raw(name)
        match kind:
            case None | "message":
                turns.add(_message(item))
            case "reasoning":
                turns.add(Message("assistant", None, reasoning=_reasoning(item) or None))
            case "function_call":
                call = earlier_call(item.required_text("call_id"), item.required_text("name"),
                                    item.required_text("arguments"))
                turns.add(Message("assistant", None, calls=(call,)))
            case "function_call_output":
                turns.add_result(item, "call_id", _result(item))
            case _:
                raise item.unsupported("type", f"{kind[:32]!r}; there are 'message', 'reasoning', 'function_call' and "
                                               "'function_call_output'")
        item.done()
    return turns.messages()


def _message(item: RequestFields) -> Message:
    role = item.required_choice("role", ("user", "assistant", "system", "developer"))
    content = item.raw("content")
    if isinstance(content, str):
        return Message(role, content)
    parts = [_part(part, role) for part in item.objects("content")]
    if content is None or not parts and role != "assistant":
        raise item.missing("content")
    return Message(role, joined(parts) if parts else "")


def _reasoning(item: RequestFields) -> str:
    """The text of the reasoning, or what sums it up; what another server has encrypted is left out."""
    item.raw("encrypted_content")
    whole = [part.required_text("text") for part in item.objects("content")]
    short = [part.required_text("text") for part in item.objects("summary")]
    return "\n".join(whole or short)


def _result(item: RequestFields) -> Sequence[Part]:
    output = item.raw("output")
    if output is None:
        raise item.missing("output")
    if isinstance(output, str):
        return [TextPart(output)]
    return [_part(part, "user") for part in item.objects("output")]


def _part(part: RequestFields, role: str) -> Part:
    kind = part.required_text("type")
    read: Part
    if kind in ("input_text", "output_text", "text"):
        read = TextPart(part.required_text("text"))
    elif kind == "refusal" and role == "assistant":
        read = TextPart(part.required_text("refusal"))
    elif kind == "input_image" and role == "user":
        part.refuse("file_id", "this server stores no files; send 'image_url'")
        read = Image(part.path("image_url"), part.required_text("image_url"), part.choice("detail", DETAILS) or "auto")
    elif kind == "input_audio" and role == "user":
        read = input_audio(part)
    else:
        raise part.unsupported("type", f"a part of type {kind[:32]!r} from {role!r}; this server reads text, and "
                                       "'input_image' and 'input_audio' from 'user'")
    for name in ("annotations", "logprobs", "parsed", "prompt_cache_breakpoint"):
        part.raw(name)  # they stand in answers, or change none
    part.done()
    return read
