"""The tab Traffic: rows, filters, one exchange with all its answers, and labels that are given blindly."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page

from brise.page import captured, labelling
from brise.page.endpoint import PageOptions
from brise.page.routes import page as page_of
from brise.prove import label
from brise.prove.label import LabelOptions
from brise.prove.options import PairOptions
from brise.serve.serving import ServeSettings
from brise.stats.monitor import Alarm
from brise.switch.rule import Rule, RuleBaseline, Term
from brise.switch.state import TaskState
from brise.traffic.records import Exchange, Label
from brise.traffic.store import Query
from tests.page import stores
from tests.page.browser import Watched, overflow
from tests.page.conftest import Paged, Watch
from tests.report.traffic import TASK
from tests.serve.keys_rig import KeyedRig, keyed
from tests.serve.live import Live

ROW = ".list .rows .row"


@pytest.fixture(scope="module")
def large(paged: Paged) -> Live:
    return paged(stores.large)


@pytest.fixture(scope="module")
def talks(paged: Paged) -> Live:
    return paged(stores.talks)


def store_of(server: Live) -> Path:
    assert server.serving.settings.page is not None
    place = server.serving.settings.page.args[0].store  # type: ignore[attr-defined]
    return Path(str(place))


def rows(server: Live, **query: str) -> Any:
    return server.get("/page/api/traffic", params=query).json()


def opened(found: Watched, task: str = TASK) -> Page:
    page = found.open("traffic", task)
    page.wait_for_selector(f"{ROW}[aria-selected=true]")
    return page


# What the server says.


def test_rows_come_page_by_page_in_the_stores_order_and_without_contents(large: Live) -> None:
    first = rows(large, task=TASK, limit="600")
    assert first["number"] == 10_000 and len(first["rows"]) == 600 and "ticket " not in json.dumps(first)
    second = rows(large, task=TASK, limit="600", after=first["after"])
    ids = [row["id"] for row in (*first["rows"], *second["rows"])]
    assert ids == [f"e{at:06d}" for at in range(9999, 8799, -1)] and second["number"] is None
    last = rows(large, task=TASK, after=f"{stores.NOW_S + 2!r},e000002")
    assert [row["id"] for row in last["rows"]] == ["e000001", "e000000"] and last["after"] is None
    assert first["rows"][3]["answers"] == ["shadow"] and first["rows"][0]["answers"] == []


@pytest.mark.parametrize(("query", "kept"), [
    ({"modes": "small,failed"}, lambda row: row["mode"] in ("small", "failed")),
    ({"status": "failed"}, lambda row: row["status"] >= 500), ({"status": "502"}, lambda row: row["status"] == 502),
    ({"status": "answered"}, lambda row: row["status"] == 200), ({"name": "E00123"}, lambda row: "e00123" in row["id"]),
    ({"name": "MINI"}, lambda row: row["served_by"] == "mini"), ({"name": "_"}, lambda row: False),
    ({"name": "%"}, lambda row: False), ({"task": "no"}, lambda row: False)])
def test_filters_keep_what_they_say(large: Live, query: dict[str, str], kept: Any) -> None:
    all_rows, after = list[Any](), None
    while after is not None or not all_rows:
        found = rows(large, **({} if after is None else {"after": after}))
        all_rows += found["rows"]
        after = found["after"]
    expected = [row["id"] for row in all_rows if kept(row)]
    found = rows(large, **query)
    assert found["number"] == len(expected) and [row["id"] for row in found["rows"]] == expected[:1000]


@pytest.mark.parametrize("query", [{"after": "x,y"}, {"after": "nan,e1"}, {"after": "1.0"}, {"status": "9"},
                                   {"status": "good"}, {"limit": "1001"}, {"limit": "-1"}])
def test_what_cannot_be_asked_for_is_named(large: Live, query: dict[str, str]) -> None:
    answer = large.get("/page/api/traffic", params=query)
    assert answer.status_code == 400 and answer.json()["error"]["param"] in query


def test_an_exchange_says_who_answered_and_why_and_has_all_answers(talks: Live) -> None:
    found = talks.get("/page/api/exchange/t003").json()
    assert found["why"] == ["The large model answered: big-1.", "No small model was switched in for this task."]
    client, shadow = found["answers"]
    assert (client["role"], client["text"]) == ("client", "I am sorry. Parcel 3 arrives on Monday.")
    assert client["calls"] == [{"name": "look_up", "arguments": '{"parcel": 3}'}]
    assert client["reasoning"] == "They ask for a parcel." and shadow["served_by"] == "mini"
    assert [message["role"] for message in found["messages"]["list"]] == ["system", "user"]
    assert found["messages"]["list"][1]["text"] == "My parcel 3 is late.\nWhat now?\n[image]"
    assert talks.get("/page/api/exchange/none").status_code == 404


SIGNALS = {"logprob": 1.0}
RULE = Rule(TASK, "mini", (Term("logprob", 0.0, 1.0, 1.0),), 0.0, 0.7, 0.9, 0.05, 0.05, 0.5, 0.05, "sgr", 500, 500, 0.0,
            1.0, "human", "exact", RuleBaseline((), (1.0,), 0.0, 0.5, 0.1, 500))


@pytest.mark.parametrize(("mode", "status", "error", "change", "said"), [
    ("small", 200, None, {}, "Its confidence was 0.731; 0.700 or more is kept."),
    ("escalated", 200, None, {"is_tight": True},
     "Its confidence was 0.731; 0.900 or more is kept, with caution raised."),
    ("hosted", 200, None, {}, "mini answered 10 % of the conversations, and not this one."),
    ("hosted", 200, None, {"ended": "by hand"}, "The switch to mini had ended: by hand."),
    ("degraded", 200, None, {}, "The large model was out of reach, so a small one answered: m."),
    ("failed", 502, "no connection", {}, "It failed: no connection."),
    ("failed", 502, None, {}, "It failed: status 502.")])
def test_the_reason_is_said_with_its_numbers(mode: Any, status: int, error: str | None, change: dict[str, Any],
                                              said: str) -> None:
    switch = TaskState(TASK, "mini", 0.1, 7, 0.0, "ann", Alarm.start(0.02), rule=RULE, **change)
    exchange = Exchange("x", 1.0, TASK, "chat", "/v1/chat/completions", "m", mode, status, "c", served_by="m",
                        error=error, signals=SIGNALS)
    assert said in captured.why(exchange, [], switch)


@pytest.fixture
def keys(home: Path, tmp_path: Path) -> Iterator[KeyedRig]:
    place = tmp_path / "traffic.sqlite"
    stores.talks(place, 4)
    with keyed(place, home, settings=ServeSettings(page=page_of(PageOptions(place)))) as rig:
        yield rig


def test_without_the_scope_nothing_that_was_said_is_opened(keys: KeyedRig) -> None:
    def asked(path: str, *scopes: str) -> httpx.Response:
        headers = {"authorization": f"Bearer {keys.add('-'.join(scopes), page=scopes)}"}
        return keys.rig.live.get(path, headers=headers)

    seen = asked("/page/api/exchange/t001", "view").json()
    assert seen["messages"] is None and "Parcel" not in json.dumps(seen) and seen["answers"][0]["total_s"] == 1.5
    assert asked("/page/api/labels?task=tickets", "view", "operate").status_code == 403
    read = asked("/page/api/exchange/t001", "view", "content").json()
    assert "Parcel 1" in json.dumps(read)


def test_a_question_tells_nobody_whose_answer_is_which(talks: Live) -> None:
    queue = talks.get(f"/page/api/labels?task={TASK}").json()
    assert queue["summary"]["differing"] == 24 and queue["number"] >= 24
    with label.session(LabelOptions(PairOptions(task=TASK, store=str(store_of(talks))))) as session:
        asked = session.questions
    for name, question in zip(queue["questions"][:6], asked, strict=False):
        found = talks.get(f"/page/api/labels/{name}").json()
        assert (found["a"]["text"], found["b"]["text"]) == (question.a.text, question.b.text)
        assert set(found["a"]) == set(found["b"]) == {"text", "calls"}
        said = json.dumps([name, {**found, "a": None, "b": None, "messages": None}])
        assert not any(word in said for word in ("mini", "big", question.pair.id, question.pair.small.id or ""))
    assert len({question.is_swapped for question in asked}) == 2


def test_a_label_of_the_page_is_the_row_that_the_command_writes(paged: Paged) -> None:
    server = paged(lambda place: stores.talks(place, 2))
    place = store_of(server)
    name = server.get(f"/page/api/labels?task={TASK}").json()["questions"][0]
    assert server.post("/page/api/label", {"question": name, "choice": "best"}).json()["error"]["param"] == "choice"
    assert server.post("/page/api/label", {"question": name, "choice": "a"}).json() == {"kept": "a"}
    assert server.post("/page/api/label", {"question": name, "choice": "a"}).status_code == 404
    with label.session(LabelOptions(PairOptions(task=TASK, store=str(place)))) as session:
        assert session.summary().judged == 1
        session.answer(next(each for each in session.questions if not each.is_second), "a")
    with closing(stores.opened(place)) as store:
        page, command = sorted(store.labels(["t000", "t001"]), key=lambda one: one.at_s)
    assert {page.score, page.answer_score} == {0.0, 1.0} == {command.score, command.answer_score}
    assert _shape(page) == _shape(command) == ("human", "person", "")


def _shape(one: Label) -> tuple[str, str, str]:
    assert one.answer == f"ts{one.exchange[1:]}"
    return one.rung, one.who, one.note


def test_much_traffic_is_read_beside_the_server(talks: Live) -> None:
    place = str(store_of(talks))
    ended = subprocess.run([sys.executable, "-m", "brise.page.labelling"], input=json.dumps({
        "task": TASK, "store": place}), capture_output=True, text=True, check=True, timeout=60)
    found = json.loads(ended.stdout)
    assert found == json.loads(json.dumps(labelling.questions(PageOptions(place), TASK)))
    ended = subprocess.run([sys.executable, "-m", "brise.page.labelling"], input=json.dumps({
        "task": "no", "store": place}), capture_output=True, text=True, check=True, timeout=60)
    assert "no request of the task 'no'" in json.loads(ended.stdout)["error"]


# What the browser shows.


def test_ten_thousand_rows_are_gone_through_with_keys_each_within_50_ms(large: Live, watch: Watch) -> None:
    page = opened(watch(large))
    assert "10,000 requests" in page.inner_text(".note")
    page.locator(".list").focus()
    slowest = page.evaluate("""async () => {
      const list = document.querySelector(".list"), times = [];
      const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
      const press = async (key) => {
        await frame();
        const start = performance.now();
        list.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
        await Promise.resolve();
        await new Promise((done) => setTimeout(done));
        void list.offsetHeight;
        times.push(performance.now() - start);
      };
      for (const key of ["ArrowDown", "ArrowDown", "PageDown", "PageDown", "ArrowUp", "PageUp"]) await press(key);
      while (list.getAttribute("aria-activedescendant") !== "row-9999") await press("End");
      for (const key of ["ArrowUp", "PageUp", "PageUp", "Home", "End", "Home"]) await press(key);
      return times.sort((a, b) => a - b)[Math.floor(times.length / 2)];
    }""")
    assert slowest <= 50
    assert page.locator(ROW).count() < 100
    page.keyboard.press("End")
    assert "2025-06-15 15:06" in page.locator(f"{ROW}.at").inner_text()


def test_filters_narrow_the_list_and_say_how_many(large: Live, watch: Watch) -> None:
    page = opened(watch(large))
    page.get_by_label("failed", exact=True).check()
    page.locator(".note", has_text="1,428 requests").wait_for()
    page.get_by_label("Status").select_option("answered")
    page.get_by_text("Nothing fits.").wait_for()
    page.get_by_label("failed", exact=True).uncheck()
    page.get_by_label("Name").fill("e00123")
    page.locator(".note", has_text="8 requests").wait_for()


def test_an_exchange_is_opened_by_keyboard_and_its_difference_is_marked(talks: Live, watch: Watch) -> None:
    page = opened(watch(talks))
    page.locator(".list").focus()
    for key in ("ArrowDown", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    page.locator(".sides mark").nth(1).wait_for()
    assert page.locator(".sides mark").all_inner_texts() == ["Monday", "Tuesday"]
    assert "The large model answered: big-1." in page.inner_text(".verdict")
    assert page.evaluate("location.hash") == f"#/traffic/{TASK}/exchange/t021"
    page.get_by_role("button", name="Older").click()
    page.locator(".sides", has_text="Parcel 20").wait_for()
    page.go_back()
    page.locator(".sides", has_text="Parcel 21").wait_for()
    page.get_by_role("link", name="All requests").click()
    page.locator(f"{ROW}.at").wait_for()


def test_labels_are_given_with_one_key_each(paged: Paged, watch: Watch) -> None:
    server = paged(lambda place: stores.talks(place, 4))
    with label.session(LabelOptions(PairOptions(task=TASK, store=str(store_of(server))))) as session:
        asked = session.questions
    page = opened(watch(server))
    page.get_by_role("link", name="Label answers").click()
    for question, key in zip(asked, ("a", "+", "-", "s"), strict=False):
        page.locator(".sides article", has_text=question.a.text).first.wait_for()
        assert page.locator(".sides article").first.inner_text().startswith("A\n")
        page.locator(".choices button:enabled").first.wait_for()
        page.keyboard.press(key)
    page.get_by_text("3 of 4 pairs that differ are judged").wait_for()
    with closing(stores.opened(store_of(server))) as store:
        given = {one.exchange: one for one in store.labels(["t000", "t001", "t002", "t003"])}
        assert store.count(Query(task=TASK)) == 4
    assert len(given) == 3
    first, both, neither = (given[question.pair.id] for question in asked[:3])
    assert (first.answer_score, first.score) == ((0, 1) if asked[0].is_swapped else (1, 0))
    assert (both.score, both.answer_score, neither.score, neither.answer_score) == (1, 1, 0, 0)


def test_long_texts_are_compared_in_pieces(talks: Live, watch: Watch) -> None:
    page = opened(watch(talks))
    longest = page.evaluate("""async () => {
      const files = document.querySelector("script[src]").src.replace(/main\\.js$/, "");
      const { difference } = await import(`${files}difference.js`);
      let seed = 7;
      const words = () => Array.from({ length: 20000 }, () => `w${(seed = seed * 16807 % 2147483647) % 500}`).join(" ");
      let turns = 0, going = true;
      const turn = () => { turns += 1; if (going) setTimeout(turn); };
      turn();
      const found = await difference(words(), words());
      going = false;
      return [turns, found.isWhole, (await difference("a b c", "a x c")).left];
    }""")
    assert longest[0] > 3 and longest[1] is False
    assert longest[2] == [["a ", False], ["b", True], [" c", False]]


def test_nothing_that_was_captured_runs(paged: Paged, watch: Watch) -> None:
    server = paged(stores.hostile)
    page = watch(server).open("traffic", stores.CORPUS[0])
    for at in range(len(stores.CORPUS)):
        page.evaluate("([task, at]) => { location.hash = `#/traffic/${encodeURIComponent(task)}/exchange/h${at}-0`; }",
                      [stores.CORPUS[at], at])
        page.locator(".turn").first.wait_for()
        assert page.evaluate("window.hit") is None


@pytest.mark.parametrize(("scheme", "width", "scale"), [("light", 1280, 1), ("dark", 1280, 1), ("light", 360, 3),
                                                        ("dark", 640, 2)])
def test_axe_finds_nothing_in_an_exchange_and_a_question(talks: Live, watch: Watch, scheme: str, width: int,
                                                         scale: int) -> None:
    found = watch(talks, color_scheme=scheme, bypass_csp=True, viewport={"width": width, "height": 740},
                  device_scale_factor=scale)
    page = opened(found)
    for place, shown in (("", ROW), ("/exchange/t003", ".sides mark"), ("/label", ".choices button:enabled")):
        page.goto(f"{talks.url}/page/#/traffic/{TASK}{place}")
        page.locator(shown).first.wait_for()
        assert not found.axe(), place
        assert not overflow(page), place
