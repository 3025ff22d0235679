"""
When a client that keeps its connection has stopped sending audio. No I/O, no clock.

A session counts time in samples. A microphone that is muted in the middle of a word sends none, so
no silence follows and the utterance would never end. Whoever reads the client's frames therefore
ends it with a `flush` once there was none for `after_s`. The flush stands in the line of input like
one of the client's: it is held for the next worker, and what follows from it does not depend on
when it is heard.

A frame may be as long as the client likes: the next of somebody who speaks comes after as much time
as is in the last. While the client is not read, nobody knows whether it sends. And a process that
was stopped for a while finds out only now what came meanwhile, so nothing is decided at once, but
when it is still so at the next look. A client whose connection is broken has stopped as well, and
may come back and say the rest: only one that shows that it lives, after the silence, is muted.
"""

import math

from dalston.orchestrator.protocol.messages import (
    Configure,
    Frame,
    MessageError,
    Ping,
    SessionConfig,
    parse,
)


class Mute:
    """after_s: without audio; 0: never."""

    def __init__(self, after_s: float, config: SessionConfig):
        # With manual endpointing nobody but the client ends utterances.
        self._after_s = 0.0 if config.endpointing == "manual" else after_s
        self._bytes_per_second = config.bytes_per_second
        self._heard = False  # audio, since the last message that ended something
        self._until = 0.0  # when the next is due
        self._doubted = False

    def receive(self, frame: Frame, now: float) -> None:
        """A frame, in the order of the line."""
        if isinstance(frame, bytes):
            self._heard = self._after_s > 0
            self._until = now + len(frame) / self._bytes_per_second
            self._doubted = False
        elif self._heard:
            try:
                message = parse(frame)
            except MessageError:
                return
            self._heard = isinstance(message, Configure | Ping)

    def silent(self, now: float) -> bool:
        """Whether there was no audio for so long, for whatever reason."""
        return self._heard and now >= self._until + self._after_s

    def look(self, now: float, read: bool, lived_at: float = math.inf) -> bool:
        """To be called some times a second: whether to flush now. read: whether the client's
        frames are read, and none waits to be passed on. lived_at: when the client was last known
        to live."""
        if not self._heard:
            return False
        if not read:
            self._until, self._doubted = now, False
            return False
        if not self.silent(now) or lived_at < self._until + self._after_s:
            return False
        if not self._doubted:
            self._doubted = True
            return False
        self._heard = False
        return True
