"""The commands of a chat, such as /help and /set."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from brise.cli import chat_options, terminal
from brise.cli.chat_options import ChatSettings
from brise.cli.conversation import Conversation, PrintedAnswer
from brise.errors import RequestError
from brise.files.atomic import private


@dataclass
class ChatSession:
    """The state of a chat at the terminal."""

    conversation: Conversation
    options: ChatSettings
    last: PrintedAnswer | None = None


@dataclass(frozen=True)
class ChatAction:
    """What a line of input leads to: a question, the last question again, the end of the chat, or nothing."""

    question: str | None = None
    is_retry: bool = False
    is_end: bool = False


def help_lines() -> Mapping[str, str]:
    """Every command and what it does."""
    return {
        "/help": "list the commands",
        "/clear": "start a new conversation; the system prompt stays",
        "/system [TEXT]": "set the system prompt, or show it; @model is the model's own, - removes it",
        "/image PATH": "show the model an image with the next question",
        "/audio PATH": "let the model hear a WAV file with the next question",
        "/set [NAME VALUE]": "change a setting, or show all of them",
        "/stats": "show the speed of the last answer",
        "/save FILE": "write the conversation to a new JSON file",
        "/retry": "ask the last question again",
        "/exit": "leave (also Ctrl-D)",
    }


def names() -> tuple[str, ...]:
    """The names of the commands."""
    return tuple(line.split()[0] for line in help_lines())


def execute(session: ChatSession, line: str) -> ChatAction:
    """Runs a line that begins with a slash; RequestError if it is not a command."""
    name, _, argument = line.strip().partition(" ")
    argument = argument.strip()
    if argument and name in ("/help", "/clear", "/stats", "/retry", "/exit"):
        raise RequestError(f"{name} takes no argument, got {argument!r}")
    takers = {"/system": _system, "/image": _image, "/audio": _audio, "/set": _set, "/save": _save}
    if name in takers:
        takers[name](session, argument)
        return ChatAction()
    match name:
        case "/help":
            _help()
        case "/clear":
            session.conversation.clear()
            terminal.note("a new conversation begins")
        case "/stats":
            terminal.note(session.last.stats if session.last else "there is no answer yet")
        case "/retry":
            return _retry(session)
        case "/exit":
            return ChatAction(is_end=True)
        case _:
            raise RequestError(f"there is no command {name!r}",
                               hint="/help lists the commands; put a message that begins with / between "
                                    'two lines of """')
    return ChatAction()


def _help() -> None:
    for usage, text in help_lines().items():
        terminal.note(f"  {usage:<18} {text}")
    terminal.note('  A line that ends with \\ continues on the next one.')
    terminal.note('  Lines between two lines of """ are one message.')
    terminal.note("  Ctrl-C stops an answer; pressed twice at the prompt, it leaves the chat.")
    terminal.note("settings for /set:")
    for option in chat_options.options():
        terminal.note(f"  {option.name:<18} {option.help}")


def _system(session: ChatSession, argument: str) -> None:
    conversation = session.conversation
    if argument:
        conversation.set_system(None if argument == "-" else argument)
    terminal.note(f"system prompt: {conversation.system or '(the default of the model)'}")


def _image(session: ChatSession, argument: str) -> None:
    if not argument:
        raise RequestError("/image needs the path of an image", hint="/image photo.jpg")
    session.conversation.attach(argument)
    _note_attached(session)


def _audio(session: ChatSession, argument: str) -> None:
    if not argument:
        raise RequestError("/audio needs the path of a WAV file", hint="/audio speech.wav")
    session.conversation.attach_audio(argument)
    _note_attached(session)


def _note_attached(session: ChatSession) -> None:
    kinds = [part["type"] for part in session.conversation.attached]
    counts = [f"{kinds.count(kind)} {name}" for kind, name in (("image", "image(s)"), ("input_audio", "audio file(s)"))
              if kind in kinds]
    terminal.note(f"{' and '.join(counts)} go with the next question")


def _set(session: ChatSession, argument: str) -> None:
    if argument:
        name, _, value = argument.partition(" ")
        session.options = chat_options.change(session.options, name, value.strip())
    generation = session.conversation.generation
    sampling, own = session.options.sampling(generation.sampling), generation.sampling.given
    for field in fields(session.options):
        value = vars(session.options)[field.name]
        shown = ("on" if value else "off") if isinstance(value, bool) else "-" if value is None else value
        if value is None and field.name in vars(sampling) and field.name != "seed":
            shown = vars(sampling)[field.name]
            shown = f"{shown} (from {generation.source})" if own.get(field.name) == shown else shown
        terminal.note(f"  {field.name:<18} {shown}")


def _save(session: ChatSession, argument: str) -> None:
    if not argument:
        raise RequestError("/save needs the name of a file", hint="/save chat.json")
    path = Path(os.path.expanduser(argument))  # Path.expanduser fails where there is no such user
    content = {"model": session.conversation.model, "messages": session.conversation.saved}
    try:
        with open(path, "x", encoding="utf-8", opener=private) as file:
            file.write(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise RequestError(f"cannot write {argument!r}: {error.strerror}") from None
    terminal.note(f"saved to {path}")


def _retry(session: ChatSession) -> ChatAction:
    if not session.conversation.turns:
        raise RequestError("there is no question to ask again")
    sampling = session.options.sampling(session.conversation.generation.sampling)
    if sampling.seed is not None or sampling.temperature == 0:
        terminal.note("with a fixed seed or temperature 0 the answer will be the same")
    return ChatAction(is_retry=True)
