"""A model's chat format as a frame of fixed text, and that as the Go template of an Ollama Modelfile, or as Jinja.

A Jinja template cannot be translated in general, but most chat formats are a frame: fixed text before and after each
role's message, and before the answer. The frame is found by rendering conversations with known contents, and then held
against the model's own template on other conversations. What is no frame is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from brise.errors import RequestError, UnsupportedError
from brise.text.conversation import Chat
from brise.text.protocols import TextTokenizer

# Contents that stand in no template, and in no other of them.
SYSTEM, USER, ANSWER, SECOND = "qzsystemqz", "qzaskedqz", "qzanswerqz", "qzsecondqz"
Turn = tuple[str, str]  # role, content


@dataclass(frozen=True)
class ChatFrame:
    """The fixed text around messages: by role what stands before and after; `default` where no system message is
    given; `generation` before the answer. `bos` begins the prompt, as a control token's text or empty."""

    bos: str
    default: str
    before: Mapping[str, str]
    after: Mapping[str, str]
    generation: str

    def text(self, turns: Sequence[Turn]) -> str:
        """The prompt for these turns, as the template would write it."""
        start = self.bos + ("" if turns[0][0] == "system" else self.default)
        return start + "".join(self.before[role] + content + self.after[role] for role, content in turns) + (
            self.generation)

    def go_template(self, *, with_bos: bool) -> str:
        """The template in Go's language over Ollama's .Messages. An answer at the end is left open, to be continued.

        All fixed text stands in string literals, so that no white space is lost.
        """
        default = "" if not self.default else "{{ if not .System }}" + _literal(self.default) + "{{ end }}"
        turns = "".join(
            f'{{{{ {"if" if role == "system" else "else if"} eq .Role "{role}" }}}}{_literal(self.before[role])}'
            "{{ .Content }}" + (
                _literal(self.after[role]) if role != "assistant" or not self.after[role] else
                "{{ if not $last }}" + _literal(self.after[role]) + "{{ end }}")
            for role in ("system", "user", "assistant"))
        return ((_literal(self.bos) if with_bos else "") + default
                + "{{ range $index, $message := .Messages }}{{ $last := eq (len (slice $.Messages $index)) 1 }}"
                + turns + '{{ end }}{{ if and $last (ne .Role "assistant") }}' + _literal(self.generation)
                + "{{ end }}{{ end }}")

    def jinja_template(self) -> str:
        """The same in Jinja, for a format that mistral-common wrote and no template did."""
        turns = "".join(
            f"{{% {'if' if role == 'system' else 'elif'} m.role == '{role}' %}}{_literal(self.before[role])}"
            f"{{{{ m.content }}}}{_literal(self.after[role])}" for role in ("system", "user", "assistant"))
        default = "" if not self.default else (
            "{% if messages[0].role != 'system' %}" + _literal(self.default) + "{% endif %}")
        return (_literal(self.bos) + default + "{% for m in messages %}" + turns + "{% endif %}{% endfor %}"
                "{% if add_generation_prompt %}" + _literal(self.generation) + "{% endif %}")


def frame_of(chat: Chat, tokenizer: TextTokenizer) -> ChatFrame:
    """The frame of a chat format; UnsupportedError, with the conversation that shows it, if it is none."""
    def rendered(*turns: Turn, ends: bool = False) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        return tokenizer.decode(chat.prompt(messages, add_generation_prompt=not ends).tokens, show_control=True)

    try:
        before_system, system_to_user, user_to_answer, answer_to_user, end = _between(rendered(
            ("system", SYSTEM), ("user", USER), ("assistant", ANSWER), ("user", SECOND)),
            (SYSTEM, USER, ANSWER, SECOND))
        after_user = rendered(("system", SYSTEM), ("user", USER), ends=True).partition(USER)[2]
        after_answer = rendered(("system", SYSTEM), ("user", USER), ("assistant", ANSWER), ends=True).partition(
            ANSWER)[2]
        alone = rendered(("user", USER)).partition(USER)[0]
    except RequestError as error:
        raise _no_frame(f"it refuses a conversation: {error}") from None
    before_user = answer_to_user.removeprefix(after_answer)
    bos = "" if tokenizer.bos_id is None else tokenizer.token_text(tokenizer.bos_id)
    # A token that begins every turn too (ChatML's, in SmolLM2) is no bos of the prompt.
    if not before_system.startswith(bos) or not alone.startswith(bos) or before_user.startswith(bos):
        bos = ""
    frame = ChatFrame(
        bos, alone.removeprefix(bos).removesuffix(before_user),
        {"system": before_system.removeprefix(bos), "user": before_user,
         "assistant": user_to_answer.removeprefix(after_user)},
        {"system": system_to_user.removesuffix(before_user), "user": after_user, "assistant": after_answer},
        end.removeprefix(after_user))
    for turns in CONVERSATIONS:
        if frame.text(turns) != rendered(*turns):
            raise _no_frame("it is no fixed text around messages: see the conversation "
                            + json.dumps([{"role": role, "content": content} for role, content in turns]))
    return frame


CONVERSATIONS: tuple[tuple[Turn, ...], ...] = (
    (("user", "Hello"),), (("system", "Be brief."), ("user", "Hi\nthere")),
    (("user", "One"), ("assistant", "Two"), ("user", "Three"), ("assistant", "Four"), ("user", "Five")),
    (("system", "S"), ("user", "a \u00e9\u4e2d"), ("assistant", "b"), ("user", "c")),
    (("user", '{"a": ["b", "{{ c }}"]}'), ("assistant", '{"d": 1}'), ("user", "again")))


def _between(text: str, marks: Sequence[str]) -> list[str]:
    """The text before, between and after the marks, each of which must stand in it once and in order."""
    parts = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found or mark in text:
            raise _no_frame("it leaves out a message, repeats it, or puts it elsewhere")
        parts.append(before)
    return [*parts, text]


def _no_frame(reason: str) -> UnsupportedError:
    return UnsupportedError(f"the model's chat format cannot be written as another template: {reason}",
                            hint="--for vllm reads the model's own files, --for llama.cpp a Jinja template as it is")


def _literal(text: str) -> str:
    """A string in an action; Go, Jinja and JSON write strings alike, if no character is escaped that need not be."""
    return "{{ " + json.dumps(text, ensure_ascii=False) + " }}" if text else ""
