"""A tuned model for another engine: the files that vLLM, llama.cpp or Ollama read, and the command that serves them.

A folder gets the model or the adapter, the chat template that was trained with, and serve.sh. Whatever the engine
cannot do is refused before anything is written.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from brise import settings
from brise.checkpoint.adapters.lineage import Lineage
from brise.checkpoint.adapters.peft import WEIGHTS_FILE, AdapterFile
from brise.checkpoint.adapters.peft_settings import CONFIG_FILE
from brise.checkpoint.gguf.write_adapter import write_gguf_adapter
from brise.checkpoint.gguf.write_mmproj import needs_projector, write_projector
from brise.checkpoint.model_files import find_layout
from brise.checkpoint.open import Checkpoint, open_checkpoint
from brise.checkpoint.read_original import Original, open_original
from brise.checkpoint.write_gguf import planned_bytes, write_mix
from brise.checkpoint.write_hf import exported_bytes, plain_format, write_hf
from brise.convert.go_template import frame_of
from brise.convert.merge_adapter import read_checked, with_adapter
from brise.errors import OutputError, UnsupportedError
from brise.files.atomic import refuse_existing, staged_folder
from brise.files.digests import Located
from brise.hub.locate import find_model
from brise.models.lora import ENDS
from brise.text.chat import ChatTemplate
from brise.text.load import Tokens, tokens_for
from brise.watch import SILENT, Watcher

Engine = Literal["vllm", "llama.cpp", "ollama"]
ENGINES: tuple[Engine, ...] = ("vllm", "llama.cpp", "ollama")

# What --max-lora-rank takes. Source: vllm-project/vllm, vllm/config/lora.py (MaxLoRARanks).
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
OLLAMA_CONTEXT = 8192  # its own default is shorter, and it cuts what is longer without a word

SCRIPT, TEMPLATE, MODELFILE = "serve.sh", "chat_template.jinja", "Modelfile"


@dataclass(frozen=True)
class EngineExportOptions:
    """What `brise export --for` writes: the `model`, or an `adapter` on it; with `merge` in its weights.

    `out` is the folder to write; `name` what the server calls the model; `dtype` that of the model's numbers (None:
    the source's, F16 if its weights are blocks of few bits).
    """

    model: str
    out: Path
    engine: Engine
    adapter: Path | None = None
    any_base: bool = False
    merge: bool = False
    dtype: Literal["bf16", "f16", "f32"] | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise OutputError(f"--for is {self.engine!r}, allowed are {', '.join(ENGINES)}")
        for option, is_given in (("--merge", self.merge), ("--any-base", self.any_base)):
            if is_given and self.adapter is None:
                raise OutputError(f"{option} needs --adapter FOLDER")


@dataclass(frozen=True)
class ExportedForEngine:
    """The folder, its files with sizes in bytes, the command that serves them, and what to know beside it."""

    out: Path
    engine: Engine
    name: str
    files: tuple[tuple[str, int], ...]
    command: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Source:
    """What is exported: the base, its adapter if it stays one, and how the folder is filled."""

    options: EngineExportOptions
    located: Located
    checkpoint: Checkpoint
    original: Original
    tokens: Tokens
    adapter: tuple[AdapterFile, Lineage | None] | None
    dtype: str
    name: str
    watcher: Watcher

    @property
    def template(self) -> str | None:
        """The source of the chat template; for mistral-common's formats one is made. None for base models."""
        chat = self.tokens.chat
        if isinstance(chat, ChatTemplate) or chat is None:
            return None if chat is None else chat.source
        return frame_of(chat, self.tokens.tokenizer).jinja_template()


@dataclass(frozen=True)
class _Plan:
    """A command, its notes, bytes to write, and what fills the folder."""

    command: tuple[str, ...]
    notes: tuple[str, ...]
    num_bytes: int
    fill: Callable[[Path], None]
    template: str | None = None  # of chat_template.jinja


def export_for(options: EngineExportOptions, watcher: Watcher = SILENT) -> ExportedForEngine:
    """Writes the folder. OutputError if it is there already; UnsupportedError names what the engine cannot do."""
    refuse_existing(options.out)
    source = _read(options, watcher)
    if source.tokens.chat is None and options.engine == "ollama":
        raise UnsupportedError("the model has no chat format, and an Ollama model needs one", hint="--for llama.cpp")
    plan = {"vllm": _vllm, "llama.cpp": _llama_cpp, "ollama": _ollama}[options.engine](source)
    script = f'#!/bin/sh\ncd "$(dirname "$0")" || exit 1\n{_shown(plan.command, options.engine)}\n'
    with staged_folder(options.out, plan.num_bytes) as folder:
        plan.fill(folder)
        if plan.template is not None:
            (folder / TEMPLATE).write_text(plan.template, encoding="utf-8")
        (folder / SCRIPT).write_text(script, encoding="utf-8")
        os.chmod(folder / SCRIPT, 0o755)
    files = tuple((path.relative_to(options.out).as_posix(), path.stat().st_size)
                  for path in sorted(options.out.rglob("*")) if path.is_file())
    return ExportedForEngine(options.out, options.engine, source.name, files,
                             shlex.quote(str(options.out / SCRIPT)), plan.notes)


def _read(options: EngineExportOptions, watcher: Watcher) -> _Source:
    located = find_model(options.model, settings.read())
    checkpoint, original = open_checkpoint(located.path), open_original(located.path)
    dtype = options.dtype.upper() if options.dtype else plain_format(original)
    adapter = None
    if options.adapter is not None and not options.merge:
        adapter = read_checked(options.adapter, original, located, any_base=options.any_base)
    original = with_adapter(original, located, options.adapter if options.merge else None, any_base=options.any_base)
    return _Source(options, located, checkpoint, original, tokens_for(checkpoint), adapter, dtype,
                   options.name or _name(options, located), watcher)


def _name(options: EngineExportOptions, located: Located) -> str:
    """The name of the run whose adapter it is, else the model's."""
    if options.adapter is None:
        return Path(located.name).stem
    folder = options.adapter.resolve()
    return folder.parent.name if folder.name == "adapter" else folder.name


def _shown(words: tuple[str, ...], engine: Engine) -> str:
    quoted = " ".join(shlex.quote(word) for word in words)
    return quoted if engine == "ollama" else f'exec {quoted} "$@"'


def _vllm(source: _Source) -> _Plan:
    options, notes = source.options, []
    is_here = source.checkpoint.kind == "hf" and source.options.dtype is None and not options.merge
    model = str(source.located.path.resolve()) if is_here else "./model"
    words = ["vllm", "serve", model, "--served-model-name"]
    if source.adapter is None:
        words += [source.name]
    else:
        rank = _vllm_rank(source.adapter[0])
        words += [f"{source.name}-base", "--enable-lora", "--max-lora-rank", str(rank), "--lora-modules",
                  f"{source.name}=./adapter"]
        notes.append(f"requests name {source.name!r}; {source.name + '-base'!r} is the model without the adapter")
    chat = source.tokens.chat
    template = chat.source if isinstance(chat, ChatTemplate) else None
    if template is not None:
        words += ["--chat-template", f"./{TEMPLATE}"]
    elif chat is not None:
        words += ["--tokenizer-mode", "mistral"]

    def fill(folder: Path) -> None:
        if not is_here:
            _write_hf(source, folder / "model")
        if source.adapter is not None and options.adapter is not None:
            (folder / "adapter").mkdir()
            for name in (CONFIG_FILE, WEIGHTS_FILE, "lineage.json"):
                if (options.adapter / name).is_file():
                    shutil.copyfile(options.adapter / name, folder / "adapter" / name)

    size = (0 if is_here else exported_bytes(source.original, source.dtype)) + _adapter_bytes(source)
    return _Plan(tuple(words), tuple(notes), size, fill, template)


def _vllm_rank(adapter: AdapterFile) -> int:
    """The smallest rank that vLLM is started with; it knows no DoRA, and one scale for all matrices."""
    if adapter.use_dora:
        raise UnsupportedError("the adapter has magnitudes (DoRA), which vLLM does not serve", hint="give --merge")
    ends = [name for name in adapter.modules if name in ENDS]
    if ends:
        raise UnsupportedError(f"the adapter changes {' and '.join(ends)}; for vLLM allowed are the matrices of layers",
                               hint="give --merge")
    scales = {round(low_rank.scale, 9) for low_rank in adapter.low_ranks.values()}
    if len(scales) > 1:
        raise UnsupportedError(f"the adapter has {len(scales)} scales (rank_pattern or alpha_pattern), vLLM applies "
                               "one to all matrices", hint="give --merge")
    rank = max(len(low_rank.a) for low_rank in adapter.low_ranks.values())
    allowed = [number for number in VLLM_RANKS if number >= rank]
    if not allowed:
        raise UnsupportedError(f"the adapter's rank is {rank}, vLLM serves at most {VLLM_RANKS[-1]}",
                               hint="give --merge")
    return allowed[0]


def _llama_cpp(source: _Source) -> _Plan:
    template = source.template
    is_made = template is not None and not isinstance(source.tokens.chat, ChatTemplate)
    model, fill, size = _gguf(source)
    words = ["llama-server", "--model", model, "--alias", source.name]
    if source.adapter is not None:
        words += ["--lora", "./adapter.gguf"]
    if needs_projector(source.original):
        projector = find_layout(source.located.path).projector
        if model.startswith("./"):
            words += ["--mmproj", "./mmproj.gguf"]
        elif projector is not None:
            words += ["--mmproj", str(projector.resolve())]
    words += ["--jinja"] + ([] if template is None else ["--chat-template-file", f"./{TEMPLATE}"])
    notes = ("the template was made from mistral-common's format, and has no tools: vLLM reads tekken.json itself",)
    return _Plan(tuple(words), notes if is_made else (), size, fill, template)


def _ollama(source: _Source) -> _Plan:
    chat, tokenizer = source.tokens.chat, source.tokens.tokenizer
    assert chat is not None
    model, write, size = _gguf(source)
    # Ollama puts the tokenizer's bos before a prompt, so that a template that writes it would double it.
    template = frame_of(chat, tokenizer).go_template(with_bos=not tokenizer.add_bos)
    lines = [f"FROM {model}"]
    if source.adapter is not None:
        lines.append("ADAPTER ./adapter.gguf")
    lines.append(f'TEMPLATE """{template}"""')
    lines += [f"PARAMETER stop {_quoted(tokenizer.token_text(end))}" for end in sorted(tokenizer.end_ids)]
    lines.append(f"PARAMETER num_ctx {min(source.checkpoint.config.max_context, OLLAMA_CONTEXT)}")

    def fill(folder: Path) -> None:
        write(folder)
        (folder / MODELFILE).write_text("\n".join(lines) + "\n", encoding="utf-8")

    return _Plan(("ollama", "create", source.name, "-f", MODELFILE),
                 ("its template has no tools: ask with tools through llama.cpp, vLLM or brise serve",
                  f"then ask for the model {source.name!r} at http://127.0.0.1:11434/v1"), size, fill)


def _gguf(source: _Source) -> tuple[str, Callable[[Path], None], int]:
    """The path of the GGUF model in the command, what writes it (and the adapter), and the bytes."""
    is_here = source.checkpoint.kind == "gguf" and source.options.dtype is None and not source.options.merge
    located = source.located.path.resolve()
    if is_here and located.is_dir():
        located = source.checkpoint.files[0].resolve()

    def fill(folder: Path) -> None:
        if not is_here:
            with source.watcher.progress("writing", planned_bytes(source.original, source.dtype), "bytes") as advance:
                write_mix(source.original, folder / "model.gguf", source.dtype, requantize=True, wrote=advance)
            if needs_projector(source.original):
                write_projector(source.original, folder / "mmproj.gguf")
        if source.adapter is not None:
            write_gguf_adapter(folder / "adapter.gguf", *source.adapter, source.checkpoint.config, "F32",
                               is_tied=source.original.is_tied)

    if source.adapter is not None and source.adapter[0].use_dora:
        raise UnsupportedError("the adapter has magnitudes (DoRA), which llama.cpp's adapters cannot hold",
                               hint="give --merge")
    size = (0 if is_here else planned_bytes(source.original, source.dtype)) + _adapter_bytes(source)
    return str(located) if is_here else "./model.gguf", fill, size


def _write_hf(source: _Source, folder: Path) -> None:
    with source.watcher.progress("writing", exported_bytes(source.original, source.dtype), "bytes") as advance:
        write_hf(source.original, folder, source.dtype, advance)


def _adapter_bytes(source: _Source) -> int:
    return 0 if source.adapter is None else source.adapter[0].nbytes


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
