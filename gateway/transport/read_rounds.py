"""
Reads what callers say in rounds.

If each frame were read by itself, it would wake the gateway, and then the worker, ten times a
second for every stream. A process that wakes finds its caches cold: that, not the work, is most of
what a stream costs (docs/log.md). So the first frame is read at once, and all frames that come in
the next moment are read together.
"""

import asyncio
import select
from collections.abc import Callable

# With many callers a frame waits half of this on average. It is as long as the worker gathers
# questions to the VAD anyway: what arrives together leaves together.
ROUND_S = 0.04


class Rounds:
    """The sockets that are read together; one instance per event loop.

    Whoever adds a socket owns it.
    """

    def __init__(self):
        self._waiting = select.epoll()
        self._readers = dict[int, Callable[[], None]]()
        self._next: asyncio.TimerHandle | None = None  # while there is always somebody who speaks
        self._watched = False  # the loop wakes us

    def add(self, descriptor: int, read: Callable[[], None]) -> None:
        """`read` is called when data waits, and must read it; or when the connection has ended, and
        must then remove it."""
        self._readers[descriptor] = read
        self._waiting.register(descriptor, select.EPOLLIN | select.EPOLLRDHUP)
        if self._next is None:
            self._watch()

    def remove(self, descriptor: int) -> None:
        """Stop reading it. To be called before the socket is closed."""
        if self._readers.pop(descriptor, None):
            self._waiting.unregister(descriptor)
        if not self._readers:
            self._rest()

    def _watch(self) -> None:
        if not self._watched:
            self._watched = True
            asyncio.get_running_loop().add_reader(self._waiting.fileno(), self._go)

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            asyncio.get_running_loop().remove_reader(self._waiting.fileno())

    def _rest(self) -> None:
        """Leave nothing of ours in the event loop."""
        self._unwatch()
        if self._next:
            self._next.cancel()
            self._next = None

    def _go(self) -> None:
        self._next = None
        speaking = self._waiting.poll(0)
        for descriptor, _ in speaking:
            if read := self._readers.get(descriptor):  # else removed by one before it
                read()
        if not self._readers:
            return
        if speaking:
            self._unwatch()
            self._next = asyncio.get_running_loop().call_later(ROUND_S, self._go)
        else:
            self._watch()
