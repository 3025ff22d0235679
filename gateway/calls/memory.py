"""
How much of what callers said a gateway may hold, of one and of all of them.

What is held is looked at by the clock, not at each frame. When it is more than it may be, those who
hold most are not read until all together hold less: there is a level, and whoever holds less than
that does not notice. If that does not help in time, the largest is ended, and then the next.
"""

from collections.abc import Collection
from typing import Protocol

FRAME_COSTS = 128  # bytes that a frame counts besides its own while it is held
PATIENCE_S = 5.0  # above the limit, before the largest is ended
NO_LEVEL = float("inf")


class Holder(Protocol):
    """A caller whose words are held."""

    @property
    def held_bytes(self) -> int: ...

    @property
    def in_line(self) -> bool:
        """Whether it has no slot yet."""
        ...

    def go_on(self) -> None:
        """The level may be another."""
        ...

    def end_for(self, sentence: str) -> None: ...


class HeldMemory:
    """Of one gateway."""

    def __init__(self, most: int, most_in_line: int):
        """Bytes: of all, and of those in line."""
        self._most, self._most_in_line = most, most_in_line
        # What one caller may hold now, and one in line.
        self.level = self.level_in_line = NO_LEVEL
        self._above_since: float | None = None

    def look(self, holders: Collection[Holder], now: float) -> Holder | None:
        """To be called twice a second or so. Returns whom it has ended, if anybody."""
        waiting = [holder.held_bytes for holder in holders if holder.in_line]
        self.level_in_line = level(waiting, self._most_in_line)
        held = [holder.held_bytes for holder in holders]
        self.level = level(held, self._most)
        ended = None
        if self.level == NO_LEVEL:
            self._above_since = None
        elif self._above_since is None:
            self._above_since = now
        elif now - self._above_since >= PATIENCE_S:
            self._above_since = now
            ended = max(holders, key=lambda holder: holder.held_bytes)
            ended.end_for(
                f"this gateway holds {sum(held)} bytes of what its callers sent, {self._most} at "
                f"most, and {ended.held_bytes} of this session, the most of all"
            )
        for holder in holders:
            holder.go_on()
        return ended


def level(held: Collection[int], most: int) -> float:
    """What each may have at most, so that all together have no more than `most`."""
    left = most
    if sum(held) <= most:
        return NO_LEVEL
    for number, one in enumerate(sorted(held)):
        share = left / (len(held) - number)
        if one > share:
            return share
        left -= one
    return NO_LEVEL
