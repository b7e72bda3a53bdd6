"""A parsed request becomes an engine request: messages become tokens, and options become engine fields."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from typing import TypedDict

from brise.engine.answer_collector import AnswerCollector
from brise.engine.model import LoadedModel
from brise.engine.request import Request, Sampling
from brise.engine.sampling import resolve
from brise.serve import images
from brise.serve.audio import prepare_audio
from brise.serve.call_guard import CallGuard
from brise.serve.openai_chat import ChatRequest, Options, SchemaNames, Tooling
from brise.serve.openai_completions import CompletionRequest, Prompt
from brise.serve.unenforced import Unenforced
from brise.text.answer_format import AnswerFormat, AnswerParser
from brise.text.chat import require
from brise.text.conversation import encoded, with_reasoning_prompt, writes_think_tags
from brise.text.fields import Ignored
from brise.text.infill import require_infill
from brise.text.inputs import Grammar
from brise.text.openai_messages import Message, template_message
from brise.text.protocols import TextTokenizer
from brise.text.schemas import Enforceable, SchemaCache
from brise.text.thinking import variables
from brise.text.tool_grammar import ToolSchemas, tool_grammar

OPENAI_SAMPLING = Sampling()  # temperature 1


@dataclass(frozen=True)
class ChatJob:
    """A conversation as an engine request, and the format of its answers."""

    request: Request
    format: AnswerFormat
    tool_names: tuple[str, ...]
    is_thinking: bool  # from the first token on
    writes_tags: bool = False  # thinking stands in <think>, which is text
    unenforced: tuple[Unenforced, ...] = ()
    guard: CallGuard | None = None  # holds back calls

    @property
    def asks(self) -> bool:
        """Whether the model is asked: the answer to a confirmation is the call that was confirmed."""
        return self.guard is None or not self.guard.released

    def guarded(self, guard: CallGuard | None, chat: ChatRequest) -> ChatJob:
        """The job behind the guard, which takes what the request confirms."""
        if guard is not None:
            guard.confirm(chat.messages, chat.options.n)
        return replace(self, guard=guard)

    def parser(self) -> AnswerParser:
        """A new parser for one answer."""
        return self.format.parser(self.tool_names, is_thinking=self.is_thinking, writes_tags=self.writes_tags)

    def collector(self) -> AnswerCollector:
        """A new collector for one answer."""
        collector = AnswerCollector if self.guard is None else self.guard.collector
        return collector(self.parser(), self.format.new_call_id, may_call=bool(self.tool_names))


def chat_job(chat: ChatRequest, model: LoadedModel, usual: Sampling = OPENAI_SAMPLING) -> ChatJob:
    """Renders the conversation. A long one takes time: call it off the event loop.

    `usual` is the sampling where neither the request nor the model's own settings say it.
    """
    options, tooling = chat.options, chat.tooling
    template = require(model.chat)
    answer = _answer_schema(chat.grammar, chat.names.answer, model.schemas)
    schemas = ToolSchemas({tool.name for tool in tooling.tools if tool.strict}, param=chat.names.tool,
                          cache=model.schemas)
    calls = partial(_tool_grammar, tooling, template.format, None if answer is None else answer.schema, schemas)
    own = None if tooling.active else _within_open(chat.grammar, chat.messages[-1])
    grammar = own or calls(is_thinking=False)  # raises on a bad schema
    given = variables(chat.wishes, template)
    prepared = images.prepare_images(prepare_audio(chat.messages, model), model)
    written: list[Mapping[str, object]] = [template_message(message) for message in prepared]
    if chat.asks_for_reasoning:
        written = with_reasoning_prompt(written, template, model.system_prompt, model.name, date.today())
    prompt = encoded(template, written, [tool.as_json() for tool in tooling.tools] if tooling.active else [],
                     continue_final=chat.messages[-1].is_open, variables=given)
    # A response_format alone applies from the first token on, so the model does not think before it.
    is_thinking = own is None and template.format.thinks_at_end_of(prompt.tokens)
    if is_thinking:
        grammar = calls(is_thinking=True)
    request = Request(
        prompt=prompt.tokens, max_tokens=chat.max_tokens, n=options.n,
        sampling=resolve(options.sampling, model.generation.sampling, usual), grammar=grammar, logprobs=chat.logprobs,
        stop=options.stop, sentinels=template.format.sentinels, images=prompt.images,
        audios=prompt.audios, begins_text=not chat.messages[-1].is_open,
        prediction=tuple(model.tokenizer.encode(chat.prediction, before="text")) if chat.prediction else (),
        **_ends(options))
    names = tuple(tool.name for tool in tooling.tools) if tooling.active else ()
    return ChatJob(request, template.format, names, is_thinking,
                   writes_think_tags(model.system_prompt, template.format),
                   _unenforced(answer, tooling, schemas, chat.names))


def raw_job(chat: ChatRequest, prompt: str, model: LoadedModel, usual: Sampling, *, parse_control: bool = False,
            suffix: str = "") -> ChatJob:
    """A prompt as it is, without a chat template: the answer is text and nothing else. With `suffix` it is the middle.
    """
    options, answer = chat.options, _answer_schema(chat.grammar, chat.names.answer, model.schemas)
    infill = require_infill(model.infill) if suffix else None
    tokens = (infill.encode(model.tokenizer, prompt, suffix) if infill is not None else
              prompt_tokens(prompt, model.tokenizer, parse_control=parse_control))
    request = Request(
        prompt=tokens, max_tokens=chat.max_tokens, stop_tokens=frozenset() if infill is None else infill.ends,
        sampling=resolve(options.sampling, model.generation.sampling, usual), n=options.n, grammar=chat.grammar,
        logprobs=chat.logprobs, stop=options.stop)
    return ChatJob(request, AnswerFormat("tags", {}, {}), (), is_thinking=False,
                   unenforced=_unenforced(answer, Tooling(), ToolSchemas(set()), chat.names))


def within_context(request: Request, max_context: int, ignored: Ignored | None, field: str) -> Request:
    """The request without a limit that is longer than the context has room for: clients give what a large model can
    write, and the answer ends with the context."""
    room = max_context - len(request.prompt)
    if request.max_tokens is None or not request.max_tokens > room >= 1:
        return request
    if ignored is not None:
        ignored.add(field, f"it is {request.max_tokens}, the context has room for {room}")
    return replace(request, max_tokens=None)


def _within_open(grammar: Grammar | None, last: Message) -> Grammar | None:
    """The grammar of an answer that begins with the open message."""
    if grammar is None or grammar.kind == "lark" or not last.is_open or not isinstance(last.content, str):
        return grammar
    return replace(grammar, begun=last.content)


def _answer_schema(grammar: Grammar | None, param: str, schemas: SchemaCache) -> Enforceable | None:
    """The schema of the text of an answer, as far as it is enforced."""
    match grammar:
        case Grammar(kind="json_object"):
            return Enforceable({"type": "object"}, ())
        case Grammar(kind="json_schema", text=text):
            return schemas.enforceable(json.loads(text), param, strict=grammar.strict)
    return None


def _unenforced(answer: Enforceable | None, tooling: Tooling, schemas: ToolSchemas,
                names: SchemaNames) -> tuple[Unenforced, ...]:
    tools = [Unenforced(names.tool.format(index), tool.parameters, schemas.left_out[tool.name], tool.name)
             for index, tool in enumerate(tooling.tools) if schemas.left_out.get(tool.name)]
    text = [Unenforced(names.answer, answer.original, answer.left_out)] if answer and answer.left_out else []
    return (*text, *tools)


def completion_requests(completion: CompletionRequest, model: LoadedModel,
                        usual: Sampling = OPENAI_SAMPLING) -> tuple[Request, ...]:
    """One engine request for each prompt."""
    options = completion.options
    sampling = resolve(options.sampling, model.generation.sampling, usual)
    scores_prompt = completion.echo and completion.logprobs is not None
    return tuple(Request(
        prompt=_completion_prompt(prompt, completion, model),
        max_tokens=completion.max_tokens, sampling=sampling, stop=options.stop, n=options.n,
        logprobs=completion.logprobs, prompt_logprobs=completion.logprobs if scores_prompt else None,
        **_infill_ends(_ends(options), completion.suffix, model)) for prompt in completion.prompts)


def _completion_prompt(prompt: Prompt, completion: CompletionRequest, model: LoadedModel) -> tuple[int, ...]:
    if completion.suffix is None or not isinstance(prompt, str):
        return prompt_tokens(prompt, model.tokenizer, parse_control=completion.parse_control)
    return require_infill(model.infill).encode(model.tokenizer, prompt, completion.suffix)


def _infill_ends(ends: _Ends, suffix: str | None, model: LoadedModel) -> _Ends:
    if suffix is None or model.infill is None:
        return ends
    return {**ends, "stop_tokens": ends["stop_tokens"] | model.infill.ends}


def _ends(options: Options) -> _Ends:
    """When an answer ends, beside its limit."""
    return {"ignore_eos": options.ignore_eos, "min_tokens": options.min_tokens, "stop_tokens": options.stop_tokens,
            "keeps_stop": options.keeps_stop}


class _Ends(TypedDict):
    ignore_eos: bool
    min_tokens: int
    stop_tokens: frozenset[int]
    keeps_stop: bool


def prompt_tokens(prompt: Prompt, tokenizer: TextTokenizer, *, parse_control: bool = False) -> tuple[int, ...]:
    """The tokens of a prompt: a text gets the model's bos unless it begins with it, tokens stay as they are."""
    if not isinstance(prompt, str):
        return prompt
    ids = tokenizer.encode(prompt, parse_control=parse_control)
    bos = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    return tuple(ids if ids[:1] == bos else [*bos, *ids])


def text_to_embed(text: Prompt, tokenizer: TextTokenizer) -> list[int]:
    """The tokens of a text to embed: between the model's bos and its end of a text, where it has them."""
    ids = list(prompt_tokens(text, tokenizer))
    return ids if tokenizer.text_end_id is None or not isinstance(text, str) else [*ids, tokenizer.text_end_id]


def _tool_grammar(tooling: Tooling, format: AnswerFormat, answer: Mapping[str, object] | None, schemas: ToolSchemas, *,
                  is_thinking: bool) -> Grammar | None:
    choice = tooling.name if tooling.name is not None else tooling.mode
    return tool_grammar([tool.as_json() for tool in tooling.tools], choice, format, parallel=tooling.parallel,
                        is_thinking=is_thinking, answer=answer, schemas=schemas)
