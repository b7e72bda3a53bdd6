"""A request that a balancer or a client sends again has the id that it had, and so is written down once."""

from __future__ import annotations

import pytest

from brise.gateway.request import read

KEY, BODY = b"k" * 32, b'{"model": "m", "messages": []}'
NAMED = (b"x-request-id", b"r-1")


def id_of(*headers: tuple[bytes, bytes], body: bytes = BODY, key: bytes = KEY,
          path: str = "/v1/chat/completions") -> str:
    return read("POST", path, path.encode(), headers, body, id_key=key).id


@pytest.mark.parametrize("header", [b"x-request-id", b"idempotency-key"])
def test_the_same_request_under_the_same_name_has_the_same_id(header: bytes) -> None:
    assert id_of((header, b"r-1")) == id_of((header, b"r-1"), (b"accept", b"*/*"))
    assert len(id_of((header, b"r-1"))) == 32


@pytest.mark.parametrize("other", [
    {"body": BODY + b" "}, {"path": "/v1/responses"}, {"key": b"l" * 32}])
def test_another_request_under_the_same_name_is_another_one(other: dict[str, object]) -> None:
    assert id_of(NAMED) != id_of(NAMED, **other)  # type: ignore[arg-type]


def test_two_clients_may_use_the_same_name() -> None:
    assert id_of(NAMED, (b"authorization", b"Bearer a")) != id_of(NAMED, (b"authorization", b"Bearer b"))


@pytest.mark.parametrize("headers", [
    [], [(b"x-request-id", b"")], [(b"x-request-id", b"a b")], [(b"x-request-id", b"x" * 256)]])
def test_a_request_without_a_name_is_a_new_one_each_time(headers: list[tuple[bytes, bytes]]) -> None:
    assert id_of(*headers) != id_of(*headers)


def test_a_gateway_without_a_key_gives_new_ids() -> None:
    assert id_of(NAMED, key=b"") != id_of(NAMED, key=b"")
