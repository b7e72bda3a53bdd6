"""Parity of a server: brise itself over HTTP, and the shapes in which other engines answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

import brise
from brise.checkpoint.adapters.peft import AdapterFile, write_adapter
from brise.cli.main import main
from brise.engine.model import load
from brise.errors import NetworkError
from brise.evals.endpoint import Endpoint
from brise.tune.parity.endpoint import EndpointReport, TrainedModel, compare_endpoint, least_kl
from brise.tune.parity.openai_server import ServerClient
from brise.tune.parity.parity import ParityError, Tolerance
from tests.serve.live import Live, live
from tests.tune.parity_models import TOPICS, Tiny, tiny

Handler = Callable[[httpx.Request], httpx.Response]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return tiny(tmp_path_factory.mktemp("parity"))


@pytest.fixture(scope="module")
def adapter(model: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "a"
    write_adapter(folder, AdapterFile(model.adapter(), 4, 8.0), None, model.config)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "data.jsonl"
    path.write_text("".join(json.dumps({"messages": [
        {"role": "user", "content": f"Say a word on {topic}."},
        {"role": "assistant", "content": f"There is {topic} in the air."}]}) + "\n" for topic in TOPICS))
    return path


@pytest.fixture(scope="module")
def server(model: Tiny, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """The merged model, as another engine would serve it."""
    merged = tmp_path_factory.mktemp("merged") / "merged.gguf"
    brise.export(model.path, merged, format="gguf", dtype="f32", adapter=adapter, merge=True)
    with live(load(merged)) as running:
        yield running


def words(model: Tiny, adapter: Path, data: Path, server: Live, *more: str) -> list[str]:
    return ["parity", str(model.path), "--adapter", str(adapter), "--data", str(data), "--held-out-share", "0.5",
            "--endpoint", f"{server.url}/v1", "--max-tokens", "12", *more]


def test_a_server_of_the_merged_model_passes(model: Tiny, adapter: Path, data: Path, server: Live,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(model, adapter, data, server, "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] and report["model"] == "stub" and len(report["prompts"]) > 1
    assert {prompt["tokens"] for prompt in report["prompts"]} == {"same"}
    assert report["adapted"]["num_tokens"] >= 12 and report["adapted"]["kl_mean"] < 1e-3
    assert main(words(model, adapter, data, server, "--name", "stub")) == 0
    assert "parity of stub" in capsys.readouterr().out


def test_a_server_of_another_adapter_fails(model: Tiny, data: Path, server: Live, tmp_path: Path) -> None:
    write_adapter(tmp_path / "b", AdapterFile(model.adapter(1, size=2.0), 4, 8.0), None, model.config)
    report = brise.parity(data, model=model.path, adapter=tmp_path / "b", endpoint=f"{server.url}/v1")
    assert isinstance(report, EndpointReport) and not report.passed
    assert any("mean KL is" in failure for failure in report.failures)
    with pytest.raises(ParityError, match="mean KL is"):
        report.check()


def test_a_server_without_the_adapter_fails(model: Tiny, adapter: Path, data: Path) -> None:
    with live(load(model.path)) as running:
        report = brise.parity(data, model=model.path, adapter=adapter, endpoint=f"{running.url}/v1", max_tokens=8,
                              tolerance=Tolerance(max_mean_kl=9.0, min_agreement=0.0))
    assert not report.passed and "no farther from the base" in report.failures[0]
    assert "does --name name it" in (report.where or "")


def test_a_model_that_the_server_lacks_is_an_error(model: Tiny, adapter: Path, data: Path, server: Live,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(model, adapter, data, server, "--name", "other")) == 1
    assert "404" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "message"), [
    (("--served", "x.gguf"), "--served and --endpoint"), (("--endpoint", "ftp://x"), "http(s)://HOST/PATH")])
def test_contradictions_are_refused(model: Tiny, adapter: Path, data: Path, server: Live, option: tuple[str, ...],
                                    message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(model, adapter, data, server, *option)) == 1
    assert message in capsys.readouterr().err


def compared(model: Tiny, handler: Handler) -> EndpointReport:
    with ServerClient(Endpoint("http://127.0.0.1:1/v1", "m"), 20, httpx.MockTransport(handler)) as client:
        trained = TrainedModel(model.trained(), None, model.tokens)
        return compare_endpoint(trained, client, model.examples[:2], max_tokens=4, tolerance=Tolerance())


def answering(content: object, **more: object) -> Handler:
    def handler(request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith("/completions"):
            return httpx.Response(404)
        return httpx.Response(200, json={"choices": [{"logprobs": content, "message": {"content": "x"}}], **more})
    return handler


def test_a_server_without_logprobs_is_not_called_the_same(model: Tiny) -> None:
    report = compared(model, answering(None))
    assert not report.passed and "no log-probabilities" in report.failures[0]


def test_a_server_that_reads_other_prompts_fails_by_its_count(model: Tiny) -> None:
    report = compared(model, answering(None, usage={"prompt_tokens": 3, "completion_tokens": 1}))
    assert "encoded to other tokens" in report.failures[0] and "read 3 tokens" in (report.where or "")


def test_a_server_that_hides_tokens_is_not_compared(model: Tiny) -> None:
    step = {"token": "a", "bytes": [97], "logprob": -0.1, "top_logprobs": []}
    report = compared(model, answering({"content": [step]}, usage={"prompt_tokens": 3, "completion_tokens": 9}))
    assert any("counts 9 tokens" in (prompt.note or "") or prompt.tokens == "other" for prompt in report.prompts)
    assert report.quality is None


@pytest.mark.parametrize("logprobs", [
    {"content": [{"token": "x", "id": 97, "bytes": [255], "logprob": -9999.0,
                  "top_logprobs": [{"token": "?", "id": 98, "logprob": -0.01}]}]},  # llama.cpp
    {"content": [{"token": "token_id:97", "logprob": -1.0,
                  "top_logprobs": [{"token": "token_id:98", "logprob": -0.2}]}]},  # vLLM
    {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": [{"a": -1.0, "b": -0.5}]}])
def test_the_forms_of_engines_are_read(model: Tiny, logprobs: object) -> None:
    report = compared(model, answering(logprobs))
    assert report.quality is not None and report.quality.num_tokens == 2


def test_a_status_that_asks_to_wait_is_an_error_of_the_run(model: Tiny) -> None:
    with pytest.raises(NetworkError, match="status 503"):
        compared(model, lambda request: httpx.Response(503, text="busy"))


def test_the_divergence_is_a_lower_bound_and_exact_over_all_tokens() -> None:
    random = np.random.default_rng(0)
    p, q = (np.log(random.dirichlet(np.ones(50))) for _ in range(2))
    whole = float((np.exp(p) * (p - q)).sum())
    order = np.argsort(q)[::-1]
    bounds = [least_kl(p, [([int(token)], float(q[token])) for token in order[:top]]) for top in (1, 5, 20, 49)]
    assert bounds == sorted(bounds) and bounds[-1] == pytest.approx(whole, rel=1e-6)
    assert least_kl(p, [([int(token)], float(p[token])) for token in order[:5]]) == pytest.approx(0.0, abs=1e-9)
