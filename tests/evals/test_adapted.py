"""A model with an adapter on it, against the reference ops with the adapter beside the weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from brise.backends.reference.ops import ReferenceOps
from brise.checkpoint.adapters.peft import AdapterFile, write_adapter
from brise.checkpoint.open import open_checkpoint
from brise.engine.model import load
from brise.evals.answering import AnswerSettings, answer_all
from brise.evals.example import EvalAnswer
from brise.evals.local import LocalAnswerer, OnTop
from brise.models import decoder
from brise.models.batch import Batch
from brise.models.lora import adapted, targets
from brise.models.weights import LowRank
from brise.text.chat import require
from tests.checkpoint.make_gguf import write_tiny
from tests.evals.rows import example
from tests.evals.test_answering import ignore


def test_its_likelihood_is_that_of_base_and_adapter(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", "llama")
    checkpoint, draws = open_checkpoint(path), np.random.default_rng(0)
    low_ranks = {name: LowRank(draws.standard_normal((4, width)).astype(np.float32),
                               0.02 * draws.standard_normal((rows, 4)).astype(np.float32), 2.0, None)
                 for name, (rows, width) in targets(checkpoint.config).items()}
    write_adapter(tmp_path / "adapter", AdapterFile(low_ranks, 4, 8.0), None, checkpoint.config)
    base = load(path, backend="reference")
    row = example("the answer", "hi")
    asked = [LocalAnswerer(base, AnswerSettings(scores=True), "digest", adapter=one)
             for one in (None, OnTop(tmp_path / "adapter"))]
    found = [answer_all(each, [row], None, ignore).answers[0] for each in asked]
    chat = require(base.chat)
    tokens = np.array(chat.prompt([*row.prompt, {"role": "assistant", "content": "the answer"}],
                                  add_generation_prompt=False).tokens, np.int32)
    start = len(chat.prompt(row.prompt).tokens)
    end = start + found[0].scored_tokens
    places = np.arange(len(tokens), dtype=np.int32)
    weights = adapted(checkpoint.weights(), low_ranks)
    logits = decoder.forward(ReferenceOps(), checkpoint.config, weights, Batch(
        tokens, places, np.array([0, len(tokens)], np.int32), places)).astype(np.float64)
    logprobs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    expected = -sum(logprobs[at - 1, tokens[at]] for at in range(start, end))
    assert nll(found[1]) == pytest.approx(expected, rel=1e-3), "the engine's cache is f16"
    assert abs(nll(found[0]) - expected) > 0.1, "the adapter changes something"
    assert asked[1].name == f"{base.name} + adapter"


def nll(answer: EvalAnswer) -> float:
    assert answer.nll is not None
    return answer.nll
