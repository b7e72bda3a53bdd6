"""What the Python client scripts share: the questions, and a runner that prints one JSON line for each cell.

It runs in the client's own virtual environment, so it needs the standard library only.
"""

from __future__ import annotations

import json
import os
import time
import traceback
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

URL = os.environ["CELLS_URL"]            # http://127.0.0.1:PORT, without /v1
MODEL = os.environ["CELLS_MODEL"]
KEY = os.environ["CELLS_KEY"]
METRICS_URL = os.environ["CELLS_METRICS_URL"]  # of the server that computes, also behind a gateway
ONLY = os.environ.get("CELLS_ONLY", "")

QUESTION = "What is 2+2?"  # the answer of SmolLM2 is short
LONG_STORY = "Tell a very long story about the wind."
TOO_LONG = "wind " * int(os.environ.get("CELLS_TOO_LONG", "9000"))
WEATHER = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
           "required": ["city"], "additionalProperties": False}
PLACES = ("Paris", "Rome")
AT_ONCE = 16


class MissingError(Exception):
    """The client has no way to do this."""


CELLS = ("chat", "stream", "tools", "structured", "logprobs", "too_long", "bad_model", "bad_key", "abort", "at_once")


def run(api: str, client: object) -> None:
    """Runs the cells of one API: functions of these names; the exit status is 0 whatever they say."""
    for name in CELLS if not ONLY else ONLY.split(","):
        cell: Callable[[], object] = getattr(client, name)
        start = time.monotonic()
        try:
            detail, result = cell(), "works"
        except MissingError as missing:
            detail, result = str(missing), "none"
        except Exception as error:  # whatever the client raises is what the cell says
            detail, result = f"{type(error).__name__}: {error}"[:600], "fails"
            if os.environ.get("CELLS_TRACE"):
                traceback.print_exc()
        print(json.dumps({"api": api, "cell": name, "result": result, "detail": str(detail or ""),
                          "seconds": round(time.monotonic() - start, 2)}), flush=True)


def raises(expected: type[BaseException] | tuple[type[BaseException], ...], call: Callable[[], object],
           *words: str) -> str:
    """Checks that the call ends in this error of the client, and that the text says these words."""
    try:
        answer = call()
    except expected as error:
        missing = [word for word in words if word not in str(error)]
        assert not missing, f"the error lacks {missing}: {error}"
        return f"{type(error).__name__}"
    raise AssertionError(f"no error, but {str(answer)[:200]}")


def same_at_once(ask: Callable[[], str | None]) -> str:
    """Asks once alone and 16 times at once; at temperature 0 all answers are the same."""
    alone = ask()
    assert alone
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(lambda _: ask(), range(AT_ONCE)))
    assert set(answers) == {alone}, f"{len(set(answers))} different answers"
    return f"{len(answers)} equal answers"


def goes_on(pieces: Sequence[str], whole: str | None) -> str:
    """Checks that a stream came in pieces and says what the whole answer says."""
    assert whole and len([piece for piece in pieces if piece]) > 2, pieces
    assert "".join(pieces) == whole, ("".join(pieces), whole)
    return f"{len(pieces)} pieces"


def wait_until_idle(seconds: float = 20.0) -> str:
    """Waits until the server computes nothing more: a request that its client has left is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        request = urllib.request.Request(f"{METRICS_URL}/metrics", headers={"Authorization": f"Bearer {KEY}"})
        with urllib.request.urlopen(request) as answer:
            values = [float(line.rpartition(b" ")[2]) for line in answer.read().splitlines()
                      if line.startswith((b"brise_engine_running", b"brise_engine_waiting"))]
        if values and not sum(values):
            return "the server is idle again"
        time.sleep(0.05)
    raise AssertionError(f"the server still computes after {seconds} s")
