"""Which clients are run: packages, script, and what a reader should know about a cell."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Client:
    """One client library; the first package is the one whose version the page shows."""

    name: str
    script: str
    packages: tuple[str, ...]

    @property
    def is_node(self) -> bool:
        return self.script.endswith(".mjs")

    @property
    def package(self) -> str:
        """The first package's name, without extras."""
        return self.packages[0].partition("[")[0]


CLIENTS = (
    Client("openai", "use_openai.py", ("openai",)),
    Client("openai-node", "use_openai.mjs", ("openai", "zod")),
    Client("anthropic", "use_anthropic.py", ("anthropic",)),
    Client("anthropic-node", "use_anthropic.mjs", ("@anthropic-ai/sdk",)),
    Client("ai-sdk", "use_ai_sdk.mjs", (
        "ai", "@ai-sdk/openai-compatible", "@ai-sdk/openai", "@ai-sdk/anthropic", "zod")),
    Client("langchain", "use_langchain.py", ("langchain-openai",)),
    Client("llama-index", "use_llama_index.py", ("llama-index-llms-openai-like",)),
    Client("pydantic-ai", "use_pydantic_ai.py", ("pydantic-ai-slim[openai,anthropic]",)),
    Client("instructor", "use_instructor.py", ("instructor",)),
    Client("openai-agents", "use_openai_agents.py", ("openai-agents",)),
    Client("litellm", "use_litellm.py", ("litellm",)),
    Client("dspy", "use_dspy.py", ("dspy",)),
    Client("llm", "use_llm.py", ("llm",)),
    Client("ollama", "use_ollama.py", ("ollama",)),
    Client("lm-eval", "use_lm_eval.py", ("lm-eval[api]",)),
    Client("guidellm", "use_guidellm.py", ("guidellm",)),
)

# Names of the columns, in the order of cells.CELLS.
COLUMNS = {"chat": "chat", "stream": "stream", "tools": "tools", "structured": "structured", "logprobs": "logprobs",
           "too_long": "too long", "bad_model": "bad model", "bad_key": "bad key", "abort": "abort",
           "at_once": "16 at once"}
