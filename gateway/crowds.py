"""
How many WebSockets a gateway has at once, of everybody and of one address. Who is one too many is
refused before the connection is upgraded, in HTTP, and costs no more than that.
"""

import json
from collections import Counter
from http import HTTPStatus

from starlette.types import ASGIApp, Receive, Scope, Send

from dalston.gateway import metrics
from dalston.gateway.access.addresses import address_group, of_this_machine
from dalston.gateway.transport.request_ids import HEADER
from dalston.orchestrator.process.request_ids import request_id
from dalston.orchestrator.protocol.messages import RETRY_AFTER_S


def with_limits(app: ASGIApp, most: int, most_of_address: int) -> ASGIApp:
    """0 is no limit. To be put inside of what gives request ids. A proxy that runs on this machine
    and does not say whose its connections are is no address."""
    open_of = Counter[str]()  # by group of addresses
    count = 0

    async def limited(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal count
        if scope["type"] != "websocket":
            return await app(scope, receive, send)
        host = (scope["client"] or ("",))[0]
        group = "" if of_this_machine(host) else address_group(host)
        if most and count >= most:
            sentence = "this gateway has as many connections as it may; try again later"
            return await _refuse(send, HTTPStatus.SERVICE_UNAVAILABLE, "gateway", sentence)
        if group and most_of_address and open_of[group] >= most_of_address:
            sentence = f"{group} has as many connections as it may; end one first"
            return await _refuse(send, HTTPStatus.TOO_MANY_REQUESTS, "address", sentence)
        count += 1
        open_of[group] += 1
        try:
            await app(scope, receive, send)
        finally:
            count -= 1
            open_of[group] -= 1
            if not open_of[group]:
                del open_of[group]

    return limited


async def _refuse(send: Send, status: HTTPStatus, reason: str, sentence: str) -> None:
    metrics.REFUSED.labels(reason).inc()
    headers = {
        "Content-Type": "application/json",
        "Retry-After": str(RETRY_AFTER_S),
        HEADER: request_id.get(),
    }
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "websocket.http.response.start", "status": status, "headers": raw})
    body = json.dumps({"detail": sentence, "request_id": request_id.get()}).encode()
    await send({"type": "websocket.http.response.body", "body": body})
