"""
Reads what callers say in rounds.

Each caller's frame by itself would wake the gateway, and behind it the worker, ten times a second
for every stream, and a process that wakes finds its caches cold: that, not the work, is what most
of a stream costs (docs/log.md). So whoever speaks first is heard at once, and all who speak in the
next moment are heard together.
"""

import asyncio
import select
from collections.abc import Callable

# Half of it is what a frame waits, where there are many. It is as long as the worker gathers
# questions to the VAD anyway: what arrives together leaves together.
ROUND_S = 0.04


class Rounds:
    """Of one event loop. Sockets are theirs who add them, until they are removed."""

    def __init__(self):
        self._waiting = select.epoll()
        self._readers = dict[int, Callable[[], None]]()
        self._next: asyncio.TimerHandle | None = None  # while there is always somebody who speaks
        self._watched = False  # the loop wakes us

    def add(self, descriptor: int, read: Callable[[], None]) -> None:
        """`read` is called when there is something to be read, which it has to do, or when the
        connection has ended, which then has to be removed."""
        self._readers[descriptor] = read
        self._waiting.register(descriptor, select.EPOLLIN | select.EPOLLRDHUP)
        if self._next is None:
            self._watch()

    def remove(self, descriptor: int) -> None:
        """Has to come before it is closed."""
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
        """Nothing of us is left in the loop."""
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
