"""`brise.quantize` and `brise.export`: the files that the commands write, and errors in the words of Python."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import brise
from brise.api.words import in_python
from brise.cli.main import main
from brise.watch import Advance
from tests.checkpoint.make_gguf import write_tiny


class Watching:
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.done: dict[str, int] = {}

    def note(self, text: str) -> None:
        pass

    @contextmanager
    def progress(self, task: str, total: int, unit: str) -> Iterator[Advance]:
        self.done[task] = 0

        def advance(count: int) -> None:
            self.done[task] += count

        yield advance


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("plain") / "plain.gguf", "llama", format="F16")


def test_a_model_is_quantised_as_by_the_command(plain: Path, tmp_path: Path) -> None:
    watching = Watching()
    done = brise.quantize(plain, tmp_path / "small.gguf", mix="Q8_0", watcher=watching)
    assert main(["quantize", str(plain), str(tmp_path / "other.gguf"), "--to", "Q8_0"]) == 0
    assert (tmp_path / "small.gguf").read_bytes() == (tmp_path / "other.gguf").read_bytes()
    assert done.written.path == tmp_path / "small.gguf" and watching.done["writing"] > 0
    with brise.load(tmp_path / "small.gguf", threads=1) as model:
        assert model.chat("hi", max_tokens=2).usage.completion_tokens == 2


def test_a_model_is_exported_for_other_programs(plain: Path, tmp_path: Path) -> None:
    done = brise.export(plain, tmp_path / "folder", dtype="f32")
    assert (done.out / "config.json").is_file() and done.num_bytes > 0
    with brise.load(tmp_path / "folder", threads=1) as exported, brise.load(plain, threads=1) as original:
        assert exported.chat("hi", temperature=0, max_tokens=6).text == original.chat("hi", temperature=0,
                                                                                      max_tokens=6).text


def test_errors_name_arguments_and_not_options(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(brise.OutputError, match="save_importance needs calibration=FILE"):
        brise.quantize(plain, tmp_path / "x.gguf", save_importance="y.gguf")
    with pytest.raises(brise.OutputError, match="^merge needs adapter=FOLDER"):
        brise.export(plain, tmp_path / "folder", merge=True)
    with pytest.raises(brise.UnsupportedError, match="the mix is 'Q9'"):
        brise.quantize(plain, tmp_path / "x.gguf", mix="Q9")


@pytest.mark.parametrize(("text", "wanted"), [
    ("what fits: --cache q8 (90 MB); or --context 2048", "what fits: cache=q8 (90 MB); or context=2048"),
    ("--image-size is over", "image_size is over"), ("brise pull smollm2 --name x", "brise pull smollm2 --name x")])
def test_options_of_the_command_line_become_arguments(text: str, wanted: str) -> None:
    assert in_python(text) == wanted
