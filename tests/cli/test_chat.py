"""`brise chat` with one question, in a pipe, and at a terminal."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from brise.checkpoint.open import open_checkpoint
from brise.cli import chat
from brise.cli.main import main
from tests.checkpoint.make_adapter import written

QUICK = ["--max-tokens", "4", "--temperature", "0"]


def ask(*words: str, stdin: bytes = b"", monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
    return main(["chat", *words])


def test_one_question_prints_only_the_answer_to_stdout(
        tiny_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(str(tiny_path), *QUICK, "what", "is", "it", monkeypatch=monkeypatch) == 0
    out, err = capsys.readouterr()
    assert out.endswith("\n") and len(out) > 1 and err == "[cut after 4 tokens, as --max-tokens says]\n"


def test_an_adapter_answers_and_one_of_another_model_does_not(
        tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = str(written(tmp_path / "adapter", open_checkpoint(tiny_path).config))
    said = []
    for words in ((), ("--adapter", adapter, "--any-base"),
                  ("--adapter", adapter, "--any-base", "--memory", "8GB", "--context", "128")):  # of all tests
        assert ask(str(tiny_path), "--max-tokens", "16", "--temperature", "0", *words, "what is it",
                   monkeypatch=monkeypatch) == 0
        said.append(capsys.readouterr().out)
    assert said[0] != said[1] == said[2]
    for words, message in ((("--adapter", adapter), "was trained on smollm2"), (("--any-base",), "needs --adapter")):
        assert ask(str(tiny_path), *words, "hi", monkeypatch=monkeypatch) == 1
        assert message in capsys.readouterr().err


def test_a_pipe_a_word_and_both_ask_the_same(
        tiny_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    answers = []
    for words, stdin in ((("the end\n\nof it",), b"unread"), ((), b"the end\n\nof it\n"),
                         (("the end", "-"), b"of it\n"), (("-", "of it"), b"the end")):
        assert ask(str(tiny_path), *QUICK, *words, stdin=stdin, monkeypatch=monkeypatch) == 0
        answers.append(capsys.readouterr().out)
    assert len(set(answers)) == 1


@pytest.mark.parametrize(("words", "stdin", "message"), [
    ([], b"", "nothing to ask"), ([], b"\n \n", "nothing to ask"), ([], b"\xff\xfe", "not UTF-8"),
    (["\udcff"], b"", "not UTF-8"), ([" "], b"", "nothing to ask"),
    (["a " * 600], b"", r"maximum context length is 512 tokens, .*\nhint: ask something shorter\n"),
    (["--context", "64", "a " * 600], b"", r"hint: .*--context N \(this model: up to 512\)"),
    (["--context", "100000", "hi"], b"", "512")])
def test_what_cannot_be_answered_is_an_error(
        tiny_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
        words: list[str], stdin: bytes, message: str) -> None:
    assert ask(str(tiny_path), *words, stdin=stdin, monkeypatch=monkeypatch) == 1
    out, err = capsys.readouterr()
    assert out == "" and re.search(message, err)


def test_stats_go_to_stderr(
        tiny_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(str(tiny_path), *QUICK, "--stats", "hi", monkeypatch=monkeypatch) == 0
    err = capsys.readouterr().err
    assert re.search(r"\[4 tokens, [\d.]+ tokens/s; first token after [\d.]+ s; prompt \d+ tokens, 0 c", err)


def test_the_same_seed_gives_the_same_answer(
        tiny_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    words = (str(tiny_path), "--max-tokens", "20", "--temperature", "2", "--top-p", "1", "--min-p", "0", "hi")
    answers = []
    for seed in ("1", "1", "2"):
        ask(*words, "--seed", seed, monkeypatch=monkeypatch)
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] != answers[2]


FIRST_TOKEN = """
import sys
from brise.cli import terminal
from brise.cli.main import main
heavy = ("torch", "transformers", "gguf", "rich", "starlette", "uvicorn", "httpx", "llguidance", "asyncio",
         "prometheus_client", "huggingface_hub", "brise.engine.engine_thread", "brise.hub.pull")
def stream(text):
    print([name for name in heavy if name in sys.modules])
    raise SystemExit(0)
terminal.stream = stream
main(["chat", sys.argv[1], "hi"])
"""


def test_nothing_is_imported_that_the_first_token_does_not_need(tiny_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FIRST_TOKEN, str(tiny_path)],
                          capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stdout + done.stderr


def test_ctrl_c_stops_the_answer_and_a_second_one_the_program() -> None:
    with chat._ctrl_c_stops() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_pressed
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class SilenceError(Exception):
    """What should have been written was not."""


class Terminal:
    """`brise chat` on a pseudo terminal, as a person has it."""

    def __init__(self, *words: str) -> None:
        self.seen = ""
        pid, self.descriptor = pty.fork()
        if pid == 0:
            os.environ["TERM"] = "dumb"
            os.execv(sys.executable, [sys.executable, "-m", "brise", "chat", *words])
        self.pid = pid

    def wait_for(self, text: str, limit_s: float = 60) -> str:
        """Reads on until `text` has come after what was waited for before; what came in between."""
        deadline_s = time.monotonic() + limit_s
        while text not in self.seen:
            left_s = deadline_s - time.monotonic()
            if left_s < 0 or not select.select([self.descriptor], [], [], left_s)[0]:
                raise SilenceError(f"{text!r} did not come: {self.seen!r}")
            self.seen += os.read(self.descriptor, 4096).decode("utf-8", "replace")
        before, _, self.seen = self.seen.partition(text)
        return before

    def press_ctrl_c_until(self, text: str) -> None:
        """Python misses a Ctrl-C in the instant between writing the prompt and waiting for a key."""
        for _ in range(20):
            self.type("\x03")
            with contextlib.suppress(SilenceError):
                self.wait_for(text, 3)
                return
        raise SilenceError(f"{text!r} did not come: {self.seen!r}")

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def end(self) -> int:
        """The exit status, after the program has ended, which on Linux is an OSError for the reader."""
        with contextlib.suppress(OSError):
            self.wait_for("never written")
        os.close(self.descriptor)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_a_chat_at_a_terminal(tiny_path: Path, home: Path) -> None:
    terminal = Terminal(str(tiny_path), *QUICK, "--stats")
    terminal.wait_for("> ")
    terminal.type("one\\\ntwo\n")
    terminal.wait_for(". ")
    terminal.wait_for("tokens/s")
    terminal.wait_for("> ")  # always: before the prompt the terminal swallows a Ctrl-D
    terminal.type('"""\n/not a command\n"""\n')
    terminal.wait_for("tokens/s")
    terminal.wait_for("> ")
    terminal.type("/he\t\n")
    terminal.wait_for("/retry")
    terminal.wait_for("> ")
    terminal.type("/wrong\n")
    terminal.wait_for("there is no command '/wrong'")
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.end() == 0
    history = home / "chat_history"
    assert history.stat().st_mode & 0o777 == 0o600
    assert history.read_text().splitlines()[:2] == ["one\\", "two"]


def test_ctrl_c_at_the_prompt_leaves_at_the_second_time(tiny_path: Path) -> None:
    terminal = Terminal(str(tiny_path), *QUICK)
    terminal.wait_for("> ")
    terminal.press_ctrl_c_until("once more to leave")
    terminal.press_ctrl_c_until("\r\nleft")
    assert terminal.end() == 0


def test_ctrl_c_stops_a_real_answer_and_what_was_typed_waits_to_be_sent(
        smollm2_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    terminal = Terminal(str(smollm2_path), "--seed", "1")
    terminal.wait_for("> ")
    terminal.type("Count from one to two hundred, in words.\n")
    terminal.wait_for("\n")  # the echo of what was typed; the answer comes now
    terminal.wait_for(" ")
    terminal.type("/save xx\x17chatt\x7f.json\n\x1b[A")  # it would stand in the answer, or be sent after it
    terminal.type("\x03")
    assert "save" not in terminal.wait_for("[stopped]")
    assert "save" not in terminal.wait_for("> ")
    terminal.wait_for("/save chat.json")
    saved = tmp_path / "chat.json"
    assert not saved.exists()
    terminal.type("\n")
    terminal.wait_for("saved to")
    roles = [message["role"] for message in json.loads(saved.read_text())["messages"]]
    assert roles == ["user", "assistant"]  # the answer that was stopped is kept
    terminal.wait_for("> ")
    terminal.type("/exit\n")
    assert terminal.end() == 0


def test_the_default_model_knows_einstein(
        smollm2_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    question = "Who was Albert Einstein?"
    assert ask(str(smollm2_path), "--temperature", "0", "--max-tokens", "24", question, monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out.startswith("Albert Einstein was a")


# Heavy, and no part of a first answer; a module that is needed later is imported where it is needed.
NOT_BEFORE_AN_ANSWER = ("httpx", "rich", "jinja2", "huggingface_hub", "prometheus_client", "llguidance", "numpy.random",
                        "starlette", "uvicorn", "urllib.request", "ssl", "email", "PIL", "cv2", "mistral_common",
                        "torch", "sqlite3", "asyncio", "brise.text.sentencepiece", "brise.backends.reference.ops")


def test_a_first_answer_imports_nothing_heavy(tiny_path: Path, home: Path) -> None:
    check = ("import sys\nfrom brise.cli.main import main\n"
             f"status = main(['chat', {str(tiny_path)!r}, 'hi', '--max-tokens', '1'])\n"
             f"assert status == 0\nprint([name for name in {NOT_BEFORE_AN_ANSWER!r} if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
