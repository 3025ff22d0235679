"""
Messages to the client in the order of the audio, of which some are not known yet.

A final is placed where its utterance ended, and told once the model has answered; nothing after
it is told before. So the order of messages does not depend on how long an answer took.
"""

from collections import deque
from collections.abc import Callable

from dalston.orchestrator.protocol.messages import Partial, ServerMessage

# What stands in for messages to come: returns them, or None as long as they are not known.
Later = Callable[[], list[ServerMessage] | None]


class Outbox:
    def __init__(self) -> None:
        self._line: deque[ServerMessage | Later] = deque()
        self._told: list[ServerMessage] = []

    def say(self, message: ServerMessage) -> None:
        # A partial that still waits for a final before it is out of date when the next comes.
        if isinstance(message, Partial) and self._line and isinstance(self._line[-1], Partial):
            self._line.pop()
        self._line.append(message)

    def say_at_once(self, message: ServerMessage) -> None:
        """Tell it out of line, before everything that waits."""
        self._told.append(message)

    def later(self, function: Later) -> None:
        self._line.append(function)

    def settle(self) -> None:
        """Tell what can be told now."""
        while self._line:
            item = self._line[0]
            if callable(item):
                known = item()
                if known is None:
                    return
                self._told += known
            else:
                self._told.append(item)
            self._line.popleft()

    def collect(self) -> list[ServerMessage]:
        """All that can be told and was not collected before."""
        told, self._told = self._told, []
        return told
