"""Parsers of model files: GGUF, safetensors, configurations, tokenizers, templates, adapters, images."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import sentencepiece

from brise.checkpoint.adapters.lineage import read_lineage
from brise.checkpoint.adapters.peft import read_adapter
from brise.checkpoint.gguf.file import StringArray, open_gguf
from brise.checkpoint.gguf.imatrix import load_importance, save_importance
from brise.checkpoint.gguf.read_model import read_config, read_weights
from brise.checkpoint.open import open_checkpoint
from brise.checkpoint.pooling import folder_pooling
from brise.checkpoint.safetensors import read_hf_config, read_mistral_params
from brise.checkpoint.safetensors.file import open_safetensors
from brise.errors import RequestError
from brise.files.json_file import parse_json
from brise.hub.other_stores import OtherStores
from brise.models.rope import frequencies
from brise.models.weights import Dense, Quant, Stored, Weight, place
from brise.quant.importance import Importance, Sums
from brise.settings import ToolFolders
from brise.text import audio, images, load, read_sentencepiece
from brise.text.audio import AudioSettings
from brise.text.charsmap import CharsMap
from brise.text.images import ImageSettings
from brise.text.mistral import MistralTokenizer
from brise.text.protocols import TextTokenizer
from brise.text.tokenizer import Tokenizer
from tests.checkpoint import (
    make_adapter,
    make_audio_model,
    make_folder,
    raw_gguf,
    test_gguf_fuzz,
    test_safetensors_fuzz,
)
from tests.checkpoint.make_tokenizer import write_tokenizer
from tests.fuzz.target import Target, as_json, scratch, written
from tests.goldens import gemma3_vision, golden
from tests.hub import make_stores
from tests.text import sentencepieces, tekken, vocabulary

WEIGHTS = "adapter_model.safetensors"
TEXTS = ("Hello there!", "São 日本 \n\n 12345 <|im_end|>", "")
STEPS = [{"idx": number, "name": str(number), "path": f"{number}_{name}",
          "type": f"sentence_transformers.models.{name}"}
         for number, name in enumerate(("Transformer", "Pooling"))]
MESSAGES = [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "ho"}, {"role": "user", "content": "x"}]


def targets() -> list[Target]:
    return [
        Target("gguf header", _gguf, lambda: [raw_gguf.small_valid_file()]),
        Target("gguf model", _gguf_model, lambda: [test_gguf_fuzz.MODEL[:test_gguf_fuzz.MODEL_HEADER]]),
        Target("imatrix", lambda data: load_importance(written("i.gguf", data)), _imatrices),
        Target("safetensors header", _safetensors, lambda: [test_safetensors_fuzz.SMALL]),
        Target("safetensors model", _safetensors_model, lambda: [_parts(_model_tensors())[0]], "json"),
        Target("config.json", _config, _configs, "json"),
        Target("params.json", lambda data: frequencies(read_mistral_params.read_params(
            parse_json(data, "params.json")).config.rope), _params, "json"),
        Target("pooling", _pooling, lambda: as_json([STEPS, {"pooling_mode_mean_tokens": True}]), "json"),
        Target("ollama manifest", _ollama, lambda: [make_stores.ollama(scratch() / "seed", "m", "1b", {
            "model": b"GGUF", "projector": b"GGUF", "license": b"x"}).read_bytes()], "json"),
        Target("json of models", lambda data: parse_json(data, "x"), lambda: as_json({"a": [1, {"b": "c"}]})),
        Target("adapter_config.json", _adapter("adapter_config.json"), _adapter_seeds("adapter_config.json"), "json"),
        Target("adapter weights", _adapter(WEIGHTS), lambda: [_parts(_adapter_files()[WEIGHTS])[0]], "json"),
        Target("lineage", _lineage, _adapter_seeds("lineage.json"), "json"),
        Target("tokenizer.json", _tokenizer_json, _tokenizers, "json", max_bytes=1 << 16, slow_s=1),
        Target("tokenizer_config.json", _tokenizer_config, _tokenizer_configs, "json", slow_s=3),
        Target("tekken.json", _tekken, _tekkens, "json", max_bytes=1 << 18, slow_s=2),
        Target("tokenizer.model", _tokenizer_model, lambda: [_small_pieces("bpe"), _small_pieces("unigram")], slow_s=1),
        Target("tokenizer.json of pieces", _pieces_json, _pieces_jsons, "json", max_bytes=1 << 16, slow_s=1),
        Target("map of characters", lambda data: CharsMap(data).apply(TEXTS[1] * 20), lambda: [
            b"\x10\0\0\0" + b"\x01\x04\0\x80" * 4 + b"a\0b\0", b"\x04\0\0\0" + b"\xff" * 9]),
        Target("gguf vocabulary", _vocabulary, _vocabularies, "json", max_bytes=1 << 16),
        Target("chat template", _template, lambda: [
            vocabulary.CHATML.encode(), b"{% for m in messages %}{{ m.content | upper }}{% endfor %}",
            b"{% macro f(x) %}{{ x }}{% endmacro %}{{ f(messages|length) }}{{ documents | tojson }}"], slow_s=3),
        Target("image", _image, _images, max_bytes=1 << 15, slow_s=2),
        Target("audio", _audio, _audios, slow_s=2),
        Target("data url", lambda data: images.from_data_url(data.decode("latin-1"), "the image"),
               lambda: [b"data:image/png;base64,iVBORw0KGgo=", b"data:image/webp;base64,AA=="])]


def _gguf(data: bytes) -> None:
    test_gguf_fuzz.read_all(data, check_memory=False)


def _gguf_model(data: bytes) -> None:
    missing = len(test_gguf_fuzz.MODEL) - test_gguf_fuzz.MODEL_HEADER  # only the header is changed
    padded = data + bytes(missing + (test_gguf_fuzz.MODEL_HEADER - len(data)) % 32)
    with closing(open_gguf(written("m.gguf", padded))) as file:
        config = read_config(file)
        frequencies(config.rope)
        read_weights(file, config)
        keys = {name: list(value) if isinstance(value, StringArray) else value for name, value in file.metadata.items()}
    if "tokenizer.ggml.model" in keys:
        _encode(load.gguf_tokenizer(keys))


def _imatrices() -> list[bytes]:
    sums = {"blk.0.attn_q.weight": Sums(np.ones((1, 8)), np.ones(1)), "b": Sums(np.ones((2, 4)), np.full(2, 3.0))}
    save_importance(path := scratch() / "i.gguf", Importance(sums, 64, "text"), 32)
    return [path.read_bytes()]


def _safetensors(data: bytes) -> None:
    with closing(open_safetensors(written("m.safetensors", data))) as file:
        for name in file.tensors:
            file.array(name).tobytes()


@cache
def _tiny() -> make_folder.Tiny:
    return make_folder.tiny("ministral3_yarn0_tied")


@cache
def _model_tensors() -> bytes:
    folder = scratch() / "tensors"
    folder.mkdir()
    make_folder.write_folder(folder, "model", make_folder.hf_tensors(_tiny(), dtype="BF16"))
    return (folder / "model.safetensors").read_bytes()


def _parts(file: bytes) -> tuple[bytes, bytes]:
    """The header of a safetensors file, and its data."""
    end = 8 + int.from_bytes(file[:8], "little")
    return file[8:end], file[end:]


def _whole(header: bytes, file: bytes) -> bytes:
    """The data of a file under another header."""
    return len(header).to_bytes(8, "little") + header + _parts(file)[1]


def _safetensors_model(data: bytes) -> None:
    config = json.dumps(make_folder.hf_config(_tiny(), is_wrapped=False)).encode()
    folder = written("hf/config.json", config).parent
    written("hf/model.safetensors", _whole(data, _model_tensors()))
    with closing(open_checkpoint(folder)) as checkpoint:
        place(checkpoint.weights(), _touch)


def _touch(name: str, weight: Weight) -> Weight:
    match weight:
        case Dense() | Quant():
            assert weight.data.shape[0] == weight.shape[0], name
        case Stored():
            assert weight.rows(0, 1).shape == (1, weight.shape[1]), name
    return weight


def _config(data: bytes) -> None:
    frequencies(read_hf_config.read_config(parse_json(data, "config.json")).config.rope)


def _configs() -> list[bytes]:
    names = ("ministral3_yarn0_tied", "large3", "vision", "llama_tied", "qwen3", "smollm3", "gemma3", "mistral_window")
    return as_json(gemma3_vision.read().config, *(
        make_folder.hf_config(make_folder.tiny(name), is_wrapped=name == "vision") for name in names))


def _params() -> list[bytes]:
    names = ("ministral3_yarn0_tied", "large3", "vision", "mistral_window")
    return as_json(*(make_folder.params(make_folder.tiny(name)) for name in names))


def _ollama(data: bytes) -> None:
    root = scratch() / "ollama"
    written("ollama/manifests/registry.ollama.ai/library/m/1b", data)
    for model in OtherStores(scratch(), ToolFolders(ollama=(root,))).models("ollama"):
        assert model.name and model.short_name


def _pooling(data: bytes) -> None:
    with suppress(ValueError, TypeError, RecursionError):
        steps, config = json.loads(data)
        written("pooled/1_Pooling/config.json", json.dumps(config).encode())
        folder_pooling(written("pooled/modules.json", json.dumps(steps).encode()).parent)


@cache
def _adapter_files() -> Mapping[str, bytes]:
    config = golden.read("llama_tied", "interleaved").config
    folder = make_adapter.written(scratch() / "made", config)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _adapter_seeds(name: str) -> Callable[[], Sequence[bytes]]:
    return lambda: [_adapter_files()[name]]


def _adapter(changed: str) -> Callable[[bytes], object]:
    def run(data: bytes) -> None:
        for name, content in _adapter_files().items():
            new = _whole(data, content) if name == WEIGHTS else data
            written(f"adapter/{name}", new if name == changed else content)
        read_adapter(scratch() / "adapter", golden.read("llama_tied", "interleaved").config)

    return run


def _lineage(data: bytes) -> None:
    read_lineage(written("lineage/lineage.json", data).parent)


@dataclass(frozen=True)
class _Files:
    folder: Path
    metadata: Mapping[str, object] = field(default_factory=dict)


@cache
def _small_tokenizer() -> bytes:
    folder = scratch() / "tokenizer"
    folder.mkdir()
    return (write_tokenizer(folder, 300) / "tokenizer.json").read_bytes()


def _tokenizers() -> list[bytes]:
    document = json.loads(_small_tokenizer())
    special = [{"id": 298, "content": "<x>", "special": True}, {"id": 299, "content": "</x>", "special": True}]
    processor = {"type": "TemplateProcessing", "pair": [], "single": [
        {"SpecialToken": {"id": "<x>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                 "special_tokens": {"<x>": {"id": "<x>", "ids": [298], "tokens": ["<x>"]}}}
    return as_json(document, {**document, "added_tokens": special, "post_processor": processor,
                              "normalizer": {"type": "NFC"}})


def _tokenizer_json(data: bytes) -> None:
    _encode(Tokenizer.from_hf(written("t/tokenizer.json", data), {"bos_token": "<s>", "add_bos_token": True}))


def _encode(tokenizer: TextTokenizer) -> None:
    for text in TEXTS:
        with suppress(RequestError):
            ids = tokenizer.encode(text, parse_control=True)
            tokenizer.decode(ids, show_control=True)


def _tokenizer_configs() -> list[bytes]:
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": True,
                "chat_template": vocabulary.CHATML}
    return as_json(settings, {**settings, "chat_template": [{"name": "default", "template": "{{ bos_token }}x"}],
                              "eos_token_id": [2, 3]})


def _tokenizer_config(data: bytes) -> None:
    folder = written("chat/tokenizer.json", _tokenizers()[1]).parent
    for name in ("tokenizer_config.json", "generation_config.json", "chat_template.json"):
        written(f"chat/{name}", data)
    tokens = load.tokens_for(_Files(folder))
    if tokens.chat is not None:
        tokens.chat.prompt(MESSAGES)


def _tekkens() -> list[bytes]:
    documents = [tekken.document(version) for version in ("v3", "v13", "v15")]
    for document in documents:
        vocab = document["vocab"]
        assert isinstance(vocab, list)
        document["vocab"] = vocab[:300]
        document["config"].update(num_vocab_tokens=300, default_vocab_size=340)  # type: ignore[attr-defined]
    return as_json(*documents)


def _tekken(data: bytes) -> None:
    written("tekken/tekken.json", data)
    tokens = load.tokens_for(_Files(scratch() / "tekken"))
    assert isinstance(tokens.tokenizer, MistralTokenizer) and tokens.chat is not None
    _encode(tokens.tokenizer)
    with suppress(RequestError):
        tokens.chat.prompt(MESSAGES)


def _vocabularies() -> list[bytes]:
    pieces = {**sentencepieces.gguf_metadata(_small_pieces("bpe")), "tokenizer.ggml.model": "t5"}
    return as_json(vocabulary.metadata(), {**vocabulary.metadata(words=("abc",)), "tokenizer.chat_template": "x"},
                   sentencepieces.gguf_metadata(_small_pieces("bpe")), pieces)


@cache
def _small_pieces(kind: Literal["bpe", "unigram"]) -> bytes:
    """A tokenizer.model of a few pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the wind", "a window in the rain"] * 9), model_writer=model, vocab_size=40,
        minloglevel=2,
        model_type=kind, hard_vocab_limit=False, user_defined_symbols=["\n\n"], normalization_rule_name="identity")
    return model.getvalue()


def _tokenizer_model(data: bytes) -> None:
    _encode(read_sentencepiece.from_file(written("pieces/tokenizer.model", data), {}))


def _pieces_jsons() -> list[bytes]:
    return [sentencepieces.tokenizer_json(_small_pieces(kind), how).to_str().encode()
            for kind, how in _KINDS]


_KINDS: Sequence[tuple[Literal["bpe", "unigram"], Literal["legacy", "first", "plain"]]] = (
    ("bpe", "legacy"), ("bpe", "first"), ("unigram", "plain"))


def _pieces_json(data: bytes) -> None:
    _encode(load.tokens_for(_Files(written("pieces_json/tokenizer.json", data).parent)).tokenizer)


def _vocabulary(data: bytes) -> None:
    _encode(load.gguf_tokenizer(parse_json(data, "metadata")))


def _template(data: bytes) -> None:
    metadata = {**vocabulary.metadata(), "tokenizer.chat_template": data.decode("utf-8", "replace")}
    chat = load.tokens_for(_Files(scratch() / "nothing", metadata)).chat
    assert chat is not None
    chat.prompt(MESSAGES, tools=[{"type": "function", "function": {"name": "f"}}] if chat.knows_tools else None)


def _image(data: bytes) -> None:
    images.prepare(data, ImageSettings(14, 56, 1, 2, 3), "the image")


def _audio(data: bytes) -> None:
    made = audio.prepare(data, AudioSettings(16, 32, 4, 1, 2), "the audio")
    made.chunks[-1].mels()


def _audios() -> list[bytes]:
    extended = make_audio_model.wav(b"\0\x40" * 30, 0xFFFE, 16, 8000, 1)
    extended = extended[:16] + b"\x28\0\0\0" + extended[20:36] + b"\x16\0\x10\0" + b"\0" * 4 + b"\1\0" + (
        b"\0" * 14) + extended[36:]
    return [make_audio_model.speech(0.05), make_audio_model.speech(0.02, rate=44100, channels=2), extended,
            *(make_audio_model.wav(bytes(range(48)), tag, bits, 16000, 1)
              for tag, bits in ((1, 8), (1, 24), (1, 32), (3, 32), (3, 64)))]


def _images() -> list[bytes]:
    from PIL import Image  # noqa: PLC0415 - an extra

    out, kinds = [], ("PNG RGB", "PNG P", "JPEG RGB", "WEBP RGBA", "GIF P", "PNG I;16")
    for format, mode in map(str.split, kinds):
        Image.new(mode, (9, 5)).save(file := io.BytesIO(), format)
        out.append(file.getvalue())
    return out
