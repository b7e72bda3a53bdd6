"""GatewayMiddleware lists this server's models together with the upstream's."""

from __future__ import annotations

import gzip
import json

from tests.gateway.fake_upstream import Behaviour, Peer, answer
from tests.gateway.rig import rig


def compressing(body: object) -> Behaviour:
    """An upstream that compresses where the client allows it."""
    async def behave(peer: Peer) -> None:
        if "gzip" not in (peer.received.header("accept-encoding") or ""):
            await answer(body)(peer)
            return
        await answer(gzip.compress(json.dumps(body).encode()), headers={
            "content-type": "application/json", "content-encoding": "gzip"})(peer)
    return behave


def test_the_upstreams_models_are_listed_also_where_the_client_allows_compression() -> None:
    with rig() as gateway:
        gateway.fake.default = compressing({"object": "list", "data": [{"id": "big", "object": "model"}]})
        listed = gateway.live.get("/v1/models", headers={"accept-encoding": "gzip"}).json()["data"]
        assert [card["id"] for card in listed] == ["stub", "big"]
        assert gateway.live.get("/v1/models/big", headers={"accept-encoding": "gzip"}).json()["object"] == "list"
