"""Settings from the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from brise import settings
from brise.errors import UnsupportedError


@pytest.mark.parametrize(("environment", "home"), [
    ({}, Path.home() / ".local/share/brise"), ({"BRISE_HOME": ""}, Path.home() / ".local/share/brise"),
    ({"XDG_DATA_HOME": "/data"}, Path("/data/brise")), ({"BRISE_HOME": "/x", "XDG_DATA_HOME": "/y"}, Path("/x")),
    ({"BRISE_HOME": "~/models"}, Path.home() / "models"), ({"BRISE_HOME": "models"}, Path.cwd() / "models")])
def test_home(environment: dict[str, str], home: Path) -> None:
    assert settings.read(environment).home == home


def test_threads_and_index() -> None:
    read = settings.read({"BRISE_THREADS": "3", "BRISE_INDEX_URL": "https://mirror/simple"})
    assert (read.threads, read.index_url) == (3, "https://mirror/simple")
    assert (settings.read({}).threads, settings.read({"BRISE_INDEX_URL": ""}).index_url) == (None, None)


def test_a_secret_is_in_the_variable_that_the_user_names() -> None:
    assert settings.secret("KEY", {"KEY": " abc\n"}) == "abc"
    for environment in ({}, {"KEY": " "}):
        with pytest.raises(UnsupportedError, match="'KEY' is not set, or empty"):
            settings.secret("KEY", environment)


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "257", "9" * 5000, "²"])
def test_a_wrong_number_of_threads_names_the_variable(value: str) -> None:
    with pytest.raises(UnsupportedError, match="BRISE_THREADS"):
        settings.read({"BRISE_THREADS": value})


@pytest.mark.parametrize(("environment", "field", "folders"), [
    ({}, "ollama", ["~/.ollama/models", "/usr/share/ollama/.ollama/models"]),
    ({"OLLAMA_MODELS": "/o"}, "ollama", ["/o"]),
    ({}, "lm_studio", ["~/.lmstudio/models", "~/.cache/lm-studio/models"]),
    ({}, "hugging_face", ["~/.cache/huggingface/hub"]), ({"HF_HOME": "/h"}, "hugging_face", ["/h/hub"]),
    ({"HF_HOME": "/h", "HF_HUB_CACHE": "~/c"}, "hugging_face", ["~/c"]),
    ({"XDG_CACHE_HOME": "/x"}, "hugging_face", ["/x/huggingface/hub"]),
    ({"XDG_CACHE_HOME": "/x"}, "llama_cpp", ["/x/llama.cpp", "~/Library/Caches/llama.cpp"]),
    ({"LLAMA_CACHE": "/l"}, "llama_cpp", ["/l"]),
    ({"BRISE_OTHER_STORES": "no", "LLAMA_CACHE": "/l"}, "llama_cpp", [])])
def test_folders_of_other_tools(environment: dict[str, str], field: str, folders: list[str]) -> None:
    expected = tuple(Path(folder).expanduser() for folder in folders)
    assert getattr(settings.read(environment).tools, field) == expected
