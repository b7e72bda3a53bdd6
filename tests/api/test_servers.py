"""`brise.serve` and `brise.gateway`: listening by themselves, and mounted in another application."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

import brise
from brise.errors import UnsupportedError
from brise.traffic.stores import open_store
from tests.api.stub_model import saying
from tests.gateway.fake_upstream import fake_upstream
from tests.waiting import LIMIT_S, until

HI = [{"role": "user", "content": "what wind?"}]


def chat(url: str, name: str = "stub", **more: object) -> httpx.Response:
    return httpx.post(f"{url}/chat/completions", json={"model": name, "messages": HI, "temperature": 0, **more},
                      timeout=LIMIT_S, trust_env=False)


def test_a_server_in_a_thread_gives_the_same_tokens_as_the_model(model: brise.Model) -> None:
    with brise.serve(model, port=0) as server:
        answer = chat(server.url, "tiny", max_tokens=20).json()
    assert answer["choices"][0]["message"]["content"] == model.chat("what wind?", temperature=0, max_tokens=20).text
    assert model.chat("hi", max_tokens=2).text, "a model that was handed in stays open"


def test_a_server_in_this_event_loop_listens_in_its_block_only() -> None:
    async def ask(model: brise.Model) -> None:
        async with (brise.serve({"mine": model}, port=0) as server,
                    httpx.AsyncClient(timeout=LIMIT_S, trust_env=False) as client):
            url = server.url
            models = (await client.get(f"{url}/models")).json()
            assert [each["id"] for each in models["data"]] == ["mine"] and url.startswith("http://127.0.0.1:")
        with pytest.raises(brise.BriseError, match="does not listen"):
            assert server.url
        async with httpx.AsyncClient(timeout=LIMIT_S, trust_env=False) as client:
            with pytest.raises(httpx.ConnectError):
                await client.get(f"{url}/models")

    with saying("hello") as model:
        asyncio.run(ask(model))


def test_what_runs_is_finished_before_a_server_ends() -> None:
    async def ask(model: brise.Model) -> str:
        async with httpx.AsyncClient(trust_env=False, timeout=LIMIT_S) as client:
            async with brise.serve(model, port=0) as server:
                asking = asyncio.create_task(client.post(f"{server.url}/chat/completions",
                                                         json={"model": "stub", "messages": HI, "temperature": 0}))
                await until(begun.is_set)
            return str((await asking).json()["choices"][0]["message"]["content"])

    begun = threading.Event()
    with saying("a breeze that goes on for a while", on_step=lambda batch: begun.set()) as model:
        assert asyncio.run(ask(model)) == "a breeze that goes on for a while"


def test_a_model_that_a_server_loads_is_closed_with_it(tiny_path: Path) -> None:
    with brise.serve(tiny_path, port=0, memory="8GB") as server:
        loaded = server._parts.models["tiny"]
        assert chat(server.url, "tiny", max_tokens=2).status_code == 200
        assert server._state.settings.max_requests is not None, "bodies are bounded under a memory limit"
    with pytest.raises(brise.ClosedError):
        loaded.chat("hi")


def test_a_server_is_used_once() -> None:
    with saying("hello") as model:
        server = brise.serve(model, port=0)
        with server:
            pass
        with pytest.raises(brise.BriseError, match="used once"), server:
            pass


def test_keys_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("from-a-file\n")
    (tmp_path / "keys").chmod(0o600)
    with saying("hello") as model:
        for keys, good in ((["one", "two"], "two"), (tmp_path / "keys", "from-a-file")):
            with brise.serve(model, port=0, api_keys=keys) as server:
                assert httpx.get(f"{server.url}/models", timeout=LIMIT_S, trust_env=False).status_code == 401
                assert httpx.get(f"{server.url}/models", timeout=LIMIT_S, trust_env=False,
                                 headers={"authorization": f"Bearer {good}"}).status_code == 200
        for wrong in ("secret", [], ["a b"]):
            with pytest.raises(brise.RequestError, match="api_keys is a list of keys"):
                brise.serve(model, api_keys=wrong)


def mounted(model: brise.Model, app: brise.Server, host: str = "localhost") -> httpx.AsyncClient:
    """A client of an application that has the server under /llm, and a page of its own."""
    async def own(request: Request) -> PlainTextResponse:
        return PlainTextResponse("own page")

    parent = Starlette(routes=[Route("/", own), Mount("/llm", app)])
    return httpx.AsyncClient(transport=httpx.ASGITransport(parent), base_url=f"http://{host}", timeout=LIMIT_S)


def test_mounted_under_a_prefix_it_answers_beside_the_parents_own_pages() -> None:
    async def ask(model: brise.Model) -> None:
        async with mounted(model, brise.serve(model)) as client:
            assert (await client.get("/")).text == "own page"
            assert (await client.get("/llm/health")).status_code == 200
            body = {"model": "stub", "messages": HI, "temperature": 0, "stream": True}
            answer = await client.post("/llm/v1/chat/completions", json=body)
            assert answer.status_code == 200 and answer.text.rstrip().endswith("data: [DONE]")
            assert (await client.get("/llm/v1/models/stub")).json()["id"] == "stub"
            assert (await client.get("/llm/nothing")).json()["error"]["message"] == "there is no GET '/nothing'"

    with saying("hello") as model:
        asyncio.run(ask(model))


def test_mounted_for_the_world_it_asks_for_keys_or_for_a_word_that_it_is_meant() -> None:
    async def status(model: brise.Model, app: brise.Server) -> int:
        async with mounted(model, app, "shop.example") as client:
            return (await client.get("/llm/v1/models", headers={"authorization": "Bearer k"})).status_code

    with saying("hello") as model:
        assert asyncio.run(status(model, brise.serve(model))) == 421
        assert asyncio.run(status(model, brise.serve(model, any_host=True))) == 200
        assert asyncio.run(status(model, brise.serve(model, api_keys=["k"]))) == 200


def test_rules_hold_back_calls_and_a_gateway_has_none(tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rules]]\nfunction = "open"\nthen = "refuse"\nbecause = "it is cold"\n')
    tools = [{"type": "function", "function": {"name": "open", "parameters": {"type": "object", "properties": {}}}}]
    with saying('<tool_call>\n{"name": "open", "arguments": {}}\n</tool_call>') as model:
        with brise.serve(model, port=0, rules=rules) as server:
            answer = chat(server.url, "stub", tools=tools, temperature=0).json()
    assert answer["choices"][0]["message"]["content"] == "open({}) was refused: it is cold."
    with pytest.raises(brise.BriseError, match="models that are served here"):
        brise.gateway(upstream="http://127.0.0.1:1/v1", rules=rules)


def test_a_server_that_cannot_listen_says_why_in_the_words_of_python() -> None:
    with saying("hello") as model:
        with pytest.raises(brise.BriseError, match="without API keys(.|\n)*api_keys=FILE(.|\n)*any_host=True"):
            with brise.serve(model, host="0.0.0.0", port=0):
                pass
        with brise.serve(model, port=0) as server:
            taken = int(server.url.split(":")[2].split("/")[0])
            with pytest.raises(brise.BriseError, match="cannot listen on 127.0.0.1:(.|\n)*with port"):
                with brise.serve(model, port=taken):
                    pass


def test_an_asgi_server_runs_its_lifespan() -> None:
    async def live(app: brise.Server) -> list[str]:
        messages = iter(["lifespan.startup", "lifespan.shutdown"])
        sent = list[str]()

        async def receive() -> dict[str, str]:
            return {"type": next(messages)}

        async def send(message: dict[str, str]) -> None:
            sent.append(message["type"])

        await app({"type": "lifespan"}, receive, send)  # type: ignore[arg-type]
        return sent

    with saying("hello") as model:
        assert asyncio.run(live(brise.serve(model))) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_a_gateway_passes_on_answers_here_and_writes_down(tmp_path: Path, home: Path) -> None:
    with fake_upstream() as fake, saying("from here") as small:
        with brise.gateway(upstream=f"{fake.url}/v1", small=small, upstream_key="secret", port=0,
                           store=tmp_path / "traffic.sqlite") as server:
            assert chat(server.url, "large").json()["choices"][0]["message"]["content"] == "hello"
            assert chat(server.url).json()["choices"][0]["message"]["content"] == "from here"
        assert fake.received[0].header("authorization") == "Bearer secret" and len(fake.received) == 1
    store = open_store(tmp_path / "traffic.sqlite", home)
    assert [row.model for row in store.exchanges()] == ["large"]
    store.close()


def test_a_gateway_has_several_upstreams(tmp_path: Path, home: Path) -> None:
    with fake_upstream() as one, fake_upstream() as two, brise.gateway(
            upstreams={"one": one.url, "two": brise.NamedUpstream(two.url, key="secret", models=["mini-*"])}, port=0,
            store=tmp_path / "traffic.sqlite", default_upstream="one") as server:
        for model in ("large", "two/large", "mini-1"):
            assert chat(server.url, model).status_code == 200
        assert chat(server.url, "three/large").json()["error"]["code"] == "model_not_found"
    assert [seen.json["model"] for seen in one.received] == ["large"]
    assert [seen.json["model"] for seen in two.received] == ["large", "mini-1"]
    assert {seen.header("authorization") for seen in two.received} == {"Bearer secret"}
    assert "secret" not in repr(brise.NamedUpstream(two.url, key="secret"))
    store = open_store(tmp_path / "traffic.sqlite", home)
    assert sorted((row.model, row.upstream) for row in store.exchanges()) == [
        ("large", "one"), ("mini-1", "two"), ("two/large", "two")]
    store.close()


def test_an_upstream_without_a_list_of_models_leaves_an_empty_list(tmp_path: Path) -> None:
    with fake_upstream() as fake, brise.gateway(upstream=fake.url, upstream_dialect="anthropic", port=0,
                                                store=tmp_path / "traffic.sqlite") as server:
        listed = httpx.get(f"{server.url}/models", timeout=LIMIT_S, trust_env=False)
        assert listed.status_code == 200 and listed.json() == {"object": "list", "data": []}
        assert not fake.received


@pytest.mark.parametrize(("options", "message"), [
    ({}, "either `upstream`"), ({"upstream": "http://h/v1", "upstreams": {"a": "http://h/v1"}}, "either `upstream`"),
    ({"upstreams": {}}, "either `upstream`"), ({"upstreams": {"a/b": "http://h/v1"}}, "name is 'a/b'"),
    ({"upstreams": {"a": "http://h/v1"}, "upstream_key": "k"}, "each has its own"),
    ({"upstreams": {"a": "http://h/v1"}, "default_upstream": "b"}, "no upstream 'b'; there is 'a'"),
    ({"upstream": "http://h/v1", "default_upstream": "b"}, "for several `upstreams`"),
    ({"upstreams": {"a": brise.NamedUpstream("http://h/v1", dialect="x")}}, "dialect is 'x'")])  # type: ignore[arg-type]
def test_upstreams_that_cannot_be_meant_are_errors(options: dict[str, object], message: str, home: Path) -> None:
    with pytest.raises(brise.UnsupportedError) as raised:
        brise.gateway(**options)  # type: ignore[arg-type]
    assert message in str(raised.value)


def test_a_mounted_gateway_shadows_and_falls_back(tmp_path: Path, home: Path) -> None:
    async def ask(app: brise.Server, small: brise.Model) -> tuple[str, str]:
        @asynccontextmanager
        async def lifespan(parent: Starlette) -> AsyncIterator[None]:
            async with app.lifespan():
                yield

        parent = Starlette(routes=[Mount("/llm", app)], lifespan=lifespan)
        transport = httpx.ASGITransport(parent)
        async with parent.router.lifespan_context(parent), httpx.AsyncClient(
                transport=transport, base_url="http://localhost", timeout=LIMIT_S) as client:
            body = {"model": "large", "messages": HI, "temperature": 0}
            hosted = await client.post("/llm/v1/chat/completions", json=body)
            await asyncio.to_thread(fake.stop)
            replaced = await client.post("/llm/v1/chat/completions", json=body)
            return tuple(answer.json()["choices"][0]["message"]["content"] for answer in (hosted, replaced))  # type: ignore[return-value]

    with fake_upstream() as fake, saying("from here") as small:
        app = brise.gateway(upstream=f"{fake.url}/v1", small={"mine": small}, store=tmp_path / "traffic.sqlite",
                            fallback="mine", shadow=1.0, retries=0)
        assert asyncio.run(ask(app, small)) == ("hello", "from here")


@pytest.mark.parametrize(("options", "message"), [
    ({"upstream": "nowhere"}, "the upstream is 'nowhere'"), ({"shadow": 2}, "shadow is 2, allowed is a share"),
    ({"fallback": "other"}, "fallback 'other'"), ({"shadow": 0.5, "small": None}, "not said which of 0 models"),
    ({"memory": "1GB"}, "memory is for one model that is loaded here")])
def test_a_gateway_that_cannot_be_is_an_error_and_leaves_nothing_open(options: dict[str, object], message: str) -> None:
    with saying("hello") as model, pytest.raises(brise.BriseError, match=message):
        brise.gateway(**{"upstream": "http://127.0.0.1:9/v1", "small": model, **options})  # type: ignore[arg-type]


def test_an_option_that_does_not_exist_is_a_type_error(model: brise.Model) -> None:
    with pytest.raises(TypeError, match="no option 'ports'; did you mean 'port'"):
        brise.serve(model, ports=1)  # type: ignore[call-arg]


def test_web_pages_of_the_given_origins_may_use_a_server() -> None:
    with saying("hello") as model:
        with brise.serve(model, port=0, cors_origins=["https://app.example.com"]) as server:
            answers = [httpx.get(f"{server.url}/models", headers={"Origin": origin}, timeout=LIMIT_S, trust_env=False)
                       for origin in ("https://app.example.com", "https://other.example.com")]
        with pytest.raises(brise.BriseError, match="cors_origins is one text"):
            brise.serve(model, cors_origins="*")
    assert [each.headers.get("access-control-allow-origin") for each in answers] == ["https://app.example.com", None]


def test_a_server_of_a_program_shows_the_page_if_it_is_asked_for(model: brise.Model) -> None:
    with brise.serve(model, port=0, page=True) as server:
        answer = httpx.get(f"{server.url.removesuffix('/v1')}/page/", trust_env=False)
        assert answer.status_code == 200 and "<title>brise" in answer.text
    with brise.serve(model, port=0) as server:
        assert httpx.get(f"{server.url.removesuffix('/v1')}/page/", trust_env=False).status_code == 404
    with pytest.raises(UnsupportedError, match="without keys: everybody could read your traffic"):
        brise.serve(model, page=True, any_host=True)
