"""Images over HTTP are accepted as data URLs, counted in tokens, and refused where they are wrong."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import numpy as np
import openai
import pytest

from brise.serve import images
from brise.serve.openai_chat import parse_chat
from brise.serve.prompts import chat_job
from tests.engine.stub import stub_model
from tests.engine.stub_vision import IMAGE, stub_vision
from tests.serve.live import Live, live

PILImage = pytest.importorskip("PIL.Image")
pytest.importorskip("cv2")


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(stub_model("I see.", vision=stub_vision())) as running:
        yield running


def url(width: int, height: int, seed: int = 0) -> str:
    """A random image as a data URL."""
    numbers = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    PILImage.fromarray(numbers).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def part(image: str, **more: str) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": image, **more}}


def text_part(text: str) -> dict[str, object]:
    return {"type": "text", "text": text}


def body(*parts: dict[str, object]) -> dict[str, object]:
    return {"model": "stub", "messages": [{"role": "user", "content": list(parts)}], "temperature": 0}


def images_in_prompt(*parts: dict[str, object]) -> tuple[str, list[tuple[int, ...]]]:
    """The rendered prompt with {} for each image, and the images' tokens."""
    model = stub_model(vision=stub_vision())
    request = chat_job(parse_chat(body(*parts)), model).request
    text, at = "", 0
    for image in request.images:
        start = request.prompt.index(IMAGE, at)
        text += model.tokenizer.decode(request.prompt[at:start], show_control=True) + "{}"
        at = start + len(image.tokens)
        assert request.prompt[start:at] == image.tokens
    text += model.tokenizer.decode(request.prompt[at:], show_control=True)
    return text, [image.tokens for image in request.images]


def test_the_official_client_sends_an_image(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="stub", temperature=0, messages=[
        {"role": "user", "content": [{"type": "text", "text": "What is it?"},
                                     {"type": "image_url", "image_url": {"url": url(8, 8), "detail": "auto"}}]}])
    assert answer.choices[0].message.content == "I see."


def test_image_tokens_are_counted(server: Live) -> None:
    plain = server.post("/v1/chat/completions", body(text_part("a"))).json()["usage"]["prompt_tokens"]
    answer = server.post("/v1/chat/completions", body(text_part("a"), part(url(12, 8, 1)))).json()
    assert answer["usage"]["prompt_tokens"] - plain == 2 * (3 + 1)


def test_images_of_different_sizes_stand_where_they_were_put() -> None:
    text, tokens = images_in_prompt(text_part("one "), part(url(8, 4)), text_part(" two "), part(url(5, 9)),
                                    text_part(" three"))
    assert text == "<|im_start|>user\none {} two {} three<|im_end|>\n<|im_start|>assistant\n"
    assert [len(each) for each in tokens] == [3, 9]


def test_an_only_image_that_ends_a_message_goes_first() -> None:
    assert images_in_prompt(text_part("what?"), part(url(4, 4)))[0].startswith("<|im_start|>user\n{}what?<|im_end|>")
    assert images_in_prompt(part(url(4, 4)), text_part("what?"))[0].startswith("<|im_start|>user\n{}what?<|im_end|>")


def test_text_that_looks_like_an_image_is_text() -> None:
    text, tokens = images_in_prompt(text_part("[IMG] \ue000\uf8ff "), part(url(4, 4)), text_part("[IMG_END]"))
    assert "[IMG] \ue000\uf8ff {}[IMG_END]" in text and len(tokens) == 1


def test_low_detail_makes_an_image_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "LOW_DETAIL_SIZE", 8)
    large, small = (images_in_prompt(part(url(40, 20), detail=detail), text_part("?"))[1][0]
                    for detail in ("high", "low"))
    assert (len(large), len(small)) == (5 * 11, 1 * 3)


def test_responses_see_images_too(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="stub", temperature=0, input=[
        {"role": "user", "content": [{"type": "input_text", "text": "What is it?"},
                                     {"type": "input_image", "image_url": url(8, 8), "detail": "low"}]}])
    assert answer.output_text == "I see."


def test_the_same_image_is_cached(server: Live) -> None:
    request = body(part(url(40, 40, 7)), text_part("a question"))
    first, second = (server.post("/v1/chat/completions", request).json()["usage"] for _ in range(2))
    assert first["prompt_tokens_details"]["cached_tokens"] < 100
    assert second["prompt_tokens_details"]["cached_tokens"] > 100


@pytest.mark.parametrize(("bad", "code", "param"), [
    (part("data:image/png;base64,aGVsbG8="), "invalid_image", "messages[0].content[0].image_url.url"),
    (part("data:image/png;base64,###"), "invalid_image", "messages[0].content[0].image_url.url"),
    (part("file:///etc/passwd"), "invalid_image", "messages[0].content[0].image_url.url"),
    (part("http://127.0.0.1/a.png"), "image_urls_not_allowed", "messages[0].content[0].image_url.url"),
    (part("https://example.com/a.png"), "image_urls_not_allowed", "messages[0].content[0].image_url.url"),
    (part(url(4, 4), detail="huge"), "invalid_value", "messages[0].content[0].image_url.detail"),
    ({"type": "image_url", "image_url": url(4, 4)}, "invalid_type", "messages[0].content[0].image_url"),
    ({"type": "input_image", "image_url": url(4, 4)}, "unsupported_parameter", "messages[0].content[0].type")])
def test_wrong_images_are_refused(server: Live, bad: dict[str, object], code: str, param: str) -> None:
    answer = server.post("/v1/chat/completions", body(bad, text_part("what?")))
    assert answer.status_code == 400
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == (code, param)
    assert server.chat().status_code == 200


def test_other_roles_show_no_images(server: Live) -> None:
    messages = [{"role": "system", "content": [part(url(4, 4))]}, {"role": "user", "content": "hi"}]
    answer = server.post("/v1/chat/completions", {"model": "stub", "messages": messages})
    assert answer.json()["error"]["code"] == "unsupported_parameter"


def test_too_many_images(server: Live) -> None:
    answer = server.post("/v1/chat/completions", body(*[part(url(4, 4))] * 65))
    assert answer.status_code == 400 and "65 images, allowed are 64" in answer.json()["error"]["message"]


def test_a_model_without_a_vision_encoder() -> None:
    with live(stub_model("Hello.")) as server:
        answer = server.post("/v1/chat/completions", body(part(url(4, 4)), text_part("what?")))
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "no_vision"
