"""`brise chat`: a conversation with a model at the terminal, in a pipe, or with a single question.

The time to the first token matters here, so nothing is imported that an answer does not need.
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
from brise.cli.chat_commands import ChatAction, ChatSession, execute, names
from brise.cli.chat_input import LineReader
from brise.cli.command_parser import examples
from brise.cli.conversation import Conversation, PrintedAnswer
from brise.cli.memory_options import MemoryOptions
from brise.engine.drafts import DraftSource
from brise.engine.engine import Engine
from brise.engine.request import USUAL_MAX_TOKENS
from brise.errors import BriseError, RequestError
from brise.files.digests import Located
from brise.hub.locate import find_model
from brise.memory.opening import AdapterRoom, EngineOptions, OpeningProgress, adapter_room, open_engine
from brise.text.answer_events import Parsed, ParsedReasoning, ParsedText

# One person's chat rarely needs more, and the cache for a 128k context would be larger than a small model.
DEFAULT_CONTEXT = 8192
SILENT_S = 1.0  # how long something may go on after the answer before it is named
ADAPTER = "adapter"  # its name in an engine with one adapter


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "chat", help="talk to a model in the terminal", allow_abbrev=False,
        description="Talk to a model. With words, or with text on stdin, it answers once and exits, and stdout has the "
                    "answer only. docs/guides/chat.md describes the terminal and its commands.",
        epilog=examples("brise chat smollm2",
                        "brise chat smollm2 'What is a breeze?'",
                        "echo hi | brise chat smollm2",
                        "echo hi | brise chat smollm2 'Translate into French:' -",
                        "brise chat smollm2 --system 'Answer in one word.' --temperature 0 --stats 'Is water wet?'",
                        "brise chat ministral3 --image photo.jpg 'What is on it?'",
                        "brise chat voxtral --audio speech.wav 'What is said?'"))
    parser.add_argument("model", metavar="MODEL",
                        help="a name from `brise models`, a .gguf file, or a folder")
    parser.add_argument("words", metavar="WORD", nargs="*", default=[],
                        help="the question; the word - stands for the text on stdin, which is not read otherwise; "
                             "after -- every word is taken as it is")
    parser.add_argument("--system", metavar="TEXT", help="the system prompt (default: that of the model's chat "
                                                         "template, if it has one); @model: the one that comes with "
                                                         "the model")
    parser.add_argument("--image", metavar="PATH", action="append", default=[],
                        help="an image for the first question: PNG, JPEG, WebP or GIF; may be given several times. "
                             "Needs a model with a vision encoder and the extra mistral")
    parser.add_argument("--audio", metavar="PATH", action="append", default=[],
                        help="audio for the first question: a WAV file; may be given several times. Needs a model with "
                             "an audio encoder")
    parser.add_argument("--adapter", metavar="FOLDER", type=Path,
                        help="an adapter for the model, as `brise tune` and PEFT write it")
    parser.add_argument("--any-base", action="store_true",
                        help="use the adapter even if its lineage names another model")
    chat_options.add_arguments(parser)
    parser.add_argument("--context", metavar="N", type=chat_options.count,
                        help="longest conversation in tokens "
                             f"(default: what the model allows, at most {DEFAULT_CONTEXT})")
    memory_options.add_arguments(parser)
    parser.add_argument("--threads", metavar="N", type=chat_options.thread_count,
                        help="threads of the kernels (default: BRISE_THREADS, or one per core)")


def run(args: argparse.Namespace) -> int:
    question = _question(args.words)
    if args.any_base and args.adapter is None:
        raise RequestError("--any-base needs --adapter FOLDER")
    settings_ = settings.read()
    located = find_model(args.model, settings_)
    if located.note:
        terminal.note(located.note)
    engine = _engine(located, memory_options.from_arguments(args), args.context, args.threads or settings_.threads,
                     args.adapter, any_base=args.any_base)
    adapter = None if args.adapter is None else ADAPTER
    session = ChatSession(Conversation(engine.model, engine, args.system, adapter), chat_options.from_arguments(args))
    for path in args.image:
        session.conversation.attach(path)
    for path in args.audio:
        session.conversation.attach_audio(path)
    if question is not None:
        _answer(session, question, Stop())
        _keep_packed(engine)
        return 0
    terminal.note(f"{located.name}: /help lists the commands, /exit or Ctrl-D leaves")
    reader = LineReader(settings_.home / "chat_history", names())
    try:
        _converse(session, reader)
    except KeyboardInterrupt:  # Ctrl-C before the prompt is back, or twice during an answer
        terminal.note("\nleft")
    finally:
        reader.close()
    _keep_packed(engine)
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
        device=options.device, adapters=() if adapter is None else ((ADAPTER, adapter),), any_base=any_base,
        adapter_room=room, serves=False, open_sealed=_open_sealed, speculate=options.speculate),
        OpeningProgress(device=terminal.note))


def _open_sealed(path: Path, tokenizer: str) -> DraftSource:
    """The sealed table of drafts beside the adapter, opened with the keys of the usual store."""
    from brise.traffic.ngrams import TableOpener  # noqa: PLC0415 - what opens a store takes long to import

    return TableOpener(None, settings.read().home)(path, tokenizer)


def _keep_packed(engine: Engine) -> None:
    """Keeps the packed weights for the next start, if they are not kept yet. Ctrl-C leaves it."""
    keeper = engine.model.keeper
    if keeper is None:
        return
    try:
        if not keeper.finish(SILENT_S):
            terminal.note("writing the packed weights, for a faster start next time (Ctrl-C leaves it)")
            keeper.finish()
    except KeyboardInterrupt:
        keeper.stop()


@dataclass
class Stop:
    """Whether the current answer shall stop."""

    is_pressed: bool = False


def _question(words: list[str]) -> str | None:
    """The single question from the command line or stdin; None if a person will type questions."""
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
    """Refuses bytes that are not UTF-8, which Python passes on as lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(f"the question is not UTF-8: {error}") from None
    return text


def _converse(session: ChatSession, reader: LineReader) -> None:
    """Reads and answers questions until the person leaves. Errors are shown, and the chat continues."""
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
            action = execute(session, typed.text) if is_command else ChatAction(_checked(typed.text))
            if action.is_end:
                return
            if action.is_retry or action.question is not None and action.question.strip():
                with reader.hold_back(), _ctrl_c_stops() as stop:
                    _answer(session, action.question, stop)
                if session.conversation.engine.model.keeper is not None:  # while the person reads
                    session.conversation.engine.model.keeper.start()
        except BriseError as error:
            terminal.note(f"brise: error: {error}")


def _answer(session: ChatSession, question: str | None, stop: Stop) -> None:
    """Asks a question, or the last one again if it is None, and prints the answer as it comes."""
    printer, conversation = AnswerPrinter(session.options.thinking == "show"), session.conversation
    ask = conversation.ask_again if question is None else partial(conversation.ask, question)
    answer = ask(session.options, printer.write, lambda: stop.is_pressed)
    printer.finish()
    terminal.stream("" if answer.text.endswith("\n") else "\n")
    session.last = answer
    _explain(session, answer)
    if session.options.stats:
        terminal.note(answer.stats)


class AnswerPrinter:
    """Prints an answer as it comes: text to stdout, reasoning to stderr, between two lines."""

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
                pass  # no functions were offered, so none are called

    def finish(self) -> None:
        """Ends the reasoning, if it is being printed."""
        if self._is_thinking:
            self._is_thinking = False
            terminal.aside("\n[/thinking]\n")


def _explain(session: ChatSession, answer: PrintedAnswer) -> None:
    """Says why an answer ended before the model was done."""
    if answer.finish == "cancelled":
        terminal.note("[stopped]")
    elif answer.finish == "length" and answer.completion_tokens == session.options.max_tokens:
        terminal.note(f"[cut after {answer.completion_tokens} tokens, as --max-tokens says]")
    elif answer.finish == "length" and answer.completion_tokens == USUAL_MAX_TOKENS:
        terminal.note(f"[cut after {USUAL_MAX_TOKENS} tokens; --max-tokens N allows longer answers]")
    elif answer.finish == "length":
        terminal.note("[cut: the context is full; /clear starts a new conversation, --context N allows a longer one]")


@contextmanager
def _ctrl_c_stops() -> Iterator[Stop]:
    """Ctrl-C sets a flag that is checked between steps, so that no step is interrupted.

    A second Ctrl-C, before the first has taken effect, ends the program as usual.
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
