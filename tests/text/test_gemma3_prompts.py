"""Prompts of Gemma 3, with images and a system message: the same tokens as transformers' processor gives."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brise.errors import RequestError
from brise.text import images
from brise.text.chat import ChatTemplate
from brise.text.images import SquareSettings
from brise.text.protocols import TextTokenizer
from brise.text.tokenizer import Tokenizer
from tests.checkpoint.make_tokenizer import write_tokenizer

Image = pytest.importorskip("PIL.Image")
SETTINGS = SquareSettings(cell_size=8, image_size=32, image_token=390, begin_token=391, end_token=392)
# As Gemma's does: the system message goes before the first turn, an image is a special token, texts are trimmed.
TEMPLATE = """{{ bos_token }}{% set first = '' %}{% set rest = messages %}
{%- if messages[0]['role'] == 'system' -%}
{%- set first = messages[0]['content'] if messages[0]['content'] is string else messages[0]['content'][0]['text'] -%}
{%- set first = first + '\n\n' %}{% set rest = messages[1:] -%}
{%- endif -%}
{%- for message in rest -%}
{{ '<turn>' + message['role'] + '\n' + (first if loop.first else '') }}
{%- if message['content'] is string -%}{{ message['content'] | trim }}
{%- else -%}
{%- for item in message['content'] -%}
{%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}
{%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
{%- endfor -%}
{%- endif -%}{{ '</turn>\n' }}
{%- endfor -%}{%- if add_generation_prompt -%}{{ '<turn>model\n' }}{%- endif -%}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every byte, two and three newlines as one token each, and the special tokens of images."""
    path = write_tokenizer(tmp_path_factory.mktemp("gemma"), 400)
    document = json.loads((path / "tokenizer.json").read_text())
    new = {380: "\u010a\u010a", 381: "\u010a\u010a\u010a", 390: "<image_soft_token>", 391: "<start_of_image>",
           392: "<end_of_image>"}
    by_id = {number: token for token, number in document["model"]["vocab"].items()} | new
    document["model"]["vocab"] = {token: number for number, token in sorted(by_id.items())}
    document["model"]["merges"] = [["\u010a", "\u010a"], ["\u010a\u010a", "\u010a"]]
    document["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    document["added_tokens"] += [{**document["added_tokens"][0], "id": number, "content": new[number]}
                                 for number in (390, 391, 392)]
    (path / "tokenizer.json").write_text(json.dumps(document))
    return path


def picture() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((9, 30, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "text": [{"role": "user", "content": " hi "}],
    "system": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}],
    "image last": [{"role": "user", "content": [{"type": "text", "text": " what is \n"}, {"type": "image"}]}],
    "images": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\na\n"}, {"type": "image"},
                                            {"type": "text", "text": "b"}]},
               {"role": "assistant", "content": "c"},
               {"role": "user", "content": [{"type": "image"}]}]}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_tokens_are_those_of_transformers(folder: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    messages = CONVERSATIONS[name]
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        extra_special_tokens={"image_token": "<image_soft_token>", "boi_token": "<start_of_image>",
                              "eoi_token": "<end_of_image>"})
    gemma3 = transformers.models.gemma3
    processor = gemma3.processing_gemma3.Gemma3Processor(
        gemma3.image_processing_pil_gemma3.Gemma3ImageProcessorPil(size={"height": 32, "width": 32}), fast,
        chat_template=TEMPLATE, image_seq_length=16)
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    shown = [Image.open(io.BytesIO(picture())) for _ in range(json.dumps(messages).count('"image"'))]
    theirs = processor(text=text, images=shown or None, add_special_tokens=False, return_tensors="np")["input_ids"][0]
    assert list(prompt(folder, messages)) == theirs.tolist()


def test_what_a_user_writes_is_no_image(folder: Path) -> None:
    written = prompt(folder, [{"role": "user", "content": [{"type": "text", "text": "<start_of_image>"},
                                                           {"type": "image"}]}])
    assert written.count(391) == 1 and written.count(390) == 16


def test_a_template_without_images_is_refused_by_what_it_leaves_out(folder: Path) -> None:
    template = "{% for message in messages %}{% if false %}<start_of_image>{% endif %}x{% endfor %}"
    with pytest.raises(RequestError, match="leaves out an image"):
        prompt(folder, CONVERSATIONS["image last"], template)


def prompt(folder: Path, messages: list[dict[str, Any]], template: str = TEMPLATE) -> tuple[int, ...]:
    image = images.prepare(picture(), SETTINGS, "image")
    given = [{**message, "content": [{**part, "image": image} if part["type"] == "image" else part
                                     for part in message["content"]]}
             if isinstance(message["content"], list) else message for message in messages]
    encoded = ChatTemplate(template, tokenizer_of(folder)).prompt(given)
    return encoded.tokens


def tokenizer_of(folder: Path) -> TextTokenizer:
    return Tokenizer.from_hf(folder / "tokenizer.json", json.loads((folder / "tokenizer_config.json").read_text()))
