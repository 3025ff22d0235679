"""
A client's connection without a socket: what the client sends is said by the test.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from dalston.orchestrator.protocol.messages import Frame


@dataclass
class Line:
    """A transport."""

    address: str = "::1"
    on_writable: Callable[[], None] | None = None
    reads: bool = True  # the client, what it is sent
    sent: list[Frame] = field(default_factory=list[Frame])
    paused: bool = False
    receive: Callable[[Frame], None] | None = None
    on_too_long: Callable[[int], None] | None = None
    on_part: Callable[[bool], None] | None = None
    answers: bool = False
    lived_at: float = math.inf
    silent_s: float = 0.0  # since it was asked whether it lives

    def ping(self) -> float:
        return self.silent_s

    async def deny(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        pass

    async def accept(self, subprotocols: Sequence[str]) -> None: ...

    def listen(
        self,
        receive: Callable[[Frame], None],
        on_too_long: Callable[[int], None] | None = None,
        on_part: Callable[[bool], None] | None = None,
    ) -> None:
        self.receive, self.on_too_long, self.on_part = receive, on_too_long, on_part

    def when_writable(self, call: Callable[[], None]) -> None:
        self.on_writable = call

    def ignore(self) -> None:
        self.listen(lambda _: None)

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def send_now(self, frame: Frame) -> bool:
        if self.reads:
            self.sent.append(frame)
        return self.reads

    async def send(self, frame: Frame) -> None:
        self.sent.append(frame)

    async def close(self, code: int, sentence: str = "") -> None:
        self.sent.append(f"closed {code}")

    async def answered(self) -> bool:
        return True

    async def until_disconnected(self) -> None: ...

    def says(self, *frames: Frame) -> None:
        assert self.receive
        for frame in frames:
            self.receive(frame)
