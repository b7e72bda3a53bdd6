"""Loads a model's tokenizer and chat format from whichever of its files has them.

In this order: tekken.json or a tokenizer.model with a version in its name (mistral-common decides); the metadata of
the GGUF file; tokenizer.json or tokenizer.model, with the template of chat_template.jinja, chat_template.json or
tokenizer_config.json. SYSTEM_PROMPT.txt beside them is kept for callers that ask for it; it is never added unasked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from brise.errors import CheckpointError, MissingExtraError, RequestError
from brise.text import hf_tokenizer
from brise.text.chat import ChatTemplate
from brise.text.conversation import Chat
from brise.text.hf_tokenizer import read_json
from brise.text.protocols import TextTokenizer
from brise.text.sandbox import TemplateProgram
from brise.text.tokenizer import Tokenizer

_VERSION = re.compile(r"\.model\.v(\d{1,3})(?:m\d+)?$")
_MAX_TEXT_BYTES = 1 << 22  # of a template or a system prompt


class Files(Protocol):
    """What a checkpoint must offer: its folder, and a GGUF file's metadata."""

    @property
    def folder(self) -> Path:
        """The folder of the checkpoint's other files."""
    @property
    def metadata(self) -> Mapping[str, object]:
        """Keys of the GGUF file; empty for safetensors."""


@dataclass(frozen=True)
class Tokens:
    """A tokenizer, a chat format, and the unchanged text of SYSTEM_PROMPT.txt."""

    tokenizer: TextTokenizer
    chat: Chat | None
    system_prompt: str | None = None


def tokens_for(checkpoint: Files, *, begins_template: bool = False) -> Tokens:
    """Tokenizer and chat format of a checkpoint, or an error that says what is missing. With `begins_template` the
    template's process starts while the tokenizer is built."""
    folder, metadata = checkpoint.folder, checkpoint.metadata
    system_prompt = _text(folder / "SYSTEM_PROMPT.txt")
    has_own = "tokenizer.ggml.model" in metadata
    if (folder / "tekken.json").is_file() and (not has_own or metadata.get("tokenizer.ggml.pre") == "tekken"):
        return _tekken(folder / "tekken.json", metadata, system_prompt)
    pieces = versioned(folder)
    if pieces is not None and (not has_own or metadata.get("tokenizer.ggml.model") == "llama"):
        return _mistral_pieces(pieces, metadata, system_prompt)
    if has_own:
        program = _begun(metadata.get("tokenizer.chat_template")) if begins_template else None
        tokenizer = gguf_tokenizer(metadata)
        return Tokens(tokenizer, ChatTemplate.from_gguf(metadata, tokenizer, program), system_prompt)
    if (folder / "tokenizer.json").is_file():
        return _hf(folder, system_prompt, begins_template=begins_template)
    pieces = folder / "tokenizer.model"
    if pieces.is_file() and (folder / "params.json").is_file() and not (folder / "tokenizer_config.json").is_file():
        return _mistral_pieces(pieces, metadata, system_prompt)
    if pieces.is_file():
        return _sentencepiece(folder, system_prompt)
    raise CheckpointError(f"{folder} has no tokenizer: neither tekken.json nor tokenizer.json nor tokenizer.model",
                          field="tokenizer.json", hint="copy it from the model's repository")


def gguf_tokenizer(metadata: Mapping[str, object]) -> TextTokenizer:
    """The tokenizer that a GGUF file describes."""
    if metadata.get("tokenizer.ggml.model") in ("llama", "t5"):
        from brise.text import read_sentencepiece  # noqa: PLC0415 - most models have a byte-level BPE

        return read_sentencepiece.from_gguf(metadata)
    return Tokenizer.from_gguf(metadata)


def _tekken(path: Path, metadata: Mapping[str, object], system_prompt: str | None) -> Tokens:
    try:
        # Two thirds of a second, and no other model needs it.
        from brise.text.mistral import MistralTokenizer  # noqa: PLC0415
        from brise.text.mistral_chat import MistralChat  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("mistral-common[image]", "mistral", f"the tokenizer {path.name}") from error
    tokenizer = MistralTokenizer(path)
    own = metadata.get("tokenizer.ggml.tokens")
    if isinstance(own, list | tuple):
        _check_same(tokenizer, own, path)
    return Tokens(tokenizer, MistralChat.of(tokenizer), system_prompt)


def versioned(folder: Path) -> Path | None:
    """Mistral's SentencePiece file with a version in its name, the highest one of several."""
    found = [(int(match[1]), path) for path in sorted(folder.glob("*.model.v*"))
             if (match := _VERSION.search(path.name)) is not None]
    return max(found)[1] if found else None


def _mistral_pieces(path: Path, metadata: Mapping[str, object], system_prompt: str | None) -> Tokens:
    try:
        from brise.text.mistral_chat import MistralChat  # noqa: PLC0415
        from brise.text.mistral_pieces import open_pieces  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("mistral-common[image]", "mistral", f"the chat format of {path.name}") from error
    tokenizer, common = open_pieces(path)
    own = metadata.get("tokenizer.ggml.tokens")
    if isinstance(own, list | tuple):
        _check_same(tokenizer, own, path)
    return Tokens(tokenizer, MistralChat(tokenizer, common), system_prompt)


def _check_same(tokenizer: TextTokenizer, own: list[object] | tuple[object, ...], path: Path) -> None:
    """Checks that a tekken.json beside a GGUF file is this model's."""
    differing = [name for name, token in tokenizer.control.items()
                 if "<SPECIAL_" not in name and (token >= len(own) or own[token] != name)]
    if len(own) != tokenizer.vocab_size or differing:
        raise CheckpointError(f"{path} is not this model's: it has {tokenizer.vocab_size} tokens, the GGUF file "
                              f"{len(own)}, and they differ in {', '.join(differing[:4]) or 'no control token'}",
                              field=path.name, hint="move one of the two files away")


def _begun(source: object) -> TemplateProgram | None:
    """The template's program, which starts meanwhile; what is wrong with it the first conversation says."""
    if not isinstance(source, str):
        return None
    with suppress(RequestError):
        return TemplateProgram(source, waits=False)
    return None


def _hf(folder: Path, system_prompt: str | None, *, begins_template: bool) -> Tokens:
    settings = _optional_json(folder / "tokenizer_config.json")
    template = _folder_template(folder, settings)
    program = _begun(template) if begins_template else None
    tokenizer = _hf_tokenizer(folder / "tokenizer.json", settings, _more_ends(folder))
    return Tokens(tokenizer, ChatTemplate.or_chatml(template, tokenizer, program=program), system_prompt)


def _sentencepiece(folder: Path, system_prompt: str | None) -> Tokens:
    from brise.text import read_sentencepiece  # noqa: PLC0415 - most models have a byte-level BPE

    settings = _optional_json(folder / "tokenizer_config.json")
    tokenizer = read_sentencepiece.from_file(folder / "tokenizer.model", settings, _more_ends(folder))
    return Tokens(tokenizer, ChatTemplate.or_chatml(_folder_template(folder, settings), tokenizer), system_prompt)


def _more_ends(folder: Path) -> list[int]:
    """The tokens that generation_config.json says end an answer."""
    end_ids = _optional_json(folder / "generation_config.json").get("eos_token_id")
    return [end for end in (end_ids if isinstance(end_ids, list) else [end_ids]) if isinstance(end, int)]


def _folder_template(folder: Path, settings: Mapping[str, object]) -> str | None:
    template = _text(folder / "chat_template.jinja")
    if template is not None:
        return template
    return _template(_optional_json(folder / "chat_template.json").get("chat_template")
                     or settings.get("chat_template"))


def _hf_tokenizer(path: Path, settings: Mapping[str, object], ends: Sequence[int]) -> TextTokenizer:
    document = read_json(path)
    if hf_tokenizer.is_sentencepiece(document):
        from brise.text import read_sentencepiece  # noqa: PLC0415 - most models have a byte-level BPE

        return read_sentencepiece.from_hf(hf_tokenizer.read(path, settings, document), document, path.name, ends)
    return Tokenizer.from_hf(path, settings, ends, document)


def _template(value: object) -> str | None:
    """The template of tokenizer_config.json: the only one, or the one called default."""
    if isinstance(value, list):
        named = [entry.get("template") for entry in value
                 if isinstance(entry, dict) and entry.get("name") == "default"]
        value = named[0] if named else None
    return value if isinstance(value, str) else None


def _optional_json(path: Path) -> dict[str, object]:
    return read_json(path) if path.is_file() else {}


def _text(path: Path) -> str | None:
    if not path.is_file():
        return None
    if path.stat().st_size > _MAX_TEXT_BYTES:
        raise CheckpointError(f"{path.name} has {path.stat().st_size} bytes; at most {_MAX_TEXT_BYTES}",
                              field=path.name, value=path.stat().st_size, limit=_MAX_TEXT_BYTES)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path.name} is not UTF-8: {error}", field=path.name) from error
