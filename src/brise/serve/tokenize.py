"""`POST /tokenize` and `/detokenize`: text or a conversation as tokens, and back, as vLLM and llama-server do it."""

from __future__ import annotations

import asyncio
from typing import cast

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from brise.serve.body import read_json
from brise.serve.openai_chat import parse_chat
from brise.serve.prompts import chat_job, prompt_tokens
from brise.serve.serving import ModelHandle, ServerState
from brise.text.fields import Ignored, RequestFields
from brise.text.json_text import Json


async def tokenize(serving: ServerState, request: Request) -> Response:
    """The tokens of `prompt` (vLLM: with the model's bos), of `content` (llama-server: without), or of `messages`."""
    fields, served = await _read(serving, request)
    tokenizer = served.worker.model.tokenizer
    text, given = fields.text("prompt"), fields.raw("messages")
    if given is not None:
        body: dict[str, Json] = {"model": "", "messages": given, "tools": fields.raw("tools")}
        chat = parse_chat(cast(Json, body), Ignored())
        job = await asyncio.to_thread(chat_job, chat, served.worker.model)
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
        body["token_strs"] = [tokenizer.token_text(token) for token in ids]
    fields.done()
    return JSONResponse(body)


async def detokenize(serving: ServerState, request: Request) -> Response:
    """The text of `tokens`; special tokens are shown by their names."""
    fields, served = await _read(serving, request)
    tokenizer = served.worker.model.tokenizer
    values = fields.items("tokens")
    if values is None:
        raise fields.missing("tokens")
    ids = [value for value in values if type(value) is int and 0 <= value < tokenizer.vocab_size]
    if len(ids) < len(values):
        raise fields.error("tokens", f"must be integers of 0 to {tokenizer.vocab_size - 1}")
    fields.done()
    text = await asyncio.to_thread(lambda: tokenizer.decode(ids, show_control=True))
    return JSONResponse({"prompt": text, "content": text})


async def _read(serving: ServerState, request: Request) -> tuple[RequestFields, ModelHandle]:
    """The fields, and the model: the only one where none is named."""
    settings = serving.settings
    body = await read_json(request, settings.max_body_bytes, settings.body_timeout_s)
    fields = RequestFields(body, ignored=None if settings.strict else Ignored())
    name = fields.text("model") or (next(iter(serving.models)) if len(serving.models) == 1 else None)
    if name is None:
        raise fields.missing("model")
    request.scope["brise.stats"].model = name
    return fields, serving.find(name)
