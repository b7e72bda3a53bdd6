"""Traces and metrics over OTLP: what a collector gets, and that one that is away changes nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from brise.cli.main import main
from brise.dialects.bodies import Usage
from brise.errors import BriseError, MissingExtraError
from brise.gateway import trace
from brise.gateway.exchange import local_exchange
from brise.gateway.interfaces import RequestOutcome
from brise.gateway.retry import Retries, RetrySettings
from brise.serve import telemetry as telemetry_module
from brise.serve.open_telemetry import TelemetryOptions, open_telemetry
from brise.serve.otlp import OtlpExporter, OtlpSampler
from brise.serve.otlp_process import ExportProcess
from brise.serve.telemetry import Telemetry, TracedRequest
from brise.traffic.stores import open_store
from tests.gateway.fake_answers import MODEL
from tests.gateway.fake_upstream import answer, chat, refuse
from tests.gateway.rig import Rig, rig
from tests.serve.keys_rig import words
from tests.serve.otlp_receiver import Receiver, attributes, receiver
from tests.waiting import wait_until

BODY = {"model": "big", "messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}],
        "temperature": 0.5, "max_tokens": 7}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setattr(telemetry_module, "EVERY_S", 0.05)
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "100")
    with receiver() as made:
        yield made


class InThisProcess(OtlpExporter):
    """The exporter without a process of its own, which takes half a second to begin."""

    def is_sampled(self, begun: trace.RequestTrace) -> bool:
        return OtlpSampler().is_sampled(begun)


@contextmanager
def watched(url: str, *, content: bool = False, **more: Any) -> Iterator[tuple[Rig, Telemetry]]:
    """A gateway that exports to the collector."""
    telemetry = Telemetry(InThisProcess(url, with_content=content), {"": "https://api.openai.com/v1"})
    try:
        with rig(telemetry=telemetry, **more) as made:
            yield made, telemetry
    finally:
        telemetry.close()


@contextmanager
def exported(url: str) -> Iterator[tuple[ExportProcess, TracedRequest]]:
    """An exporter's process, and a request for it."""
    exporter = ExportProcess(url, with_content=False)
    outcome = RequestOutcome("small", 200, "stub", usage=Usage(1, 2))
    exchange = local_exchange("id", "/v1/chat/completions", outcome, 0.1, {})
    try:
        yield exporter, TracedRequest(trace.read([]), replace(exchange, request={"seed": 4, "messages": [{}]}), "")
    finally:
        exporter.close()
        exporter.end()


def test_a_request_is_a_span_with_the_conventions_attributes(collector: Receiver) -> None:
    with watched(collector.url) as (made, _):
        made.fake.default = answer(words(9))
        response = made.live.post("/v1/chat/completions", BODY, headers={"x-brise-task": "greet"})
        whole, attempt = collector.wait_spans(2)
    assert (whole.name, whole.kind, whole.status.code) == ("chat big", 3, 0)
    found = attributes(whole)
    assert found["brise.exchange.id"] == response.headers["x-brise-id"] and found["brise.task"] == "greet"
    expected = {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "big",
        "gen_ai.response.model": MODEL, "gen_ai.usage.input_tokens": 10, "gen_ai.usage.output_tokens": 9,
        "gen_ai.response.finish_reasons": ["stop"], "gen_ai.response.id": "chatcmpl-fake",
        "gen_ai.request.temperature": 0.5, "gen_ai.request.max_tokens": 7, "server.address": "api.openai.com",
        "server.port": 443, "brise.mode": "hosted", "brise.upstream.attempts": 1}
    assert {name: found.get(name) for name in expected} == expected
    assert attempt.name == "POST" and attempt.parent_span_id == whole.span_id
    assert attributes(attempt)["http.response.status_code"] == 200
    assert "hi" not in str(collector.traces) and "be kind" not in str(collector.traces)


def test_the_clients_trace_goes_on_and_reaches_the_upstream(collector: Receiver) -> None:
    with watched(collector.url) as (made, _):
        made.live.post("/v1/chat/completions", BODY, headers={"traceparent": PARENT, "tracestate": "a=b"})
        whole, attempt = collector.wait_spans(2)
        sent = made.fake.received[0]
    assert whole.trace_id.hex() == attempt.trace_id.hex() == PARENT[3:35]
    assert whole.parent_span_id.hex() == PARENT[36:52]
    assert sent.header("traceparent") == f"00-{PARENT[3:35]}-{attempt.span_id.hex()}-01"
    assert sent.header("tracestate") == "a=b"


@pytest.mark.parametrize("given", [
    "", "00-0-0-01", PARENT.replace("00-", "ff-", 1), f"{PARENT}-more", "00-" + "0" * 32 + "-b7ad6b7169203331-01",
    PARENT.upper()])
def test_a_bad_traceparent_begins_a_new_trace(given: str) -> None:
    found = trace.read([(b"traceparent", given.encode()), (b"tracestate", b"a=b")])
    assert found.parent_id is None and len(found.trace_id) == 32 and found.trace_id != PARENT[3:35]
    with found.step("POST", {}) as step:
        assert [name for name, _ in found.passed_on([(b"tracestate", b"a=b")], step)] == [b"traceparent"]


def test_a_trace_that_the_client_does_not_sample_is_not_sent(collector: Receiver) -> None:
    with watched(collector.url) as (made, telemetry):
        made.live.post("/v1/chat/completions", BODY, headers={"traceparent": PARENT[:-1] + "0"})
        assert made.fake.received[0].header("traceparent", ).endswith("-00")  # type: ignore[union-attr]
        wait_until(lambda: telemetry.exported == 1)
        wait_until(lambda: bool(collector.points("gen_ai.client.operation.duration")))
    assert not collector.spans()


def test_retries_are_spans_of_their_own(collector: Receiver) -> None:
    async def at_once(seconds: float) -> None:
        """No wait."""

    with watched(collector.url, retries=Retries(RetrySettings(2)), wait=at_once) as (made, _):
        made.fake.then(refuse(503), refuse(429), chat("hello"))
        assert made.live.post("/v1/chat/completions", BODY).status_code == 200
        whole, *attempts = collector.wait_spans(4)
    assert [attributes(each).get("error.type") for each in attempts] == ["503", "429", None]
    assert [attributes(each).get("http.request.resend_count") for each in attempts] == [None, 1, 2]
    assert [each.status.code for each in attempts] == [2, 2, 0] and whole.status.code == 0


def test_a_failure_has_its_kind(collector: Receiver) -> None:
    with watched(collector.url) as (made, _):
        made.fake.then(refuse(500))
        assert made.live.post("/v1/chat/completions", BODY).status_code == 500
        whole = collector.wait_spans(2)[0]
        wait_until(lambda: bool(collector.points("gen_ai.client.operation.duration")))
    assert whole.status.code == 2 and attributes(whole)["error.type"] == "500"
    assert attributes(collector.points("gen_ai.client.operation.duration")[0])["error.type"] == "500"


def test_metrics_are_histograms_of_time_and_tokens(collector: Receiver) -> None:
    with watched(collector.url) as (made, _):
        made.fake.default = answer(words(9))
        made.live.post("/v1/chat/completions", BODY)
        wait_until(lambda: len(collector.points("gen_ai.client.token.usage")) >= 2)
    duration = collector.points("gen_ai.client.operation.duration")[0]
    assert (duration.count, list(duration.explicit_bounds)[:3]) == (1, [0.01, 0.02, 0.04])
    tokens = {attributes(point)["gen_ai.token.type"]: point.sum
              for point in collector.points("gen_ai.client.token.usage")}
    assert tokens == {"input": 10, "output": 9}


@pytest.mark.parametrize("stream", [False, True])
def test_with_content_brises_own_importer_reads_it_back(collector: Receiver, stream: bool, tmp_path: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    with watched(collector.url, content=True) as (made, _):
        made.live.post("/v1/chat/completions", BODY | {"stream": stream})
        collector.wait_spans(2)
    export = tmp_path / "traces.jsonl"
    export.write_text("".join(json.dumps(each) + "\n" for each in collector.as_json()), encoding="utf-8")
    monkeypatch.setenv("BRISE_HOME", str(tmp_path))
    assert main(["log", "import", str(export)]) == 0
    store = open_store(None, tmp_path)
    exchange, = store.exchanges()
    store.close()
    assert exchange.request is not None and exchange.response is not None
    assert exchange.request["messages"] == BODY["messages"] and exchange.model == "big"
    choice = exchange.response["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("hello", "stop")
    assert exchange.served_by == MODEL and exchange.usage is not None and exchange.usage.prompt_tokens == 10


def test_a_model_of_this_server_has_spans_too(collector: Receiver) -> None:
    with watched(collector.url) as (made, _):
        made.live.chat("hi", max_tokens=3)
        whole, = collector.wait_spans(1)
    found = attributes(whole)
    assert (whole.name, found["gen_ai.provider.name"], found["brise.mode"]) == ("chat stub", "brise", "small")
    assert found["gen_ai.usage.output_tokens"] == 3


def test_a_collector_that_hangs_holds_up_no_request(collector: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry_module, "MOST_WAITING", 4)
    monkeypatch.setattr(telemetry_module, "END_S", 0.1)
    collector.hold = threading.Event()
    with watched(collector.url) as (made, telemetry):
        for _ in range(12):
            assert made.live.post("/v1/chat/completions", BODY).status_code == 200
        wait_until(lambda: telemetry.dropped["full"] > 0)
        assert 'brise_otel_dropped_requests_total{reason="full"}' in made.live.metrics()
        collector.hold.set()


def test_a_collector_that_is_away_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry_module, "EVERY_S", 0.05)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    with watched("http://127.0.0.1:1") as (made, telemetry):
        assert made.live.post("/v1/chat/completions", BODY).status_code == 200
        wait_until(lambda: telemetry.dropped["unreachable"] == 1)
        assert telemetry.exported == 0


def test_standard_variables_are_read(collector: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "gateway-7")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "team=a")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    with open_telemetry(TelemetryOptions(), {}) as telemetry, rig(telemetry=telemetry) as made:
        made.live.post("/v1/chat/completions", BODY)
        collector.wait_spans(2)
    resource = attributes(collector.traces[0].resource_spans[0].resource)
    assert (resource["service.name"], resource["team"]) == ("gateway-7", "a") and not collector.metrics


def test_a_process_exports_and_another_one_replaces_it(collector: Receiver) -> None:
    with exported(collector.url) as (exporter, request):
        assert exporter.export([request, request]) == 0 and len(collector.spans()) == 2
        assert attributes(collector.spans()[0])["gen_ai.request.seed"] == 4
        first = exporter.pid
        os.kill(first, signal.SIGTERM)  # a server's group gets it, and the server has something to send after that
        assert exporter.export([request]) == 0 and exporter.pid == first
        os.kill(first, signal.SIGKILL)
        os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
        assert exporter.export([request]) == 0 and exporter.pid != first
    assert len(collector.spans()) == 4
    assert attributes(collector.spans()[0])["gen_ai.usage.output_tokens"] == 2


def test_what_the_sdk_cannot_read_is_an_error_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "-5")
    with pytest.raises(BriseError, match="OpenTelemetry does not start: .*-5"):
        ExportProcess(None, with_content=False)


def test_a_process_does_not_outlive_its_server(collector: Receiver) -> None:
    script = ("import os, sys\nfrom brise.serve.otlp_process import ExportProcess\n"
              "made = ExportProcess(sys.argv[1], with_content=False)\n"
              "print(made.pid, flush=True)\nos.kill(os.getpid(), 9)")
    server = subprocess.run([sys.executable, "-c", script, collector.url], capture_output=True, text=True, check=False)
    wait_until(lambda: not Path(f"/proc/{int(server.stdout)}").exists())


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("otlp", "otlp_process"):
        monkeypatch.delitem(sys.modules, f"brise.serve.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'brise\[otel\]'"), open_telemetry(TelemetryOptions(), {}):
        pass


def test_a_server_without_telemetry_imports_none_of_it() -> None:
    check = ("import sys, brise.cli.serve, brise.serve.app; "
             "print([name for name in sys.modules if name.partition('.')[0] in ('opentelemetry', 'google')])")
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
