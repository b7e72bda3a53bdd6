"""EleutherAI's lm-eval: log-likelihoods with the server's tokenizer, and generation."""

from __future__ import annotations

import json
import pathlib
import sys
import tempfile
from typing import Any

import lm_eval
from cells import KEY, MODEL, TOO_LONG, URL, MissingError, raises, run
from lm_eval.api.instance import Instance
from lm_eval.models.api_models import JsonChatStr
from lm_eval.models.openai_completions import LocalChatCompletion
from lm_eval.tasks import TaskManager

FOLDER = pathlib.Path(tempfile.mkdtemp())
ROWS = [{"question": f"The capital of {country} is", "choices": [f" {city}", " Oslo"], "answer": 0}
        for country, city in (("France", "Paris"), ("Italy", "Rome"), ("Spain", "Madrid"), ("Germany", "Berlin"))]


def task(name: str, kind: str, rows: list[dict[str, Any]], **more: Any) -> str:
    """Writes a task with its rows; returns its name."""
    (FOLDER / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (FOLDER / f"{name}.yaml").write_text(json.dumps({
        "task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": str(FOLDER / f"{name}.jsonl")},
        "test_split": "train", "output_type": kind, "doc_to_text": "{{question}}", **more}))
    return name


CHOICE = task("capitals", "multiple_choice", ROWS, doc_to_target="answer", doc_to_choice="{{choices}}",
              metric_list=[{"metric": "acc"}])
WRITE = {"generation_kwargs": {"max_gen_toks": 12, "until": ["\n"]}, "doc_to_target": "{{choices[0]}}",
         "metric_list": [{"metric": "exact_match"}]}
GENERATE = task("written", "generate_until", ROWS, **WRITE)


def settings(path: str, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "base_url": f"{URL}{path}", "num_concurrent": 16, "max_retries": 1, "max_length": 8192,
            "auth_token": KEY, "header": {"Authorization": f"Bearer {KEY}"}, **more}


def evaluate(name: str, kind: str, path: str, **more: Any) -> Any:
    return lm_eval.simple_evaluate(kind, model_args=settings(path, **more), tasks=[name], bootstrap_iters=0,
                                   log_samples=True, task_manager=TaskManager(include_path=str(FOLDER)),
                                   apply_chat_template=path.endswith("chat/completions"))


def ask(question: str, **more: Any) -> Any:
    """One question without the minute that an evaluation takes to start."""
    model = LocalChatCompletion(**settings("/v1/chat/completions", **more))
    asked = JsonChatStr(json.dumps([{"role": "user", "content": question}]))
    return model.generate_until([Instance("generate_until", {}, (asked, {"max_gen_toks": 12, "until": ["\n"]}), 0)])


def chat() -> str:
    samples = evaluate(GENERATE, "local-chat-completions", "/v1/chat/completions")["samples"][GENERATE]
    assert all(sample["filtered_resps"][0] for sample in samples)
    return f"{len(samples)} answers"


def logprobs() -> str:
    result = evaluate(CHOICE, "local-completions", "/v1/completions", tokenizer_backend="remote")
    samples = result["samples"][CHOICE]
    assert all(float(answer[0]) < 0 for sample in samples for answer in sample["filtered_resps"])
    assert result["results"][CHOICE]["acc,none"] > 0.5
    return f"accuracy {result['results'][CHOICE]['acc,none']}"


def at_once() -> str:
    result = evaluate(GENERATE, "local-completions", "/v1/completions", tokenizer_backend="remote")
    samples = result["samples"][GENERATE]
    assert all(sample["filtered_resps"][0] for sample in samples)
    return f"{len(samples)} answers"


def too_long() -> str:
    return raises(Exception, lambda: ask(TOO_LONG), "400")


def bad_model() -> str:
    return raises(Exception, lambda: ask("hi", model="gpt-0"), "404")


def bad_key() -> str:
    return raises(Exception, lambda: ask("hi", header={"Authorization": "Bearer wrong"}), "401")


def stream() -> str:
    raise MissingError("lm-eval asks for whole answers")


def tools() -> str:
    raise MissingError("lm-eval has none")


structured, abort = tools, stream


run("completions and chat completions", sys.modules[__name__])
