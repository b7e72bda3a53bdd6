"""Which places of a large model are taken, and what of its answers is no business of ours."""

from __future__ import annotations

import pytest

from brise.errors import UnsupportedError
from brise.gateway.upstream import UpstreamSettings
from tests.gateway.fake_upstream import answer
from tests.gateway.rig import rig


@pytest.mark.parametrize("url", ["ftp://h/v1", "http://", "http://[::1/v1", "http://h:99999/v1", "http://h/v 1",
                                 "http://a..b/v1", "http://h/v1?key=1"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UnsupportedError, match="the upstream is"):
        UpstreamSettings(url)


def test_a_password_in_the_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(UnsupportedError, match="password") as raised:
        UpstreamSettings("https://anna:hunter2@host/v1")
    assert "hunter2" not in str(raised.value)


def test_what_an_unknown_path_answers_is_not_written_down() -> None:
    with rig() as made:
        made.fake.then(answer({"client_secret": {"value": "ek_secret"}}),
                       answer({"error": {"message": "the key ek_secret is wrong"}}, 401))
        for _ in range(2):
            made.live.post("/v1/realtime/sessions", {"model": "big"})
        assert "ek_secret" not in repr(made.captured.wait(2))
        assert [row.error for row in made.captured.exchanges] == [None, "status 401"]
