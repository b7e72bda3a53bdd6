"""Every code block of README and docs runs, as far as that can be: see pages.py, stand_ins.py and story.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from brise import errors
from tests.docs import stand_ins
from tests.docs.pages import LANGUAGES, PAGES, ROOT, Block, commands, steps
from tests.docs.stand_ins import Place
from tests.docs.story import CHECKED, Story, split, unrunnable


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """What every page begins with."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("prepared")
        patch.setenv("BRISE_HOME", str(folder / "home"))
        return stand_ins.prepare(folder, None)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_runs(page: str, prepared: Place, tmp_path: Path,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story(prepared, tmp_path, monkeypatch)
    try:
        for step in steps(page, text_of(page)):
            try:
                story.run(step)
            except (Exception, SystemExit) as error:
                raise AssertionError(f"{step.place}: {error}") from error
    finally:
        story.end()


def blocks(page: str) -> Iterator[Block]:
    """The code blocks of a page."""
    yield from (step for step in steps(page, text_of(page)) if isinstance(step, Block))


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_its_language(page: str) -> None:
    assert [block.place for block in blocks(page) if block.language not in LANGUAGES] == []
    fences = re.findall(r"^ *```", text_of(page), re.MULTILINE)
    assert 2 * len(list(blocks(page))) == len(fences), "a block that the test does not see"


@pytest.mark.parametrize("page", PAGES)
def test_text_blocks_hold_no_commands(page: str) -> None:
    assert [block.place for block in blocks(page) if block.language == "text"
            and re.search(r"^(\$ |brise |import )", block.text, re.MULTILINE)] == []


def test_every_exception_is_needed() -> None:
    found = {unrunnable(words) for page in PAGES for block in blocks(page) if block.language == "console"
             for command in commands(block) for words, _ in split(command)}
    assert found - {None} == set(CHECKED)


def test_every_error_is_documented() -> None:
    names = {name for name, value in vars(errors).items() if isinstance(value, type) and name != "BriseError"}
    assert set(re.findall(r"^\| `(\w+Error)` \|", text_of("docs/reference/errors.md"), re.MULTILINE)) == names


def test_readme_is_one_page() -> None:
    assert len(text_of("README.md").splitlines()) <= 120
