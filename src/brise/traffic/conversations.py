"""Finds the conversation of a request: the one that the client names, else the one with the longest known beginning.

Each answered request leaves a digest of its messages up to and with its answer. A later request that begins with just
these messages continues it: the longest such beginning names the parent, and the parent the conversation. If nothing is
known, a conversation begins, called as its first exchange. Where several exchanges left the same digest (the same
question asked twice), the newest that nobody continued yet is taken, else the newest.

System prompts are left out: many hold the time of day. So are thoughts, which clients do not send back, and marks of
caches. The digests are keyed: whoever reads the store learns nothing of short messages by trying them.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from brise.dialects import table
from brise.traffic.records import ConversationEnd, Exchange

MOST_DIGESTS = 20_000  # in memory, at most 10 MB (bench/soak_gateway.py); older ones are looked up in the store
MOST_ENDS = 8  # exchanges kept for one digest
MOST_ASKED = 64  # beginnings of one request that are looked up in the store: the longest ones


class Known(Protocol):
    """The part of a store that is needed here."""

    def threads(self, digests: Sequence[str]) -> Sequence[ConversationEnd]: ...


@dataclass(slots=True)  # there are many
class _End:
    """An exchange that a later request may continue."""

    exchange: str
    conversation: str
    is_continued: bool = False


class Conversations:
    """Places exchanges one after the other, each once. It belongs to one thread."""

    def __init__(self, store: Known, secret: bytes, most_digests: int = MOST_DIGESTS) -> None:
        self._store, self._secret, self._most_digests = store, secret, most_digests
        self._ends: OrderedDict[str, list[_End]] = OrderedDict()

    def place(self, exchange: Exchange) -> tuple[Exchange, tuple[ConversationEnd, ...]]:
        """The exchange with its conversation and parent, and the digests by which a later request continues it."""
        dialect, request = table.named(exchange.kind), exchange.request or {}
        continued_id = dialect.continued_id(request)
        request_digest = self._begin(exchange, continued_id)
        starts = [] if continued_id is None else [request_digest]
        for item in dialect.conversation(request):
            request_digest = self._digest(request_digest, item.content)
            if item.is_answer:
                starts.append(request_digest)
        parent = self._parent(exchange, starts[::-1])
        if parent is not None:
            parent.is_continued = True
        conversation = exchange.conversation or (exchange.id if parent is None else parent.conversation)
        placed = replace(exchange, conversation=conversation,
                         parent=exchange.parent or (None if parent is None else parent.exchange))
        threads = tuple(ConversationEnd(digest, exchange.id, conversation, exchange.at_s)
                        for digest in dict.fromkeys(self._left(exchange, request_digest)))
        for thread in threads:
            self._remember(thread)
        return placed, threads

    def _begin(self, exchange: Exchange, continued_id: str | None) -> str:
        """Conversations of different tasks or subjects never meet; one that continues by an id begins with the id."""
        start = self._digest("", json.dumps([exchange.task, exchange.subject, exchange.kind]))
        return start if continued_id is None else self._digest(start, f"response {continued_id}")

    def _left(self, exchange: Exchange, request_digest: str) -> Iterator[str]:
        """The digests by which this exchange may be continued: one for each answer that it got."""
        if exchange.response is None or exchange.status >= 400:
            return
        dialect = table.named(exchange.kind)
        for answer in dialect.answers(exchange.response):
            digest = request_digest
            for item in answer:
                digest = self._digest(digest, item.content)
            yield digest
        if (answer_id := dialect.answer_id(exchange.response)) is not None:
            yield self._begin(exchange, answer_id)

    def _parent(self, exchange: Exchange, starts: Sequence[str]) -> _End | None:
        """`starts` has the longest beginning first."""
        unknown: list[str] = []
        for digest in starts:
            if digest in self._ends:
                break
            unknown.append(digest)
        for thread in reversed(self._store.threads(unknown[:MOST_ASKED]) if unknown else ()):
            self._remember(thread)
        for digest in starts:
            ends = [end for end in self._ends.get(digest, ()) if end.exchange != exchange.id
                    and exchange.conversation in ("", end.conversation)]
            if ends:
                self._ends.move_to_end(digest)
                return ([end for end in ends if not end.is_continued] or ends)[-1]
        return None

    def _remember(self, thread: ConversationEnd) -> None:
        ends = self._ends.setdefault(thread.digest, [])
        self._ends.move_to_end(thread.digest)
        if all(end.exchange != thread.exchange for end in ends):
            ends.append(_End(thread.exchange, thread.conversation))
            del ends[:-MOST_ENDS]
        while len(self._ends) > self._most_digests:
            self._ends.popitem(last=False)

    def _digest(self, before: str, content: str) -> str:
        text = f"{before}\n{content}".encode(errors="surrogatepass")
        return hashlib.blake2b(text, digest_size=16, key=self._secret).hexdigest()
