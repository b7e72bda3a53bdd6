"""The answerer of a model on this machine: the engine that serves it answers many examples in one batch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from brise import settings
from brise.checkpoint.adapters import lineage
from brise.checkpoint.adapters.peft import WEIGHTS_FILE
from brise.engine.adapter_loading import rank_in
from brise.engine.engine import Engine, EngineSettings
from brise.engine.engine_thread import EngineThread
from brise.engine.model import LoadedModel, load
from brise.engine.request import Delta, Request, Sampling
from brise.errors import EvidenceError, RequestError
from brise.evals.answering import AnswerSettings
from brise.evals.example import AnsweredCall, EvalAnswer, EvalExample
from brise.files.digests import file_digest
from brise.hub.locate import find_model
from brise.models.batch import PAGE_SIZE
from brise.text.answer_events import Parsed, ParsedCallArguments, ParsedCallStart, ParsedText
from brise.text.answer_format import AnswerParser
from brise.text.chat import require
from brise.text.conversation import encoded
from brise.text.inputs import Grammar
from brise.text.protocols import Encoded, Message
from brise.watch import SILENT, Watcher

ADAPTER = "adapter"  # its name in the engine, which has no other
GREEDY = Sampling(temperature=0.0, seed=0)


@dataclass(frozen=True)
class OnTop:
    """The folder of an adapter to use."""

    folder: Path
    any_base: bool = False


@dataclass(frozen=True)
class LocalModel:
    """A loaded model, the digest of all that makes its answers, and an adapter of it."""

    model: LoadedModel
    digest: str
    adapter: OnTop | None


def load_local(name: str, adapter: Path | None, *, any_base: bool, threads: int | None, watcher: Watcher = SILENT,
               loaded: LoadedModel | None = None) -> LocalModel:
    """A model of this machine and its adapter; UnsupportedError if that was trained on another one.

    `loaded` is the model, if it is in memory already.
    """
    settings_ = settings.read()
    located = find_model(name, settings_)
    if adapter is not None:
        lineage.check_base(lineage.read_lineage(adapter), located, any_base=any_base)
    if loaded is None:
        watcher.note(f"loading {located.name} from {located.path}")
        loaded = load(located.path, threads=threads or settings_.threads, name=located.name, digest=located.digest)
    digest = lineage.base_digest(located)
    if adapter is None:
        return LocalModel(loaded, digest, None)
    # Its base was checked above, before the model was loaded.
    return LocalModel(loaded, f"{digest} + {file_digest(adapter / WEIGHTS_FILE)}", OnTop(adapter, any_base=True))


class LocalAnswerer:
    """`digest` is that of the model and its adapter; `context` limits prompt and answer together.

    With `has_logprob` answers say how likely the model found them.
    """

    def __init__(self, model: LoadedModel, asked: AnswerSettings, digest: str, *, parallel: int = 16,
                 context: int | None = None, adapter: OnTop | None = None, has_logprob: bool = False) -> None:
        self._has_logprob = has_logprob
        self._chat = require(model.chat)
        self._model, self._asked, self._digest, self._context = model, asked, digest, context
        self._prompts: dict[str, Encoded | ScoredPrompt | RequestError] = {}
        self._worker: EngineThread | None = None
        self._adapter, self.parallel = adapter, parallel
        self.name = model.name if adapter is None else f"{model.name} + {adapter.folder.resolve().name}"

    def identity(self) -> Mapping[str, object]:
        """The model's digest, and the settings of the answers."""
        return {"model": self._digest, **self._asked.identity()}

    def prepare(self, examples: Sequence[EvalExample]) -> None:
        """Encodes all prompts, and makes an engine with room for the longest."""
        self._prompts = {example.digest: self._rendered(example) for example in examples}
        lengths = [_length(prompt) for prompt in self._prompts.values() if not isinstance(prompt, RequestError)]
        if not lengths:
            errors = [str(error) for error in self._prompts.values()]
            raise EvidenceError(f"no example can be asked of {self.name}; the first: {errors[0]}")
        config = self._model.config  # what was asked for chooses LongRoPE's factors, not the longest of these examples
        opened = replace(self._model, config=config.for_context(self._context or config.max_context))
        engine = Engine(opened, self._settings(max(lengths)))
        if engine.adapters is not None and self._adapter is not None:
            engine.adapters.add(ADAPTER, self._adapter.folder, any_base=self._adapter.any_base)
        self._worker = EngineThread(engine)
        self._worker.start()

    def answer(self, example: EvalExample) -> EvalAnswer:
        """The greedy answer, or the likelihood of the reference."""
        try:
            match self._prompts[example.digest]:
                case RequestError() as error:
                    return EvalAnswer(finish="error", error=error.args[0])
                case ScoredPrompt() as scored:
                    return self._score(scored)
                case prompt:
                    return self._generate(example, prompt)
        except RequestError as error:
            if error.status == 503:  # the engine shuts down: no other example could be answered either
                raise
            return EvalAnswer(finish="error", error=error.args[0])

    def close(self) -> None:
        """Cancels all requests and stops the engine."""
        if self._worker is not None:
            self._worker.shutdown(drain=False)

    def _rendered(self, example: EvalExample) -> Encoded | ScoredPrompt | RequestError:
        try:
            encoded = prompt(self._model, example)
            return scored(self._model, example, encoded) if self._asked.scores else encoded
        except RequestError as error:  # this row cannot be asked; others can
            return error

    def _settings(self, longest: int) -> EngineSettings:
        """Room for `parallel` of the longest prompts with their answers, within what the model allows."""
        most = min(self._context or self._model.config.max_context, self._model.config.max_context)
        context = min(longest + (0 if self._asked.scores else self._asked.max_tokens), most)
        return EngineSettings(max_context=context, page_size=PAGE_SIZE,
                              num_pages=self.parallel * -(-context // PAGE_SIZE), max_sequences=self.parallel,
                              max_waiting=2 * self.parallel, max_adapters=0 if self._adapter is None else 1,
                              max_rank=0 if self._adapter is None else rank_in(self._adapter.folder))

    def _generate(self, example: EvalExample, prompt: Encoded) -> EvalAnswer:
        format, schema = self._chat.format, self._asked.schema
        is_thinking = schema is None and format.thinks_at_end_of(prompt.tokens)
        parser = format.parser(tool_names(example), is_thinking=is_thinking)
        spoken, last, logprob = _Spoken(parser), Delta("", 0), 0.0
        for last in self._deltas(Request(
                prompt=prompt.tokens, max_tokens=self._asked.max_tokens, sampling=GREEDY, sentinels=format.sentinels,
                images=prompt.images, begins_text=True, logprobs=0 if self._has_logprob else None,
                grammar=None if schema is None else Grammar("json_schema", schema))):
            spoken.push(last)
            logprob += sum(token.logprob for token in last.logprobs)
        return EvalAnswer(spoken.text, spoken.calls, last.finish or "error", last.error, last.prompt_tokens,
                          last.completion_tokens, logprob=logprob if self._has_logprob else None)

    def _score(self, scored: ScoredPrompt) -> EvalAnswer:
        """One pass over prompt and reference; nothing is generated."""
        request = Request(prompt=scored.whole.tokens, max_tokens=0, sampling=GREEDY, prompt_logprobs=0,
                          images=scored.whole.images)
        deltas = [delta for delta in self._deltas(request) if delta.prompt_logprobs is not None]
        logprobs = deltas[0].prompt_logprobs if deltas else None
        if logprobs is None:
            return EvalAnswer(finish="error", error="the engine gave no log-probabilities")
        own = [item.logprob for item in logprobs[scored.start:] if item is not None]
        return EvalAnswer(nll=-sum(own), scored_tokens=len(own), prompt_tokens=scored.start)

    def _deltas(self, request: Request) -> list[Delta]:
        assert self._worker is not None, "prepared before"
        with self._worker.generate(replace(request, adapter=None if self._adapter is None else ADAPTER)) as deltas:
            received = list(deltas)
        if received[-1].finish == "cancelled":
            raise EvidenceError("the run was stopped")
        return received


def _length(prompt: Encoded | ScoredPrompt) -> int:
    return len(prompt.whole.tokens if isinstance(prompt, ScoredPrompt) else prompt.tokens)


class _Spoken:
    """Text and calls of one answer; what was thought before them is left out."""

    def __init__(self, parser: AnswerParser) -> None:
        self._parser, self._texts = parser, list[str]()
        self._calls: list[tuple[str, list[str]]] = []

    @property
    def text(self) -> str:
        return "".join(self._texts)

    @property
    def calls(self) -> tuple[AnsweredCall, ...]:
        return tuple(AnsweredCall(name, "".join(arguments)) for name, arguments in self._calls)

    def push(self, delta: Delta) -> None:
        self._take(self._parser.push(delta.text))
        if delta.finish is not None:
            self._take(self._parser.finish(was_cut=delta.finish == "length"))

    def _take(self, items: Sequence[Parsed]) -> None:
        for item in items:
            match item:
                case ParsedText(text):
                    self._texts.append(text)
                case ParsedCallStart(name, _):
                    self._calls.append((name, []))
                case ParsedCallArguments(text):
                    self._calls[-1][1].append(text)


@dataclass(frozen=True)
class ScoredPrompt:
    """A prompt with its reference answer as tokens; the answer goes from `start` to the end."""

    whole: Encoded
    start: int


def prompt(model: LoadedModel, example: EvalExample) -> Encoded:
    """The prompt as the model reads it; RequestError if it cannot."""
    return _encoded(model, example, example.prompt, is_prompt=True)


def scored(model: LoadedModel, example: EvalExample, asked: Encoded) -> ScoredPrompt:
    """The prompt `asked`, followed by the reference answer with its end token."""
    whole = _encoded(model, example, [*example.prompt, _message(example.reference)], is_prompt=False)
    start = len(asked.tokens)
    if whole.tokens[:start] != asked.tokens or len(whole.tokens) == start:
        raise RequestError(f"{example.place}: the chat template of {model.name} writes the prompt in another way when "
                           "an answer follows, so the answer's tokens cannot be told apart")
    end = next((at + 1 for at in range(start, len(whole.tokens)) if whole.tokens[at] in model.tokenizer.end_ids),
               len(whole.tokens))
    return ScoredPrompt(replace(whole, tokens=whole.tokens[:end]), start)


def tool_names(example: EvalExample) -> tuple[str, ...]:
    """The functions that the example offers."""
    return tuple(str(cast(Mapping[str, object], tool["function"])["name"]) for tool in example.tools)


def _encoded(model: LoadedModel, example: EvalExample, messages: Sequence[Message], *, is_prompt: bool) -> Encoded:
    return encoded(require(model.chat), messages, example.tools, add_generation_prompt=is_prompt)


def _message(answer: EvalAnswer) -> Message:
    calls = [{"id": f"call_{number}", "type": "function",
              "function": {"name": call.name, "arguments": json.loads(call.arguments)}}
             for number, call in enumerate(answer.calls)]
    return {"role": "assistant", "content": answer.text, **({"tool_calls": calls} if calls else {})}
