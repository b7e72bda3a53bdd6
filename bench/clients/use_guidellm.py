"""GuideLLM, which measures servers: streams of chat completions and of completions, 16 at once."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import tempfile

from cells import KEY, MODEL, URL, MissingError, run

FOLDER = pathlib.Path(tempfile.mkdtemp())
(FOLDER / "rows.csv").write_text("prompt,output_tokens_count\n" + "".join(
    f"What is {number} plus 2?,8\n" for number in range(16)))


def measure(model: str = MODEL, key: str = KEY, path: str = "/v1/chat/completions", streams: int = 16) -> dict:
    """How many requests ended well, and how many did not."""
    out = FOLDER / "out.json"
    out.unlink(missing_ok=True)
    command = pathlib.Path(sys.executable).parent / "guidellm"
    backend = f"kind=openai_http,target={URL},model={model},api_key={key},request_format={path}"
    done = subprocess.run(
        [command, "run", "--backend", backend, "--profile", f"kind=concurrent,streams={streams}",
         "--constraint", "kind=max_requests,count=16",
         "--data", f"kind=csv_file,path={FOLDER / 'rows.csv'}", "--output", f"kind=json,path={out}",
         "--disable-console"], capture_output=True, text=True)
    if not out.exists():
        raise RuntimeError(done.stderr[-300:])
    return json.loads(out.read_text())["benchmarks"][0]["metrics"]["request_totals"]


def stream() -> str:
    totals = measure(path="/v1/completions", streams=1)
    assert totals["successful"] == 16, totals
    return str(totals)


def at_once() -> str:
    totals = measure()
    assert totals["successful"] == 16, totals
    return str(totals)


def bad_model() -> str:
    try:
        totals = measure(model="gpt-0")
    except RuntimeError as error:
        return str(error)[-100:]
    assert not totals["successful"], totals
    return str(totals)


def bad_key() -> str:
    try:
        totals = measure(key="wrong")
    except RuntimeError as error:
        return str(error)[-100:]
    assert not totals["successful"], totals
    return str(totals)


def chat() -> str:
    raise MissingError("guidellm measures streams")


tools = structured = logprobs = too_long = abort = chat

run("chat completions and completions", sys.modules[__name__])
