"""
A caller over a transport of the test's: what is said early, at once, late, and not taken.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from support.transports import Line

from dalston.gateway.calls.caller import FRAME_COSTS, Caller, CallRefused, Objection
from dalston.gateway.protocols.protocol import (
    Asked,
    ClientError,
    ClientProtocol,
    Opening,
    Reply,
)
from dalston.orchestrator.protocol.close_codes import CloseCode
from dalston.orchestrator.protocol.messages import Frame, SessionConfig


class Spelled(ClientProtocol):
    """A client that says letter by letter; the first is the language. "?" is answered, and "#" is
    no letter."""

    def __init__(self) -> None:
        self.language = ""

    def asked(self) -> Asked | None:
        return Asked(SessionConfig(language=self.language)) if self.language else None

    def receive(self, frame: Frame) -> Sequence[Frame | Reply]:
        if isinstance(frame, bytes):
            return (frame,)
        if frame == "?":
            return (Reply("!"),)
        if frame == "#":
            raise ClientError("no such letter")
        self.language = self.language or frame
        return tuple(frame)

    def say(self, message: str) -> Sequence[Frame]:
        return tuple(message)

    def close_code(self, reason: int) -> int:
        return reason + 1


LONGEST = 1000


def called() -> tuple[Caller, Line]:
    line = Line()
    return Caller(line, Spelled(), Opening([], {}), LONGEST), line


async def asking(caller: Caller, patience_s: float = 5) -> asyncio.Task[Asked]:
    task = asyncio.create_task(caller.asked_later(patience_s))
    await asyncio.sleep(0)
    return task


@dataclass
class Heard:
    meaning: list[Frame] = field(default_factory=list[Frame])
    counted: int = 0
    objections: list[Objection] = field(default_factory=list[Objection])

    def count(self, _: bool) -> None:
        self.counted += 1


def listening(caller: Caller) -> Heard:
    heard = Heard()
    caller.listen(heard.meaning.append, heard.count, heard.objections.append)
    return heard


async def test_what_is_said_before_the_settings_are_known_is_heard_after_them() -> None:
    caller, line = called()
    assert caller.asked() is None
    line.paused = True  # what came before anybody listened has stopped reading
    task = await asking(caller)
    assert not line.paused
    line.says(b"\1\2", "?", "en", "x")  # the last came with the one before
    assert (await task).config.language == "en"
    assert line.paused
    assert line.sent == ["!"]
    heard = listening(caller)
    line.says(b"\3")
    assert heard.meaning == [b"\1\2", "e", "n", "x", b"\3"]


async def test_who_says_no_settings_in_time_is_waited_for_no_longer() -> None:
    caller, line = called()
    task = await asking(caller, 0.05)
    line.says("?")
    with pytest.raises(TimeoutError):
        await task
    line.says("en")  # too late; and whoever reads them has others to read


async def test_who_speaks_while_their_wait_is_given_up_harms_nobody() -> None:
    caller, line = called()
    task = await asking(caller)
    task.cancel()
    await asyncio.sleep(0)
    line.says("en")
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    "frames",
    [[bytes(LONGEST), b"\0"], [b""] * (LONGEST // FRAME_COSTS + 1), ["?"] * LONGEST],
    ids=["audio", "nothing", "replies"],
)
async def test_what_is_sent_before_the_settings_has_an_end(frames: list[Frame]) -> None:
    caller, line = called()
    task = await asking(caller)
    line.says(*frames)
    with pytest.raises(CallRefused, match="before any settings") as refused:
        await task
    assert refused.value.close_code == CloseCode.TOO_BIG
    assert line.paused


async def test_a_frame_that_is_too_long_is_objected_to_before_the_settings_and_after() -> None:
    caller, line = called()
    task = await asking(caller)
    assert line.on_too_long
    line.on_too_long(5000)
    with pytest.raises(CallRefused, match="a frame of 5000 bytes; 1000 at most"):
        await task
    heard = listening(caller)
    line.on_too_long(5000)
    (objection,) = heard.objections
    assert (objection.close_code, objection.at_once) == (CloseCode.TOO_BIG, False)


async def test_what_makes_no_sense_to_the_protocol_ends_the_call() -> None:
    caller, line = called()
    task = await asking(caller)
    line.says("#")
    with pytest.raises(CallRefused, match="no such letter"):
        await task
    heard = listening(caller)
    line.says("#")
    (objection,) = heard.objections
    assert (objection.code, objection.sentence) == ("invalid_message", "no such letter")


async def test_a_frame_that_is_nothing_to_a_session_is_counted() -> None:
    caller, line = called()
    heard = listening(caller)
    line.says("?", "", "ab")
    assert (heard.meaning, heard.counted) == (["a", "b"], 2)


async def test_what_a_client_does_not_take_at_once_is_left_to_be_sent_in_order() -> None:
    caller, line = called()
    listening(caller)
    assert caller.say("ab") == ()
    line.reads = False
    line.says("?")
    left = caller.say("cd")
    assert list(left) == ["!", "c", "d"]
    await caller.send(left)
    assert line.sent == ["a", "b", "!", "c", "d"]


async def test_replies_leave_in_order_once_the_client_reads_again() -> None:
    caller, line = called()
    listening(caller)
    line.reads = False
    line.says("?", "?")
    line.reads = True
    assert line.on_writable
    line.on_writable()
    assert line.sent == ["!", "!"]


async def test_who_asks_for_replies_and_does_not_read_them_is_let_go() -> None:
    caller, line = called()
    heard = listening(caller)
    line.reads = False
    for _ in range(2_000):
        line.says("?")
        if heard.objections:
            break
    objection = heard.objections[0]
    assert (objection.code, objection.close_code) == ("slow_reader", CloseCode.SLOW_READER)


async def test_a_connection_is_closed_by_the_protocols_own_number() -> None:
    caller, line = called()
    await caller.close(1000)
    assert line.sent == ["closed 1001"]
