"""
Who is next: so many at a time, the urgent first, and else in the order they came.
"""

import asyncio
import heapq
import itertools


class Turns:
    def __init__(self, at_once: int):
        self._free = at_once
        self._waiting: list[tuple[bool, int, asyncio.Future[None]]] = []  # a heap
        self._numbers = itertools.count()

    async def take(self, urgent: bool = False) -> None:
        """Wait for a turn; it has to be given back."""
        if self._free:  # then nobody waits
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (not urgent, next(self._numbers), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back()  # it came, and nobody wants it any more
            raise

    def give_back(self) -> None:
        while self._waiting:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
