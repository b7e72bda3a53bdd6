"""The page's routes: headers, names that change with the files, hosts, keys and scopes."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from brise.errors import EvidenceError, UnsupportedError
from brise.page import reports
from brise.page.access import shows_page
from brise.page.endpoint import PageOptions
from brise.page.routes import POLICY, page
from brise.serve.serving import ServeSettings
from tests.prove.planted import TASK, Planted
from tests.serve.keys_rig import KeyedRig, keyed
from tests.serve.live import Live, live

HTML = {"accept": "text/html,application/xhtml+xml"}


@contextmanager
def paged(folder: Path, **settings: object) -> Iterator[Live]:
    """A server with a page over the store in the folder."""
    made = ServeSettings(page=page(PageOptions(folder / "traffic.sqlite")), **settings)  # type: ignore[arg-type]
    with live(settings=made) as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home whose store has traffic of one task, and a switch."""
    monkeypatch.setenv("BRISE_HOME", str(tmp_path))
    planted = Planted(tmp_path)
    planted.requests(40, shadow=0.9)
    planted.switch(0.1)
    planted.store.close()
    return tmp_path


@pytest.fixture
def server(folder: Path) -> Iterator[Live]:
    with paged(folder) as server:
        yield server


def test_every_answer_has_the_policy_that_lets_nothing_else_run(server: Live) -> None:
    for path in ("/page/", "/page", "/page/api/tasks", "/page/api/nothing", "/page/nothing", "/page/api/proof?task=no"):
        answer = server.get(path)
        assert answer.headers["content-security-policy"] == POLICY, path
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-opener-policy"] == "same-origin"
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_files_have_names_that_change_with_them_and_are_kept_for_ever(server: Live) -> None:
    index = server.get("/page/")
    assert index.headers["cache-control"] == "no-cache"
    again = server.get("/page/", headers={"if-none-match": index.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    names = re.findall(r'(?:href|src)="(files/[^"]+)"', index.text)
    assert len(names) == 2
    for name in names:
        file = server.get(f"/page/{name}")
        assert file.status_code == 200 and "immutable" in file.headers["cache-control"]
        assert server.get(f"/page/{name}", headers={"if-none-match": file.headers["etag"]}).status_code == 304
    assert server.get(f"/page/{re.sub('files/[0-9a-f]+', 'files/0123', names[0])}").status_code == 404
    assert server.get(f"/page/{names[0]}/../../../../etc/passwd").status_code == 404


def test_files_are_packed_for_those_who_can_unpack_them(server: Live) -> None:
    with httpx.stream("GET", f"{server.url}/page/", headers={"accept-encoding": "gzip"}, trust_env=False) as answer:
        raw = b"".join(answer.iter_raw())
    assert answer.headers["content-encoding"] == "gzip" and b"<title>brise" in gzip.decompress(raw)
    plain = server.get("/page/", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers and "<title>brise" in plain.text


def test_a_browser_at_the_root_is_led_to_the_page_and_others_get_what_they_got(server: Live) -> None:
    led = server.get("/", headers=HTML)
    assert (led.status_code, led.headers["location"]) == (307, "page/")
    assert "brise is running" in server.get("/").text


def test_data_that_did_not_change_are_not_sent_again(server: Live) -> None:
    first = server.get("/page/api/tasks")
    assert first.json()["tasks"][0]["task"] == TASK and first.headers["cache-control"] == "no-store"
    assert server.get("/page/api/tasks", headers={"if-none-match": first.headers["etag"]}).status_code == 304


@pytest.mark.parametrize("headers", [
    {"host": "rebound.example"}, {"origin": "https://evil.example"}, {"origin": "null"},
    {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"},
    {"host": "rebound.example:8080", "origin": "http://rebound.example:8080"}])
def test_another_sites_page_gets_no_data(server: Live, headers: dict[str, str]) -> None:
    answer = server.get("/page/api/tasks", headers=headers)
    assert answer.status_code in (403, 421) and TASK not in answer.text
    body = {"task": TASK, "typed": TASK}
    assert server.post("/page/api/switch/back", body, headers=headers).status_code in (403, 421)
    assert server.get("/page/api/switches").json()["tasks"][0]["is_on"]


def test_cors_opens_the_page_to_nobody(folder: Path) -> None:
    with paged(folder, cors_origins=("*",)) as server:
        answer = server.get("/page/api/tasks", headers={"origin": "https://evil.example"})
        assert answer.status_code == 403 and TASK not in answer.text
        assert server.get("/page/api/tasks", headers={"origin": server.url}).status_code == 200


def test_a_form_of_another_site_changes_nothing(server: Live) -> None:
    answer = httpx.post(f"{server.url}/page/api/switch/back", content=f'{{"task": "{TASK}", "typed": "{TASK}"}}',
                        headers={"content-type": "text/plain"}, trust_env=False)
    assert answer.status_code == 415


def test_with_keys_the_files_are_open_and_the_data_are_not(folder: Path) -> None:
    (folder / "keys.txt").write_text("sk-1\n")
    (folder / "keys.txt").chmod(0o600)
    with paged(folder, api_keys_path=folder / "keys.txt") as server:
        assert server.get("/page/").status_code == 200
        assert server.get("/", headers=HTML).status_code == 307
        assert server.get("/").status_code == 401
        for path in ("/page/api/tasks", "/page/api/", "/page/api/../api/tasks", "/page/%61pi/tasks"):
            assert server.get(path).status_code == 401, path
        assert server.get("/page/api/tasks", headers={"cookie": "key=sk-1"}).status_code == 401
        assert server.get("/page/api/tasks", headers={"authorization": "Bearer sk-1"}).status_code == 200


@pytest.fixture
def keys(folder: Path) -> Iterator[KeyedRig]:
    settings = ServeSettings(page=page(PageOptions(folder / "traffic.sqlite")))
    with keyed(folder / "traffic.sqlite", folder, settings=settings) as rig:
        yield rig


@pytest.mark.parametrize(("scopes", "view", "operate"), [
    (None, 403, 403), (("view",), 200, 403), (("view", "content"), 200, 403), (("operate",), 403, 200)])
def test_a_virtual_key_may_what_it_says(keys: KeyedRig, scopes: tuple[str, ...] | None, view: int,
                                        operate: int) -> None:
    headers = {"authorization": f"Bearer {keys.add(page=scopes)}"}
    live = keys.rig.live
    assert live.get("/page/api/tasks", headers=headers).status_code == view
    answer = live.post("/page/api/switch/back", {"task": TASK, "typed": TASK, "reason": "a trial"}, headers=headers)
    assert answer.status_code == operate
    if operate == 200:
        headers = {"authorization": f"Bearer {keys.add('viewer', page=('view',))}"}
        events = live.get("/page/api/switches", headers=headers).json()["events"]
        assert events[0]["kind"] == "back" and events[0]["what"] == "a trial (on the page, with the key team)"


@pytest.mark.parametrize(("asked", "host", "has_keys", "shown"), [
    (None, "127.0.0.1", False, True), (None, "::1", False, True), (None, "0.0.0.0", False, False),
    (None, "0.0.0.0", True, True), (False, "127.0.0.1", True, False), (True, "0.0.0.0", True, True)])
def test_it_is_on_where_nobody_else_can_read_it(asked: bool | None, host: str, has_keys: bool, shown: bool) -> None:
    assert shows_page(asked, host, has_keys) == shown


def test_it_cannot_be_forced_open() -> None:
    with pytest.raises(UnsupportedError, match="could read your traffic"):
        shows_page(True, "0.0.0.0", False)


def test_without_the_page_there_is_not_one_route_more(folder: Path) -> None:
    with live() as plain:
        for path in ("/page", "/page/", "/page/api/tasks", "/page/api/switches"):
            assert plain.get(path, headers=HTML).status_code == 404
        assert "brise is running" in plain.get("/", headers=HTML).text


def test_a_server_that_lost_its_keys_shows_nothing_on_a_public_address(folder: Path) -> None:
    with paged(folder, host="0.0.0.0", allow_insecure_bind=True) as server:
        assert server.get("/page/api/tasks").json()["error"]["code"] == "page_needs_keys"


def test_a_report_of_much_traffic_is_made_beside_the_server_and_is_the_same(folder: Path) -> None:
    options = PageOptions(folder / "traffic.sqlite")
    here, there = (make(options, TASK) for make in (reports.answers, reports.answers_of_process))
    moments = {"made_s"}
    assert {k: v for k, v in there["proof"].items() if k not in moments} == {
        k: v for k, v in here["proof"].items() if k not in moments}
    assert there["report"] == here["report"]
    with pytest.raises(EvidenceError, match="no requests were captured of the task 'nothing'"):
        reports.answers_of_process(options, "nothing")
