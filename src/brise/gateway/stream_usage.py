"""The tokens of streams whose clients did not ask for them: the upstream is asked, and its count taken out again.

A stream of OpenAI's chats and completions counts its tokens only if `stream_options.include_usage` asks for it. Then
each chunk has `"usage": null`, and one more chunk, without choices, has the count. The client of such a stream gets the
bytes that it would have got without asking. An upstream that refuses the option is asked once more without, and from
then on not again for this model.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from brise.dialects import sse
from brise.gateway.request import ClientRequest
from brise.gateway.upstream import HostedServer, UpstreamResponse

OPTION = "stream_options"
ASKED = b',"stream_options":{"include_usage":true}}'
REFUSED = (400, 422)  # "I do not know this field"
NAMES = (b"stream_options", b"include_usage")  # one of which such a refusal may name
REFUSAL_BYTES = 1 << 20
MOST_MODELS = 1000  # clients may invent names
USAGE = b'"usage"'
MOST_SPACE = 8  # bytes of white space around it that are looked for; more of it is read in the long way
NULL = re.compile(rb'(?<![ \t]),[ \t]*"usage"[ \t]*:[ \t]*null')
# The same at the end of an event on one line, with nothing but short plain members behind it. No string holds a quote
# behind a comma, and one brace closes one object: so if the event is JSON, the member is the object's own.
LAST_NULL = re.compile(rb'(?<![ \t]),[ \t]*"usage"[ \t]*:[ \t]*null'
                       rb'((?:,[ \t]*"[a-z_]+"[ \t]*:[ \t]*(?:null|\d+|"[\w-]*"))*[ \t]*\}\r?\n\r?\n)')
SPACE = re.compile(r"[ \t\n\r]*")


class CountedStreams:
    """Sends requests to an upstream, with the question for the count where that is needed."""

    def __init__(self, upstream: HostedServer) -> None:
        self._upstream = upstream
        self._takes: OrderedDict[tuple[str, str], bool] = OrderedDict()  # the option, by path and model

    async def open(self, request: ClientRequest) -> UpstreamResponse:
        """As `HostedServer.open`."""
        endpoint = request.path, request.model
        asks = self._upstream.settings.asks_for_usage and not self._upstream.counts_streams
        body = _asking(request) if asks and self._takes.get(endpoint) is not False else None
        if body is None:
            return await self._upstream.open(request)
        reply = await self._upstream.open(replace(request, body=body))
        if reply.status in REFUSED:
            return await self._without(request, endpoint, reply)
        if reply.status < 300:
            self._remember(endpoint, True)
            return CountedStream(reply)
        return reply

    async def _without(self, request: ClientRequest, endpoint: tuple[str, str],
                       refused: UpstreamResponse) -> UpstreamResponse:
        """The same request as its client wrote it, unless the refusal has another reason."""
        refusal = await _Refusal.of(refused)
        is_about_it = len(refusal.body) > REFUSAL_BYTES or any(name in refusal.body for name in NAMES)
        if endpoint in self._takes and not is_about_it:
            return refusal
        reply = await self._upstream.open(request)
        if reply.status < 300:
            self._remember(endpoint, False)
        return reply

    def _remember(self, endpoint: tuple[str, str], takes: bool) -> None:
        self._takes[endpoint] = takes
        self._takes.move_to_end(endpoint)
        if len(self._takes) > MOST_MODELS:
            self._takes.popitem(last=False)


def _asking(request: ClientRequest) -> bytes | None:
    """The body with the question; None if the client asks, or nothing is to be asked."""
    fields = request.fields
    if fields is None or not request.streams or not request.dialect.counts_on_request:
        return None
    options = fields.get(OPTION)
    if options is not None and not (isinstance(options, dict) and options.get("include_usage") in (None, False)):
        return None
    body = request.body.rstrip()
    if OPTION not in fields and body.endswith(b"}") and b"\0" not in body[:4]:  # not UTF-16, which JSON may be
        return body[:-1] + ASKED
    return json.dumps({**fields, OPTION: {**(options or {}), "include_usage": True}}).encode()


class CountedStream:
    """An answer whose stream has a count that its client did not ask for (`without_count`)."""

    adds_usage = True
    usage = None

    def __init__(self, reply: UpstreamResponse) -> None:
        self._reply, self.status, self.headers = reply, reply.status, reply.headers

    def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes."""
        return self._reply.chunks()

    def close(self) -> None:
        self._reply.close()


def without_count(block: sse.Block) -> bytes:
    """The bytes of an event as they would be without the question; none for the count itself."""
    at = block.data.find(USAGE)
    if at < 0:
        return block.data
    unread = _without_last_null(block.data, at)
    if unread is not None:
        return unread
    fields = None if block.event is None else block.event.fields
    if fields is None or "usage" not in fields:
        return block.data
    if fields["usage"] is None:
        plain = _without_plain_null(block.data)
        return _without_null(block.data) if plain is None else plain
    is_count = isinstance(fields["usage"], dict) and not fields.get("choices")
    return b"" if is_count else block.data  # one with choices: this server says it unasked


def _without_last_null(block: bytes, at: int) -> bytes | None:
    """An event that nobody has read, as most servers write it; None if it is another. `at`: its first `"usage"`."""
    if block.find(USAGE, at + 1) >= 0 or not block.startswith(b"data:"):
        return None
    found = LAST_NULL.search(block, max(at - MOST_SPACE, 0))
    if found is None or found.end() < len(block):
        return None
    if block.find(b"\n") < found.start(1) or 0 <= block.find(b"\r") < found.start(1):
        return None
    return block[:found.start()] + block[found.start(1):]


def _without_plain_null(block: bytes) -> bytes | None:
    """An event of one line as most servers write it, in a tenth of the time; None if it is another.

    What follows a member of the object itself is more of its members, and the end.
    """
    at = block.find(USAGE)
    found = NULL.search(block, max(at - MOST_SPACE, 0), at + len(USAGE) + 2 * MOST_SPACE)
    if found is None or block.find(USAGE, at + 1) >= 0:
        return None
    line = block.rstrip(b"\r\n")
    if not line.startswith(b"data:") or b"\n" in line or b"\r" in line:
        return None
    rest = line[found.end():]
    if rest != b"}":
        try:
            json.loads(b'{"":0' + rest)
        except ValueError:
            return None
    return block[:found.start()] + block[found.end():]


def _without_null(block: bytes) -> bytes:
    """An event without its `usage`; as it is if its data are on several lines, which no server does."""
    lines = block.splitlines(keepends=True)
    places = [number for number, line in enumerate(lines) if line.startswith(b"data:")]
    if len(places) != 1:
        return block
    text = lines[places[0]].decode("utf-8", "surrogateescape")
    lines[places[0]] = without_member(text, "usage").encode("utf-8", "surrogateescape")
    return b"".join(lines)


def without_member(text: str, name: str) -> str:
    """The text of a JSON object without one member of its own; all other characters stay as they are."""
    scan = json.JSONDecoder().raw_decode
    members = list[tuple[str, int, int]]()  # name, beginning, end
    at = _after_space(text, text.index("{") + 1)
    while text[at] != "}":
        start = at
        key, at = scan(text, at)
        _, at = scan(text, _after_space(text, _after_space(text, at) + 1))
        members.append((key, start, at))
        at = _after_space(text, at)
        at = _after_space(text, at + 1) if text[at] == "," else at
    for number, (key, start, end) in enumerate(members):
        if key == name and number > 0:
            return text[:members[number - 1][2]] + text[end:]
        if key == name:
            return text[:start] + text[members[1][1] if len(members) > 1 else end:]
    return text


def _after_space(text: str, at: int) -> int:
    found = SPACE.match(text, at)
    assert found is not None
    return found.end()


class _Refusal:
    """An error that was read to see what it is about."""

    adds_usage = False
    usage = None

    def __init__(self, reply: UpstreamResponse, body: bytes) -> None:
        self.status, self.headers, self.body = reply.status, reply.headers, body

    @classmethod
    async def of(cls, reply: UpstreamResponse) -> _Refusal:
        """Reads it, and closes it."""
        body = bytearray()
        try:
            async with aclosing(reply.chunks()) as pieces:
                async for piece in pieces:
                    body += piece
                    if len(body) > REFUSAL_BYTES:
                        break
        finally:
            reply.close()
        return cls(reply, bytes(body))

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body."""
        yield self.body

    def close(self) -> None:
        """It is closed."""
