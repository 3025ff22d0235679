"""
Turns: so many requests at a time, in the order they came. What cannot wait goes at once, and is
counted all the same.
"""

import asyncio
from collections import deque


class Turns:
    def __init__(self, at_once: int):
        self._at_once = at_once
        self._free = at_once  # below 0: more have gone than should at a time
        self._waiting = deque[asyncio.Future[None]]()

    def acquire_now(self) -> None:
        """Take a turn without waiting; it has to be released."""
        self._free -= 1

    @property
    def crowded(self) -> bool:
        """Four times as many have gone as should at a time: only what cannot wait at all should
        go. With twice as many, first partials waited where the machine could do it all."""
        return self._free <= -3 * self._at_once

    async def acquire(self) -> None:
        """Wait for a turn; it has to be released."""
        if self._free > 0 and not self._waiting:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release()  # it came, and nobody wants it any more
            raise

    def release(self) -> None:
        self._free += 1
        while self._free > 0 and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                self._free -= 1
                turn.set_result(None)
