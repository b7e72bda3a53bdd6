"""Every code block of README and docs runs, as far as that can be: see pages.py, stand_ins.py and story.py."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from brise import errors, settings
from brise.hub.store import ModelStore
from tests.docs import stand_ins
from tests.docs.pages import LANGUAGES, PAGES, ROOT, Block, commands, read, steps
from tests.docs.stand_ins import Place
from tests.docs.story import CHECKED, Story, split, unrunnable

HISTORY = ("LOG.md", "CHANGELOG.md")  # pages that name files of their time


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Place:
    """What every page begins with. With --slow `smollm2` is the real one, if it is on this machine."""
    folder = tmp_path_factory.mktemp("prepared")
    model = real_model() if pytestconfig.getoption("slow") else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BRISE_HOME", str(folder / "home"))
        return stand_ins.prepare(folder, model)


def real_model() -> Path | None:
    """As the fixture `smollm2_path` finds it, which would skip these tests where there is none."""
    given = os.environ.get("BRISE_TEST_SMOLLM2")
    if given:
        return Path(given)
    store = ModelStore(settings.read().home)
    return store.path(store.get("smollm2")) if "smollm2" in store.names() else None


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_runs(page: str, prepared: Place, tmp_path: Path,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story(prepared, tmp_path, monkeypatch)
    try:
        for step in steps(page, read(page)):
            try:
                story.run(step)
            except (Exception, SystemExit) as error:
                raise AssertionError(f"{step.place}: {error}") from error
    finally:
        story.end()


def blocks(page: str) -> Iterator[Block]:
    """The code blocks of a page."""
    yield from (step for step in steps(page, read(page)) if isinstance(step, Block))


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_its_language(page: str) -> None:
    assert [block.place for block in blocks(page) if block.language not in LANGUAGES] == []
    fences = re.findall(r"^ *```", read(page), re.MULTILINE)
    assert 2 * len(list(blocks(page))) == len(fences), "a block that the test does not see"


@pytest.mark.parametrize("page", PAGES)
def test_text_blocks_hold_no_commands(page: str) -> None:
    assert [block.place for block in blocks(page) if block.language == "text"
            and re.search(r"^(\$ |brise |import )", block.text, re.MULTILINE)] == []


def test_every_exception_is_needed() -> None:
    found = {unrunnable(words) for page in PAGES for block in blocks(page) if block.language == "console"
             for command in commands(block) for words, _ in split(command)}
    assert found - {None} == set(CHECKED)


def test_pages_name_files_that_exist() -> None:
    path_of = re.compile(r"(?<![\w/.-])[a-z]+/[\w./*-]*\w\.(?:py|h|cpp|md)\b")
    for page in PAGES:
        spans = [] if page.endswith(HISTORY) else re.findall(r"`([^`\n]+)`", read(page))
        for path in {path for span in spans for path in path_of.findall(span)}:
            assert any(set(base.glob(path)) for base in (ROOT, ROOT / "src" / "brise")), f"{page}: {path}"


def test_every_error_is_documented() -> None:
    names = {name for name, value in vars(errors).items() if isinstance(value, type) and name != "BriseError"}
    assert set(re.findall(r"^\| `(\w+Error)` \|", read("docs/reference/errors.md"), re.MULTILINE)) == names


def test_readme_is_one_page() -> None:
    assert len(read("README.md").splitlines()) <= 120
