"""The command line: exit status, where errors go, and that only the wanted command is loaded."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from brise.cli import terminal
from brise.cli.main import COMMANDS, build_parser, main, parse
from brise.errors import StoreError


@pytest.mark.parametrize("words", [["unknown"], ["models", "explode"], ["chat"], ["models", "--wrong"],
                                   ["chat", "m", "--temperature", "hot"], ["chat", "m", "hi", "--wrong"]])
def test_wrong_usage_exits_with_2_and_says_so_on_stderr(
        words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(words)
    out, err = capsys.readouterr()
    assert left.value.code == 2 and out == "" and "usage: brise" in err


@pytest.mark.parametrize(("words", "start"), [
    ([], "usage: brise [-h]"), (["help"], "usage: brise [-h]"), (["help", "chat"], "usage: brise chat"),
    (["chat", "help"], "usage: brise chat"), (["models", "help"], "usage: brise models [-h] ACTION"),
    (["help", "keys", "add"], "usage: brise keys add"), (["keys", "add", "help"], "usage: brise keys add"),
    (["version"], "brise ")])
def test_whoever_asks_for_help_gets_it_on_stdout(words: list[str], start: str, capsys: pytest.CaptureFixture[str],
                                                 ) -> None:
    with pytest.raises(SystemExit) as left:
        main(words)
    out, err = capsys.readouterr()
    assert left.value.code == 0 and out.startswith(start) and err == ""


def test_brise_alone_shows_the_first_steps_and_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([])
    out = capsys.readouterr().out
    steps = [line.split("  ")[1] for line in out.splitlines() if line.startswith("  brise ")]
    assert [parse(step.split()[1:]).command for step in steps[:3]] == ["pull", "chat", "serve"]
    assert all(f"\n    {name} " in out for name in COMMANDS)


@pytest.mark.parametrize(("words", "near"), [
    (["caht", "smollm2"], "no command 'caht'; did you mean 'chat'?"), (["quantise"], "did you mean 'quantize'?"),
    (["help", "plna"], "no command 'plna'; did you mean 'plan'?"), (["log", "exprot"], "did you mean 'export'?"),
    (["chat", "m", "--temprature", "1"], "no option '--temprature'; did you mean '--temperature'?"),
    (["keys", "add", "x", "--usd-a-day=5"], "no option '--usd-a-day'; did you mean '--usd-per-day'?"),
    (["tune", "x.jsonl"], "required: --model\nhint: for example: brise tune tickets.jsonl --model smollm2"),
    (["chat"], "arguments are required: MODEL\nhint: for example: brise chat smollm2"),
    (["zzz"], "there is no command 'zzz'; there are pull, models, ")])
def test_a_slip_is_named_with_what_was_meant(words: list[str], near: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(words)
    err = capsys.readouterr().err
    assert left.value.code == 2 and near in err and len(err.splitlines()) < 12


def test_a_question_may_end_with_the_word_help() -> None:
    assert parse(["chat", "mymodel", "help"]).words == ["help"]
    assert parse(["chat", "mymodel", "--seed", "1", "help"]).words == ["help"]


def test_an_error_exits_with_1_and_gives_its_hint_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "show", "absent"]) == 1
    assert capsys.readouterr() == (
        "", "brise: error: there is no model 'absent' on this machine\n"
            "hint: brise models search lists what can be pulled by name\n")


def test_ctrl_c_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("brise.cli.models.ModelStore.names", interrupt)
        assert main(["models"]) == 130


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_version_and_help_load_no_command(option: str) -> None:
    code = (f"import sys\nfrom brise.cli.main import main\ntry: main(['{option}'])\nexcept SystemExit: pass\n"
            "print(sorted(name for name in sys.modules if name.startswith('brise.cli.')))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith("['brise.cli.command_parser', 'brise.cli.main', 'brise.cli.terminal']\n")


def test_a_reader_that_leaves_is_no_error() -> None:
    code = "import sys\nfrom brise.cli.main import main\nsys.exit(main(['models', 'list', '--json']))"
    with subprocess.Popen([sys.executable, "-c", f"import time; time.sleep(0.2)\n{code}"],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_a_full_disk_behind_stdout_is_an_error() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "brise", "models", "list", "--json"], stdout=full,
                              stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "brise: error: No space left on device\n")


@pytest.mark.parametrize("words", [
    ["m", "--", "-5", "plus", "--seed"], ["m", "--seed", "1", "--", "-5", "plus", "--seed"],
    ["m", "hi", "--seed", "1", "--", "-5", "plus", "--seed"]])
def test_what_follows_two_dashes_is_words(words: list[str]) -> None:
    args = parse(["chat", *words])
    assert args.model == "m" and args.words[-3:] == ["-5", "plus", "--seed"]
    assert args.seed == (1 if "1" in words else None)


def test_two_dashes_do_not_hide_an_unknown_option() -> None:
    with pytest.raises(SystemExit):
        parse(["chat", "m", "--wrong", "--", "hi"])


def test_a_character_that_stdout_cannot_write_is_spelt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1"))
    monkeypatch.setattr("brise.cli.models.run", lambda args: terminal.result("caf\u00e9 \u65e5 \udcff"))
    main(["models", "list"])
    assert written.getvalue() == b"caf\xe9 \\u65e5 \\ufffd\n"


def test_every_command_says_the_same_in_both_helps() -> None:
    for name, summary in COMMANDS.items():
        assert summary in build_parser([name]).format_help()


def test_words_may_stand_around_options() -> None:
    args = parse(["chat", "m", "one", "--seed", "1", "two", "-", "three"])
    assert args.model == "m" and args.words == ["one", "two", "-", "three"] and args.seed == 1


@pytest.mark.parametrize(("num_bytes", "text"), [(0, "0 B"), (999, "999 B"), (98362432, "98.4 MB"),
                                                 (10**12, "1.0 TB")])
def test_sizes_are_readable(num_bytes: int, text: str) -> None:
    assert terminal.size(num_bytes) == text


def test_control_characters_cannot_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.stream_safely("a\x1b[2J\tb\n\x9bé")
    assert capsys.readouterr().out == "a␛[2J\tb\n\ufffdé"


EVIL = "\x1b]0;title\x07\x1b[2J\x1b[Hall is well\x9b8m\r"


def test_an_error_never_controls_the_terminal(monkeypatch: pytest.MonkeyPatch,
                                              capsys: pytest.CaptureFixture[str]) -> None:
    def fail(args: object) -> int:
        raise StoreError(f"there is no {EVIL}", hint=EVIL)

    monkeypatch.setattr("brise.cli.models.run", fail)
    assert main(["models", "list"]) == 1
    shown = capsys.readouterr().err
    assert "all is well" in shown and not any(char < " " and char != "\n" or "\x7f" <= char < "\xa0" for char in shown)


def test_a_line_of_a_result_does_not_either(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.result(f"{EVIL}\tx")
    assert capsys.readouterr().out == "␛]0;title␇␛[2J␛[Hall is well\ufffd8m␍\tx\n"
