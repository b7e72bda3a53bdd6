"""Models of Ollama, LM Studio, the Hugging Face cache and llama.cpp are found by name and used where they lie."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from brise.checkpoint.gguf.write_mmproj import projector_path, write_projector
from brise.checkpoint.open import open_checkpoint
from brise.checkpoint.read_original import open_original
from brise.checkpoint.write_gguf import write_mix
from brise.errors import StoreError
from brise.files.digests import Located
from brise.hub.found import FoundModel, licence_of, quant_of
from brise.hub.locate import locate
from brise.hub.other_stores import OtherStores
from brise.hub.store import ModelStore
from brise.settings import ToolFolders
from tests.checkpoint import make_folder
from tests.checkpoint.make_gguf import write_tiny
from tests.checkpoint.test_write_hf import write_source
from tests.hub.make_stores import files_of, hugging_face, ollama


def seeing(folder: Path) -> tuple[Path, Path]:
    """A model with a vision encoder, as two files."""
    source, text = open_original(write_source(folder / "source", "vision")), folder / "seeing.gguf"
    write_mix(source, text, "BF16")
    write_projector(source, projector_path(text))
    return text, projector_path(text)


class Machine:
    """A machine with brise's home and a folder for each tool."""

    def __init__(self, root: Path) -> None:
        self.home, self.ollama, self.lm_studio = root / "home", root / "ollama", root / "lmstudio"
        self.hub, self.llama_cpp = root / "hub", root / "llama.cpp"
        for folder in (self.ollama, self.lm_studio, self.hub, self.llama_cpp):
            folder.mkdir(parents=True)
        self.gguf = write_tiny(root / "tiny.gguf", "llama").read_bytes()
        self.other = write_tiny(root / "other.gguf", "llama", seed=1).read_bytes()

    @property
    def others(self) -> OtherStores:
        return OtherStores(self.home, ToolFolders((self.ollama,), (self.lm_studio,), (self.hub,), (self.llama_cpp,)))

    def locate(self, model: str) -> Located:
        return locate(model, ModelStore(self.home), self.others)

    def names(self) -> list[str]:
        return [model.name for model in self.others.models()]

    def put_lm_studio(self, repo: str, *files: str) -> Path:
        folder = self.lm_studio / repo
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            (folder / file).write_bytes(self.gguf)
        return folder


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize("name", ["mistral", "mistral:latest", "Mistral", "ollama:mistral", "ollama:MISTRAL:latest"])
def test_ollamas_model_is_opened_from_its_blob(machine: Machine, name: str) -> None:
    ollama(machine.ollama, "mistral", "latest", {"model": machine.gguf, "license": b"\n Apache License\n"})
    located = machine.locate(name)
    assert located.path.parent == machine.ollama / "blobs" and located.name == "mistral-latest"
    assert open_checkpoint(located.path).config.width == 128
    assert licence_of(machine.others.models("ollama")[0]) == "Apache License"
    assert not machine.home.exists()


def test_ollamas_tags_and_other_registries(machine: Machine) -> None:
    ollama(machine.ollama, "qwen3", "0.6b", {"model": machine.gguf})
    assert machine.locate("qwen3").path == machine.locate("qwen3:0.6b").path, "the only tag"
    ollama(machine.ollama, "qwen3", "4b", {"model": machine.other})
    with pytest.raises(StoreError, match="'qwen3' may mean 2 models .*\nhint: give one of: ollama:qwen3:0.6b, ollama"):
        machine.locate("ollama:qwen3")
    ollama(machine.ollama, "qwen3", "latest", {"model": machine.other})
    assert machine.locate("qwen3").path == machine.locate("qwen3:4b").path
    ollama(machine.ollama, "model-GGUF", "Q4_K_M", {"model": machine.gguf}, "manifests/hf.co/owner")
    assert machine.locate("hf.co/owner/model-gguf:q4_k_m").name == "model-GGUF-Q4_K_M"
    assert machine.names() == ["ollama:hf.co/owner/model-GGUF:Q4_K_M", "ollama:qwen3:0.6b", "ollama:qwen3:4b",
                               "ollama:qwen3:latest"]


def test_ollamas_projector_is_the_vision_encoder_and_nothing_is_copied(machine: Machine, tmp_path: Path) -> None:
    text, seen = seeing(tmp_path)
    ollama(machine.ollama, "small", "24b", {"model": text.read_bytes(), "projector": seen.read_bytes(),
                                            "template": b"{{ .Prompt }}", "params": b"{}"})
    before = sorted(path for path in machine.ollama.rglob("*"))
    located = machine.locate("small:24b")
    assert located.note == "Ollama's template, params not applied"
    assert open_checkpoint(located.path).vision is not None
    assert all(path.is_symlink() for path in located.path.iterdir()) and len(list(located.path.iterdir())) == 2
    assert machine.locate("small:24b").path == located.path, "made once"
    assert sorted(path for path in machine.ollama.rglob("*")) == before


def test_what_of_ollama_cannot_be_used_says_why(machine: Machine) -> None:
    ollama(machine.ollama, "tuned", "latest", {"model": machine.gguf, "adapter": b"GGUF"})
    with pytest.raises(StoreError, match="ollama:tuned:latest of Ollama cannot be used: it puts an adapter"):
        machine.locate("tuned")
    ollama(machine.ollama, "gone", "latest", {"model": machine.other})
    next(path for path in (machine.ollama / "blobs").iterdir() if path.read_bytes() == machine.other).unlink()
    with pytest.raises(StoreError, match=r"its file .*sha256-\w+ is missing; get it again: ollama pull gone:latest"):
        machine.locate("gone")
    ollama(machine.ollama, "pictures", "latest", {"tensor": b"x"})
    with pytest.raises(StoreError, match="0 layers of GGUF weights"):
        machine.locate("pictures")


@pytest.mark.parametrize("text", [
    "", "[]", "{}", '{"layers": 3}', '{"layers": [3]}', "{" * 100000, '{"layers": [' + "1," * 200000,
    json.dumps({"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../../etc/passwd",
                            "size": 1}]}),
    json.dumps({"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:" + "a" * 64,
                            "size": True}]})])
def test_a_manifest_that_lies_is_an_error_and_hides_no_other(machine: Machine, text: str) -> None:
    ollama(machine.ollama, "good", "latest", {"model": machine.gguf})
    ollama(machine.ollama, "bad", "latest", {"model": machine.gguf}).write_text(text)
    with pytest.raises(StoreError, match="its manifest .* cannot be read"):
        machine.locate("ollama:bad")
    assert machine.locate("good").path.is_file() and len(machine.names()) == 2


def test_a_link_out_of_the_stores_is_refused_and_one_between_them_is_followed(machine: Machine, tmp_path: Path) -> None:
    ollama(machine.ollama, "mistral", "7b", {"model": machine.gguf})
    folder = machine.put_lm_studio("owner/linked")
    (folder / "inside.gguf").symlink_to(machine.locate("mistral:7b").path)
    assert open_checkpoint(machine.locate("lmstudio:owner/linked/inside.gguf").path).config.width == 128
    (folder / "outside.gguf").symlink_to(tmp_path / "tiny.gguf")
    with pytest.raises(StoreError, match=r"outside\.gguf of LM Studio is a link to .*tiny\.gguf, outside the folders"):
        machine.locate("outside")


def test_a_link_out_of_a_folder_of_safetensors_is_refused(machine: Machine, tmp_path: Path) -> None:
    make_folder.write_hf(tmp_path / "m", make_folder.tiny("llama_tied"))
    snapshot = hugging_face(machine.hub, "owner/tiny", files_of(tmp_path / "m"))
    (snapshot / "1_Pooling").mkdir()
    (snapshot / "1_Pooling" / "config.json").symlink_to("/etc/hostname")
    with pytest.raises(StoreError, match="is a link to /etc/hostname, outside the folders"):
        machine.locate("hf:owner/tiny")


def test_a_store_that_is_a_link_itself_is_used(machine: Machine, tmp_path: Path) -> None:
    ollama(machine.ollama, "mistral", "7b", {"model": machine.gguf})
    (tmp_path / "link").symlink_to(machine.ollama)
    others = OtherStores(machine.home, ToolFolders(ollama=(tmp_path / "link",)))
    assert locate("mistral", ModelStore(machine.home), others).path.is_file()


@pytest.mark.parametrize("name", [
    "lmstudio:owner/Tiny-GGUF", "owner/tiny-gguf", "tiny", "Tiny-GGUF", "lmstudio:tiny:Q4_K_M", "Tiny-Q4_K_M",
    "lmstudio:owner/Tiny-GGUF/Tiny-Q4_K_M.gguf", "owner/tiny-gguf:q4_k_m"])
def test_lm_studios_models_by_repository_file_and_quantization(machine: Machine, name: str) -> None:
    machine.put_lm_studio("owner/Tiny-GGUF", "Tiny-F16.gguf", "Tiny-Q4_K_M.gguf", "Tiny-Q8_0.gguf")
    located = machine.locate(name)
    assert located.path.name == "Tiny-Q4_K_M.gguf" and located.name == "Tiny-Q4_K_M"
    has_choice = name.lower().removeprefix("lmstudio:").removeprefix("owner/") in ("tiny-gguf", "tiny")
    assert located.note == (
        f"LM Studio has 3 variants of {name.removeprefix('lmstudio:')}: took Tiny-Q4_K_M.gguf, not Tiny-F16.gguf, "
        "Tiny-Q8_0.gguf" if has_choice else "")


def test_two_publishers_of_one_repository_are_told_apart(machine: Machine) -> None:
    for owner in ("one", "two"):
        machine.put_lm_studio(f"{owner}/Tiny-GGUF", "Tiny-Q8_0.gguf")
    with pytest.raises(StoreError, match="'tiny' may mean 2 models.*\nhint: give one of: lmstudio:one/Tiny-GGUF/"):
        machine.locate("tiny")
    assert machine.locate("lmstudio:two/tiny").path.parent.parent.name == "two"


@pytest.mark.parametrize("links", [True, False])
def test_the_hugging_face_cache_with_links_and_without(machine: Machine, links: bool) -> None:
    hugging_face(machine.hub, "owner/Tiny-GGUF", {
        "Tiny-Q8_0.gguf": machine.gguf, "README.md": b"---\nlicense: gemma\n---\n"}, links=links)
    located = machine.locate("hf:owner/Tiny-GGUF")
    assert open_checkpoint(located.path).config.width == 128 and located.name == "Tiny-Q8_0"
    assert machine.locate("hf:owner/tiny-gguf/Tiny-Q8_0.gguf").path == located.path
    assert machine.locate("hf:owner/Tiny-GGUF:Q8_0").path == located.path
    assert licence_of(machine.others.models("hf")[0]) == "gemma"
    with pytest.raises(StoreError, match="'hf:owner/other' is on the Hugging Face hub"):
        machine.locate("hf:owner/other")


def test_the_hugging_face_cache_holds_safetensors_at_a_revision(machine: Machine, tmp_path: Path) -> None:
    for family, name in (("llama_tied", "one"), ("qwen3", "two")):
        make_folder.write_hf(tmp_path / name, make_folder.tiny(family))
    hugging_face(machine.hub, "owner/tiny", files_of(tmp_path / "one"), commit="a" * 40, is_main=False)
    newest = hugging_face(machine.hub, "owner/tiny", files_of(tmp_path / "two"), commit="b" * 40, is_main=False)
    os.utime(newest, (2e9, 2e9))
    assert open_checkpoint(machine.locate("hf:owner/tiny").path).config.family == "qwen3", "the newest"
    (machine.hub / "models--owner--tiny" / "refs" / "main").write_text("a" * 40)
    assert open_checkpoint(machine.locate("owner/tiny").path).config.family == "llama", "main"
    hugging_face(machine.hub, "owner/bert", {"config.json": b'{"model_type": "bert"}', "model.safetensors": b""})
    hugging_face(machine.hub, "owner/half", {"config.json": b'{"model_type": "llama"}'})
    assert machine.names() == ["hf:owner/tiny"], "of families that run here, and whole"


def test_llama_cpps_folder_pairs_vision_encoders_by_name(machine: Machine, tmp_path: Path) -> None:
    text, seen = seeing(tmp_path)
    for name, data in (("owner_see-GGUF_see-Q8_0.gguf", text.read_bytes()),
                       ("owner_blind_blind-F32.gguf", machine.gguf),
                       ("owner_see-GGUF_mmproj-see-f16.gguf", seen.read_bytes())):
        (machine.llama_cpp / name).write_bytes(data)
    assert open_checkpoint(machine.locate("see-Q8_0").path).vision is not None
    assert machine.locate("llama.cpp:blind-f32").path == machine.llama_cpp / "owner_blind_blind-F32.gguf"
    with pytest.raises(StoreError, match="no model 'absent' in llama.cpp's cache\nhint: it has: llama.cpp:owner_blind"):
        machine.locate("llama.cpp:absent")


def test_the_store_comes_first_then_a_path_then_the_tools_in_their_order(
        machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.put_lm_studio("owner/Tiny-GGUF", "Tiny-Q8_0.gguf")
    ollama(machine.ollama, "tiny", "latest", {"model": machine.gguf})
    assert machine.locate("tiny").path.parent.name == "blobs"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "m.gguf").write_bytes(machine.gguf)
    assert machine.locate("tiny").path.name == "m.gguf"
    store = ModelStore(machine.home)
    staged = store.partial("key") / "m.gguf"
    staged.write_bytes(machine.gguf)
    store.add("tiny", staged, "a" * 64, "x")
    assert machine.locate("tiny").digest == "a" * 64


def test_names_that_a_terminal_cannot_show_are_left_out(machine: Machine) -> None:
    machine.put_lm_studio("owner/bad\x1b[31m", "Tiny-Q8_0.gguf")
    assert machine.names() == []


@pytest.mark.parametrize(("file", "quant"), [
    ("Tiny-Q4_K_M.gguf", "Q4_K_M"), ("tiny.q8_0.gguf", "Q8_0"), ("T-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
    ("t-IQ4_XS.gguf", "IQ4_XS"),
    ("t-bf16.gguf", "BF16"), ("t-Q4_0-00001-of-00003.gguf", "Q4_0"), ("t.gguf", ""), ("mxfp4.gguf", "MXFP4")])
def test_a_file_name_says_its_quantization(file: str, quant: str) -> None:
    assert quant_of(file) == quant


def test_a_short_name_is_safe_everywhere() -> None:
    model = FoundModel("hf", "owner/a b", "sub dir/ü%.gguf", Path("x"))
    assert model.short_name == "sub-dir" and FoundModel("hf", "o/ü", "", Path("x")).short_name == "hf"
