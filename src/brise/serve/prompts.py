"""From a parsed request to the engine's: messages become tokens, and each wish one of the engine's fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from brise.engine.model import LoadedModel
from brise.engine.request import Grammar, Request
from brise.serve.openai_chat import ChatRequest
from brise.serve.openai_completions import CompletionRequest, Prompt
from brise.serve.openai_messages import Message, plain_message, template_message
from brise.serve.openai_tools import Tooling
from brise.text.chat import require
from brise.text.tokenizer import Tokenizer
from brise.text.tool_calls import tool_grammar, tool_system_prompt

CALL_BEGIN = "<tool_call>"


def chat_request(chat: ChatRequest, model: LoadedModel) -> Request:
    """Renders the conversation. It may take long for a long one, so it is called off the event loop."""
    options = chat.options
    hides_calls = chat.tooling.active and _hides_calls(model.tokenizer)
    return Request(
        prompt=tuple(_render(chat.messages, chat.tooling, model)), max_tokens=chat.max_tokens,
        sampling=options.sampling, n=options.n, grammar=_grammar(chat), logprobs=chat.logprobs,
        stop=options.stop + (_end_texts(model.tokenizer) if hides_calls else ()), show_control=hides_calls,
        ignore_eos=options.ignore_eos)


def _hides_calls(tokenizer: Tokenizer) -> bool:
    """Where <tool_call> is a control token, it would be left out of the text, and with it the call."""
    token = tokenizer.control.get(CALL_BEGIN)
    return token is not None and tokenizer.is_control(token)


def _end_texts(tokenizer: Tokenizer) -> tuple[str, ...]:
    """With control tokens shown, those that end the answer would be too."""
    return tuple(tokenizer.token_text(token) for token in sorted(tokenizer.end_ids))


def completion_requests(completion: CompletionRequest, model: LoadedModel) -> tuple[Request, ...]:
    """One engine request for each prompt."""
    options = completion.options
    scores_prompt = completion.echo and completion.logprobs is not None
    return tuple(Request(
        prompt=prompt_tokens(prompt, model.tokenizer, parse_control=completion.parse_control),
        max_tokens=completion.max_tokens, sampling=options.sampling, stop=options.stop, n=options.n,
        logprobs=completion.logprobs, prompt_logprobs=completion.logprobs if scores_prompt else None,
        ignore_eos=options.ignore_eos) for prompt in completion.prompts)


def prompt_tokens(prompt: Prompt, tokenizer: Tokenizer, *, parse_control: bool = False) -> tuple[int, ...]:
    """A text gets the model's bos, tokens are taken as they are."""
    if not isinstance(prompt, str):
        return prompt
    bos = (tokenizer.bos_id,) if tokenizer.add_bos and tokenizer.bos_id is not None else ()
    return (*bos, *tokenizer.encode(prompt, parse_control=parse_control))


def _render(messages: Sequence[Message], tooling: Tooling, model: LoadedModel) -> list[int]:
    template = require(model.chat)
    tools = [tool.as_json() for tool in tooling.tools] if tooling.active else []
    if template.knows_tools:
        return template.encode([template_message(message) for message in messages], tools=tools or None)
    views = [plain_message(message) for message in messages]
    return template.encode(_with_system(views, tool_system_prompt(tools)) if tools else views)


def _with_system(views: Sequence[Mapping[str, object]], text: str) -> list[Mapping[str, object]]:
    """Behind what the first message says if it is a system message: most templates take only one."""
    if views[0]["role"] == "system":
        return [{**views[0], "content": f"{views[0]['content']}\n\n{text}"}, *views[1:]]
    return [{"role": "system", "content": text}, *views]


def _grammar(chat: ChatRequest) -> Grammar | None:
    tooling = chat.tooling
    if not tooling.active:
        return chat.grammar
    choice = tooling.name if tooling.name is not None else tooling.mode
    return tool_grammar([tool.as_json() for tool in tooling.tools], choice, parallel=tooling.parallel)
