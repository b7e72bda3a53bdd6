"""brise: earn the switch from a big hosted model to a small one that you own.

The names that this file exports are the public API, and carry the promise of semantic versioning. Each is imported
when it is first used, so `import brise` itself loads nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType, ModuleType

TYPE_CHECKING = False  # type checkers take it for true; typing's own would be the only slow import here
__version__ = "0.2.0"

_HOMES: Mapping[str, str] = MappingProxyType({
    "load": "brise.api.loading", "Model": "brise.api.model", "Stream": "brise.api.streams",
    "AsyncStream": "brise.api.streams", "Batch": "brise.api.batches", "AsyncBatch": "brise.api.batches",
    "Answer": "brise.api.answers", "Piece": "brise.api.answers", "ToolCall": "brise.api.answers",
    "Usage": "brise.api.answers", "Score": "brise.api.answers", "BatchResult": "brise.api.answers",
    "TokenLogprob": "brise.engine.request", "Tool": "brise.text.openai_tools",
    "AdapterInfo": "brise.engine.adapters", "EngineStats": "brise.engine.engine",
    "serve": "brise.api.serving", "gateway": "brise.api.serving", "Server": "brise.api.server",
    "ServerOptions": "brise.api.serving", "UpstreamOptions": "brise.api.serving", "Limits": "brise.gateway.upstream",
    "ChatOptions": "brise.api.options", "SamplingOptions": "brise.api.options", "image_part": "brise.api.options",
    **dict.fromkeys(("AnswerError", "BriseError", "CheckpointError", "ClosedError", "ContextLengthError",
                     "EvidenceError", "MemoryLimitError", "MissingExtraError", "NetworkError", "OutputError",
                     "QueueFullError", "RequestError", "StoreError", "UnsupportedError"), "brise.errors"),
})

if TYPE_CHECKING:
    from brise.api.answers import Answer as Answer
    from brise.api.answers import BatchResult as BatchResult
    from brise.api.answers import Piece as Piece
    from brise.api.answers import Score as Score
    from brise.api.answers import ToolCall as ToolCall
    from brise.api.answers import Usage as Usage
    from brise.api.batches import AsyncBatch as AsyncBatch
    from brise.api.batches import Batch as Batch
    from brise.api.loading import load as load
    from brise.api.model import Model as Model
    from brise.api.options import ChatOptions as ChatOptions
    from brise.api.options import SamplingOptions as SamplingOptions
    from brise.api.options import image_part as image_part
    from brise.api.server import Server as Server
    from brise.api.serving import ServerOptions as ServerOptions
    from brise.api.serving import UpstreamOptions as UpstreamOptions
    from brise.api.serving import gateway as gateway
    from brise.api.serving import serve as serve
    from brise.api.streams import AsyncStream as AsyncStream
    from brise.api.streams import Stream as Stream
    from brise.engine.adapters import AdapterInfo as AdapterInfo
    from brise.engine.engine import EngineStats as EngineStats
    from brise.engine.request import TokenLogprob as TokenLogprob
    from brise.errors import AnswerError as AnswerError
    from brise.errors import BriseError as BriseError
    from brise.errors import CheckpointError as CheckpointError
    from brise.errors import ClosedError as ClosedError
    from brise.errors import ContextLengthError as ContextLengthError
    from brise.errors import EvidenceError as EvidenceError
    from brise.errors import MemoryLimitError as MemoryLimitError
    from brise.errors import MissingExtraError as MissingExtraError
    from brise.errors import NetworkError as NetworkError
    from brise.errors import OutputError as OutputError
    from brise.errors import QueueFullError as QueueFullError
    from brise.errors import RequestError as RequestError
    from brise.errors import StoreError as StoreError
    from brise.errors import UnsupportedError as UnsupportedError
    from brise.gateway.upstream import Limits as Limits
    from brise.text.openai_tools import Tool as Tool
else:
    class _Brise(ModuleType):
        """This package: brise.serve and others are functions, and packages of the same names lie beside them."""

        def __setattr__(self, name, value):
            if name in _HOMES and isinstance(value, ModuleType):
                return  # the import of a part, such as brise.serve.app, puts its package here
            super().__setattr__(name, value)

    sys.modules[__name__].__class__ = _Brise

    def __getattr__(name):
        if name not in _HOMES:
            raise AttributeError(f"module 'brise' has no attribute {name!r}")
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return ["__version__", *_HOMES]
