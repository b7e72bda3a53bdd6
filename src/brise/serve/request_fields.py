"""The classes of request fields, one table for each API: what acts and cannot be honoured, and what is a note.

A field in `ACTS` would make another answer: brise has no way to honour it, so it is accepted only with a value that
asks for nothing. A field in `NOTES` changes no answer. Fields in neither table that nobody reads are unknown: they are
accepted and reported, or refused by a strict server.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from brise.text.fields import RequestFields


@dataclass(frozen=True)
class Act:
    """Why a field is refused, and the values of it that ask for nothing (`null` always does)."""

    why: str
    neutral: tuple[object, ...] = ()


_NO_SAMPLER = "there is no such sampler"
_NO_GRAMMAR = "give a JSON schema as 'response_format'"
_OLD_CALLS = "OpenAI has deprecated it; use 'tools' and 'tool_choice'"

# Sampling fields of llama-server, vLLM, Ollama, LM Studio and SGLang.
_NO_DEADLINE = "only POST /v1/actions has it"
SAMPLING_ACTS: Mapping[str, Act] = {
    "deadline_ms": Act(_NO_DEADLINE), "fallback": Act(_NO_DEADLINE),
    "typical_p": Act(_NO_SAMPLER, (1,)), "tfs_z": Act(_NO_SAMPLER, (1,)), "top_a": Act(_NO_SAMPLER, (0,)),
    "top_n_sigma": Act(_NO_SAMPLER, (0, -1)), "mirostat": Act(_NO_SAMPLER, (0,)),
    "mirostat_mode": Act(_NO_SAMPLER, (0,)),
    "dynatemp_range": Act(_NO_SAMPLER, (0,)), "xtc_probability": Act(_NO_SAMPLER, (0,)),
    "dry_multiplier": Act(_NO_SAMPLER, (0,)), "samplers": Act("the order of samplers is fixed", ([], "")),
    "no_repeat_ngram_size": Act("use 'repetition_penalty'", (0,)),
    "length_penalty": Act("there is no beam search", (1,)),
    "use_beam_search": Act("there is no beam search", (False,)),
    "early_stopping": Act("there is no beam search", (False,)),
    "bad_words": Act("use 'logit_bias'", ([],)),
    "allowed_token_ids": Act("use 'logit_bias'", ([],)),
    "skip_special_tokens": Act("special tokens are not part of the text", (True,)),
    "truncate_prompt_tokens": Act("a prompt is never cut", (-1,)),
    "prompt_logprobs": Act("use /v1/completions with 'echo' and 'logprobs'", (0, False)),
    "guided_json": Act(_NO_GRAMMAR), "guided_regex": Act(_NO_GRAMMAR, ("",)), "guided_choice": Act(_NO_GRAMMAR, ([],)),
    "guided_grammar": Act(_NO_GRAMMAR, ("",)), "structured_outputs": Act(_NO_GRAMMAR, ({},)),
    "grammar": Act(_NO_GRAMMAR, ("",)), "json_schema": Act(_NO_GRAMMAR, ({},)), "format": Act(_NO_GRAMMAR, ("",)),
    "regex": Act(_NO_GRAMMAR, ("",)), "ebnf": Act(_NO_GRAMMAR, ("",)),
    "logits_processors": Act("no code comes with a request", ([],)),
    "lora": Act("an adapter is asked for as 'model'", ([],)),
    "lora_path": Act("an adapter is asked for as 'model'", ("",)),
    "options": Act("send its fields beside 'messages'", ({},)), "num_predict": Act("use 'max_tokens'", (-1,))}

CHAT_ACTS: Mapping[str, Act] = {
    **SAMPLING_ACTS,
    "modalities": Act("answers are text", (["text"], [])),
    "verbosity": Act("the models here have no such setting", ("medium",)),
    "audio": Act("answers are text", ({},)), "web_search_options": Act("this server opens no connections"),
    "functions": Act(_OLD_CALLS, ([],)), "function_call": Act(_OLD_CALLS, ("none", "auto")),
    "template": Act("the model's own chat template is used", ("",)),
    "chat_template": Act("the model's own chat template is used", ("",)),
    "system": Act("send a message of the role 'system'", ("",)),
    "add_generation_prompt": Act("an answer always follows; 'prefix' on the last message continues it", (True,)),
    "continue_final_message": Act("use 'prefix' on the last message", (False,)),
    "documents": Act("put them into a message", ([],)), "plugins": Act("there are none", ([],)),
    "data_sources": Act("this server opens no connections", ([],)),
    "search_parameters": Act("this server opens no connections", ({"mode": "off"},)),
    "enable_search": Act("this server opens no connections", (False,)),
    "safe_prompt": Act("send a message of the role 'system'", (False,)),
    "best_of": Act("use 'n'", (1,)),
    "max_new_tokens": Act("use 'max_tokens'", (-1,)),
    "mm_processor_kwargs": Act("images have 'detail'", ({},))}

COMPLETION_ACTS: Mapping[str, Act] = {
    **SAMPLING_ACTS, "system": Act("write it into the prompt", ("",)),
    "template": Act("a prompt is taken as it is", ("",)), "context": Act("write it into the prompt", ([],))}

EMBEDDING_ACTS: Mapping[str, Act] = {
    "truncate_prompt_tokens": Act("a text is never cut", (-1,)), "truncate": Act("a text is never cut", (False,)),
    "input_type": Act("write the prefix into the text", ("",)),
    "prompt_name": Act("write the prefix into the text", ("",)), "task": Act("write the prefix into the text", ("",)),
    "normalize": Act("vectors have length 1", (True,)), "embd_normalize": Act("vectors have length 1", (2,)),
    "messages": Act("give a text as 'input'", ([],))}

# What concerns the service and not the answer: who asks, what is kept, cached, billed, and how fast it goes.
SERVICE_NOTES = frozenset({
    "user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options",
    "store", "service_tier", "cache_prompt", "id_slot", "slot_id", "n_keep", "keep_alive", "cache_control",
    "cache_salt",
    "request_id", "priority", "session_id", "tags", "trace", "prediction", "ttl", "draft_model", "timings_per_token",
    "return_progress", "return_tokens_as_token_ids", "return_token_ids", "spaces_between_special_tokens", "detokenize",
    "data_parallel_rank", "kv_transfer_params", "vllm_xargs", "custom_params", "extra_headers", "drop_params",
    "caching", "fallbacks", "litellm_call_id", "litellm_metadata", "litellm_trace_id", "num_retries", "provider",
    "raw", "echo_request", "speculative", "post_sampling_probs", "t_max_predict_ms", "add_special_tokens",
    "use_raw_prompt", "separate_reasoning", "stream_reasoning", "include_reasoning", "reasoning_format",
    "parse_tool_calls", "transforms"})
# Fields of llama-server that shape a sampler which is off.
SAMPLER_NOTES = frozenset({
    "mirostat_tau", "mirostat_eta", "dynatemp_exponent", "xtc_threshold", "dry_base", "dry_allowed_length",
    "dry_penalty_last_n", "dry_sequence_breakers", "n_probs", "min_keep", "penalty_last_n"})
NOTES = SERVICE_NOTES | SAMPLER_NOTES
# Values of notes that ask for something which is not done here; reported, because somebody may wait for it.
SILENT: Mapping[str, tuple[object, ...]] = {
    "store": (False,), "service_tier": ("auto", "default"), "prompt_cache_retention": ("in_memory",),
    "cache_prompt": (True,), "id_slot": (-1,), "n_keep": (0,), "priority": (0,), "raw": (False,),
    "timings_per_token": (False,), "return_progress": (False,), "n_probs": (0,)}
_QUIET = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key"})


def read_classes(fields: RequestFields, acts: Mapping[str, Act], notes: Iterable[str] = NOTES) -> None:
    """Reads the fields of both tables: refuses what acts, notes what does not."""
    for name, act in acts.items():
        fields.only(name, act.neutral, act.why)
    for name in notes:
        if name in acts:
            continue
        if name in _QUIET:
            fields.raw(name)
        else:
            fields.note(name, SILENT.get(name, ()))
