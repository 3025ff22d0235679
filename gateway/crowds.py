"""
How many connections a gateway has at once, of everybody and of one address. Whose WebSocket is one
too many is refused before the connection is upgraded, in HTTP, and costs no more than that.
"""

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from http import HTTPStatus

from starlette.types import ASGIApp, Receive, Scope, Send

from dalston.gateway import metrics
from dalston.gateway.access.addresses import address_group, of_this_machine
from dalston.gateway.transport.refusal import refuse
from dalston.orchestrator.protocol.messages import RETRY_AFTER_S

_LATER = {"Retry-After": str(RETRY_AFTER_S)}


class TooMany(Exception):
    """A connection is one too many; says of whom."""

    def __init__(self, status: HTTPStatus, sentence: str):
        super().__init__(sentence)
        self.status = status


class Crowd:
    """The connections there are."""

    def __init__(self, most: int, most_of_address: int):
        """0 is no limit."""
        self._most, self._most_of_address = most, most_of_address
        self._open_of = Counter[str]()  # by group of addresses
        self._count = 0

    @contextmanager
    def joined(self, host: str) -> Generator[None]:
        """While a connection lasts. A proxy that runs on this machine and does not say whose its
        connections are is no address. Raises TooMany."""
        group = "" if of_this_machine(host) else address_group(host)
        if self._most and self._count >= self._most:
            metrics.REFUSED.labels("gateway").inc()
            sentence = "this gateway has as many connections as it may; try again later"
            raise TooMany(HTTPStatus.SERVICE_UNAVAILABLE, sentence)
        if group and self._most_of_address and self._open_of[group] >= self._most_of_address:
            metrics.REFUSED.labels("address").inc()
            sentence = f"{group} has as many connections as it may; end one first"
            raise TooMany(HTTPStatus.TOO_MANY_REQUESTS, sentence)
        self._count += 1
        self._open_of[group] += 1
        try:
            yield
        finally:
            self._count -= 1
            self._open_of[group] -= 1
            if not self._open_of[group]:
                del self._open_of[group]


def with_limits(app: ASGIApp, crowd: Crowd) -> ASGIApp:
    """To be put inside of what gives request ids."""

    async def limited(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            return await app(scope, receive, send)
        try:
            with crowd.joined((scope["client"] or ("",))[0]):
                await app(scope, receive, send)
        except TooMany as error:
            await refuse(scope, receive, send, error.status, str(error), _LATER)

    return limited
