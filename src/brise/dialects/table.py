"""The dialects that there are, by the path of a request and by the name that records give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from brise.dialects.anthropic_messages import AnthropicMessages
from brise.dialects.bodies import Kind
from brise.dialects.dialect import Dialect
from brise.dialects.opaque import Opaque
from brise.dialects.openai_chat import OpenAIChat
from brise.dialects.openai_completions import OpenAICompletions
from brise.dialects.openai_responses import OpenAIResponses

CHAT, MESSAGES = OpenAIChat(), AnthropicMessages()
EMBEDDINGS = Opaque("embedding", "/v1/embeddings", is_read=True, is_served=True)
UNKNOWN = Opaque("other", "", is_read=False, is_served=False)
ALL: Sequence[Dialect] = (CHAT, OpenAICompletions(), EMBEDDINGS, OpenAIResponses(), MESSAGES)
BY_PATH: Mapping[str, Dialect] = {dialect.path: dialect for dialect in ALL}
BY_NAME: Mapping[Kind, Dialect] = {dialect.name: dialect for dialect in (*ALL, UNKNOWN)}


def of_request(method: str, path: str) -> Dialect:
    """The dialect of a request; UNKNOWN for all that passes through as it is."""
    return BY_PATH.get(path, UNKNOWN) if method == "POST" else UNKNOWN


def named(name: Kind) -> Dialect:
    """The dialect of a record."""
    return BY_NAME.get(name, UNKNOWN)
