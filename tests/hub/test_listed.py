"""The names that `brise pull` knows: unique, pinned, with a licence, and of families that run here."""

from __future__ import annotations

import re

import pytest

from brise.hub import pypi
from brise.hub.listed import LISTED, listed, nearest, search


def test_every_model_is_pinned_and_says_what_it_is() -> None:
    for model in LISTED:
        assert re.fullmatch(r"[0-9a-f]{64}", model.digest) and model.size > 1e7, model.title
        assert model.licence.name and model.licence.url.startswith("https://") and model.good_at
        assert 4096 <= model.context <= 1 << 20
        if not model.wheel:
            assert re.fullmatch(r"[0-9a-f]{40}", model.revision), model.title
            assert re.fullmatch(r"[\w.-]+/[\w.-]+", model.repo) and model.file.endswith(".gguf")
    assert len({model.digest for model in LISTED}) == len(LISTED)


def test_no_name_means_two_models_and_each_has_one_default_at_most() -> None:
    names = [name for model in LISTED for name in set(model.names())]
    assert len(names) == len(set(names)) and all(name == name.lower() for name in names)
    defaults = [model.name for model in LISTED if model.is_default]
    assert sorted(defaults) == sorted({model.name for model in LISTED})


def test_the_packed_model_is_the_one_of_the_package() -> None:
    packed = next(model for model in LISTED if model.wheel)
    assert (packed.wheel, packed.size, packed.digest) == (pypi.SMOLLM2.name, pypi.SMOLLM2.size, pypi.SMOLLM2.digest)


@pytest.mark.parametrize(("text", "title"), [
    ("mistral", "mistral:7b"), ("mistral:7b", "mistral:7b"), ("Mistral:Latest", "mistral:7b"),
    ("qwen3:0.6b", "qwen3:0.6b"),
    ("qwen3-0.6b", "qwen3:0.6b"), ("smollm2", "smollm2:135m"), ("smollm2:135m", "smollm2:135m"),
    ("llama3.2:1b", "llama3.2:1b"), ("ministral-3", "ministral-3:8b"), ("gemma3:1b", "gemma3:1b"),
    ("phi4-mini", "phi4-mini:3.8b"), ("granite4:micro", "granite4:micro"), ("granite4:latest", "granite4:micro")])
def test_names_as_people_type_them(text: str, title: str) -> None:
    model = listed(text)
    assert model is not None and model.title == title


@pytest.mark.parametrize(("text", "names"), [
    ("qwen3:0.5b", ["qwen3:0.6b"]), ("mistrl", ["mistral:7b"]), ("mixtral", ["mistral:7b"]),
    ("llama3.2:7b", ["llama3.2:1b"]),
    ("gpt-5", []), ("x" * 100_000, [])])
def test_a_name_that_is_not_listed_has_neighbours(text: str, names: list[str]) -> None:
    assert listed(text) is None
    assert (nearest(text) == []) if not names else set(names) <= set(nearest(text))


def test_search_takes_every_word() -> None:
    assert [model.title for model in search(["qwen2.5", "research"])] == ["qwen2.5:3b"]
    assert search([]) == list(LISTED) and search(["no-such-word"]) == []
