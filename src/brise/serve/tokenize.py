"""`POST /tokenize` and `/detokenize`: text or a conversation as tokens, and back, as vLLM and llama-server do it;
`GET /tokenizer_info`, as vLLM has it."""

from __future__ import annotations

import asyncio
from typing import cast

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from brise.errors import RequestError
from brise.serve.body import read_json
from brise.serve.openai_chat import parse_chat
from brise.serve.prompts import chat_job, prompt_tokens
from brise.serve.serving import ModelHandle, ServerState
from brise.text.chat import ChatTemplate
from brise.text.fields import Ignored, RequestFields
from brise.text.json_text import Json


async def tokenize(serving: ServerState, request: Request) -> Response:
    """The tokens of `prompt` (vLLM: with the model's bos), of `content` (llama-server: without), or of `messages`."""
    fields, served = await _read(serving, request)
    tokenizer = served.worker.model.tokenizer
    text, given = fields.text("prompt"), fields.raw("messages")
    if given is not None:
        body: dict[str, Json] = {"model": "", "messages": given, "tools": fields.raw("tools")}
        job = await asyncio.to_thread(lambda: chat_job(parse_chat(cast(Json, body), Ignored()), served.worker.model))
        ids = list(job.request.prompt)
    else:
        is_prompt = text is not None
        text = fields.required_text("content") if text is None else text
        wanted = fields.flag("add_special_tokens" if is_prompt else "add_special")
        adds = is_prompt if wanted is None else wanted
        encode = tokenizer.encode if not adds else lambda words: list(prompt_tokens(words, tokenizer))
        ids = await asyncio.to_thread(encode, text)
    body = {"tokens": cast(Json, ids), "count": len(ids), "max_model_len": served.worker.max_context}
    if fields.flag("return_token_strs"):
        body["token_strs"] = await asyncio.to_thread(lambda: [tokenizer.token_text(token) for token in ids])
    fields.done()
    return await asyncio.to_thread(JSONResponse, body)


async def detokenize(serving: ServerState, request: Request) -> Response:
    """The text of `tokens`; special tokens are shown by their names."""
    fields, served = await _read(serving, request)
    tokenizer = served.worker.model.tokenizer
    values = fields.items("tokens")
    if values is None:
        raise fields.missing("tokens")
    fields.done()

    def decode() -> str:
        ids = [value for value in values if type(value) is int and 0 <= value < tokenizer.vocab_size]
        if len(ids) < len(values):
            raise fields.error("tokens", f"must be integers of 0 to {tokenizer.vocab_size - 1}")
        return tokenizer.decode(ids, show_control=True)

    text = await asyncio.to_thread(decode)
    return JSONResponse({"prompt": text, "content": text})


def tokenizer_info(serving: ServerState, request: Request) -> Response:
    """The special tokens' names and the chat template, for clients that have no tokenizer of their own."""
    served = serving.find(_only_model(serving, request.query_params.get("model")))
    model, tokenizer = served.worker.model, served.worker.model.tokenizer
    names = {name: None if token is None else tokenizer.decode([token], show_control=True)
             for name, token in (("bos_token", tokenizer.bos_id), ("eos_token", tokenizer.eos_id))}
    template = model.chat.source if isinstance(model.chat, ChatTemplate) else None
    return JSONResponse({**names, "pad_token": None, "add_bos_token": tokenizer.add_bos, "chat_template": template,
                         "model_max_length": served.worker.max_context})


async def _read(serving: ServerState, request: Request) -> tuple[RequestFields, ModelHandle]:
    """The fields, and the model: the only one where none is named."""
    settings = serving.settings
    body = await read_json(request, settings.max_body_bytes, settings.body_timeout_s)
    fields = RequestFields(body, ignored=None if settings.strict else Ignored())
    name = _only_model(serving, fields.text("model"))
    request.scope["brise.stats"].model = name
    return fields, serving.find(name)


def _only_model(serving: ServerState, name: str | None) -> str:
    """The name, or the only model's where none is given."""
    if not name and len(serving.models) != 1:
        raise RequestError("'model' is missing", param="model", code="missing_required_parameter")
    return name or next(iter(serving.models))
