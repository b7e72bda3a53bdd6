"""Pictures of the page in the browser, from the data of the demo. `scripts/pictures` says how it is run."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from playwright.sync_api import sync_playwright

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync")
TASK, MODEL, ADAPTER = "in-car", "smollm2", "in-car"  # of the demo
LOAD_S = 300.0
WIDE, PHONE = {"width": 1120, "height": 780}, {"width": 360, "height": 740}
# By the picture's name: its tab and how the browser looks at it.
PICTURES: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType({
    "page-proof": ("proof", {"viewport": WIDE}),
    "page-proof-dark": ("proof", {"viewport": WIDE, "color_scheme": "dark"}),
    "page-switch": ("switch", {"viewport": {**WIDE, "height": 960}}),
    "page-traffic": ("traffic", {"viewport": WIDE}),
    "page-machine": ("machine", {"viewport": WIDE}),
    "page-phone": ("proof", {"viewport": PHONE, "device_scale_factor": 2})})


def main() -> None:
    """Starts a server over the demo's store, and takes each picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="what `brise demo --keep FOLDER` left")
    parser.add_argument("out", metavar="OUT", type=Path, nargs="?", default=Path("docs/assets"))
    options = parser.parse_args()
    if not (options.folder / "traffic.sqlite").is_file():
        parser.error(f"{str(options.folder)!r} has no traffic.sqlite: brise demo --keep {options.folder}")
    chromium = shutil.which("chromium")
    if chromium is None:
        parser.error("Chromium is not installed: apt-get install chromium")
    options.out.mkdir(parents=True, exist_ok=True)
    with served(options.folder) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        for name, (tab, look) in PICTURES.items():
            context = browser.new_context(**look)
            page = context.new_page()
            page.goto(f"{url}#/{tab}/{TASK}")
            page.wait_for_selector("main h1", timeout=60_000)
            page.wait_for_selector(".waiting", state="detached", timeout=60_000)
            page.screenshot(path=options.out / f"{name}.png", animations="disabled")
            context.close()
            sys.stderr.write(f"{options.out / name}.png\n")
        browser.close()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The page's address, of a server with the demo's models that asks no upstream anything."""
    adapter = folder / "tuned" / "adapter"
    small = [MODEL, "--adapter", f"{ADAPTER}={adapter}", "--fallback", ADAPTER] if adapter.is_dir() else []
    words = [sys.executable, "-m", "brise", "serve", *small, "--upstream", "http://127.0.0.1:9/v1", "--port", "0",
             "--store", str(folder / "traffic.sqlite"), "--prices", str(folder / "prices.toml")]
    log, environment = folder / "logs" / "pictures.log", {**os.environ, "BRISE_HOME": str(folder / "home")}
    with log.open("w") as file:
        server = subprocess.Popen(words, stdout=file, stderr=file, env=environment)
    try:
        yield address(log, server)
    finally:
        server.terminate()
        server.wait(60)


def address(log: Path, server: subprocess.Popen[bytes]) -> str:
    """What the server says where its page is."""
    end = time.monotonic() + LOAD_S
    while time.monotonic() < end and server.poll() is None:
        for line in log.read_text().splitlines():
            if line.startswith("its page is at "):
                return line.removeprefix("its page is at ")
        time.sleep(0.1)
    raise SystemExit(f"the server did not start: {log.read_text()}")


if __name__ == "__main__":
    main()
