"""The tab Chat: answers as they come, what is said beside them, and what a lost server or a hostile model does."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, Route

from brise.models.batch import Batch
from brise.page.endpoint import PageOptions
from brise.page.routes import page as page_of
from brise.serve.serving import ServeSettings
from tests.engine.stub import stub_model
from tests.page import browser as chromium
from tests.page import stores
from tests.page.browser import Watched, overflow
from tests.page.conftest import Watch
from tests.serve.live import Live, live
from tests.waiting import LIMIT_S

REPLY = "Hello there! How are you today? I am\n\nfine."
MARKDOWN = ("# Title\n\nSome *text*, `code`, [a](https://a.example/x) and [b](javascript:window.hit=1).\n\n"
            "- one\n- two\n\n```py\nprint('<b>')\n```\n\n![picture](https://evil.example/p.png)\n\n"
            "| x | y |\n|---|---|\n| 1 | 2 |\n")


class Gate:
    """Lets a model go so many steps, and holds it there until it is opened."""

    def __init__(self, steps: int) -> None:
        self._left, self._open = steps, threading.Event()

    def __call__(self, batch: Batch) -> None:
        self._left -= 1
        if self._left < 0:
            self._open.wait(LIMIT_S)

    def open(self) -> None:
        self._open.set()


@contextmanager
def chatting(home: Path, reply: str = REPLY, on_step: Callable[[Batch], None] | None = None) -> Iterator[Live]:
    settings = ServeSettings(page=page_of(PageOptions(home / "chat.sqlite")))
    with live(stub_model(reply, on_step=on_step), settings) as server:
        yield server


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Live]:
    with chatting(home, MARKDOWN) as server:
        yield server


def say(page: Page, text: str = "hi") -> None:
    page.get_by_label("Message").fill(text)
    page.get_by_role("button", name="Send").and_(page.locator(":enabled")).wait_for()
    page.locator("select").first.locator("option").first.wait_for(state="attached")
    page.get_by_label("Message").press("Enter")


def events(*deltas: dict[str, Any], usage: int | None = 5, finish: str | None = "stop", **more: Any) -> str:
    """A stream of chat completion chunks."""
    chunks: list[dict[str, Any]] = [{"model": "m", "choices": [{"index": 0, "delta": delta}], **more}
                                    for delta in deltas]
    if finish is not None:
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    if usage is not None:
        chunks.append({"choices": [], "usage": {"completion_tokens": usage}})
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


def answer_with(page: Page, bodies: Sequence[str], **headers: str) -> list[dict[str, Any]]:
    """Lets the next requests be answered by these streams; what was asked is in the list."""
    asked, left = list[dict[str, Any]](), list(bodies)

    def fulfill(route: Route) -> None:
        asked.append({**route.request.post_data_json, "headers": route.request.headers})
        route.fulfill(body=left.pop(0), headers={"content-type": "text/event-stream", **headers})

    page.route("**/v1/chat/completions", fulfill)
    return asked


def test_an_answer_is_shown_as_markdown_with_its_speed_and_fingerprint(server: Live, watch: Watch) -> None:
    page = watch(server).open("chat")
    say(page)
    page.locator(".about", has_text="tokens/s").wait_for()
    shown = page.locator(".markdown")
    assert shown.locator("h1").inner_text() == "Title" and shown.locator("li").all_inner_texts() == ["one", "two"]
    assert shown.locator("pre").inner_text().strip() == "print('<b>')" and shown.locator("td").count() == 2
    card = server.get("/v1/models").json()["data"][0]
    assert card["fingerprint"][:16] in page.inner_text(".about") and "first after" in page.inner_text(".about")


def test_links_lead_to_the_web_only_and_pictures_are_addresses(server: Live, watch: Watch) -> None:
    page = watch(server).open("chat")
    say(page)
    page.locator(".about", has_text="tokens/s").wait_for()
    [link] = page.locator(".markdown a").all()
    assert (link.get_attribute("href"), link.get_attribute("rel")) == ("https://a.example/x", "noopener noreferrer")
    assert page.locator(".markdown img").count() == 0
    assert "[picture: https://evil.example/p.png]" in page.inner_text(".markdown")
    assert "b (javascript:window.hit=1)" in page.inner_text(".markdown")


def test_mode_thinking_calls_and_their_results(server: Live, watch: Watch) -> None:
    page = watch(server).open("chat")
    first = events({"reasoning_content": "Let me "}, {"reasoning_content": "look."},
                   {"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "look_up", "arguments": '{"id"'}}]},
                   {"tool_calls": [{"index": 0, "function": {"arguments": ": 7}"}}]},
                   system_fingerprint="fp_0123456789")
    asked = answer_with(page, [first, events({"content": "It is 7."})],
                        **{"x-brise-mode": "escalated", "x-brise-id": "abc"})
    page.get_by_text("System prompt and tools").click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Tools").fill('[{"type": "function", "function": {"name": "look_up"}}]')
    say(page, "What is it?")
    page.get_by_label("Result of look_up").fill("7")
    assert page.inner_text(".call") == 'look_up\n{"id": 7}'
    assert not page.locator(".talk details p").is_visible()
    page.get_by_text("Thinking").click()
    assert page.inner_text(".talk details p") == "Let me look."
    about = page.inner_text(".about")
    assert "escalated" in about and "fp_0123456789" in about
    assert page.locator(".about a").get_attribute("href") == "#/traffic/page/exchange/abc"
    page.get_by_role("button", name="Send").click()
    page.get_by_text("It is 7.").first.wait_for()
    assert [message["role"] for message in asked[1]["messages"]] == ["system", "user", "assistant", "tool"]
    assert asked[1]["messages"][3] == {"role": "tool", "content": "7", "tool_call_id": "c1"}
    assert asked[0]["tools"][0]["function"]["name"] == "look_up" and asked[0]["headers"]["x-brise-task"] == "page"


def test_tools_that_are_no_json_are_named_and_nothing_is_sent(server: Live, watch: Watch) -> None:
    page = watch(server).open("chat")
    asked = answer_with(page, [])
    page.get_by_text("System prompt and tools").click()
    page.get_by_label("Tools").fill("{")
    say(page)
    page.get_by_text("The tools are no JSON").wait_for()
    assert not asked and page.get_by_label("Message").input_value() == "hi"


def test_images_come_from_files_and_by_paste_and_are_bounded(server: Live, watch: Watch) -> None:
    page = watch(server).open("chat")
    asked = answer_with(page, [events({"content": "A wind."})])
    files = page.get_by_label("Images")
    files.set_input_files({"name": "big.png", "mimeType": "image/png", "buffer": bytes((3 << 20) + 1)})
    page.get_by_text("big.png has 3.0 MB, 3 MB are allowed.").wait_for()
    files.set_input_files({"name": "a.svg", "mimeType": "image/svg+xml", "buffer": b"<svg/>"})
    page.get_by_text("a.svg is no PNG, JPEG, WebP or GIF.").wait_for()
    files.set_input_files([{"name": f"{at}.png", "mimeType": "image/png", "buffer": b"png"} for at in range(3)])
    page.get_by_role("button", name="Remove image 3").click()
    page.evaluate("""() => {
      const data = new DataTransfer();
      data.items.add(new File(["jpg"], "p.jpg", { type: "image/jpeg" }));
      document.querySelector(".composer textarea").dispatchEvent(
        new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true }));
    }""")
    page.get_by_role("button", name="Remove image 3").wait_for()
    say(page, "What is this?")
    page.get_by_text("A wind.").first.wait_for()
    parts = asked[0]["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["text", "image_url", "image_url", "image_url"]
    assert parts[3]["image_url"]["url"] == "data:image/jpeg;base64,anBn"


def test_it_streams_announces_sentences_only_and_stops(home: Path, watch: Watch) -> None:
    gate = Gate(len("Hello there! How are"))
    with chatting(home, on_step=gate) as server:
        found = watch(server)
        page = found.open("chat")
        say(page)
        page.get_by_text("Hello there! How").first.wait_for()
        page.locator(".unseen", has_text="Hello there!").wait_for()
        assert page.inner_text(".unseen") == "Hello there!"
        page.get_by_label("Message").press("Escape")
        page.get_by_text("You stopped it here.").wait_for()
        gate.open()
        server.wait_idle()
        assert page.inner_text(".markdown").startswith("Hello there! How")
        page.get_by_role("button", name="Ask again").click()
        page.locator(".about", has_text="tokens/s").wait_for()
        assert page.inner_text(".markdown") == "Hello there! How are you today? I am\n\nfine."
        assert page.locator(".talk li").count() == 2


def test_only_the_last_block_is_made_anew_and_other_tabs_do_not_end_an_answer(home: Path, watch: Watch) -> None:
    gate = Gate(len("First one.\n\nSecond o"))
    with chatting(home, "First one.\n\nSecond one.\n\nThird one.", gate) as server:
        page = watch(server).open("chat")
        say(page)
        page.get_by_text("Second").first.wait_for()
        page.evaluate("document.querySelector('.markdown > div').firstChild.mine = true")
        gate.open()
        page.get_by_text("Third one.").first.wait_for()
        page.locator(".about", has_text="tokens/s").wait_for()
        assert page.evaluate("document.querySelector('.markdown > div').firstChild.mine")
        page.get_by_role("link", name="Machine").click()
        page.get_by_role("link", name="Chat").click()
        assert page.locator(".markdown p").all_inner_texts() == ["First one.", "Second one.", "Third one."]


class Relay:
    """A port before a server, that can be cut off in the middle of an answer and opened again."""

    def __init__(self, url: str) -> None:
        self._to = ("127.0.0.1", urlsplit(url).port or 0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open = list[socket.socket]()
        self._start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """As if the server had been killed."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(LIMIT_S)
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def open(self) -> None:
        """As if it had been started again."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._start()

    def _start(self) -> None:
        self._open = []
        self._thread = threading.Thread(target=self._accept, args=(self._listener,), daemon=True)
        self._thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(self._to)
                self._open += [client, server]
                for one, other in ((client, server), (server, client)):
                    threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    @staticmethod
    def _pass(one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while piece := one.recv(1 << 16):
                other.sendall(piece)
            other.shutdown(socket.SHUT_WR)


def test_a_server_killed_in_mid_stream_leaves_the_text_and_is_found_again(home: Path, browser: Any) -> None:
    gate = Gate(len("Hello there! How are"))
    with chatting(home, on_step=gate) as server:
        relay = Relay(server.url)
        with chromium.watched(browser, relay.url) as found:
            found.may_fail = True
            page = found.open("chat")
            say(page)
            page.get_by_text("Hello there! How").first.wait_for()
            relay.cut()
            page.get_by_text("The server is gone. What was said stays here").wait_for()
            page.locator(".gone").wait_for()
            kept = page.inner_text(".markdown")
            assert kept.startswith("Hello there! How")
            gate.open()
            relay.open()
            page.get_by_text("The server is gone. What was said stays here").wait_for(state="detached")
            page.locator(".gone").wait_for(state="detached")
            assert page.inner_text(".markdown") == kept
            page.get_by_role("button", name="Ask again").click()
            page.locator(".about", has_text="tokens/s").wait_for()
            assert page.inner_text(".markdown").endswith("fine.")
        relay.cut()


def test_an_answer_that_just_ends_or_fails_is_said_to(server: Live, watch: Watch) -> None:
    found = watch(server)
    found.may_fail = True
    page = found.open("chat")
    error = 'data: {"error": {"message": "out of memory"}}\n\n'
    cut, failed = (events({"content": text}, finish=None, usage=None) for text in ("Half an", "x"))
    answer_with(page, [cut, failed.replace("data: [DONE]", f"{error}data: [DONE]"),
                       events({"content": "long"}, finish="length")])
    for text in ("The answer ended in the middle.", "out of memory", "it came to its limit of tokens"):
        say(page)
        page.get_by_text(text).first.wait_for()
    page.unroute("**/v1/chat/completions")
    refusal = {"error": {"message": "no model"}}
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=404, json=refusal))
    say(page)
    page.get_by_text("no model").wait_for()


def test_a_small_conversation_outlives_a_reload_and_a_large_one_is_not_kept(server: Live, watch: Watch) -> None:
    page = watch(server).open("chat")
    answer_with(page, [events({"content": "Short."}), events({"content": "x" * 300_000})])
    say(page, "one")
    page.get_by_text("Short.").first.wait_for()
    page.locator(".about", has_text="tokens").wait_for()
    page.reload()
    page.get_by_text("Short.").first.wait_for()
    say(page, "two")
    page.locator(".about", has_text="tokens").nth(1).wait_for()
    page.reload()
    page.wait_for_selector("main h1")
    assert page.locator(".talk li").count() == 0


ATTACKS = (*stores.CORPUS, "[x](java\nscript:window.hit=20)", "[x](JaVaScRiPt:window.hit=21)",
           "<https://a.example/\"onclick=x>", "[x](https://a.example/\"onmouseover=\"window.hit=22)",
           "![\"onerror=\"window.hit=23](x)", "```<img src=x onerror=window.hit=24>",
           "<form action=https://evil.example><input name=q></form>", "<a id=body><a id=body name=innerHTML>",
           "<svg><style><img src=x onerror=window.hit=25></style></svg>", "[x]: javascript:window.hit=26\n\n[x]")


def test_no_answer_of_a_model_runs_or_carries_anything_out(server: Live, watch: Watch) -> None:
    page = watch(server).open("chat")
    whole = "\n\n".join(ATTACKS)
    pieces = [whole[at:at + 7] for at in range(0, len(whole), 7)]
    answer_with(page, [*(events({"content": text}, {"reasoning_content": text}, model=text, system_fingerprint=text,
                                ) for text in ATTACKS), events(*({"content": piece} for piece in pieces))],
                **{"x-brise-mode": "<b>x</b>"})
    for number in range(len(ATTACKS) + 1):
        say(page, ATTACKS[number % len(ATTACKS)])
        page.locator(".about", has_text="5 tokens").nth(number).wait_for()
    assert page.evaluate("window.hit") is None
    for link in page.locator(".talk a[href]").all():
        assert (link.get_attribute("href") or "").startswith(("https://", "http://", "#/traffic/"))
    assert page.locator(".talk :is(img, script, iframe, form, style, svg, [onerror], [onclick], [style])").count() == 0


@pytest.mark.parametrize(("scheme", "width", "scale"), [("light", 1280, 1), ("dark", 1280, 1), ("dark", 360, 3),
                                                        ("light", 640, 2)])
def test_axe_finds_nothing_in_a_conversation(server: Live, watch: Watch, scheme: str, width: int, scale: int) -> None:
    found: Watched = watch(server, color_scheme=scheme, bypass_csp=True, viewport={"width": width, "height": 740},
                           device_scale_factor=scale)
    page = found.open("chat")
    page.get_by_label("Images").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": b"png"})
    answer_with(page, [events({"reasoning_content": "Hm."}, {"content": MARKDOWN}, {"tool_calls": [
        {"index": 0, "id": "c", "function": {"name": "f" * 80, "arguments": "{}"}}]})], **{"x-brise-mode": "small"})
    say(page)
    page.locator(".about", has_text="5 tokens").wait_for()
    page.get_by_text("System prompt and tools").click()
    assert not found.axe()
    assert not overflow(page)


def test_it_is_used_by_keyboard_alone(server: Live, watch: Watch) -> None:
    page = watch(server).open("chat")
    page.locator("select option").first.wait_for(state="attached")
    page.get_by_label("Model").focus()
    names = []
    for _ in range(4):
        page.keyboard.press("Tab")
        shown = page.evaluate("document.activeElement.closest('summary, label, button').innerText")
        names.append(shown.split("\n")[0].strip())
    assert names == ["System prompt and tools", "Message", "Send", "Images"]
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    page.keyboard.type("a")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("b")
    page.keyboard.press("Enter")
    page.locator(".about", has_text="tokens/s").wait_for()
    assert page.locator(".talk .user .said").inner_text() == "a\nb"
