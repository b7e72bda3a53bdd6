"""The page in a browser: what it says, what it lets through, and who can use it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from brise.report import report
from brise.report.report import ReportOptions
from brise.report.summary import summarize
from tests.page import stores
from tests.page.browser import TABS, executable, overflow
from tests.page.conftest import Paged, Watch
from tests.report.traffic import TASK
from tests.serve.live import Live

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def undecided(paged: Paged) -> Live:
    return paged(stores.evidence)


@pytest.fixture(scope="module")
def switched(paged: Paged) -> Live:
    return paged(stores.switched)


@pytest.fixture(scope="module")
def hostile(paged: Paged) -> Live:
    return paged(stores.hostile)


def store_of(server: Live) -> str:
    """The place of the server's store."""
    assert server.serving.settings.page is not None
    return str(server.serving.settings.page.args[0].store)  # type: ignore[attr-defined]


def test_the_first_screen_says_the_sentence_of_the_report(undecided: Live, watch: Watch) -> None:
    page = watch(undecided).open()
    shown = " ".join(page.locator(".glance h1, .glance p:not(.against)").all_inner_texts())
    said = summarize(report.run(ReportOptions(TASK, store_of(undecided)))).sentence
    assert shown.replace("over? ? Not yet", "over? Not yet:").split() == said.split()
    assert "K is" in said and "more conversations" in said


def test_the_path_can_be_read_with_the_arrow_keys(undecided: Live, watch: Watch) -> None:
    page = watch(undecided).open()
    chart = page.get_by_role("slider", name="Evidence after each cluster")
    chart.focus()
    before = chart.get_attribute("aria-valuetext")
    page.keyboard.press("Home")
    assert chart.get_attribute("aria-valuenow") == "0" and chart.get_attribute("aria-valuetext") != before
    page.keyboard.press("ArrowRight")
    assert chart.get_attribute("aria-valuenow") == "1"
    assert page.locator(".plot .reference").count() >= 1 and "promotes at" in page.text_content(".plot .canvas")


def test_the_proof_says_claim_slices_and_what_was_left_out(undecided: Live, watch: Watch) -> None:
    text = watch(undecided).open().inner_text("main")
    assert "Claim: each answer weighs alike" in text and "route=a" in text and "What this stands on" in text


def test_an_empty_store_says_how_to_begin(paged: Paged, watch: Watch) -> None:
    server = paged()
    page = watch(server).open()
    assert "Nothing was captured yet" in page.inner_text("h1") and "brise serve --upstream" in page.inner_text("main")
    assert "Nothing is switched" in watch(server).open("switch").inner_text("main")


def test_a_certificate_is_downloaded_and_verified(switched: Live, watch: Watch) -> None:
    page = watch(switched).open()
    with page.expect_download() as started:
        page.get_by_role("button", name="Download the certificate").click()
    text = started.value.path().read_text()
    page.get_by_label("Verify a file").set_input_files(
        {"name": "mine.json", "mimeType": "application/json", "buffer": text.encode()})
    page.get_by_text("mine.json: no check failed").wait_for()
    assert "the same" in page.inner_text("main") and "ledger" in page.inner_text("main")
    page.get_by_label("Verify a file").set_input_files(
        {"name": "other.json", "mimeType": "application/json", "buffer": text.replace('"n": ', '"n": 1').encode()})
    page.get_by_text("other.json").wait_for()
    page.locator(".verdict.bad").wait_for()


def test_a_switch_is_rolled_back_when_its_name_is_typed_and_the_ledger_says_so(paged: Paged, watch: Watch) -> None:
    server = paged(stores.switched)
    page = watch(server).open("switch", TASK)
    assert "mini answers 10 % of the conversations" in page.inner_text("h1")
    page.get_by_role("button", name=f"Roll back {TASK}").focus()
    page.keyboard.press("Enter")
    page.keyboard.type("something else")
    button = page.locator("dialog button.danger")
    assert button.is_disabled()
    page.get_by_label("Name of the task").fill(TASK)
    page.keyboard.press("Tab")
    page.keyboard.type("answers were late")
    page.keyboard.press("Enter")
    page.locator("h1", has_text="The large model answers").wait_for()
    assert "answers were late (on the page)" in page.locator(".timeline li").first.inner_text()
    state = server.get("/page/api/switches").json()["tasks"][0]
    assert not state["is_on"] and state["ended"] == "answers were late (on the page)"


def test_the_page_shows_what_the_ledger_says_not_what_was_asked(switched: Live, watch: Watch) -> None:
    page = watch(switched).open("switch", TASK)
    page.route("**/switch/back", lambda route: route.fulfill(json={}))  # an answer without a line
    page.get_by_role("button", name=f"Roll back {TASK}").click()
    page.get_by_label("Name of the task").fill(TASK)
    page.locator("dialog button.danger").click()
    page.get_by_role("button", name="Waiting for the ledger").wait_for()
    assert "mini answers 10 %" in page.inner_text("h1")


def test_nothing_of_what_it_shows_runs(hostile: Live, watch: Watch) -> None:
    page = watch(hostile).open()
    for text in stores.CORPUS:
        for tab in ("proof", "switch"):
            page.evaluate("([tab, text]) => { location.hash = `#/${tab}/${encodeURIComponent(text)}`; }", [tab, text])
            page.get_by_text(f"{text} answers 10 %").first.wait_for()
            assert page.evaluate("window.hit") is None, text


def test_nothing_of_what_it_shows_runs_in_the_other_tabs(hostile: Live, watch: Watch) -> None:
    found = watch(hostile)
    for tab in ("traffic", "machine", "chat"):
        for text in stores.CORPUS[:3]:
            assert found.open(tab, text).evaluate("window.hit") is None


def test_text_does_not_become_html_even_by_a_fault_of_ours(undecided: Live, watch: Watch) -> None:
    found = watch(undecided)
    page = found.open()
    refused = page.evaluate("""() => { try { document.body.innerHTML = "<b>x</b>"; return "done"; }
      catch (error) { return error.name; } }""")
    assert refused == "TypeError"
    assert page.evaluate("window.__violations.splice(0).length") == 1
    assert "TrustedHTML" in found.errors.pop()


def test_the_key_is_asked_for_once_and_kept_in_this_tab(paged: Paged, watch: Watch,
                                                          tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text("sk-right\n")
    file.chmod(0o600)
    found = watch(paged(stores.evidence, api_keys_path=file))
    found.may_fail = True
    page = found.open()
    page.get_by_label("API key").fill("sk-wrong")
    page.keyboard.press("Enter")
    page.get_by_role("alert").wait_for()
    page.get_by_label("API key").fill("sk-right")
    page.keyboard.press("Enter")
    page.locator(".glance").wait_for()
    assert page.evaluate("[document.cookie, localStorage.length, location.href.includes('sk-')]") == ["", 0, False]
    page.reload()
    page.locator(".glance").wait_for()


def test_a_key_that_may_only_look_cannot_roll_back(switched: Live, watch: Watch) -> None:
    found = watch(switched)
    found.page.route("**/api/tasks", lambda route: route.fulfill(json={**route.fetch().json(), "operate": False}))
    page = found.open("switch", TASK)
    page.get_by_text("Your key may not").wait_for()
    assert page.get_by_role("button", name=f"Roll back {TASK}").is_disabled()


@pytest.mark.parametrize("place", ["#/proof/%", "#/constructor/x", "#////", "#/switch/%E0%A4%A"])
def test_an_address_that_somebody_mistyped_shows_a_page(undecided: Live, watch: Watch, place: str) -> None:
    found = watch(undecided)
    found.may_fail = True
    found.page.goto(f"{undecided.url}/page/{place}")
    found.page.wait_for_selector("main h1")


def test_a_server_that_is_gone_is_named_and_what_was_read_stays(undecided: Live, watch: Watch) -> None:
    found = watch(undecided)
    found.may_fail = True
    page = found.open()
    shown = page.inner_text("h1")
    page.context.set_offline(True)
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.get_by_role("alert").wait_for()
    assert "does not answer" in page.inner_text("[role=alert]") and page.inner_text("h1") == shown
    page.context.set_offline(False)
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.get_by_role("alert").wait_for(state="detached")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(switched: Live, watch: Watch, scheme: str) -> None:
    found = watch(switched, color_scheme=scheme, bypass_csp=True)
    for tab in TABS:
        page = found.open(tab, TASK)
        page.wait_for_selector(".waiting", state="detached")
        assert not found.axe(), tab
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(255, 255, 255)") == (scheme == "light")


@pytest.mark.parametrize(("width", "scale"), [(360, 3), (640, 2)])
def test_on_a_phone_and_at_twice_the_size_nothing_is_cut_off(switched: Live, watch: Watch, width: int,
                                                             scale: int) -> None:
    view = {"width": width, "height": 740}
    found = watch(switched, viewport=view, device_scale_factor=scale, bypass_csp=True)
    for tab in TABS:
        page = found.open(tab, TASK)
        page.wait_for_selector(".waiting", state="detached")
        assert not overflow(page), tab
        assert not found.axe(), tab


def test_everything_is_reached_by_keyboard_in_the_order_of_reading(switched: Live, watch: Watch) -> None:
    page = watch(switched).open("switch", TASK)
    names = []
    for _ in range(10):
        page.keyboard.press("Tab")
        names.append(page.evaluate("(e => e.getAttribute('aria-label') || e.innerText.trim())(document.activeElement)"))
    assert names == ["To the content", "brise", "Proof", "Switch", "Traffic", "Machine", "Chat", "tickets\nsummaries",
                     "Evidence of harm after each audit", f"Roll back {TASK}"]
    page.keyboard.press("Enter")
    assert page.evaluate("document.querySelector('dialog').open")
    page.keyboard.press("Escape")
    assert not page.evaluate("document.querySelector('dialog').open")


def test_who_wants_no_motion_gets_none(undecided: Live, watch: Watch) -> None:
    page = watch(undecided, reduced_motion="reduce").open()
    moving = page.evaluate("""[...document.querySelectorAll("*")].filter((e) => { const s = getComputedStyle(e);
      return parseFloat(s.transitionDuration) > 0 || parseFloat(s.animationDuration) > 0; }).length""")
    assert moving == 0


def test_without_any_network_every_tab_works(tmp_path: Path) -> None:
    executable()
    done = subprocess.run([sys.executable, "-m", "tests.page.in_namespace", str(tmp_path)], cwd=ROOT, text=True,
                          capture_output=True, check=False, timeout=120,
                          env={**os.environ, "BRISE_HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    if not found["entered"]:
        pytest.skip(f"namespaces are not allowed here: {found['why']}")
    assert all(heading for heading in found["headings"].values()) and len(found["headings"]) == len(TABS)
    assert found["requests"] and all(url.startswith(found["own"]) for url in found["requests"])
