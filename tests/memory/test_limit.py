"""A memory limit is kept with a full cache, or the model is refused before it is loaded."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.checkpoint.make_gguf import write_tiny

ROOT = Path(__file__).parents[2]
# The process reports its own peak; getrusage would include the peak of its parent.
MAIN = """
import sys
from brise.cli.main import main
status = main(sys.argv[1:])
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")), file=sys.stderr)
sys.exit(status)
"""
QUESTION = "the wind and the sea " * 400
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {
    "type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}}}


@pytest.fixture(scope="module")
def mid_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 310 MB of weights, and the largest kind of vocabulary."""
    path = tmp_path_factory.mktemp("models") / "mid.gguf"
    subprocess.run([sys.executable, ROOT / "bench" / "synthesize.py", "--shape", "qwen2.5-1.5b", "--layers", "4", path],
                   check=True, capture_output=True)
    return path


def brise(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", MAIN, *map(str, words)], capture_output=True, text=True, timeout=250)


def plan(*words: object) -> dict[str, int]:
    answer: dict[str, int] = json.loads(brise("plan", *words, "--json").stdout)
    return answer


def peak(status: str) -> int:
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert peak, status
    return int(peak[1]) * 1024


@contextmanager
def server(*words: object) -> Iterator[tuple[str, int]]:
    """Its address and process id."""
    with subprocess.Popen([sys.executable, "-m", "brise", "serve", *map(str, words), "--port", "0"],
                          stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            lines = iter(process.stderr.readline, "")
            address = next(filter(None, (re.search(r"http://127\.0\.0\.1:\d+", line) for line in lines)))
            yield address[0], process.pid
        finally:
            process.kill()


def test_a_chat_stays_under_its_limit_with_a_full_context(mid_size: Path, tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRISE_HOME", str(tmp_path))
    monkeypatch.setenv("BRISE_PACKED_CACHE", "1GB")
    limit = plan(mid_size, "--context", 1024)["total"]
    answers = set()
    for start in ("packs", "maps"):
        done = brise("chat", mid_size, QUESTION[:1400], "--context", 1024, "--memory", limit, "--max-tokens", 8,
                     "--temperature", 0)
        assert done.returncode == 0, done.stderr
        assert peak(done.stderr) <= limit, start
        answers.add(done.stdout)
        assert len(list((tmp_path / "packed").iterdir())) == 1
    assert len(answers) == 1


def test_a_server_stays_under_its_limit_with_a_full_cache(mid_size: Path) -> None:
    limit = plan(mid_size, "--context", 512, "--parallel", 3)["total"]
    with (server(mid_size, "--context", 512, "--memory", limit) as (url, pid), httpx.Client(timeout=200) as client,
          ThreadPoolExecutor(6) as threads):
        def ask(number: int) -> int:
            options = {"response_format": SCHEMA} if number % 3 == 2 else {"logprobs": True, "top_logprobs": 20}
            message = {"role": "user", "content": f"{number} {QUESTION[:650]}"}
            return client.post(f"{url}/v1/chat/completions", json={
                "model": "mid", "messages": [message], "max_tokens": 12, **options}).status_code

        assert set(threads.map(ask, range(6))) == {200}
        scored = client.post(f"{url}/v1/completions", json={
            "model": "mid", "prompt": QUESTION[:650], "max_tokens": 1, "echo": True, "logprobs": 5})
        assert scored.status_code == 200
        assert peak(Path(f"/proc/{pid}/status").read_text()) <= limit


def test_what_does_not_fit_is_refused_with_the_numbers_before_it_is_loaded(mid_size: Path) -> None:
    done = brise("chat", mid_size, "hi", "--context", 4096, "--memory", "300MB")
    assert done.returncode == 1
    assert re.search(r"takes \d+\.\d MB, \d+\.\d MB more than the limit of 300\.0 MB: weights \d", done.stderr)
    assert peak(done.stderr) < 200_000_000, "it was loaded"


def test_a_refusal_says_what_would_fit(mid_size: Path) -> None:
    limit = plan(mid_size, "--context", 4096)["total"] - 100_000_000  # a chat takes less than a server
    done = brise("chat", mid_size, "hi", "--context", 32768, "--memory", limit)
    assert "hint: what fits: " in done.stderr and "--context" in done.stderr


def test_a_context_that_is_not_there_is_refused_by_its_number(mid_size: Path) -> None:
    done = brise("chat", mid_size, "hi", "--context", 40000, "--memory", "8GB")
    assert done.returncode == 1 and "40000" in done.stderr and "32768" in done.stderr


def test_a_tiny_model_stays_under_a_tiny_limit(tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny.gguf", "llama")
    limit = plan(tmp_path / "tiny.gguf")["total"]
    done = brise("chat", tmp_path / "tiny.gguf", "hi", "--memory", limit, "--max-tokens", 4)
    assert done.returncode == 0 and peak(done.stderr) <= limit
