"""A Starlette application: a page, a stream, a WebSocket, and what it opens at its start."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, str]]:
    yield {"greeting": "Hello from Starlette"}


async def index(request: Request) -> Response:
    return JSONResponse({"greeting": request.state.greeting, "path": request.url.path})


async def count(request: Request) -> Response:
    async def numbers() -> AsyncIterator[str]:
        for number in range(3):
            yield f"{number}\n"
            await asyncio.sleep(0.05)

    return StreamingResponse(numbers(), media_type="text/plain")


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


app = Starlette(
    routes=[Route("/", index), Route("/count", count), WebSocketRoute("/echo", echo)],
    lifespan=lifespan,
)
