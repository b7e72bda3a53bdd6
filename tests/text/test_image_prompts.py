"""Images in conversations: where their tokens stand is mistral-common's rule, for templates as well."""

from __future__ import annotations

import pytest

from brise.errors import RequestError
from brise.text.chat import ChatTemplate
from brise.text.inputs import ImageInput
from tests.engine.stub import CHATML, byte_tokenizer
from tests.engine.stub_vision import stub_image

TEXT = {"type": "text", "text": "what?"}


def part(image: ImageInput) -> dict[str, object]:
    return {"type": "image", "image": image}


def shown(*parts: dict[str, object], template: str = CHATML) -> tuple[str, tuple[ImageInput, ...]]:
    """The prompt with # for every token of an image."""
    tokenizer = byte_tokenizer()
    encoded = ChatTemplate(template, tokenizer).prompt([{"role": "user", "content": list(parts)}])
    text = "".join("#" if 200 <= token < 203 else tokenizer.token_text(token) for token in encoded.tokens)
    return text, encoded.images


def test_a_template_for_text_shows_images() -> None:
    one, two = stub_image(1, 1), stub_image(1, 2)
    text, images = shown(TEXT, part(one), TEXT, part(two), {"type": "text", "text": "!"})
    assert text == "<|im_start|>user\nwhat?##what?###!<|im_end|>\n<|im_start|>assistant\n"
    assert images == (one, two)


def test_an_only_image_at_the_end_goes_first() -> None:
    assert shown(TEXT, part(stub_image(1, 1)))[0].startswith("<|im_start|>user\n##what?")


def test_a_template_that_leaves_images_out_is_an_error() -> None:
    with pytest.raises(RequestError, match="leaves out an image"):
        shown(TEXT, part(stub_image(1, 1)), template="{{ '<|im_start|>' }}")
