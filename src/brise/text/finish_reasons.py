"""Why an answer stopped: the names that servers and exporters have for it, and which answers are not whole."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

FinishReason = Literal["stop", "length", "content_filter", "tool_calls", "error"]
# By the names that servers have for them, without case, hyphens and underscores.
FINISH_REASONS: Mapping[str, FinishReason] = {
    **dict.fromkeys(("stop", "endturn", "stopsequence", "eos", "eostoken", "end", "complete", "completed", "pauseturn",
                     "done", "finished"), "stop"),
    **dict.fromkeys(("length", "maxtokens", "maxoutputtokens", "modellength", "modelcontextwindowexceeded",
                     "maxcontentlength", "contextlength"), "length"),
    **dict.fromkeys(("contentfilter", "contentfiltered", "safety", "refusal", "recitation", "blocklist", "spii",
                     "prohibitedcontent", "guardrailintervened", "imagesafety", "language", "sensitive"),
                    "content_filter"),
    **dict.fromkeys(("toolcalls", "toolcall", "tooluse", "functioncall"), "tool_calls"),
    **dict.fromkeys(("error", "abort", "aborted", "cancelled", "canceled", "usercancel", "failed",
                     "insufficientsystemresource", "malformedfunctioncall", "functioncallfilter",
                     "networkerror", "errortoxic", "errorlimit"), "error")}
NOT_WHOLE: Mapping[str, str] = {
    "length": "the answer is cut (finish reason length)",
    "content_filter": "the answer is filtered (finish reason content_filter)",
    "error": "the answer ended with an error (finish reason error)"}


def common(value: object) -> FinishReason | None:
    """A server's reason by its common name; None if it gives none that is known."""
    # Gemini's layer for OpenAI's clients writes "content_filter: PROHIBITED_CONTENT".
    return FINISH_REASONS.get(plain(value.partition(":")[0])) if isinstance(value, str) else None


def not_whole(value: object) -> str | None:
    """Why an answer that stopped for this reason is nothing to learn from; None if it may be."""
    reason = common(value)
    return None if reason is None else NOT_WHOLE.get(reason)


def plain(name: str) -> str:
    """A name without case, hyphens and underscores."""
    return re.sub(r"[^a-z0-9]", "", name[:100].lower())
