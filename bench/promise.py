"""Does a full-size model answer inside the memory that was promised? Plans, serves, fills the context, and measures.

    python bench/promise.py MODEL --memory 4GB --context 16384 --cache q8 [--image picture.png] [--image-size 784]

The model is served by a process of its own, which is asked once with a prompt that fills the context (with the image,
if there is one), and several times at once with short ones; its VmHWM is read from /proc at the end.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

SENTENCE = "The mistral comes down the valley of the Rhone and clears the sky over the sea. "
ANSWER_TOKENS = 16


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("model")
    arguments.add_argument("--memory", default="4GB")
    arguments.add_argument("--context", type=int, default=16384)
    arguments.add_argument("--cache", default="f16")
    arguments.add_argument("--weights", help="a mix to quantise plain weights to while loading, the tower to Q8_0")
    arguments.add_argument("--image", type=Path)
    arguments.add_argument("--image-size", type=int)
    arguments.add_argument("--fill", type=float, default=0.97, help="share of the context that the prompt takes")
    options = arguments.parse_args()
    words = [options.model, "--memory", options.memory, "--context", str(options.context), "--cache", options.cache]
    words += ["--weights", options.weights] if options.weights else []
    words += ["--image-size", str(options.image_size)] if options.image_size else []
    planned = json.loads(subprocess.run([sys.executable, "-m", "brise", "plan", *words, "--json"], check=False,
                                        capture_output=True, text=True).stdout)
    print(f"planned {planned['total'] / 1e6:.0f} MB of {planned['memory'] / 1e6:.0f} MB; "
          + ("fits" if planned["fits"] else f"does not fit: {planned['ways']}"), flush=True)
    return measure(words, options, planned) if planned["fits"] else 1


def measure(words: list[str], options: argparse.Namespace, planned: dict[str, int]) -> int:
    begin = time.perf_counter()
    with subprocess.Popen([sys.executable, "-m", "brise", "serve", *words, "--port", "0", "--log-level", "warning"],
                          stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        found = None
        while found is None and (line := server.stderr.readline()):
            print(line.rstrip(), flush=True)
            found = re.search(r"serves (\S+) at (http://\S+)", line)
        if found is None:
            return 1
        print(f"loaded in {time.perf_counter() - begin:.1f} s: {status(server.pid)}", flush=True)
        try:
            ask(found[2], found[1], options)
        finally:
            peak = int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{server.pid}/status").read_text())[1]) * 1024
            server.kill()
    verdict = "kept" if peak <= planned["memory"] else "BROKEN"
    print(f"| {Path(options.model).name} | {options.memory} | {options.context} {options.cache} | "
          f"{planned['total'] / 1e6:.0f} MB | {peak / 1e6:.0f} MB | {verdict} |")
    return 0 if peak <= planned["memory"] else 1


def ask(url: str, name: str, options: argparse.Namespace) -> None:
    with httpx.Client(base_url=url, timeout=3600) as client:
        def chat(text: str, *, tokens: int = ANSWER_TOKENS, may_be_sent_away: bool = False) -> dict[str, int]:
            content: list[dict[str, object]] = [{"type": "text", "text": text}]
            if options.image is not None:
                data = base64.b64encode(options.image.read_bytes()).decode()
                kind = options.image.suffix[1:].replace("jpg", "jpeg")
                content.insert(0, {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{data}"}})
            answer = client.post("chat/completions", json={
                "model": name, "max_tokens": tokens,
                "messages": [{"role": "user", "content": content if options.image else text}]})
            if answer.status_code == 429 and may_be_sent_away:
                return {"completion_tokens": 0}  # under a promise only so many requests may wait
            if answer.is_error:
                raise SystemExit(f"status {answer.status_code}: {answer.text[:500]}")
            usage: dict[str, int] = answer.json()["usage"]
            return usage

        def per_token(text: str) -> float:
            """Seconds of a token when the prompt is in the prefix cache: what 32 more take."""
            times = []
            for tokens in (8, 40):
                begin = time.perf_counter()
                answered = chat(text, tokens=tokens)["completion_tokens"]
                times.append((time.perf_counter() - begin, answered))
            (first, few), (second, many) = times
            return (second - first) / (many - few) if many > few else float("nan")

        begin = time.perf_counter()
        one = chat(SENTENCE)["prompt_tokens"]
        print(f"first answer, {one} tokens of prompt, after {time.perf_counter() - begin:.1f} s", flush=True)
        each = chat(SENTENCE * 11)["prompt_tokens"] - one
        count = int((options.fill * options.context - one - ANSWER_TOKENS) / each * 10)
        begin = time.perf_counter()
        usage = chat(SENTENCE * count)
        print(f"{usage['prompt_tokens']} tokens of prompt answered in {time.perf_counter() - begin:.0f} s", flush=True)
        print(f"a token takes {1000 * per_token(SENTENCE * 11):.0f} ms behind {one + each} tokens, "
              f"{1000 * per_token(SENTENCE * count):.0f} ms behind {usage['prompt_tokens']}", flush=True)
        with ThreadPoolExecutor(8) as threads:
            answers = threads.map(lambda n: chat(f"{n} {SENTENCE}", may_be_sent_away=True), range(8))
            print(f"8 at once, 0 for status 429: {[usage['completion_tokens'] for usage in answers]}", flush=True)


def status(pid: int) -> str:
    return " ".join(re.findall(r"(?:VmHWM|VmRSS|RssAnon|RssFile):\s+\d+ kB", Path(f"/proc/{pid}/status").read_text()))


if __name__ == "__main__":
    raise SystemExit(main())
