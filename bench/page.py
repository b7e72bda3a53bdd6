"""The page in a browser over a store of 10,000 rows: first paint, a key press, and what an open page adds to requests.

usage: python bench/page.py [--rounds N] [--requests N]      needs Debian's chromium, and the dev extra

Open pages are four: they show Proof, Switch, Traffic and Machine. Rounds with and without alternate.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from tests.page import stores  # noqa: E402
from tests.page.browser import FLAGS  # noqa: E402
from tests.report.traffic import TASK  # noqa: E402

BODY = json.dumps({"model": "big", "messages": [{"role": "user", "content": "hi"}]})
PAINT = "performance.getEntriesByName('first-contentful-paint').map((entry) => entry.startTime)[0] ?? 0"
PRESS = """() => new Promise((done) => {
  const start = performance.now();
  requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - start)));
})"""

OPEN = ("proof", "switch", "traffic", "machine")  # tabs of the pages that are open


def main() -> None:
    """Prints medians over the rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=300)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        print(f"first contentful paint: {statistics.median(paint(browser, url) for _ in range(options.rounds)):.0f} ms")
        presses = key_presses(browser, url)
        print(f"key press in Traffic: median {statistics.median(presses):.0f} ms, most {max(presses):.0f} ms")
        closed, opened = list[float](), list[float]()
        for _ in range(options.rounds):
            closed += latencies(url, options.requests)
            contexts = [browser.new_context() for _ in OPEN]
            for context, tab in zip(contexts, OPEN, strict=True):
                page = context.new_page()
                page.goto(f"{url}/page/#/{tab}/{TASK}")
                page.wait_for_selector("main h1")
            opened += latencies(url, options.requests)
            for context in contexts:
                context.close()
        for name, found in (("no page open", closed), ("four pages open", opened)):
            ordered = sorted(found)
            print(f"gateway, {name}: p50 {1000 * ordered[len(ordered) // 2]:.2f} ms, "
                  f"p99 {1000 * ordered[len(ordered) * 99 // 100]:.2f} ms of {len(ordered)} requests")
        browser.close()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a gateway over the store, in front of an upstream that takes no time."""
    os.environ["BRISE_HOME"] = str(folder)
    stores.large(folder / "traffic.sqlite")
    upstream = subprocess.Popen([sys.executable, str(HERE / "proxy_upstream.py")], stdout=subprocess.PIPE, text=True)
    assert upstream.stdout is not None
    port = int(upstream.stdout.readline())
    words = ["serve", "--port", "0", "--log-level", "warning", "--store", str(folder / "traffic.sqlite"), "--upstream",
             f"http://127.0.0.1:{port}/v1"]
    gateway = subprocess.Popen([sys.executable, "-m", "brise", *words], stderr=subprocess.PIPE, text=True)
    assert gateway.stderr is not None
    try:
        said = next(line for line in gateway.stderr if " at http" in line)
        yield said.rpartition(" at ")[2].strip().removesuffix("/v1")
    finally:
        for process in (gateway, upstream):
            process.terminate()
            process.wait(60)


def paint(browser: Browser, url: str) -> float:
    """Milliseconds to the first contentful paint, with an empty cache."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{url}/page/")
    page.wait_for_selector("main h1")
    found = float(page.evaluate(PAINT))
    context.close()
    return found


def key_presses(browser: Browser, url: str, number: int = 100) -> list[float]:
    """Milliseconds from a key to the second frame after it, in the list of 10,000 rows."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{url}/page/#/traffic/{TASK}")
    page.wait_for_selector(".list [aria-selected=true]")
    page.locator(".list").focus()
    found = []
    for at in range(number):
        page.keyboard.press("ArrowDown" if at % 10 else "PageDown")
        found.append(float(page.evaluate(PRESS)))
    context.close()
    return found


def latencies(url: str, number: int) -> list[float]:
    """Seconds of each request, one after the other over one connection."""
    connection, found = http.client.HTTPConnection(url.removeprefix("http://")), []
    for _ in range(number):
        start_s = time.perf_counter()
        connection.request("POST", "/v1/chat/completions", BODY, {"content-type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.status
        found.append(time.perf_counter() - start_s)
    connection.close()
    return found


if __name__ == "__main__":
    main()
