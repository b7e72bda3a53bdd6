"""Adapters over HTTP are named as models, listed with their parent, and loaded and removed while the server runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from brise.checkpoint.adapters.peft import AdapterFile, write_adapter
from brise.checkpoint.open import open_checkpoint
from brise.engine.engine import Engine, EngineSettings
from brise.engine.engine_thread import EngineThread
from brise.engine.model import LoadedModel, load
from brise.serve.engine_models import EngineModels
from brise.serve.error_response import UnknownModelError
from brise.serve.serving import ServeSettings
from tests.checkpoint.make_adapter import LINEAGE, random_low_ranks
from tests.checkpoint.make_gguf import write_tiny
from tests.serve.live import Live, live
from tests.waiting import LIMIT_S

ENGINE = EngineSettings(num_pages=128, max_adapters=2, max_rank=8)
PROMPT = "the wind and the sea"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", "llama"), threads=2)


@pytest.fixture(scope="module")
def folders(model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters one, two and three; four has another base."""
    config = open_checkpoint(model.path).config
    root = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("one", "two", "three", "four")):
        write_adapter(root / name, AdapterFile(random_low_ranks(config, seed), 3, 6.0),
                      LINEAGE if name == "four" else None, config)
    return root


@pytest.fixture
def server(model: LoadedModel, folders: Path) -> Iterator[Live]:
    with live(model, engine_settings=ENGINE) as running:
        running.worker.add_adapter("one", folders / "one")
        yield running
        running.wait_idle()


def text(client: openai.OpenAI, model: str, max_tokens: int = 8) -> str:
    answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=max_tokens, temperature=0,
                                       extra_body={"ignore_eos": True})
    assert answer.model == model and answer.usage is not None and answer.usage.completion_tokens == max_tokens
    return answer.choices[0].text


def test_an_adapter_is_a_model_by_its_name(client: openai.OpenAI) -> None:
    listed = {card.id: card for card in client.models.list().data}
    assert list(listed) == ["stub", "one"] and listed["one"].parent == "stub"  # type: ignore[attr-defined]
    assert "parent" not in listed["stub"].model_dump()
    assert client.models.retrieve("one").id == "one"
    assert text(client, "one") != text(client, "stub")


def test_every_endpoint_of_texts_takes_an_adapter(client: openai.OpenAI) -> None:
    answers = {}
    for name in ("one", "stub"):
        chat = client.chat.completions.create(model=name, messages=[{"role": "user", "content": PROMPT}],
                                              max_tokens=8, temperature=0)
        reply = client.responses.create(model=name, input=PROMPT, max_output_tokens=16, temperature=0)
        stream = client.completions.create(model=name, prompt=PROMPT, max_tokens=8, temperature=0, stream=True)
        assert chat.model == reply.model == name
        answers[name] = (chat.choices[0].message.content, reply.output_text, "".join(c.choices[0].text for c in stream))
    assert all(one != base for one, base in zip(answers["one"], answers["stub"], strict=True))
    with pytest.raises(openai.BadRequestError, match="makes no embeddings|is an adapter"):
        client.embeddings.create(model="one", input="a")


def test_an_adapter_is_loaded_used_and_removed(server: Live, client: openai.OpenAI, folders: Path) -> None:
    card = server.post("/v1/adapters", {"name": "two", "path": str(folders / "two")})
    assert card.status_code == 200
    assert card.json() | {"digest": "", "bytes": 0} == {
        "id": "two", "object": "adapter", "parent": "stub", "path": str(folders / "two"), "digest": "", "rank": 3,
        "bytes": 0, "resident": True, "running": 0}
    listed = server.get("/v1/adapters").json()
    assert listed["object"] == "list" and [one["id"] for one in listed["data"]] == ["one", "two"]
    assert len({text(client, name) for name in ("stub", "one", "two")}) == 3
    removed = httpx.delete(f"{server.url}/v1/adapters/two", timeout=LIMIT_S, trust_env=False)
    assert removed.json() == {"id": "two", "object": "adapter", "deleted": True}
    with pytest.raises(openai.NotFoundError) as missing:
        text(client, "two")
    assert missing.value.code == "model_not_found"
    again = httpx.delete(f"{server.url}/v1/adapters/two", timeout=LIMIT_S, trust_env=False)
    assert (again.status_code, again.json()["error"]["code"]) == (404, "adapter_not_found")


@pytest.mark.parametrize(("body", "status", "code", "param"), [
    ({"name": "one", "path": "two"}, 409, "adapter_exists", "name"),
    ({"name": "stub", "path": "two"}, 409, "adapter_exists", "name"),
    ({"name": "a/b", "path": "two"}, 400, "invalid_value", "name"),
    ({"name": "new", "path": "none"}, 400, "adapter_invalid", "path"),
    ({"name": "new", "path": "four"}, 400, "adapter_invalid", "path"),
    ({"name": "new", "path": "two\0"}, 400, "invalid_value", "path"),
    ({"name": "new"}, 400, "missing_required_parameter", "path"),
    ({"name": "new", "path": "two", "rank": 3}, 400, "unknown_parameter", "rank"),
    ({"name": "new", "path": "two", "model": "other"}, 404, "model_not_found", "model")])
def test_an_adapter_that_cannot_be_loaded_changes_nothing(server: Live, folders: Path, body: dict[str, object],
                                                          status: int, code: str, param: str) -> None:
    before = server.get("/v1/adapters").json()
    if "path" in body:
        body = body | {"path": f"{folders}/{body['path']}"}
    answer = server.post("/v1/adapters", body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param), error
    assert server.get("/v1/adapters").json() == before


def test_any_base_accepts_an_adapter_of_another_base(server: Live, folders: Path) -> None:
    answer = server.post("/v1/adapters", {"name": "four", "path": str(folders / "four"), "any_base": True})
    assert answer.status_code == 200


def test_other_methods_are_answered_with_the_allowed_ones(server: Live) -> None:
    answer = httpx.put(f"{server.url}/v1/adapters", trust_env=False)
    assert answer.status_code == 405 and set(answer.headers["Allow"].split(", ")) == {"GET", "HEAD", "POST"}


def test_all_slots_in_use_is_a_429_with_retry_after(model: LoadedModel, folders: Path) -> None:
    gate, reached = threading.Event(), threading.Event()
    with live(model, engine_settings=EngineSettings(num_pages=128, max_adapters=1, max_rank=8)) as server:
        server.worker.add_adapter("one", folders / "one")
        server.worker._post(lambda: (reached.set(), gate.wait(LIMIT_S)))  # the engine is held before the first token
        assert reached.wait(LIMIT_S)
        running = threading.Thread(target=lambda: text(server.client(), "one", 4))
        running.start()
        while not server.worker.adapters[0].users:
            pass
        answer = server.post("/v1/adapters", {"name": "two", "path": str(folders / "two")})
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "adapters_busy")
        assert answer.headers["Retry-After"] == "1" and answer.json()["error"]["type"] == "rate_limit_error"
        gate.set()
        running.join()
        server.wait_idle()
        assert server.post("/v1/adapters", {"name": "two", "path": str(folders / "two")}).status_code == 200


def test_no_request_is_lost_while_adapters_come_and_go(server: Live, folders: Path) -> None:
    expected = {name: text(server.client(), name) for name in ("stub", "one")}
    answers: list[tuple[str, str]] = []
    clients = [threading.Thread(target=lambda name=name: answers.extend(
        (name, text(server.client(), name)) for _ in range(5))) for name in ("stub", "one", "one")]
    for each in clients:
        each.start()
    for number in range(6):
        name = ("two", "three")[number % 2]
        assert server.post("/v1/adapters", {"name": name, "path": str(folders / name)}).status_code == 200
        assert text(server.client(), name)
        assert httpx.delete(f"{server.url}/v1/adapters/{name}", timeout=LIMIT_S, trust_env=False).status_code == 200
    for each in clients:
        each.join()
    assert len(answers) == 15 and all(answer == expected[name] for name, answer in answers)


def test_metrics_have_no_labels_of_removed_adapters(server: Live, client: openai.OpenAI, folders: Path) -> None:
    server.post("/v1/adapters", {"name": "two", "path": str(folders / "two")})
    text(client, "two")
    scraped = server.metrics()
    assert 'brise_completion_tokens_total{model="two"} 8.0' in scraped
    assert 'brise_engine_adapters{model="stub"} 2.0' in scraped
    httpx.delete(f"{server.url}/v1/adapters/two", timeout=LIMIT_S, trust_env=False)
    scraped = server.metrics()
    assert '"two"' not in scraped and 'endpoint="/v1/adapters"' in scraped


def test_adapters_are_managed_with_a_key_or_from_this_machine_only(model: LoadedModel, tmp_path: Path,
                                                                   folders: Path) -> None:
    (tmp_path / "keys").write_text("secret\n")
    (tmp_path / "keys").chmod(0o600)
    body = {"name": "one", "path": str(folders / "one")}
    with live(model, ServeSettings(allow_insecure_bind=True), ENGINE) as server:
        for answer in (server.get("/v1/adapters"), server.post("/v1/adapters", body),
                       httpx.delete(f"{server.url}/v1/adapters/one", timeout=LIMIT_S, trust_env=False)):
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "adapters_need_keys")
    with live(model, ServeSettings(api_keys_path=tmp_path / "keys", allow_insecure_bind=True), ENGINE) as server:
        assert server.post("/v1/adapters", body).status_code == 401
        key = {"Authorization": "Bearer secret"}
        assert server.post("/v1/adapters", body, headers=key).status_code == 200
        assert [card.id for card in server.client("secret").models.list().data] == ["stub", "one"]


def test_a_server_without_room_says_so(folders: Path) -> None:
    with live() as server:
        answer = server.post("/v1/adapters", {"name": "one", "path": str(folders / "one")})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "adapters_off")
        assert server.get("/v1/adapters").json() == {"object": "list", "data": []}


def test_a_fingerprint_depends_on_the_model_and_not_on_its_name(server: Live, folders: Path) -> None:
    local, worker = EngineModels({"stub": server.worker}), server.worker
    base, one = local.fingerprint("stub"), local.fingerprint("one")
    assert base != one and len(one) == 32
    worker.remove_adapter("one")
    with pytest.raises(UnknownModelError):
        local.fingerprint("one")
    worker.add_adapter("one", folders / "two")  # retrained, under the same name
    assert local.fingerprint("one") not in (base, one)
    worker.remove_adapter("one")
    worker.add_adapter("one", folders / "one")
    assert (local.fingerprint("stub"), local.fingerprint("one")) == (base, one)


def test_other_formats_of_weights_or_cache_are_another_model(model: LoadedModel) -> None:
    def fingerprint(made: LoadedModel, **options: Any) -> str:
        return EngineModels({"m": EngineThread(Engine(made, EngineSettings(num_pages=8, **options)))}).fingerprint("m")

    fingerprints = {fingerprint(model), fingerprint(model, cache_format="q8"),
                    fingerprint(replace(model, requantized="Q4_0"))}
    assert len(fingerprints) == 3 and fingerprint(replace(model, name="other")) in fingerprints
