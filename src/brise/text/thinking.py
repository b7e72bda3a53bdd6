"""What a request asks of the chat template: whether and how hard to think, and the template's own variables."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from brise.errors import RequestError
from brise.text.answer_format import AnswerFormat
from brise.text.fields import RequestFields
from brise.text.json_text import Json

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max", "default", "auto")
SWITCHES = ("enable_thinking", "thinking")  # names of the variable in templates
# What the server itself gives to templates.
RESERVED = frozenset({"messages", "tools", "add_generation_prompt", "documents", "bos_token", "eos_token"})


class TemplateReader(Protocol):
    """A chat format that says which variables its template reads."""

    format: AnswerFormat

    def reads(self, name: str) -> bool:
        """Whether the template looks at a variable of this name."""

    def values_of(self, name: str) -> Collection[str] | None:
        """The values that a variable may have; None: any."""


@dataclass(frozen=True)
class TemplateWish:
    """One value for the template: a variable, a switch for thinking, or an effort. `path` is the client's field.

    An effort that `is_hint` is left out where the model has none.
    """

    path: str
    name: str
    value: Json
    is_hint: bool = False


def parse_wishes(fields: RequestFields) -> tuple[TemplateWish, ...]:
    """Reads `reasoning_effort`, `enable_thinking`, `think`, `thinking`, `reasoning` and `chat_template_kwargs`."""
    wishes = [TemplateWish(fields.path(f"chat_template_kwargs.{name[:64]}"), name, value)
              for name, value in (fields.mapping("chat_template_kwargs") or {}).items()]
    for name in RESERVED.intersection(wish.name for wish in wishes):
        raise fields.error(f"chat_template_kwargs.{name}", "is given by the server itself")
    if (is_on := fields.flag("enable_thinking")) is not None:
        wishes.append(TemplateWish(fields.path("enable_thinking"), "enable_thinking", is_on))
    wishes += [*parse_think(fields), *_thinking_object(fields), *_effort(fields)]
    return tuple(wishes)


def parse_think(fields: RequestFields) -> tuple[TemplateWish, ...]:
    """Reads Ollama's `think`: true, false, or an effort."""
    think = fields.raw("think")
    if think == "":
        return ()
    if isinstance(think, bool):
        return (TemplateWish(fields.path("think"), "enable_thinking", think),)
    effort = fields.choice("think", EFFORTS)
    return (TemplateWish(fields.path("think"), "reasoning_effort", effort),) if effort else ()


def variables(wishes: Sequence[TemplateWish], chat: TemplateReader) -> Mapping[str, Json]:
    """The template's variables; RequestError for a wish that the model cannot fulfil."""
    given: dict[str, Json] = {}
    for wish in sorted(wishes, key=lambda wish: wish.name in SWITCHES):  # an effort says more than a switch
        if wish.value is None:
            continue
        if wish.name == "reasoning_effort":
            added = _by_hint(wish, chat) if wish.is_hint else _by_effort(wish, chat)
        elif wish.name in SWITCHES and isinstance(wish.value, bool):
            is_said = wish.value and given.get("reasoning_effort", "none") != "none"
            added = {} if is_said else _by_switch(wish, chat, is_on=wish.value)
        elif chat.reads(wish.name):
            added = {wish.name: wish.value}
        else:
            raise _refused(wish, "the model's chat template reads no such variable")
        for name, value in added.items():
            if given.setdefault(name, value) != value:
                raise RequestError(f"{wish.path!r} contradicts another field about thinking", param=wish.path)
    return given


def _thinking_object(fields: RequestFields) -> list[TemplateWish]:
    """`thinking`: {"type": "enabled" or "disabled"}, as clients of Anthropic and DeepSeek send it."""
    thinking = fields.child("thinking")
    if thinking is None:
        return []
    kind = thinking.required_choice("type", ("enabled", "disabled", "adaptive", "auto"))
    thinking.note("budget_tokens")
    thinking.done()
    is_chosen = kind in ("enabled", "disabled")
    return [TemplateWish(thinking.path("type"), "enable_thinking", kind == "enabled")] if is_chosen else []


def _effort(fields: RequestFields) -> list[TemplateWish]:
    """`reasoning_effort`, and OpenRouter's `reasoning`: {"effort": ..., "enabled": ...}."""
    if fields.ignores("reasoning_effort"):  # it is meant for another model
        fields.only("reasoning_effort", ("none",), "the models here have no adjustable reasoning")
        fields.only("reasoning", ({},), "the models here have no adjustable reasoning")
        return []
    wishes = []
    if effort := fields.choice("reasoning_effort", EFFORTS):
        wishes.append(TemplateWish(fields.path("reasoning_effort"), "reasoning_effort", effort))
    reasoning = fields.child("reasoning")
    if reasoning is not None:
        if effort := reasoning.choice("effort", EFFORTS):
            wishes.append(TemplateWish(reasoning.path("effort"), "reasoning_effort", effort))
        if (is_on := reasoning.flag("enabled")) is not None:
            wishes.append(TemplateWish(reasoning.path("enabled"), "enable_thinking", is_on))
        reasoning.done()
    return wishes


def _by_switch(wish: TemplateWish, chat: TemplateReader, *, is_on: bool) -> Mapping[str, Json]:
    names = [name for name in SWITCHES if chat.reads(name)]
    if names:
        return dict.fromkeys(names, is_on)
    if efforts := chat.reads("reasoning_effort") and chat.values_of("reasoning_effort"):
        wanted = [effort for effort in ("medium", *reversed(EFFORTS)) if effort != "none"] if is_on else ["none"]
        if possible := [effort for effort in wanted if effort in efforts]:
            return {"reasoning_effort": possible[0]}
    if is_on is chat.format.can_think:  # it does so anyway
        return {}
    raise _refused(wish, "the model does not think" if is_on else
                   "the model's chat template has no switch for thinking")


def _by_hint(wish: TemplateWish, chat: TemplateReader) -> Mapping[str, Json]:
    try:
        return _by_effort(wish, chat)
    except RequestError:  # the model has no such effort
        return {}


def _by_effort(wish: TemplateWish, chat: TemplateReader) -> Mapping[str, Json]:
    if wish.value in ("default", "auto"):
        return {}
    if chat.reads("reasoning_effort"):
        allowed = chat.values_of("reasoning_effort")
        if allowed is not None and wish.value not in allowed:
            raise _refused(wish, f"the model's chat format takes {', '.join(map(repr, allowed))}")
        return {"reasoning_effort": wish.value} | (
            {name: False for name in SWITCHES if chat.reads(name)} if wish.value == "none" else {})
    if wish.value == "none":
        return _by_switch(wish, chat, is_on=False)
    if wish.value == "medium" and chat.format.can_think:  # as hard as the model thinks anyway
        return _by_switch(wish, chat, is_on=True)
    raise _refused(wish, "the model's chat template knows no effort of reasoning" if chat.format.can_think else
                   "the model does not think before it answers")


def _refused(wish: TemplateWish, why: str) -> RequestError:
    shown = repr(wish.value).replace("True", "true").replace("False", "false")[:40]
    return RequestError(f"{wish.path!r} {shown} is not supported: {why}", param=wish.path, code="unsupported_parameter")
