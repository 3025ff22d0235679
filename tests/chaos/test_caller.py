"""
The caller of the injector against servers that say what the test wants: that it goes on where it
is told, and notices what is wrong.
"""

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from caller import Caller
from door import Door
from readings import Reading
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

RATE = 8_000
FLUSH: dict[str, Any] = {"type": "flush"}
# Two seconds, each sample another value, and a message in the middle.
AUDIO = b"".join(n.to_bytes(2, "little") for n in range(2 * RATE))
READING = Reading("two seconds", AUDIO, RATE, 2, {}, ((0.0, 2.0),), ((RATE, FLUSH),))
FIRST = {"segment_id": "seg_0000", "text": "one", "start": 0.1, "end": 0.8}
SECOND = {"segment_id": "seg_0001", "text": "two", "start": 1.1, "end": 1.8}

Part = Callable[["Line"], Awaitable[None]]


class Line:
    """One connection as the server sees it."""

    def __init__(self, connection: ServerConnection):
        self._connection = connection
        assert connection.request
        self.query = dict(parse_qsl(urlsplit(connection.request.path).query))
        self.audio = b""
        self.controls: list[tuple[int, str]] = []  # bytes before it, type

    async def say(self, kind: str, **fields: Any) -> None:
        await self._connection.send(json.dumps({"type": kind, **fields}))

    async def begin(self, **fields: Any) -> None:
        await self.say("session.begin", session_id="sess_1", **fields)

    async def hear(self, size: int | None = None) -> None:
        """So many bytes, or until `end`."""
        while size is None or len(self.audio) < size:
            frame = await self._connection.recv()
            if isinstance(frame, bytes):
                self.audio += frame
                continue
            kind = json.loads(frame)["type"]
            if kind == "end":
                return
            self.controls.append((len(self.audio), kind))

    async def finish(self, *finals: dict[str, Any]) -> None:
        await self.say("session.end", reason="client_end", segments=list(finals))
        await self._connection.close()

    def freeze(self) -> None:
        """Read nothing more: not even pings."""
        self._connection.transport.pause_reading()  # pyright: ignore[reportAttributeAccessIssue]

    def cut(self) -> None:
        self._connection.transport.abort()


@asynccontextmanager
async def server(*parts: Part) -> AsyncGenerator[tuple[str, list[Line]]]:
    """Each connection is the next part."""
    lines = list[Line]()

    async def serve_one(connection: ServerConnection) -> None:
        line = Line(connection)
        lines.append(line)
        try:
            await parts[len(lines) - 1](line)
        except ConnectionClosed:
            pass

    async with serve(serve_one, "127.0.0.1", 0, compression=None, close_timeout=0.2) as listening:
        port = next(iter(listening.sockets)).getsockname()[1]
        yield f"ws://127.0.0.1:{port}", lines


async def called(*parts: Part, paced: bool = False) -> tuple[Any, list[Line]]:
    async with server(*parts) as (url, lines), asyncio.timeout(20):
        call = await Caller(Door([url]), random.Random(1)).read(READING, paced=paced)
    return call, lines


async def whole(line: Line) -> None:
    await line.begin()
    await line.hear()
    await line.say("transcript.final", **FIRST)
    await line.finish(FIRST)


async def broken_after_a_final(line: Line) -> None:
    await line.begin()
    await line.hear(20_000)
    await line.say("transcript.final", **FIRST)
    await line.say("ack", received=1.2, processed=1.1, finalised=0.8)
    await asyncio.sleep(0.1)
    line.cut()


async def resumed(line: Line) -> None:
    await line.begin(resumed_from="sess_1", resume_offset_ms=900.03)
    await line.hear()
    await line.say("transcript.final", **SECOND)
    await line.finish(FIRST, SECOND)


async def test_undisturbed_it_sends_everything_and_keeps_the_finals() -> None:
    call, (line,) = await called(whole)
    assert line.audio == AUDIO
    assert line.controls == [(2 * RATE, "flush")]
    assert (call.ended, call.broken, call.finals) == (True, [], [FIRST])


async def test_it_goes_on_where_it_is_told_and_says_again_what_is_behind_that() -> None:
    call, (_, again) = await called(broken_after_a_final, resumed)
    assert again.query["resume_session_id"] == "sess_1"
    assert again.query["last_segment_id"] == "seg_0000"
    # 900.03 ms are 7200.24 samples: rounded up.
    assert again.audio == AUDIO[2 * 7201 :]
    assert again.controls == [(2 * (RATE - 7201), "flush")]
    assert (call.broken, call.resumed, call.finals) == ([], 1, [FIRST, SECOND])


async def test_what_was_spoken_meanwhile_is_sent_at_once_and_the_rest_in_real_time() -> None:
    began = asyncio.get_running_loop().time()
    call, _ = await called(broken_after_a_final, resumed, paced=True)
    assert 1.9 < asyncio.get_running_loop().time() - began < 4
    assert call.broken == []


async def test_refused_for_lack_of_room_it_comes_again() -> None:
    async def full(line: Line) -> None:
        await line.say("error", code="no_capacity", message="full", recoverable=True, retry_after=0)

    call, _ = await called(full, full, whole)
    assert (call.ended, call.refused, call.broken) == (True, 2, [])


async def test_a_final_that_comes_twice_is_a_broken_promise() -> None:
    async def twice(line: Line) -> None:
        await line.begin(resumed_from="sess_1", resume_offset_ms=900.0)
        await line.say("transcript.final", **FIRST)
        await line.hear()
        await line.finish(FIRST)

    call, _ = await called(broken_after_a_final, twice)
    assert call.broken == ["seg_0000 came twice"]


async def test_audio_that_was_finalised_may_not_be_asked_for_again() -> None:
    async def forgetful(line: Line) -> None:
        await line.begin(resumed_from="sess_1", resume_offset_ms=500.0)
        await line.hear()
        await line.finish(FIRST)

    call, _ = await called(broken_after_a_final, forgetful)
    assert [said for _, said in call.set_back] == ["to resume at 0.5, but 0.8 was finalised"]


async def test_a_session_that_is_not_known_any_more_cannot_go_on() -> None:
    async def unknown(line: Line) -> None:
        await line.say("error", code="invalid_parameter", message="no such", recoverable=False)

    call, _ = await called(broken_after_a_final, unknown)
    assert (call.ended, call.unresumable) == (False, "invalid_parameter: no such")


async def test_a_new_session_instead_of_the_old_one_is_noticed() -> None:
    async def another(line: Line) -> None:
        await line.begin()
        await line.hear()

    call, _ = await called(broken_after_a_final, another)
    assert "instead of resuming" in call.unresumable


@pytest.mark.parametrize(
    ("last", "sentence"),
    [
        ([], "session.end names [], which is not what was told"),
        ([FIRST, SECOND], "which is not what was told"),
    ],
    ids=["too few", "too many"],
)
async def test_the_end_names_the_finals_that_were_told(
    last: list[dict[str, Any]], sentence: str
) -> None:
    async def ending(line: Line) -> None:
        await line.begin()
        await line.hear()
        await line.say("transcript.final", **FIRST)
        await line.finish(*last)

    call, _ = await called(ending)
    (told,) = call.broken
    assert sentence in told


async def test_nothing_comes_behind_the_end() -> None:
    async def talking(line: Line) -> None:
        await line.begin()
        await line.hear()
        await line.say("session.end", reason="client_end", segments=[])
        await line.say("vad.speech_end", timestamp=1.0)
        await line.finish()

    call, _ = await called(talking)
    assert call.broken[0] == "vad.speech_end after session.end"


async def test_a_server_that_answers_no_ping_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caller.PING_EVERY_S", 0.05)
    monkeypatch.setattr("caller.PONG_WITHIN_S", 0.2)

    async def frozen(line: Line) -> None:
        await line.begin()
        line.freeze()
        await asyncio.sleep(2)

    call, _ = await called(frozen, resumed_from_the_start)
    assert (call.ended, call.resumed, call.broken) == (True, 1, [])


async def resumed_from_the_start(line: Line) -> None:
    await line.begin(resumed_from="sess_1", resume_offset_ms=0.0)
    await line.hear()
    await line.finish()


async def test_a_call_that_never_ends_is_hung(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caller.LATE_S", -1.0)

    async def endless(line: Line) -> None:
        await line.begin()
        await line.hear()
        await asyncio.sleep(1)

    call, _ = await called(endless)
    assert call.hung
    assert "hung" in call.broken[0]
