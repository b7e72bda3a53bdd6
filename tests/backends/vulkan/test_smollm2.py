"""The real SmolLM2-135M on the device answers as on the CPU: 64 greedy tokens, ten prompts decoded in one batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from brise import _native
from brise.backends.native.backend import NativeBackend
from brise.checkpoint.gguf.file import open_gguf
from brise.checkpoint.gguf.read_model import read_config, read_weights
from brise.models.config import Config
from brise.models.weights import Array, Weights, place
from brise.text.tokenizer import Tokenizer
from tests.backends.vulkan.driver import require_driver
from tests.backends.vulkan.on_device import PAGE_SIZE, OnDevice, parts

# Both sides round activations to int8, and codes flip near ties: between the two, the difference of the best two logits
# moved by 0.2 at most over these texts (docs/dev/LOG.md). A text with a smaller margin at any step is left out: of forty
# texts that were tried, that left the counting and repeating ones.
MARGIN, STEPS, PAGES = 0.5, 64, 8
TEXTS = ("spring, summer, autumn, winter, spring, summer, autumn, winter,", "Chapter 1\nChapter 2\nChapter 3\nChapter 4\nChapter",
         "1/1, 1/2, 1/3, 1/4, 1/5,", "<li>1</li>\n<li>2</li>\n<li>3</li>\n<li>4</li>\n", "10, 20, 30, 40, 50, 60,",
         "Line 1\nLine 2\nLine 3\nLine 4\nLine 5\nLine", "item 1, item 2, item 3, item 4, item 5,",
         "Question: 1 + 1 = 2\nQuestion: 2 + 2 = 4\nQuestion: 3 + 3 =", "0 1 0 1 0 1 0 1 0 1 0 1",
         "red, blue, red, blue, red, blue, red, blue,")


def test_64_greedy_tokens_of_ten_prompts_are_the_cpu_s(smollm2_path: Path) -> None:
    require_driver()
    gguf = open_gguf(smollm2_path)
    tokenizer, config = Tokenizer.from_gguf(gguf.metadata), read_config(gguf)
    weights = read_weights(gguf, config)
    prompts = [np.array(tokenizer.encode(text), np.int32) for text in TEXTS]
    expected, margins = zip(*(on_cpu(config, weights, prompt) for prompt in prompts), strict=True)
    kept = [index for index, margin in enumerate(margins) if margin > MARGIN]
    assert len(kept) == len(TEXTS), f"margins {margins}"
    model = OnDevice(_native.VulkanDevice(""), config, weights, "f16", num_pages=PAGES * len(TEXTS))
    pages = [tuple(range(PAGES * index, PAGES * (index + 1))) for index in range(len(TEXTS))]
    step, answers = [(prompt, 0) for prompt in prompts], []
    for _ in range(STEPS):
        logits = model.logits(parts(*((tokens, at, own) for (tokens, at), own in zip(step, pages, strict=True))))
        ends = np.cumsum([len(tokens) for tokens, _ in step]) - 1
        best = np.argmax(logits[ends], 1).astype(np.int32)
        answers.append(best)
        step = [(best[i:i + 1], at + len(tokens)) for i, (tokens, at) in enumerate(step)]
    gguf.close()
    assert np.array_equal(np.array(answers).T, np.array(expected))


def on_cpu(config: Config, weights: Weights, prompt: Array) -> tuple[Array, float]:
    """Greedy tokens, and the smallest difference of the best two logits."""
    native = NativeBackend(1)
    runner = native.runner(config, place(weights, native.place), 64)
    cache = native.new_cache(config, PAGES, PAGE_SIZE, "f16")
    answer, margin, tokens, at = [], np.inf, prompt, 0
    for _ in range(STEPS):
        logits = runner.logits(parts((tokens, at, tuple(range(PAGES)))), cache)[-1]
        second, first = np.partition(logits, -2)[-2:]
        margin = min(margin, float(first - second))
        at += len(tokens)
        tokens = np.array([np.argmax(logits)], np.int32)
        answer.append(tokens[0])
    return np.array(answer), margin
