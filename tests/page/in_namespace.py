"""A server and a browser in a network namespace with nothing but loopback: every tab is opened, and what was asked for
is printed as JSON. A process of its own, because a namespace is entered by one with one thread.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from brise.doctor.airgap import namespace


def main() -> None:
    """Prints {"entered": false} where the system does not allow namespaces."""
    try:
        namespace.enter()
    except OSError as error:
        print(json.dumps({"entered": False, "why": str(error)}))
        return
    print(json.dumps({"entered": True, **opened(Path(sys.argv[1]))}))


def opened(home: Path) -> dict[str, object]:
    """The URLs that the page's tabs asked for, and their headings."""
    from brise.page.endpoint import PageOptions  # noqa: PLC0415, what it imports starts threads
    from brise.page.routes import page  # noqa: PLC0415
    from brise.serve.serving import ServeSettings  # noqa: PLC0415
    from tests.page import browser, stores  # noqa: PLC0415
    from tests.serve.live import live  # noqa: PLC0415
    stores.evidence(home / "traffic.sqlite")
    headings = {}
    with (live(settings=ServeSettings(page=page(PageOptions(home / "traffic.sqlite")))) as server,
          browser.launched() as chromium, browser.watched(chromium, server.url) as found):
        for tab in browser.TABS:
            headings[tab] = found.open(tab, stores.TASK).inner_text("h1")
    return {"own": server.url, "requests": found.requests, "headings": headings}


if __name__ == "__main__":
    main()
