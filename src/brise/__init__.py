"""brise: earn the switch from a large hosted model to a small one that you own.

The names in `__all__` are the public API, and carry the promise of semantic versioning. Each is imported when it is
first used, so `import brise` itself loads nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType, ModuleType

TYPE_CHECKING = False  # type checkers take it for true; typing's own would be the only slow import here
__version__ = "0.2.0"

__all__ = [
    "ActionChunk", "ActionSpace", "ActionValue", "AdapterInfo", "AirgapOptions", "AirgapReport", "Answer",
    "AnswerError", "AsyncPromptBatch", "AsyncStream", "BatchResult", "BriseError", "CallRules", "ChatOptions",
    "CheckpointError", "ClosedError", "Columns", "ConfirmationDesk", "ContextLengthError", "DataOptions", "DeviceError",
    "DeviceLacksError", "DeviceLostError", "DeviceMemoryError", "DoctorOptions", "DoctorReport", "EngineStats",
    "Evaluation", "EvaluationOptions", "EvidenceError", "Exported", "Finding", "InstalledModel", "JudgedCall", "Limits",
    "ListedModel", "LiveOptions", "LoadOptions", "Margins", "MemoryLimitError", "Message", "MissingExtraError", "Model",
    "NamedUpstream", "NetworkError", "NgramOptions", "OutputError", "ParityReport", "Piece", "PromptBatch",
    "ProofOptions", "ProveResult", "Quantized", "QueueFullError", "RemoteModel", "RequestError", "RoundOptions",
    "SamplingOptions", "Score", "Server", "ServerOptions", "StoreError", "StoredModel", "Stream", "SubmittedCalls",
    "TeacherEndpoint", "TeacherOptions", "TelemetryOptions", "TokenLogprob", "TokenUsage", "Tolerance", "Tool",
    "ToolCall", "TrainingOptions", "TuneResult", "TuneWatcher", "UnsupportedError", "UpstreamOptions",
    "VirtualKeyOptions", "Watcher", "airgap", "doctor", "evaluate", "export", "gateway", "image_part", "load",
    "local_models", "parity", "prove", "pull", "quantize", "read_action_space", "read_call_rules", "search_models",
    "serve", "tune",
]

if TYPE_CHECKING:
    from brise.api.answers import Answer, BatchResult, Piece, Score, TokenUsage, ToolCall
    from brise.api.batches import AsyncPromptBatch, PromptBatch
    from brise.api.converting import export, quantize
    from brise.api.loading import LoadOptions, load
    from brise.api.model import Model
    from brise.api.options import ChatOptions, SamplingOptions, image_part
    from brise.api.proving import ProofOptions, prove
    from brise.api.pulling import InstalledModel, local_models, pull, search_models
    from brise.api.server import Server
    from brise.api.serving import NamedUpstream, ServerOptions, UpstreamOptions, gateway, serve
    from brise.api.streams import AsyncStream, Stream
    from brise.api.tuning import EvaluationOptions, TrainingOptions, evaluate, parity, tune
    from brise.convert.export import Exported
    from brise.convert.quantize import Quantized
    from brise.data.count_ngrams import NgramOptions
    from brise.data.prepare import DataOptions
    from brise.data.read_rows import Columns
    from brise.doctor.airgap.report import AirgapReport
    from brise.doctor.airgap.run import AirgapOptions, airgap
    from brise.doctor.examine import DoctorOptions, doctor
    from brise.doctor.findings import DoctorReport, Finding
    from brise.engine.adapters import AdapterInfo
    from brise.engine.request import TokenLogprob
    from brise.engine.stats import EngineStats
    from brise.errors import (
        AnswerError,
        BriseError,
        CheckpointError,
        ClosedError,
        ContextLengthError,
        DeviceError,
        DeviceLacksError,
        DeviceLostError,
        DeviceMemoryError,
        EvidenceError,
        MemoryLimitError,
        MissingExtraError,
        NetworkError,
        OutputError,
        QueueFullError,
        RequestError,
        StoreError,
        UnsupportedError,
    )
    from brise.evals.evaluate import Evaluation
    from brise.gateway.remote.server import RemoteModel
    from brise.gateway.upstream import Limits
    from brise.hub.listed import ListedModel
    from brise.hub.store import StoredModel
    from brise.prove.guards import Margins
    from brise.prove.options import LiveOptions
    from brise.prove.run import ProveResult
    from brise.robots.action_chunk import ActionChunk
    from brise.robots.call_rules import CallRules, ConfirmationDesk, JudgedCall, SubmittedCalls, read_call_rules
    from brise.serve.open_keys import VirtualKeyOptions
    from brise.serve.open_telemetry import TelemetryOptions
    from brise.text.action_space import ActionSpace, ActionValue, read_action_space
    from brise.text.openai_tools import Tool
    from brise.text.protocols import Message
    from brise.tune.options import RoundOptions, TeacherEndpoint, TeacherOptions
    from brise.tune.parity.parity import ParityReport, Tolerance
    from brise.tune.watch import TuneResult, TuneWatcher
    from brise.watch import Watcher
else:
    class _Brise(ModuleType):
        """This package: brise.serve and others are functions, and packages of the same names lie beside them."""

        def __setattr__(self, name, value):
            if name in _HOMES and isinstance(value, ModuleType):
                return  # the import of a part, such as brise.serve.app, would put its package here
            super().__setattr__(name, value)

    sys.modules[__name__].__class__ = _Brise

    def __getattr__(name):
        if name not in _HOMES:
            raise AttributeError(f"module 'brise' has no attribute {name!r}")
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return ["__version__", *__all__]


_HOMES: Mapping[str, str] = MappingProxyType({name: module for module, names in (
    ("brise.api.answers", ("Answer", "BatchResult", "Piece", "Score", "ToolCall", "TokenUsage")),
    ("brise.api.batches", ("AsyncPromptBatch", "PromptBatch")),
    ("brise.api.converting", ("export", "quantize")),
    ("brise.api.loading", ("LoadOptions", "load")),
    ("brise.api.model", ("Model",)),
    ("brise.api.options", ("ChatOptions", "SamplingOptions", "image_part")),
    ("brise.api.proving", ("ProofOptions", "prove")),
    ("brise.api.pulling", ("InstalledModel", "local_models", "pull", "search_models")),
    ("brise.api.server", ("Server",)),
    ("brise.api.serving", ("NamedUpstream", "ServerOptions", "UpstreamOptions", "gateway", "serve")),
    ("brise.api.streams", ("AsyncStream", "Stream")),
    ("brise.api.tuning", ("EvaluationOptions", "TrainingOptions", "evaluate", "parity", "tune")),
    ("brise.convert.export", ("Exported",)),
    ("brise.gateway.remote.server", ("RemoteModel",)),
    ("brise.convert.quantize", ("Quantized",)),
    ("brise.data.count_ngrams", ("NgramOptions",)),
    ("brise.data.prepare", ("DataOptions",)),
    ("brise.data.read_rows", ("Columns",)),
    ("brise.doctor.airgap.report", ("AirgapReport",)),
    ("brise.doctor.airgap.run", ("AirgapOptions", "airgap")),
    ("brise.doctor.examine", ("DoctorOptions", "doctor")),
    ("brise.doctor.findings", ("DoctorReport", "Finding")),
    ("brise.engine.adapters", ("AdapterInfo",)),
    ("brise.robots.action_chunk", ("ActionChunk",)),
    ("brise.robots.call_rules", ("CallRules", "ConfirmationDesk", "JudgedCall", "SubmittedCalls", "read_call_rules")),
    ("brise.text.action_space", ("ActionSpace", "ActionValue", "read_action_space")),
    ("brise.engine.stats", ("EngineStats",)),
    ("brise.engine.request", ("TokenLogprob",)),
    ("brise.errors", tuple(name for name in __all__ if name.endswith("Error"))),
    ("brise.evals.evaluate", ("Evaluation",)),
    ("brise.gateway.upstream", ("Limits",)),
    ("brise.hub.listed", ("ListedModel",)),
    ("brise.hub.store", ("StoredModel",)),
    ("brise.prove.guards", ("Margins",)),
    ("brise.prove.options", ("LiveOptions",)),
    ("brise.prove.run", ("ProveResult",)),
    ("brise.serve.open_keys", ("VirtualKeyOptions",)),
    ("brise.serve.open_telemetry", ("TelemetryOptions",)),
    ("brise.text.openai_tools", ("Tool",)),
    ("brise.text.protocols", ("Message",)),
    ("brise.tune.options", ("RoundOptions", "TeacherEndpoint", "TeacherOptions")),
    ("brise.tune.parity.parity", ("ParityReport", "Tolerance")),
    ("brise.tune.watch", ("TuneResult", "TuneWatcher")),
    ("brise.watch", ("Watcher",)),
) for name in names})
