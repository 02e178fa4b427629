"""Server-sent events, and what becomes of an answer whose reader goes away or stops reading."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from starlette.responses import Response

from tunesmith.serve.guard import Receive, Scope, Send

T = TypeVar("T")


async def until_gone(work: Coroutine[Any, Any, T], receive: Receive) -> T | None:
    """The result of the work, or None if the client went away before; then the work is cancelled."""
    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, watching):
            task.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        if not working.done():
            with suppress(asyncio.CancelledError):
                await working


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Sends each text as one event.

    Args:
        close: called once it is over, however it ends. seconds: a client that takes nothing for so long is let go.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], close: Callable[[], None], seconds: float) -> None:
        self.status_code, self.background, self.body = 200, None, b""
        self.events, self.close, self.seconds = events, close, seconds
        self.raw_headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_gone(self._send_all(send), receive)
        finally:
            self.close()

    async def _send_all(self, send: Send) -> None:
        with suppress(OSError, asyncio.TimeoutError):  # the client went away, or reads no more
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for event in self.events:
                body = {"type": "http.response.body", "body": f"data: {event}\n\n".encode(), "more_body": True}
                await asyncio.wait_for(send(body), self.seconds)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
