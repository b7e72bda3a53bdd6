"""Simon Willison's llm, with the model in its extra-openai-models.yaml."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from typing import Any

os.environ["LLM_USER_PATH"] = tempfile.mkdtemp()  # before llm is imported

import llm  # noqa: E402
from cells import (  # noqa: E402
    KEY,
    LONG_STORY,
    MODEL,
    PLACES,
    QUESTION,
    TOO_LONG,
    URL,
    WEATHER,
    MissingError,
    goes_on,
    raises,
    run,
    same_at_once,
    wait_until_idle,
)

CONFIG = "".join(f"""\
- model_id: {name}
  model_name: {served}
  api_base: {URL}/v1
  api_key_name: brise
  can_stream: true
  supports_schema: true
  supports_tools: true
""" for name, served in (("here", MODEL), ("nowhere", "gpt-0")))
pathlib.Path(os.environ["LLM_USER_PATH"], "extra-openai-models.yaml").write_text(CONFIG)


def ask(question: str = QUESTION, name: str = "here", key: str = KEY, **more: Any) -> Any:
    settings = {"temperature": 0, "max_tokens": 30, "stream": False, **more}
    return llm.get_model(name).prompt(question, key=key, **settings)


def chat() -> str:
    answer = ask()
    assert answer.text() and answer.usage().output > 0
    return answer.text()


def stream() -> str:
    return goes_on(list(ask(stream=True)), ask().text())


def tools() -> str:
    called = []

    def get_weather(city: str) -> str:
        """The weather of a city."""
        called.append(city)
        return "sunny"

    chain = llm.get_model("here").chain(QUESTION, tools=[get_weather], key=KEY, stream=False,
                                        options={"temperature": 0, "max_tokens": 100})
    assert chain.text() or called
    return f"the loop ends; {len(called)} calls, as the model chooses"


def structured() -> str:
    text = ask(schema=WEATHER, max_tokens=60).text()
    assert any(place in text for place in PLACES)
    return text


def logprobs() -> str:
    raise MissingError("chat models of llm have none")


def too_long() -> str:
    return raises(Exception, lambda: ask(TOO_LONG).text(), "maximum context length")


def bad_model() -> str:
    return raises(Exception, lambda: ask(name="nowhere").text(), "gpt-0")


def bad_key() -> str:
    return raises(Exception, lambda: ask(key="wrong").text(), "API key")


def abort() -> str:
    command = [sys.executable, "-m", "llm", "-m", "here", "--key", KEY, "-o", "max_tokens", "4000", LONG_STORY]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None and running.stdout.read(8)
        running.send_signal(signal.SIGINT)
    return wait_until_idle()


def at_once() -> str:
    return same_at_once(lambda: ask().text())


run("chat completions", sys.modules[__name__])
