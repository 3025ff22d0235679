"""
What a call needs of a connection, whatever it is made of.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from dalston.orchestrator.protocol.messages import Frame


class Disconnected(ConnectionError):
    """The client has left, or its connection is broken."""


class Transport(Protocol):
    """One connection of a client. Whoever makes it owns it, and closes it."""

    address: str  # of the client, without a port; empty if nobody knows

    async def accept(self, subprotocols: Sequence[str]) -> None:
        """Open it, answering one of these subprotocols if the client offers it. Raises
        Disconnected."""
        ...

    async def deny(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """Answer over HTTP, in JSON, instead of opening it. Raises Disconnected."""
        ...

    def listen(
        self,
        receive: Callable[[Frame], None],
        on_too_long: Callable[[int], None] | None = None,
        on_part: Callable[[bool], None] | None = None,
    ) -> None:
        """From now on `receive` is called with each message, `on_too_long` with the size in bytes
        of one that is too long, and `on_part` for each frame that is no message: True for a
        fragment of one, False for what belongs to the transport alone. Nothing is read before, nor
        until resume()."""
        ...

    def when_writable(self, call: Callable[[], None]) -> None:
        """From now on `call` is called when the client reads again."""
        ...

    def ignore(self) -> None:
        """Drop what comes from now on, and call nobody any more."""
        ...

    def pause(self) -> None:
        """Read no more, and pass nothing more to `receive`."""
        ...

    def resume(self) -> None: ...

    def ping(self) -> float:
        """Ask the client whether it lives, unless it was asked and has not answered: the seconds
        since then."""
        ...

    @property
    def lived_at(self) -> float:
        """When it last asked or answered so, by the loop's clock; -inf: never."""
        ...

    @property
    def answers(self) -> bool:
        """Whether the client is known to ask, or to answer, whether the other side lives."""
        ...

    def send_now(self, frame: Frame) -> bool:
        """Send it at once. False: it was not, since the client does not read, or is leaving."""
        ...

    async def send(self, frame: Frame) -> None:
        """Send it, and wait as long as the client does not read. Raises Disconnected."""
        ...

    async def close(self, code: int, sentence: str = "") -> None:
        """Raises Disconnected."""
        ...

    async def answered(self) -> bool:
        """Wait until the client has closed its side, or is gone: False, if it said no close."""
        ...

    async def until_disconnected(self) -> None:
        """Wait until the client has left. It may be cancelled, and called again."""
        ...
