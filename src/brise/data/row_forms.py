"""Rows of other tools' data files: ShareGPT's, Alpaca's and TRL's become rows of ours where nothing is left open.

Sources: FastChat and LLaMA-Factory (ShareGPT, Alpaca), TRL's documentation of its dataset formats. What cannot be read
as a question and its answer, such as a preference between two answers, is an error that says what it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from brise.errors import RequestError
from brise.text import json_text
from brise.text.json_text import Json

ROLES: Mapping[str, str] = MappingProxyType({
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant",
    "system": "system"})
_CHOSEN = "jq -c '{prompt, completion: .chosen}'"
# What other forms are known by: their fields, what they are, and the line that makes rows of ours.
_NAMED: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("prompt", "chosen", "rejected"), "a preference of one answer to another (TRL's), and not an answer to learn",
     f"to learn the chosen answers: {_CHOSEN} FILE"),
    (("chosen", "rejected"), "a preference of one answer to another (TRL's), and not an answer to learn",
     "to learn the chosen answers: jq -c '{messages: .chosen}' FILE"),
    (("preferred_output", "non_preferred_output"), "a preference of one answer to another (OpenAI's)",
     "to learn the preferred answers: jq -c '{messages: (.input.messages + .preferred_output)}' FILE"),
    (("prompt", "completion", "label"), "an answer that was found good or bad (TRL's unpaired preference)",
     "to learn the good ones: jq -c 'select(.label) | {prompt, completion}' FILE"),
    (("instruction", "response"), "an instruction and its response (Dolly's form)",
     "jq -c '{prompt: ([.instruction, .context // empty | select(. != \"\")] | join(\"\\n\")), completion: .response}' "
     "FILE"),
    (("prompt", "completions", "labels"), "steps with labels (TRL's stepwise supervision)",
     "brise learns whole answers: rows of 'prompt' and 'completion'"))
_TEXT_ALONE = "a text without a question and its answer (a row for language modelling)"


def own_form(row: dict[str, Json]) -> dict[str, Json]:
    """The row with 'messages', or 'prompt' and 'completion' as texts. RequestError names a form that is neither."""
    for names, what, hint in _NAMED:
        if all(row.get(name) is not None for name in names):
            raise RequestError(f"the row has {_listed(names)}: it is {what}", param=names[-1],
                               code="unsupported_parameter", hint=hint)
    if row.get("messages") is None:
        if isinstance(row.get("conversations"), list):
            return _from_sharegpt(row)
        if row.get("instruction") is not None and row.get("output") is not None:
            return _from_alpaca(row)
        if isinstance(row.get("text"), str) and "prompt" not in row:
            raise RequestError(f"the row has 'text': it is {_TEXT_ALONE}", param="text", code="unsupported_parameter",
                               hint="--as-text learns 'completion' as the continuation of 'prompt', without a chat "
                                    "format")
    if isinstance(row.get("prompt"), list) and isinstance(row.get("completion"), list):
        return _from_trl(row)
    return row


def _from_sharegpt(row: dict[str, Json]) -> dict[str, Json]:
    """Turns with 'from' and 'value', or with 'role' and 'content'."""
    rest = {name: value for name, value in row.items() if name not in ("conversations", "system", "tools", "idx")}
    messages: list[Json] = []
    if (system := row.get("system")) not in (None, ""):
        messages.append({"role": "system", "content": system})
    turns = row["conversations"]
    assert isinstance(turns, list)
    for index, turn in enumerate(turns):
        path = f"conversations[{index}]"
        if not isinstance(turn, dict):
            raise RequestError(f"{path!r} must be an object with 'from' and 'value'", param=path, code="invalid_type")
        if "from" not in turn and "role" in turn:
            messages.append(turn)
            continue
        speaker, value = turn.get("from"), turn.get("value")
        if not isinstance(speaker, str) or speaker not in ROLES:
            raise RequestError(f"'{path}.from' is {str(speaker)[:40]!r}; read are {_listed(ROLES)}",
                               param=f"{path}.from",
                               hint="write turns of tools as 'messages' with 'tool_calls' and the role 'tool'")
        if not isinstance(value, str):
            raise RequestError(f"'{path}.value' is missing, or no text", param=f"{path}.value", code="invalid_type")
        more = {name: field for name, field in turn.items() if name not in ("from", "value")}
        messages.append({"role": ROLES[speaker], "content": value, **more})
    tools = row.get("tools")
    if isinstance(tools, str):  # LLaMA-Factory's, as the text of a JSON list
        tools = json_text.parse_json(tools.encode(), "tools") if tools.strip() else None
    return {**rest, "messages": messages, **({} if tools is None else {"tools": tools})}


def _from_alpaca(row: dict[str, Json]) -> dict[str, Json]:
    """The instruction, and its input in the next line; earlier pairs are 'history'; 'text' is the same once more."""
    for name in ("instruction", "input", "output", "system"):
        if not isinstance(row.get(name), str | None):
            raise RequestError(f"{name!r} must be a text", param=name, code="invalid_type")
    instruction, given, output = row["instruction"], row.get("input"), row["output"]
    rest = {name: value for name, value in row.items() if name not in ("instruction", "input", "output", "history")}
    text = rest.get("text")
    if isinstance(text, str) and str(instruction) in text and str(output) in text:
        del rest["text"]
    if rest.get("system") == "":
        del rest["system"]
    prompt = f"{instruction}\n{given}" if given else str(instruction)
    if not row.get("history"):
        return {**rest, "prompt": prompt, "completion": output}
    system = rest.pop("system", None)
    messages: list[Json] = [] if system is None else [{"role": "system", "content": system}]
    for index, pair in enumerate(_pairs(row["history"])):
        if len(pair) != 2:
            raise RequestError(f"'history[{index}]' must be a question and its answer", param="history")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return {**rest, "messages": [*messages, {"role": "user", "content": prompt},
                                 {"role": "assistant", "content": output}]}


def _pairs(history: Json) -> list[list[Json]]:
    if not isinstance(history, list) or not all(isinstance(pair, list) for pair in history):
        raise RequestError("'history' must be an array of arrays of two texts", param="history", code="invalid_type")
    return [pair for pair in history if isinstance(pair, list)]


def _from_trl(row: dict[str, Json]) -> dict[str, Json]:
    """Messages of the prompt, whose answers are not learned, and of the completion."""
    prompt, completion = row["prompt"], row["completion"]
    assert isinstance(prompt, list) and isinstance(completion, list)
    before = [{**message, "weight": 0} if isinstance(message, dict) and message.get("role") == "assistant" else message
              for message in prompt]
    rest = {name: value for name, value in row.items() if name not in ("prompt", "completion")}
    return {**rest, "messages": [*before, *completion]}


def _listed(names: Iterable[str]) -> str:
    texts = [repr(name) for name in names]
    return f"{', '.join(texts[:-1])} and {texts[-1]}"
