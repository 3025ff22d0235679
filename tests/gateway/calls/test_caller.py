"""
A caller over a transport of the test's: what is said early, at once, late, and not taken.
"""

import asyncio
from collections.abc import Sequence

import pytest
from support.transports import Line

from dalston.gateway.calls.caller import Caller, CallRefused
from dalston.gateway.protocols.protocol import Asked, ClientProtocol, Opening, Reply
from dalston.orchestrator.protocol.messages import LONGEST_FRAME, Frame, SessionConfig


class Spelled(ClientProtocol):
    """A client that says letter by letter; the first is the language. "?" is answered."""

    def __init__(self) -> None:
        self.language = ""

    def asked(self) -> Asked | None:
        return Asked(SessionConfig(language=self.language)) if self.language else None

    def receive(self, frame: Frame) -> Sequence[Frame | Reply]:
        if isinstance(frame, bytes):
            return (frame,)
        if frame == "?":
            return (Reply("!"),)
        self.language = self.language or frame
        return tuple(frame)

    def say(self, message: str) -> Sequence[Frame]:
        return tuple(message)

    def close_code(self, reason: int) -> int:
        return reason + 1


def called() -> tuple[Caller, Line]:
    line = Line()
    return Caller(line, Spelled(), Opening([], {})), line


async def test_what_is_said_before_the_settings_are_known_is_heard_after_them() -> None:
    caller, line = called()
    asking = asyncio.create_task(caller.asked(5))
    await asyncio.sleep(0)
    line.says(b"\1\2", "?", "en", "x")  # the last came with the one before
    assert (await asking).config.language == "en"
    assert line.paused
    assert line.sent == ["!"]
    heard = list[Frame]()
    caller.listen(heard.append)
    line.says(b"\3")
    assert heard == [b"\1\2", "e", "n", "x", b"\3"]


async def test_who_says_no_settings_in_time_is_waited_for_no_longer() -> None:
    caller, line = called()
    asking = asyncio.create_task(caller.asked(0.05))
    await asyncio.sleep(0)
    line.says("?")
    with pytest.raises(TimeoutError):
        await asking


async def test_what_is_kept_before_the_settings_has_an_end() -> None:
    caller, line = called()
    asking = asyncio.create_task(caller.asked(5))
    await asyncio.sleep(0)
    line.says(bytes(LONGEST_FRAME), b"\0", b"\0")
    with pytest.raises(CallRefused, match="before any settings"):
        await asking
    assert line.paused


async def test_what_a_client_does_not_take_at_once_is_left_to_be_sent_in_order() -> None:
    caller, line = called()
    caller.listen(lambda _: None)
    assert caller.say("ab") == ()
    line.reads = False
    line.says("?")
    left = caller.say("cd")
    assert list(left) == ["!", "c", "d"]
    await caller.send(left)
    assert line.sent == ["a", "b", "!", "c", "d"]


async def test_a_connection_is_closed_by_the_protocols_own_number() -> None:
    caller, line = called()
    await caller.close(1000)
    assert line.sent == ["closed 1001"]
