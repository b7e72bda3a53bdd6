"""What other engines get: folders with the model or adapter, the chat template, and the command."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

import brise
from brise.checkpoint.adapters.peft import AdapterFile, write_adapter
from brise.checkpoint.open import open_checkpoint
from brise.cli.main import main
from brise.convert.go_template import CONVERSATIONS, frame_of
from brise.errors import OutputError, UnsupportedError
from brise.text.chat import ChatTemplate
from brise.text.load import tokens_for
from brise.text.tokenizer import Tokenizer
from tests.checkpoint.make_adapter import random_low_ranks
from tests.checkpoint.make_gguf import write_tiny
from tests.text.vocabulary import CHATML, tokenizer

DEFAULT = ("{% if messages[0].role != 'system' %}<|im_start|>system\nYou {are} \"kind\".<|im_end|>\n{% endif %}"
           + CHATML)
MERGED = ("{% for m in messages %}{% if m.role == 'user' %}[U]{{ messages[0].content + m.content }}{% endif %}"
          "{% endfor %}")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("base") / "tiny.gguf", "llama")


def adapter_of(base: Path, folder: Path, rank: int = 4) -> Path:
    config = open_checkpoint(base).config
    folder.parent.mkdir(exist_ok=True)
    write_adapter(folder, AdapterFile(random_low_ranks(config, 0, rank=rank), rank, 2.0 * rank), None, config)
    return folder


def command(folder: Path) -> list[str]:
    """The words of serve.sh's last line."""
    return shlex.split((folder / "serve.sh").read_text().splitlines()[-1])


def test_vllm_gets_a_folder_and_the_adapter_as_peft_wrote_it(base: Path, tmp_path: Path) -> None:
    adapter = adapter_of(base, tmp_path / "run" / "adapter")
    exported = brise.export(base, tmp_path / "out", engine="vllm", adapter=adapter)
    words = command(exported.out)
    assert words[:4] == ["exec", "vllm", "serve", "./model"] and exported.name == "run"
    assert words[words.index("--max-lora-rank") + 1] == "8" and "run=./adapter" in words
    assert (exported.out / "adapter" / "adapter_model.safetensors").read_bytes() == (
        adapter / "adapter_model.safetensors").read_bytes()
    assert open_checkpoint(exported.out / "model").kind == "hf"
    assert (exported.out / words[words.index("--chat-template") + 1]).read_text() == (
        open_checkpoint(base).metadata["tokenizer.chat_template"])
    assert (exported.out / "serve.sh").stat().st_mode & 0o111


def test_llama_cpp_gets_the_base_in_place_and_a_gguf_adapter(base: Path, tmp_path: Path,
                                                             capsys: pytest.CaptureFixture[str]) -> None:
    adapter = adapter_of(base, tmp_path / "adapter")
    assert main(["export", str(base), str(tmp_path / "out"), "--for", "llama.cpp", "--adapter", str(adapter), "--name",
                 "my model", "--json"]) == 0
    report, words = json.loads(capsys.readouterr().out), command(tmp_path / "out")
    assert words[words.index("--model") + 1] == str(base.resolve()) and words[words.index("--alias") + 1] == "my model"
    assert set(report["files"]) == {"adapter.gguf", "chat_template.jinja", "serve.sh"} and "--jinja" in words


def test_a_merged_model_needs_no_adapter(base: Path, tmp_path: Path) -> None:
    adapter = adapter_of(base, tmp_path / "adapter")
    exported = brise.export(base, tmp_path / "out", engine="ollama", adapter=adapter, merge=True, name="calls")
    modelfile = (exported.out / "Modelfile").read_text()
    assert modelfile.startswith("FROM ./model.gguf\n") and "ADAPTER" not in modelfile
    assert 'PARAMETER stop "<|im_end|>"' in modelfile
    assert command(exported.out) == ["ollama", "create", "calls", "-f", "Modelfile"]


def test_what_an_engine_cannot_do_is_refused_before_anything_is_written(base: Path, tmp_path: Path) -> None:
    config = open_checkpoint(base).config
    low_ranks = dict(random_low_ranks(config, 0, rank=4))
    first = next(iter(low_ranks))
    low_ranks[first] = replace(low_ranks[first], scale=low_ranks[first].scale * 2)
    write_adapter(tmp_path / "uneven", AdapterFile(low_ranks, 4, 8.0), None, config)
    with pytest.raises(UnsupportedError, match="2 scales"):
        brise.export(base, tmp_path / "out", engine="vllm", adapter=tmp_path / "uneven")
    with pytest.raises(UnsupportedError, match="rank is 600"):
        brise.export(base, tmp_path / "out", engine="vllm", adapter=adapter_of(base, tmp_path / "wide", 600))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("words", "message"), [
    (["--for", "vllm", "--format", "gguf"], "--format and --for"), (["--name", "x"], "--name needs --for"),
    (["--for", "vllm", "--merge"], "--merge needs --adapter")])
def test_contradictions_are_refused(base: Path, tmp_path: Path, words: list[str], message: str,
                                    capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(base), str(tmp_path / "out"), *words]) == 1
    assert message in capsys.readouterr().err


def test_a_folder_that_is_there_is_kept(base: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is there already"):
        brise.export(base, tmp_path, engine="vllm")


@pytest.mark.parametrize("source", [CHATML, DEFAULT], ids=["chatml", "default-system"])
def test_a_frame_renders_as_the_template_does(source: str) -> None:
    chat, tiny = ChatTemplate(source, tokenizer()), tokenizer()
    frame = frame_of(chat, tiny)
    again = ChatTemplate(frame.jinja_template(), tiny)
    for turns in CONVERSATIONS:
        messages = [{"role": role, "content": content} for role, content in turns]
        expected = chat.prompt(messages).tokens
        assert frame.text(turns) == tiny.decode(expected, show_control=True)
        assert again.prompt(messages).tokens == expected


def test_what_is_no_frame_is_refused_with_the_reason() -> None:
    with pytest.raises(UnsupportedError, match="cannot be written as another template"):
        frame_of(ChatTemplate(MERGED, tokenizer()), tokenizer())


def test_the_real_model(smollm2_path: Path) -> None:
    tokens = tokens_for(open_checkpoint(smollm2_path))
    assert isinstance(tokens.tokenizer, Tokenizer) and tokens.chat is not None
    frame = frame_of(tokens.chat, tokens.tokenizer)
    assert frame.bos == "" and "You are a helpful AI assistant named SmolLM" in frame.default
    assert frame.before["user"] == "<|im_start|>user\n" and frame.generation == "<|im_start|>assistant\n"


GO = """package main
import ("encoding/json"; "os"; "text/template")
type Message struct { Role, Content string }
type Input struct { Template string; Conversations [][]Message }
func main() {
  var in Input
  if err := json.NewDecoder(os.Stdin).Decode(&in); err != nil { panic(err) }
  var out []string
  t := template.Must(template.New("").Parse(in.Template))
  for _, messages := range in.Conversations {
    system := ""
    for _, m := range messages { if m.Role == "system" { system = m.Content } }
    w := new(Buffer)
    if err := t.Execute(w, map[string]any{"System": system, "Messages": messages}); err != nil { panic(err) }
    out = append(out, string(w.b))
  }
  json.NewEncoder(os.Stdout).Encode(out)
}
type Buffer struct { b []byte }
func (w *Buffer) Write(p []byte) (int, error) { w.b = append(w.b, p...); return len(p), nil }
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("go") is None, reason="needs Go, whose template language Ollama reads")
def test_go_renders_what_jinja_renders(tmp_path: Path) -> None:
    (tmp_path / "main.go").write_text(GO)
    chat, tiny = ChatTemplate(DEFAULT, tokenizer()), tokenizer()
    conversations = [[{"Role": role, "Content": content} for role, content in turns] for turns in CONVERSATIONS]
    done = subprocess.run(
        ["go", "run", str(tmp_path / "main.go")], capture_output=True, timeout=120, cwd=tmp_path, check=True,
        env={"PATH": "/usr/bin:/bin:/usr/local/go/bin", "HOME": str(tmp_path), "GOCACHE": str(tmp_path / "cache"),
             "GOFLAGS": "-mod=mod", "GO111MODULE": "off", "GOTOOLCHAIN": "local"},
        input=json.dumps({"Template": frame_of(chat, tiny).go_template(with_bos=True),
                          "Conversations": conversations}).encode())
    expected = [tiny.decode(chat.prompt([{"role": role, "content": content} for role, content in turns]).tokens,
                            show_control=True) for turns in CONVERSATIONS]
    assert json.loads(done.stdout) == expected
