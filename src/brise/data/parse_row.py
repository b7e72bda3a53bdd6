"""Parsing one row of a data file into an example, by the rules by which the server reads requests.

RequestError says what is wrong with a row; the caller, which reads the file, knows the line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

from brise.data import identity
from brise.data.example import TrainingExample
from brise.data.left_out import LeftOutError
from brise.data.render import ACTIONS, UNLEARNED
from brise.data.rights import provider_of_model
from brise.data.row_forms import own_form
from brise.errors import RequestError
from brise.models.weights import Array
from brise.text import images
from brise.text.action_space import Actions
from brise.text.argument_order import with_ordered_arguments
from brise.text.fields import RequestFields
from brise.text.finish_reasons import not_whole
from brise.text.images import Settings
from brise.text.inputs import ImageInput
from brise.text.json_text import Json
from brise.text.openai_messages import Audio, Image, Message, Part, parse_messages, template_message
from brise.text.openai_tools import parse_tools

KEYS = ("messages", "actions", "tools", "parallel_tool_calls", "prompt", "completion", "system", "conversation",
        "conversation_id", "provider", "model", "id", "finish_reason", "meta", "metadata")
_AS_TEXT = "rows are trained as text without a chat format, which takes 'prompt' and 'completion'"


@dataclass(frozen=True)
class RowRules:
    """How rows are read. `conversation` names the fields that tell conversations apart ("meta.seed", or several).

    `provider` wrote the answers of rows that name none. `images` are the settings of the model's vision encoder, None
    for a model without one. `as_text`: prompt and completion are one text, not a question and its answer.
    `actions` has the tokens of what a robot can be told.
    """

    conversation: tuple[str, ...] = ()
    provider: str | None = None
    images: Settings | None = None
    as_text: bool = False
    actions: Actions | None = None


def parse_row(value: Json, place: str, folder: Path, rules: RowRules) -> TrainingExample:
    """The example in a row of a file in `folder`, to which paths of images are relative.

    LeftOutError for an answer that is not whole, where the row says why it stopped.
    """
    row = own_form(value) if isinstance(value, dict) else _no_object(value)
    fields = RequestFields(row)
    if fields.raw("messages") is None:
        messages = _prompt_and_completion(fields, as_text=rules.as_text)
    elif rules.as_text:
        raise fields.unsupported("messages", _AS_TEXT)
    else:
        messages = _messages(fields, folder, rules.images)
    if fields.raw("actions") is not None:
        messages.append(_actions(fields, rules.actions, messages))
    tools = tuple(tool.as_json() for tool in parse_tools(fields))
    fields.flag("parallel_tool_calls")  # it restricts sampling and is not part of the prompt
    fields.raw("id")
    named = provider_of_model(fields.text("model") or "")
    provider = fields.text("provider") or named or rules.provider
    meta = fields.mapping("meta") or fields.mapping("metadata") or {}
    conversation = _conversation(fields, value, rules.conversation)
    _require_whole(fields.raw("finish_reason"), meta.get("finish_reason"))
    _done(fields, row)
    _check(messages, {str(_function(tool)["name"]) for tool in tools})
    ordered = tuple(with_ordered_arguments(messages, tools))
    return TrainingExample(ordered, place, conversation or identity.derived_conversation(messages, tools), tools,
                           provider.lower() if provider else None, meta)


def _actions(fields: RequestFields, actions: Actions | None, messages: Sequence[Mapping[str, object]],
             ) -> dict[str, object]:
    """The answer of a row with actions: its tokens, and as text the commands that they mean."""
    if actions is None:
        raise RequestError("the row has 'actions', and no action space says what they mean: name it with --actions "
                           "FILE", param="actions", code="unsupported_parameter")
    if messages[-1]["role"] == "assistant":
        raise RequestError("the row has 'actions' and an answer; one of them is learned", param="actions")
    rows = fields.items("actions") or []
    if not all(isinstance(row, list) and len(row) == len(actions.space.values) and
               all(isinstance(number, int | float) and not isinstance(number, bool) for number in row) for row in rows):
        raise RequestError(f"'actions' must be a list of steps, each a list of {len(actions.space.values)} numbers",
                           param="actions", code="invalid_type")
    tokens = tuple(actions.encode(cast(list[list[float]], rows)))
    return {"role": "assistant", "content": str(actions.decode(tokens).round(6).tolist()), ACTIONS: tokens}


def _require_whole(*finish_reasons: object) -> None:
    """LeftOutError for an answer that was cut, filtered or broken off."""
    for finish_reason in finish_reasons:
        if (why := not_whole(finish_reason)) is not None:
            raise LeftOutError(why, param="finish_reason")


def _no_object(value: Json) -> Json:
    kind = {list: "an array", str: "a string", type(None): "null"}.get(type(value), "a number or a truth value")
    raise RequestError(f"the row is {kind}, it must be an object", code="invalid_type")


def _done(fields: RequestFields, value: Json) -> None:
    assert isinstance(value, dict)
    unknown = [name for name in value if name not in KEYS]
    if unknown:
        where = "; images belong into a message's content" if unknown[0] in ("image", "images") else ""
        raise RequestError(f"unknown field {unknown[0][:64]!r}{where}", param=unknown[0][:64],
                           code="unknown_parameter")
    fields.done()


def _prompt_and_completion(fields: RequestFields, *, as_text: bool) -> list[dict[str, object]]:
    for name in ("system", "tools") if as_text else ():
        fields.refuse(name, _AS_TEXT)
    if fields.raw("prompt") is None and fields.raw("completion") is None:
        raise RequestError("the row has neither 'messages' nor 'prompt' and 'completion', nor 'conversations' "
                           "(ShareGPT) nor 'instruction' and 'output' (Alpaca)", param="messages",
                           code="missing_required_parameter")
    prompt, completion = fields.required_text("prompt"), fields.required_text("completion")
    system = fields.text("system")
    first: list[dict[str, object]] = [] if system is None else [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]


def _messages(fields: RequestFields, folder: Path, settings: Settings | None) -> list[dict[str, object]]:
    for name in ("prompt", "completion", "system"):
        fields.refuse(name, "the row has 'messages'")
    weights, plain = _weights(fields)
    out: list[dict[str, object]] = []
    for index, message in enumerate(parse_messages(plain)):
        if message.is_open:
            raise RequestError(f"'messages[{index}].prefix' is not supported: an answer is learned whole",
                               param="messages", code="unsupported_parameter")
        view = template_message(_with_images(message, folder, settings))
        out.append({**view, UNLEARNED: 0} if weights.get(index) == 0 else view)
    return out


def _weights(fields: RequestFields) -> tuple[dict[int, int], RequestFields]:
    """The weights of assistant messages, which only training files have, and the messages without weights.

    A message may say why it stopped; one that is learned and is not whole is a LeftOutError.
    """
    weights: dict[int, int] = {}
    plain: list[Json] = []
    for index, item in enumerate(fields.items("messages") or []):
        if isinstance(item, dict) and item.get("role") == "assistant":
            if UNLEARNED in item:
                weight = RequestFields(item, f"messages[{index}]").whole(UNLEARNED, 0, 1)
                weights[index] = 1 if weight is None else weight
            if weights.get(index) != 0:
                _require_whole(item.get("finish_reason"))
            item = {key: field for key, field in item.items() if key not in (UNLEARNED, "finish_reason")}
        plain.append(item)
    return weights, RequestFields({"messages": plain})


def _conversation(fields: RequestFields, value: Json, wanted: Sequence[str]) -> str | None:
    """The row's own name for its conversation, or the values of the wanted fields."""
    own = [fields.raw(name) for name in ("conversation", "conversation_id")]
    if wanted:
        return "/".join(_plain_value(_field(value, name), name) for name in wanted)
    if own == [None, None]:
        return None
    return _plain_value(own[0] if own[0] is not None else own[1], "conversation")


def _field(value: Json, name: str) -> Json:
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _plain_value(value: Json, name: str) -> str:
    if value is None:
        raise RequestError(f"{name!r} is missing, which identifies the conversation", param=name,
                           code="missing_required_parameter")
    if isinstance(value, bool | list | dict) or value == "":
        raise RequestError(f"{name!r} is {str(value)[:40]!r}, it must be a string or a number", param=name,
                           code="invalid_type")
    return str(value)


def _check(messages: Sequence[Mapping[str, object]], tool_names: set[str]) -> None:
    """Checks what a conversation needs for training, beyond being a valid request."""
    learned = [index for index, message in enumerate(messages)
               if message["role"] == "assistant" and index and message.get(UNLEARNED) != 0]
    if not learned:
        raise RequestError("there is no assistant message to learn from after another message", param="messages")
    if messages[-1]["role"] != "assistant":
        raise RequestError(f"the last message is of role {messages[-1]['role']!r}; nothing answers it",
                           param="messages")
    for index, message in enumerate(messages):
        content, calls = message["content"], message.get("tool_calls") or ()
        if not calls and message["role"] != "tool" and isinstance(content, str) and not content.strip():
            raise RequestError(f"'messages[{index}].content' is empty", param=f"messages[{index}].content")
        assert isinstance(calls, Sequence)
        for call in calls:
            name = _function(call)["name"]
            if isinstance(_function(call)["arguments"], str):
                raise RequestError(f"'messages[{index}].tool_calls' has 'arguments' of {str(name)[:64]!r}, which must "
                                   "be the text of a JSON object", param=f"messages[{index}].tool_calls")
            if tool_names and name not in tool_names:
                raise RequestError(f"'messages[{index}]' calls {str(name)[:64]!r}, which is not among the tools",
                                   param=f"messages[{index}].tool_calls")


def _function(call: Mapping[str, object]) -> Mapping[str, object]:
    function = call["function"]
    assert isinstance(function, Mapping)
    return function


def _with_images(message: Message, folder: Path, settings: Settings | None) -> Message:
    if not isinstance(message.content, tuple):
        return message
    if (heard := next((part for part in message.content if isinstance(part, Audio)), None)) is not None:
        raise RequestError(f"{heard.name!r} is audio; models are trained on text and images", param=heard.name,
                           code="no_audio")
    parts: list[Part] = [_prepared(part, folder, settings) if isinstance(part, Image) else part
                         for part in message.content]
    return replace(message, content=tuple(parts))


def _prepared(image: Image, folder: Path, settings: Settings | None) -> Image:
    url = image.source
    assert isinstance(url, str), "as it was read"
    if settings is None:
        raise RequestError(f"{image.name!r} is an image, and this model sees none", param=image.name,
                           code="no_vision")
    if image.detail == "low":
        raise RequestError(f"{image.name!r} has detail 'low'; images are trained at the size that is served",
                           param=image.name, code="unsupported_parameter")
    if url.startswith("data:"):
        return replace(image, source=images.prepare(images.from_data_url(url, image.name), settings, image.name))
    if "://" in url and not url.startswith("file://"):
        raise RequestError(f"{image.name!r} is {url[:64]!r}; nothing is fetched for training", param=image.name,
                           code="invalid_image")
    path = folder / url.removeprefix("file://")
    known = images.prepare(images.from_path(path), settings, image.name)
    # The file is read again when it is needed: thousands of images do not fit into memory.
    return replace(image, source=replace(known, pixels=partial(_pixels, path, settings, image.name, known.digest)))


def _pixels(path: Path, settings: Settings, name: str, digest: bytes) -> Array:
    again: ImageInput = images.prepare(images.from_path(path), settings, name)
    if again.digest != digest:
        raise RequestError(f"the image {str(path)!r} was changed while it was trained on", code="invalid_image")
    return again.pixels()
