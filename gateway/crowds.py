"""
How many WebSockets a gateway has at once, of everybody and of one address. Who is one too many is
refused before the connection is upgraded, in HTTP, and costs no more than that.
"""

from collections import Counter
from http import HTTPStatus

from starlette.types import ASGIApp, Receive, Scope, Send

from dalston.gateway import metrics
from dalston.gateway.access.addresses import address_group, of_this_machine
from dalston.gateway.transport.refusal import refuse
from dalston.orchestrator.protocol.messages import RETRY_AFTER_S

_LATER = {"Retry-After": str(RETRY_AFTER_S)}


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
            metrics.REFUSED.labels("gateway").inc()
            status = HTTPStatus.SERVICE_UNAVAILABLE
            return await refuse(scope, receive, send, status, sentence, _LATER)
        if group and most_of_address and open_of[group] >= most_of_address:
            sentence = f"{group} has as many connections as it may; end one first"
            metrics.REFUSED.labels("address").inc()
            status = HTTPStatus.TOO_MANY_REQUESTS
            return await refuse(scope, receive, send, status, sentence, _LATER)
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
