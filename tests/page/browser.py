"""Debian's Chromium by playwright. Whatever a test does, its pages ask no host but ours and break no policy."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.waiting import LIMIT_S

# Without these Chromium looks up hosts by itself.
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync")
AXE = Path(__file__).parent / "axe" / "axe.min.js"
WATCH = """window.__violations = [];
document.addEventListener("securitypolicyviolation", (event) => window.__violations.push(
  `${event.violatedDirective} ${event.blockedURI} ${event.sample}`));"""
TABS = ("proof", "switch", "traffic", "machine", "chat")


@dataclass
class Watched:
    """A page and what it did: the URLs that it asked for, what it logged as an error, and dialogs that opened."""

    page: Page
    url: str
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    may_fail: bool = False  # requests of it may fail: its console says so

    def open(self, tab: str = "proof", task: str | None = None) -> Page:
        """Opens a tab and waits until it shows something."""
        place = "" if task is None else f"/{self.page.evaluate('encodeURIComponent', task)}"
        self.page.goto(f"{self.url}/page/#/{tab}{place}")
        self.page.wait_for_selector("main h1")
        return self.page

    def check(self) -> None:
        """No other host was asked, nothing ran that the policy forbids, no script of ours failed."""
        own = urlsplit(self.url).netloc
        asked = [url for url in self.requests if not url.startswith(("data:", "blob:"))]
        foreign = [url for url in asked if urlsplit(url).netloc != own]
        assert not foreign
        assert not self.page.evaluate("window.__violations")
        assert not self.errors

    def axe(self) -> list[str]:
        """What axe finds wrong: rule, element."""
        self.page.evaluate(AXE.read_text(encoding="utf-8"))
        found: Mapping[str, Any] = self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        return [f"{rule['id']}: {node['target']} {node['failureSummary']}" for rule in found["violations"]
                for node in rule["nodes"]]


def executable() -> str:
    """Chromium's path. Without it tests are skipped, but not in continuous integration."""
    path = shutil.which("chromium")
    if path is None and os.environ.get("CI"):
        pytest.fail("Chromium is not installed: scripts/test does that, and the page must be tested here")
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    return path


@contextmanager
def launched() -> Iterator[Browser]:
    """Chromium, for as long as it is needed."""
    path = executable()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def watched(browser: Browser, url: str, **options: Any) -> Iterator[Watched]:
    """A page in a context of its own, checked at the end."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
    context.add_init_script(WATCH)
    context.set_default_timeout(1000 * LIMIT_S)
    page = context.new_page()
    found = Watched(page, url)
    page.on("request", lambda request: found.requests.append(request.url))
    page.on("pageerror", lambda error: found.errors.append(str(error)))
    page.on("console", lambda message: _note(found, message.type, message.text))
    page.on("dialog", lambda dialog: (found.errors.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    try:
        yield found
        found.check()
    finally:
        context.close()


def _note(found: Watched, kind: str, text: str) -> None:
    if kind == "error" and not (found.may_fail and text.startswith("Failed to load resource")):
        found.errors.append(text)


def overflow(page: Page) -> Sequence[str]:
    """Elements that stand out of the page on the right, where it cannot be scrolled."""
    return json.loads(page.evaluate("""() => {
      const wide = document.documentElement.clientWidth, inside = (e) => e.closest(".scroll, nav");
      const stands_out = (box) => box.right > wide + 1 && box.width;
      return JSON.stringify([...document.querySelectorAll("body *")].filter(
        (e) => !inside(e) && stands_out(e.getBoundingClientRect())).map((e) => e.outerHTML.slice(0, 99)));
    }"""))
