"""`brise chat`: talk to a model in the terminal, in a pipe, or with one question.

The time to the first token counts here: nothing is imported that an answer does not need.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

from brise import settings
from brise.cli import chat_options, memory_options, terminal
from brise.cli.chat_commands import ChatSession, Said, execute, names
from brise.cli.chat_input import LineReader
from brise.cli.conversation import Conversation, PrintedAnswer
from brise.cli.memory_options import MemoryOptions
from brise.engine.engine import Engine
from brise.engine.request import USUAL_MAX_TOKENS
from brise.errors import BriseError, RequestError
from brise.files.digests import Located
from brise.hub.store import ModelStore, locate
from brise.memory.opening import AdapterRoom, EngineOptions, adapter_room, open_engine
from brise.text.answer_events import Parsed, ParsedReasoning, ParsedText

# A chat of one person rarely needs more, and the cache of a 128k context would not fit beside a small model.
DEFAULT_CONTEXT = 8192
ADAPTER = "adapter"  # its name in an engine that has no other


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "chat", help="talk to a model in the terminal", allow_abbrev=False,
        description="Talk to a model. With words, or with text on stdin, it answers once and ends.",
        epilog="examples: brise chat smollm2 | brise chat smollm2 'What is a breeze?' | "
               "git diff | brise chat smollm2 'Summarise:' - | "
               "brise chat ministral3 --image photo.jpg 'What is on it?'")
    parser.add_argument("model", metavar="MODEL",
                        help="a name that `brise models` lists, or the path of a .gguf file")
    parser.add_argument("words", metavar="WORD", nargs="*",
                        help="the question; a word - stands for the text on stdin")
    parser.add_argument("--system", metavar="TEXT", help="the system prompt; @model: the one beside the model")
    parser.add_argument("--image", metavar="PATH", action="append", default=[],
                        help="an image for the (first) question; may be given several times")
    parser.add_argument("--adapter", metavar="FOLDER", type=Path,
                        help="an adapter to put on the model, as `brise tune` and PEFT write them")
    parser.add_argument("--any-base", action="store_true",
                        help="take the adapter although its lineage names another model")
    chat_options.add_arguments(parser)
    parser.add_argument("--context", metavar="N", type=chat_options.count,
                        help="tokens that the conversation may have "
                             f"(default: what the model allows, at most {DEFAULT_CONTEXT})")
    memory_options.add_arguments(parser)
    parser.add_argument("--threads", metavar="N", type=chat_options.thread_count,
                        help="threads of the kernels (default: BRISE_THREADS, or one a core)")


def run(args: argparse.Namespace) -> int:
    question = _question(args.words)
    if args.any_base and args.adapter is None:
        raise RequestError("--any-base needs --adapter FOLDER")
    settings_ = settings.read()
    located = locate(args.model, ModelStore(settings_.home))
    engine = _engine(located, memory_options.from_arguments(args), args.context, args.threads or settings_.threads,
                     args.adapter, any_base=args.any_base)
    adapter = None if args.adapter is None else ADAPTER
    session = ChatSession(Conversation(engine.model, engine, args.system, adapter), chat_options.from_arguments(args))
    for path in args.image:
        session.conversation.attach(path)
    if question is not None:
        _answer(session, question, Stop())
        return 0
    terminal.note(f"{located.name}: /help lists the commands, /exit or Ctrl-D leaves")
    reader = LineReader(settings_.home / "chat_history", names())
    try:
        _converse(session, reader)
    except KeyboardInterrupt:  # pressed again before the prompt was back, or twice during an answer
        terminal.note("\nleft")
    finally:
        reader.close()
    return 0


def _engine(located: Located, options: MemoryOptions, context: int | None, threads: int | None, adapter: Path | None,
            *, any_base: bool) -> Engine:
    """An engine for one conversation, with the adapter if there is one."""
    room = AdapterRoom(slots=0)
    if adapter is not None:
        from brise.engine.adapter_loading import rank_in  # noqa: PLC0415 - only an adapter needs it

        room = adapter_room((adapter,), memory=options.memory, adapter_memory=None, slots=1, rank=rank_in(adapter))
    return open_engine(located, EngineOptions(
        memory=options.memory, context=context, usual_context=DEFAULT_CONTEXT, parallel=1, cache=options.cache,
        weights=options.weights, experts=options.experts, image_size=options.image_size, threads=threads,
        adapters=() if adapter is None else ((ADAPTER, adapter),), any_base=any_base, adapter_room=room, serves=False))


@dataclass
class Stop:
    """Whether the answer that runs shall stop."""

    is_pressed: bool = False


def _question(words: list[str]) -> str | None:
    """The one question of the command line or of stdin; None: a person will type."""
    if not words and sys.stdin.isatty():
        return None
    parts = [" ".join(words)]
    if "-" in words or not words:
        at = words.index("-") if words else 0
        parts = [" ".join(words[:at]), _read_stdin(), " ".join(words[at + 1:])]
    text = "\n\n".join(part for part in parts if part)
    if not text.strip():
        raise RequestError("there is nothing to ask: stdin is empty", hint="brise chat MODEL 'your question'")
    return _checked(text)


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8").strip("\r\n")
    except UnicodeDecodeError as error:
        raise RequestError(f"the text on stdin is not UTF-8: {error}") from None


def _checked(text: str) -> str:
    """Refuses bytes that are no UTF-8; Python hands them over as lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(f"the question is not UTF-8: {error}") from None
    return text


def _converse(session: ChatSession, reader: LineReader) -> None:
    """Reads and answers until the person leaves. Errors are shown and the chat goes on."""
    is_leaving = False
    while True:
        try:
            typed = reader.read()
        except EOFError:
            terminal.note("")
            return
        except KeyboardInterrupt:
            terminal.note("\nleft" if is_leaving else "\n(once more to leave)")
            if is_leaving:
                return
            is_leaving = True
            continue
        is_leaving = False
        try:
            is_command = typed.text.startswith("/") and not typed.is_block
            said = execute(session, typed.text) if is_command else Said(_checked(typed.text))
            if said.is_end:
                return
            if said.is_retry or said.question is not None and said.question.strip():
                with _ctrl_c_stops() as stop:
                    _answer(session, said.question, stop)
        except BriseError as error:
            terminal.note(f"brise: error: {error}")


def _answer(session: ChatSession, question: str | None, stop: Stop) -> None:
    """Asks, without a question the last one again, and shows what comes."""
    screen, talk = AnswerPrinter(session.options.thinking == "show"), session.conversation
    ask = talk.ask_again if question is None else partial(talk.ask, question)
    answer = ask(session.options, screen.write, lambda: stop.is_pressed)
    screen.finish()
    terminal.stream("" if answer.text.endswith("\n") else "\n")
    session.last = answer
    _explain(session, answer)
    if session.options.stats:
        terminal.note(answer.stats)


class AnswerPrinter:
    """Writes an answer as it comes: the text to stdout, what the model thinks to stderr, between two lines."""

    def __init__(self, shows_thinking: bool) -> None:
        self._shows_thinking, self._is_thinking = shows_thinking, False
        self._write = terminal.stream_safely if sys.stdout.isatty() else terminal.stream

    def write(self, item: Parsed) -> None:
        match item:
            case ParsedReasoning(text):
                if self._shows_thinking:
                    terminal.aside(text if self._is_thinking else f"[thinking]\n{text}")
                    self._is_thinking = True
            case ParsedText(text):
                self.finish()
                self._write(text)
            case _:
                pass  # no functions were offered, so none is called

    def finish(self) -> None:
        """Closes what was thought."""
        if self._is_thinking:
            self._is_thinking = False
            terminal.aside("\n[/thinking]\n")


def _explain(session: ChatSession, answer: PrintedAnswer) -> None:
    """Says why an answer is shorter than the model wanted."""
    if answer.finish == "cancelled":
        terminal.note("[stopped]")
    elif answer.finish == "length" and answer.completion_tokens == session.options.max_tokens:
        terminal.note(f"[cut after {answer.completion_tokens} tokens, as --max-tokens says]")
    elif answer.finish == "length" and answer.completion_tokens == USUAL_MAX_TOKENS:
        terminal.note(f"[cut after {USUAL_MAX_TOKENS} tokens; --max-tokens N allows longer answers]")
    elif answer.finish == "length":
        terminal.note("[cut: the context is full; /clear begins anew, --context N makes it longer]")


@contextmanager
def _ctrl_c_stops() -> Iterator[Stop]:
    """Ctrl-C sets a flag that is looked at between steps, so that no step is torn in the middle.

    A second one, if the first has not worked yet, ends the program in the usual way.
    """
    stop = Stop()

    def pressed(number: int, frame: FrameType | None) -> None:
        if stop.is_pressed:
            raise KeyboardInterrupt
        stop.is_pressed = True

    before = signal.signal(signal.SIGINT, pressed)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
