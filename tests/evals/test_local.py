"""A local model's answers and likelihoods: those of the engine, and of the reference backend."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from brise.backends.reference.ops import ReferenceOps
from brise.checkpoint.open import open_checkpoint
from brise.data.parse_row import RowRules
from brise.engine.model import LoadedModel, load
from brise.errors import EvidenceError
from brise.evals import data, local
from brise.evals.answering import AnswerSettings, answer_all
from brise.evals.data import Reading
from brise.evals.example import AnsweredCall, EvalAnswer, EvalExample
from brise.evals.local import LocalAnswerer
from brise.models import decoder
from brise.models.batch import Batch
from brise.text.chat import require
from tests.checkpoint.make_gguf import write_tiny
from tests.engine.stub import stub_model
from tests.engine.stub_vision import stub_vision
from tests.evals.rows import example, write
from tests.evals.test_answering import ignore


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", "llama")


@pytest.fixture(scope="module")
def model(tiny: Path) -> LoadedModel:
    return load(tiny, backend="reference")


def rows(tmp_path: Path) -> tuple[EvalExample, ...]:
    pairs = [(f"question {number}" * number, "the answer") for number in range(1, 6)]
    return data.read([write(tmp_path / "a.jsonl", *pairs)])


def asked(model: LoadedModel, examples: tuple[EvalExample, ...], asked: AnswerSettings,
          parallel: int = 4) -> tuple[EvalAnswer, ...]:
    return answer_all(LocalAnswerer(model, asked, "digest", parallel=parallel), examples, None, ignore).answers


def test_it_says_what_the_model_says() -> None:
    answer, = asked(stub_model("Hello there!"), (example("x"),), AnswerSettings(50))
    assert (answer.text, answer.finish, answer.error) == ("Hello there!", "stop", None)
    assert answer.completion_tokens == 13
    assert answer.prompt_tokens == len(".user\n?.\n.assistant\n"), "a token a byte, and three control tokens"


def test_a_cut_answer_says_so() -> None:
    answer, = asked(stub_model("Hello there!"), (example("x"),), AnswerSettings(5))
    assert (answer.text, answer.finish) == ("Hello", "length")


def test_company_changes_nothing(model: LoadedModel, tmp_path: Path) -> None:
    examples = rows(tmp_path)
    assert asked(model, examples, AnswerSettings(6), 1) == asked(model, examples, AnswerSettings(6), 5)


def test_calls_are_read_from_the_answer() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    said = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
    answer, = asked(stub_model(said), (replace(example("x"), tools=(tool,)),), AnswerSettings(99))
    assert answer.calls == (AnsweredCall("f", '{"x": 1}'),) and not answer.text.strip()


def test_a_schema_holds(model: LoadedModel) -> None:
    schema = json.dumps({"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"],
                         "additionalProperties": False})
    answer, = asked(model, (example("x"),), AnswerSettings(40, schema))
    assert re.fullmatch(r'\{\s*"a"\s*:\s*[12]\s*\}', answer.text) or answer.finish == "length"


def test_the_likelihood_is_the_reference_backends(model: LoadedModel, tiny: Path, tmp_path: Path) -> None:
    """Log-softmax of logits from a plain forward pass, summed over the answer's tokens and its end token."""
    examples = rows(tmp_path)
    checkpoint = open_checkpoint(tiny)
    for row, answer in zip(examples, asked(model, examples, AnswerSettings(scores=True)), strict=True):
        chat = require(model.chat)
        whole = chat.prompt([*row.prompt, {"role": "assistant", "content": "the answer"}], add_generation_prompt=False)
        start = len(chat.prompt(row.prompt).tokens)
        end = start + next(at for at, token in enumerate(whole.tokens[start:]) if token in model.tokenizer.end_ids) + 1
        tokens = np.array(whole.tokens[:end], np.int32)
        places = np.arange(len(tokens), dtype=np.int32)
        logits = decoder.forward(ReferenceOps(), checkpoint.config, checkpoint.weights(), Batch(
            tokens, places, np.array([0, len(tokens)], np.int32), places)).astype(np.float64)
        logprobs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        expected = -sum(logprobs[at - 1, tokens[at]] for at in range(start, end))
        assert answer.scored_tokens == end - start
        assert answer.nll == pytest.approx(expected, rel=1e-3), "the engine's cache is f16"


def test_a_prompt_that_does_not_fit_is_an_error_of_its_row() -> None:
    short, long = example("x"), example("x", "long " * 100, 1)
    answers = asked(stub_model("hi", max_context=200), (short, long), AnswerSettings(50))
    assert answers[0].text == "hi" and "maximum context length is 200" in str(answers[1].error)


def test_images_are_seen(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for name, color in (("a.png", "red"), ("b.png", "blue")):
        image.new("RGB", (16, 16), color).save(tmp_path / name)
    talk = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "NAME"}},
                                         {"type": "text", "text": "which?"}]}, {"role": "assistant", "content": "it"}]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"messages": talk}).replace("NAME", name) + "\n" for name in ("a.png", "b.png")))
    model = stub_model(vision=stub_vision())
    assert model.vision is not None
    examples = data.read([path], Reading(rules=RowRules(images=model.vision.settings)))
    first, second = asked(model, examples, AnswerSettings(8))
    assert first.error is None and first.prompt_tokens == second.prompt_tokens > len(".user\nwhich?.\n.assistant\n")
    assert first.text != second.text, "what the stub says depends on every pixel"
    assert examples[0].digest != examples[1].digest and examples[0].conversation != examples[1].conversation


def test_if_nothing_can_be_asked_the_run_ends_with_the_reason() -> None:
    picture = replace(example("x"), prompt=({"role": "narrator", "content": "hi"},))
    with pytest.raises(EvidenceError, match="no example can be asked of stub; the first: .*narrator"):
        asked(stub_model("hi"), (picture,), AnswerSettings())


def test_prompts_are_those_of_the_server(model: LoadedModel) -> None:
    row = example("x", "hi")
    assert local.prompt(model, row) == require(model.chat).prompt([{"role": "user", "content": "hi"}])


def test_identity_tells_settings_apart() -> None:
    kinds = [LocalAnswerer(stub_model(), AnswerSettings(9), "a"), LocalAnswerer(stub_model(), AnswerSettings(8), "a"),
             LocalAnswerer(stub_model(), AnswerSettings(9, "{}"), "a"), LocalAnswerer(stub_model(), AnswerSettings(9),
                                                                                      "b"),
             LocalAnswerer(stub_model(), AnswerSettings(9, scores=True), "a")]
    assert len({str(kind.identity()) for kind in kinds}) == 5
