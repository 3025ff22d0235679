"""
Turns: so many requests at a time, in the order they came. What cannot wait goes at once, and is
counted all the same. What can wait for everything else goes last.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable

# When nobody has asked for so long but who goes last, they may have all places but one: who comes
# then must not wait until one is free.
QUIET_S = 2.0
# Where there are few places, each takes a core from all that live sessions need: then who goes last
# goes in the pauses of speech, for while somebody speaks they ask every half second. Who never
# pauses keeps them waiting for so long.
PAUSE_S, PATIENCE_S = 0.6, 5.0
LOOK_S = 0.1  # how often it is looked whether there is a pause


class Turns:
    """at_once: how many should be under way. places: of these so many are worked at side by side,
    and none waits for another. clock: seconds."""

    def __init__(self, at_once: int, places: int = 1, clock: Callable[[], float] = time.monotonic):
        self._at_once, self._places, self._clock = at_once, places, clock
        self._free = at_once  # below 0: more have gone than should at a time
        self._waiting = deque[asyncio.Future[None]]()
        self._asked_at = -math.inf  # when somebody asked who does not go last
        self._last = 0  # of those that have gone, who go last
        self._waiting_last = deque[asyncio.Future[None]]()
        self._last_went = -math.inf  # when one of them did, or the first began to wait
        self._looking: asyncio.TimerHandle | None = None

    def acquire_now(self) -> None:
        """Take a turn without waiting; it has to be released."""
        self._asked_at = self._clock()
        self._free -= 1

    @property
    def crowded(self) -> bool:
        """Four times as many have gone as should at a time: only what cannot wait at all should
        go. With twice as many, first partials waited where the machine could do it all."""
        return self._free <= -3 * self._at_once

    async def acquire(self) -> None:
        """Wait for a turn; it has to be released."""
        self._asked_at = self._clock()
        if self._free > 0 and not self._waiting:
            self._free -= 1
            return
        await self._wait(self._waiting, self.release)

    def release(self) -> None:
        self._free += 1
        while self._free > 0 and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                self._free -= 1
                turn.set_result(None)
        self._let_last_go()

    async def acquire_last(self) -> None:
        """Wait until nobody else needs the place; it has to be released with release_last."""
        if not self._waiting_last:
            self._last_went = self._clock()
            if self._last_may_go:
                return self._go_last()
        if self._looking is None:
            self._look()
        await self._wait(self._waiting_last, self.release_last)

    def release_last(self) -> None:
        self._last -= 1
        self.release()

    def _look(self) -> None:
        self._let_last_go()
        loop = asyncio.get_running_loop()
        self._looking = loop.call_later(LOOK_S, self._look_again)

    def _look_again(self) -> None:
        self._looking = None
        if self._waiting_last:
            self._look()

    def _let_last_go(self) -> None:
        while self._waiting_last and self._last_may_go:
            turn = self._waiting_last.popleft()
            if not turn.done():
                self._go_last()
                turn.set_result(None)

    def _go_last(self) -> None:
        self._last += 1
        self._free -= 1
        self._last_went = self._clock()

    @property
    def _last_may_go(self) -> bool:
        """While others ask, so that half of the places stay free; where those are few, one at a
        time, in a pause."""
        if self._waiting:
            return False
        gone, now = self._at_once - self._free, self._clock()
        if now - self._asked_at >= QUIET_S:
            return gone < max(1, self._places - 1)
        if gone + 1 < self._places // 2:
            return True
        paused = now - self._asked_at >= PAUSE_S
        return gone == 0 and (paused or now - self._last_went >= PATIENCE_S)

    async def _wait(self, line: deque[asyncio.Future[None]], give_back: Callable[[], None]) -> None:
        turn = asyncio.get_running_loop().create_future()
        line.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                give_back()  # it came, and nobody wants it any more
            raise
