"""
How many sessions the models have memory for: fewer each time it ran out, and step by step more
again while it does not.

What runs out is the memory of a GPU, under more requests at once than it holds; a model says so
in the words of its runtime.
"""

import time
from collections.abc import Callable

# A batch fails as a whole, and others with it: within this time that is one shortage.
ONE_SHORTAGE_S = 10.0
QUIET_S = 60.0  # before each step up
STEPS = 8  # from nothing to all


class MemoryLimit:
    """A limit of sessions that sinks when memory runs out, and rises again while it does not."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic):
        """most: sessions, as configured."""
        self._most, self._clock = most, clock
        self._held = most  # when it ran out last
        self._lowered_at = self._ran_out_at = float("-inf")

    @property
    def sessions(self) -> int:
        """How many there is room for now."""
        if self._held == self._most:
            return self._most
        quiet = int((self._clock() - self._ran_out_at) / QUIET_S)
        return min(self._most, self._held + quiet * max(1, self._most // STEPS))

    def ran_out(self, active: int) -> bool:
        """Memory ran out, with so many sessions. Returns whether there is room for fewer now."""
        now, before = self._clock(), self.sessions
        if now - self._lowered_at < ONE_SHORTAGE_S:
            self._ran_out_at = now
            return False
        self._held = max(1, min(before, active) * 3 // 4)
        self._lowered_at = self._ran_out_at = now
        return self._held < before
