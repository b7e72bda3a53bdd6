"""brise under Ray Serve. Two real replicas where Ray is installed, in this Python or in BRISE_TEST_RAY_PYTHON's."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from brise.errors import MissingExtraError, UnsupportedError
from brise.serve.ray import RayOptions, app
from tests.checkpoint.make_gguf import write_tiny

# Two replicas of a tiny model behind Ray's own proxy; 24 requests at a time, so that both get some.
SCRIPT = """
import json, os, sys
from concurrent.futures import ThreadPoolExecutor
import httpx
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
import ray
from ray import serve
from brise.serve.ray import app
ray.init(num_cpus=2, include_dashboard=False, configure_logging=False, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
serve.run(app({"model": sys.argv[1], "name": "tiny", "min_replicas": "2", "max_replicas": "2", "cpus": "0.5"}),
          route_prefix="/tiny")
url = f"http://127.0.0.1:{sys.argv[2]}/tiny/v1"
body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8, "temperature": 0}
with httpx.Client(trust_env=False, timeout=60) as client:
    models = client.get(f"{url}/models").json()
    with client.stream("POST", f"{url}/chat/completions", json=body | {"stream": True}) as stream:
        events = [line for line in stream.iter_lines() if line]
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda number: client.post(f"{url}/chat/completions", json=body), range(48)))
status = serve.status().applications["default"].deployments["tiny"]
print(json.dumps({"models": [item["id"] for item in models["data"]], "last": events[-1],
                  "statuses": sorted({answer.status_code for answer in answers}),
                  "texts": len({answer.json()["choices"][0]["message"]["content"] for answer in answers}),
                  "replicas": status.replica_states}))
serve.shutdown()
ray.shutdown()
"""


@pytest.mark.slow
def test_two_replicas_answer(tmp_path: Path) -> None:
    python = os.environ.get("BRISE_TEST_RAY_PYTHON", sys.executable)
    if python == sys.executable and importlib.util.find_spec("ray") is None:
        pytest.skip("needs Ray (the extra `ray`), here or in BRISE_TEST_RAY_PYTHON")
    model = write_tiny(tmp_path / "tiny.gguf", "llama")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    done = subprocess.run([python, "-c", SCRIPT, str(model), str(port)], capture_output=True, text=True,
                          timeout=240, check=False,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)})
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))  # Ray writes, too
    assert report == {"models": ["tiny"], "last": "data: [DONE]", "statuses": [200], "texts": 1,
                      "replicas": {"RUNNING": 2}}


def test_words_of_the_command_line_are_read() -> None:
    options = RayOptions.read({"model": "smollm2", "memory": "2GB", "max_replicas": "4", "cpus": "0.5"})
    assert (options.max_replicas, options.cpus, options.memory, options.name) == (4, 0.5, "2GB", None)


@pytest.mark.parametrize(("arguments", "message"), [
    ({}, "the argument model is missing"), ({"model": "m", "size": 1}, "'size' is no argument"),
    ({"model": "m", "min_replicas": 3}, "min_replicas is 3 and max_replicas 1"),
    ({"model": "m", "cpus": "many"}, "cpus is 'many'"), ({"model": "m", "ongoing": 0}, "ongoing must be 1 or more")])
def test_wrong_arguments_are_refused_by_name(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        app(arguments)


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is here")
def test_without_ray_the_pip_line_is_named() -> None:
    with pytest.raises(MissingExtraError, match="ray"):
        app({"model": "smollm2"})
