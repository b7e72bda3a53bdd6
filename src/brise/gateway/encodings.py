"""Content encodings of answers (RFC 9110, 8.4): decoded for reading, in bounded pieces.

Answers that are read here are asked for without any (`identity`). Some servers, and proxies before them, compress all
the same. brotli and, before Python 3.14, Zstandard need a library each (the extra `encodings`); without it such an
answer passes as it is, and its row says that it was not read.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Any, Protocol

from brise.dialects.bodies import Usage
from brise.gateway import headers
from brise.gateway.failure import UpstreamError, UpstreamFailure
from brise.gateway.request import Headers
from brise.gateway.upstream import UpstreamResponse

PIECE_BYTES = 64 << 10  # that are decoded at one time: the event loop does nothing else meanwhile
MOST_ENCODINGS = 4  # one behind the other; nobody means more
GZIP, ZLIB, RAW_DEFLATE = 31, 15, -15  # zlib's names for its formats
ZSTD_MODULES = ("compression.zstd", "backports.zstd")


class DecodingError(ValueError):
    """The body is not what its encoding says."""


class Decoder(Protocol):
    """Decodes one body as it comes."""

    def decode(self, data: bytes) -> Iterator[bytes]:
        """What these bytes decode to, in pieces of at most PIECE_BYTES; DecodingError if they are something else."""


def decoder(content_encoding: bytes) -> Decoder | None:
    """The decoder of a Content-Encoding, also of several; None if it is unknown, or its library is not there."""
    names = [name.strip().lower() for name in content_encoding.split(b",") if name.strip()]
    found = [one for name in reversed(names) if name != b"identity" for one in [_decoder(name)]]
    if len(names) > MOST_ENCODINGS or None in found:
        return None
    return _Chain([one for one in found if one is not None])


def decoded(body: bytes, content_encoding: bytes, limit: int) -> bytes | None:
    """A whole body; None if it cannot be decoded, or becomes longer than `limit`."""
    known = decoder(content_encoding)
    if known is None:
        return None
    whole = bytearray()
    try:
        for piece in known.decode(body):
            whole += piece
            if len(whole) > limit:
                return None
    except DecodingError:
        return None
    return bytes(whole)


class DecodedResponse:
    """An answer without its content encoding. `decoder` is that of its Content-Encoding."""

    def __init__(self, reply: UpstreamResponse, decoder: Decoder) -> None:
        self._reply, self._decoder = reply, decoder
        self.status, self.adds_usage = reply.status, reply.adds_usage
        self.headers: Headers = [(name, value) for name, value in reply.headers
                                 if name.lower() not in (b"content-encoding", b"content-length")]

    @property
    def usage(self) -> Usage | None:
        """As the answer has it."""
        return self._reply.usage

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes; UpstreamError if it stops coming, or is not what its encoding says."""
        async with aclosing(self._reply.chunks()) as chunks:
            async for chunk in chunks:
                try:
                    for piece in self._decoder.decode(chunk):
                        yield piece
                except DecodingError as error:
                    raise UpstreamError(UpstreamFailure("malformed", str(error))) from None

    def close(self) -> None:
        self._reply.close()


def readable(reply: UpstreamResponse) -> UpstreamResponse | None:
    """The same answer without its content encoding; None if that is unknown here."""
    encoding = headers.find(reply.headers, b"content-encoding")
    if encoding.strip().lower() in (b"", b"identity"):
        return reply
    known = decoder(encoding)
    return None if known is None else DecodedResponse(reply, known)


def _decoder(name: bytes) -> Decoder | None:
    match name:
        case b"gzip" | b"x-gzip":
            return _Zlib(GZIP)
        case b"deflate":
            return _Zlib(None)
        case b"br":
            module = _module("brotli")
            return None if module is None else _Brotli(module)
        case b"zstd":
            module = next(filter(None, map(_module, ZSTD_MODULES)), None)
            return None if module is None else _Zstd(module)
        case _:
            return None


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


class _Chain:
    """Several decoders, one behind the other."""

    def __init__(self, decoders: Sequence[Decoder]) -> None:
        self._decoders = decoders

    def decode(self, data: bytes) -> Iterator[bytes]:
        return self._from(0, data)

    def _from(self, place: int, data: bytes) -> Iterator[bytes]:
        if place == len(self._decoders):
            if data:
                yield data
            return
        for piece in self._decoders[place].decode(data):
            yield from self._from(place + 1, piece)


class _Zlib:
    """gzip, also of several members; or deflate, which servers send with zlib's header or without it."""

    def __init__(self, wbits: int | None) -> None:
        self._wbits = wbits
        self._zlib = None if wbits is None else zlib.decompressobj(wbits)
        self._head = b""  # of deflate: two bytes tell the form

    def decode(self, data: bytes) -> Iterator[bytes]:
        if self._zlib is None:
            self._head += data
            if len(self._head) < 2:
                return
            data, self._head = self._head, b""
            has_header = data[0] & 15 == 8 and int.from_bytes(data[:2]) % 31 == 0
            self._zlib = zlib.decompressobj(ZLIB if has_header else RAW_DEFLATE)
        while True:
            if self._zlib.eof:
                if self._wbits != GZIP or not data.startswith(b"\x1f"):
                    return  # what follows is no member
                self._zlib = zlib.decompressobj(GZIP)
            try:
                piece = self._zlib.decompress(data, PIECE_BYTES)
            except zlib.error as error:
                raise DecodingError(f"the body is not compressed as it says: {error}") from None
            if piece:
                yield piece
            data = self._zlib.unused_data if self._zlib.eof else self._zlib.unconsumed_tail
            if not data and len(piece) < PIECE_BYTES:
                return


class _Brotli:
    def __init__(self, module: Any) -> None:
        self._error, self._brotli = module.error, module.Decompressor()

    def decode(self, data: bytes) -> Iterator[bytes]:
        try:
            while data or not self._brotli.can_accept_more_data():
                if self._brotli.is_finished():
                    return
                piece = self._brotli.process(data, output_buffer_limit=PIECE_BYTES)
                data = b""
                if piece:
                    yield piece
        except self._error as error:
            raise DecodingError(f"the body is not compressed as it says: {error}") from None


class _Zstd:
    def __init__(self, module: Any) -> None:
        self._module, self._zstd = module, module.ZstdDecompressor()

    def decode(self, data: bytes) -> Iterator[bytes]:
        try:
            while data or not (self._zstd.needs_input or self._zstd.eof):
                if self._zstd.eof:
                    self._zstd = self._module.ZstdDecompressor()  # of the next frame
                piece = self._zstd.decompress(data, PIECE_BYTES)
                if piece:
                    yield piece
                data = self._zstd.unused_data if self._zstd.eof else b""
        except self._module.ZstdError as error:
            raise DecodingError(f"the body is not compressed as it says: {error}") from None
