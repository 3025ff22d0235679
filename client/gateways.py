"""
Where sessions are had: one gateway, or any of several.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from urllib.parse import urlencode, urlsplit, urlunsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, InvalidMessage

from dalston.client.resume import Event

PATH = "/v1/audio/transcriptions/stream"
OPEN_S = 10.0  # for a gateway to answer
BEGIN_S = 40.0  # and then to say something, perhaps only that we wait in line
NO_ANSWER = (OSError, TimeoutError, InvalidHandshake, InvalidMessage)


# A key, empty if there is none; or what is called for a token before each connection.
Credential = str | Callable[[], Awaitable[str]]


class Gateways:
    def __init__(self, urls: Sequence[str], parameters: Mapping[str, object], key: Credential):
        self._urls, self._parameters, self._key = urls, parameters, key
        self._number = 0

    def __len__(self) -> int:
        return len(self._urls)

    async def open(self, **more: str) -> ClientConnection:
        """A connection to the one at hand. Raises what NO_ANSWER names."""
        parts = urlsplit(self._urls[self._number])
        asked = urlencode({**self._parameters, **more})
        query = "&".join(part for part in (parts.query, asked) if part)
        key = self._key if isinstance(self._key, str) else await self._key()
        path = parts.path if parts.path not in ("", "/") else PATH
        return await connect(
            urlunsplit((parts.scheme, parts.netloc, path, query, "")),
            additional_headers={"Authorization": f"Bearer {key}"} if key else None,
            open_timeout=OPEN_S,
            ping_interval=None,  # the session asks, and knows when an answer cannot come
            compression=None,
            max_size=None,
        )

    async def open_first(self) -> ClientConnection:
        """A connection to the first that answers."""
        for _ in self._urls[1:]:
            try:
                return await self.open()
            except NO_ANSWER:
                self.turn()
        return await self.open()

    def turn(self) -> None:
        """To the next."""
        self._number = (self._number + 1) % len(self._urls)


async def first_word(connection: ClientConnection) -> Event:
    """What a server says when there is a slot, or none."""
    while True:
        async with asyncio.timeout(BEGIN_S):
            event: Event = json.loads(await connection.recv())
        if event["type"] != "session.queued":
            return event
