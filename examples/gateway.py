"""A gateway inside a web application: /llm/v1/... is what OpenAI's clients take as their base URL.

    python examples/gateway.py [MODEL]

In a program of yours, `upstream` is your hosted model's base URL, and an ASGI server runs the application
(`uvicorn program:app`). Here brise stands in for the hosted model, so that the example needs no account.
"""

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

import brise


async def home(request: Request) -> PlainTextResponse:
    """The application's own page."""
    return PlainTextResponse("a shop, say")


def application(llm: brise.Server) -> Starlette:
    """The shop, with the gateway below /llm."""
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with llm.lifespan():  # what runs beside the requests; at the end, what was seen is written
            yield

    return Starlette(routes=[Route("/", home), Mount("/llm", llm)], lifespan=lifespan)


async def main(name: str, folder: str) -> None:
    """Asks the gateway twice: while the hosted model answers, and when it is gone."""
    with brise.load(name) as small:
        async with brise.serve({"large": small}, port=0) as hosted:
            llm = brise.gateway(upstream=hosted.url, small={"small": small}, fallback="small", retries=0,
                                store=f"{folder}/traffic.sqlite")
            app = application(llm)
            life = app.router.lifespan_context(app)
            await life.__aenter__()
            await ask(app)
        await ask(app)
        await life.__aexit__(None, None, None)


async def ask(app: Starlette) -> None:
    """One request, as a client of the application sends it."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost", timeout=60) as client:
        answer = await client.post("/llm/v1/chat/completions", json={
            "model": "large", "messages": [{"role": "user", "content": "What is a breeze?"}], "max_tokens": 30})
        print(f"{answer.headers['x-brise-mode']}: {answer.json()['choices'][0]['message']['content']!r}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "smollm2", folder))
