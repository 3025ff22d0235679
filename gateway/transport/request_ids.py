"""
Gives each connection and HTTP request its id, and tells it in the header X-Request-ID.
"""

from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send

from dalston.orchestrator.process.request_ids import new_or, request_id

HEADER = "X-Request-ID"
_ANSWERS = ("http.response.start", "websocket.accept", "websocket.http.response.start")


def with_request_ids(app: ASGIApp) -> ASGIApp:
    """To be put around everything else, so that crashes are named too."""

    async def named(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await app(scope, receive, send)
        id = new_or(Headers(scope=scope).get(HEADER))
        # Never reset: the task ends with the request, and what uvicorn logs last is about it too.
        request_id.set(id)

        async def send_named(message: MutableMapping[str, Any]) -> None:
            if message["type"] in _ANSWERS:
                MutableHeaders(scope=message)[HEADER] = id
            await send(message)

        await app(scope, receive, send_named)

    return named
