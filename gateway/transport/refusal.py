"""
What is refused before the app hears of it: an answer in HTTP, also to who asks for a WebSocket.
"""

from collections.abc import Mapping
from contextlib import suppress

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from dalston.gateway.transport.uvicorn_protocol import DirectProtocol
from dalston.orchestrator.process.request_ids import request_id


async def refuse(
    scope: Scope,
    receive: Receive,
    send: Send,
    status: int,
    sentence: str,
    headers: Mapping[str, str] | None = None,
) -> None:
    """To be called inside of what gives request ids."""
    if scope["type"] == "websocket":
        with suppress(KeyError):  # of a server that is not ours
            DirectProtocol.of(scope)
    body = {"detail": sentence, "request_id": request_id.get()}
    await JSONResponse(body, status, headers)(scope, receive, send)
