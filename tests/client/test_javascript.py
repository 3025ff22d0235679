"""
The JavaScript client, in Node, against servers that say what the test wants: it goes on as the
Python client does.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from support.javascript import running, speaking, told
from support.scripted import APART_TOLD, RATE, Line, Part, apart_broken, apart_resumed, server

AUDIO = b"".join(n.to_bytes(2, "little") for n in range(2 * RATE))
LATE = Path(__file__).parent / "late.mjs"
CONTROLS = [[RATE, "flush"], [RATE + 2400, "configure", {"language": "es"}]]
FIRST = {"segment_id": "seg_0000", "text": "one", "start": 0.1, "end": 0.8}
SECOND = {"segment_id": "seg_0001", "text": "two", "start": 1.1, "end": 1.8}


async def called(
    tmp_path: Path, *parts: Part, **parameters: Any
) -> tuple[list[dict[str, Any]], list[Line]]:
    file = tmp_path / "audio"
    file.write_bytes(AUDIO)
    asked = {"language": "en", "sample_rate": RATE} | parameters
    async with asyncio.timeout(30), server(*parts) as (url, lines):
        async with speaking([url], file, CONTROLS, **asked) as process:
            return await told(process), lines


async def broken_after_a_final(line: Line) -> None:
    await line.begin()
    await line.say("vad.speech_start", timestamp=0.2)
    await line.hear(20_000)
    await line.say("vad.speech_end", timestamp=0.8)
    await line.say("transcript.final", **FIRST)
    await line.ack(1.2, 0.8)
    await line.say("vad.speech_start", timestamp=1.15)
    await partial(line, 1.3, "it is 🌞 now", 8)
    await line.say("transcript.eager", segment_id="seg_0001", text="it is", start=1.1, end=1.3)
    await asyncio.sleep(0.1)
    line.cut()


async def partial(line: Line, end: float, text: str, stable_chars: int) -> None:
    fields: dict[str, Any] = {"text": text, "end": end, "stable_chars": stable_chars}
    await line.say("transcript.partial", segment_id="seg_0001", start=1.1, **fields)


async def resumed(line: Line) -> None:
    await line.resume(900.03)
    await line.say("transcript.final", **FIRST)
    await line.say("vad.speech_start", timestamp=1.15)
    await partial(line, 1.25, "it", 0)
    await partial(line, 1.4, "it is 🌞 noon", 2)
    await line.hear()
    await line.say("vad.speech_end", timestamp=1.8)
    await line.say("transcript.final", **SECOND)
    await line.finish()


async def test_it_goes_on_where_the_server_says_and_tells_nothing_twice(tmp_path: Path) -> None:
    events, (first, again) = await called(tmp_path, broken_after_a_final, resumed)
    assert first.query == {"language": "en", "sample_rate": "8000", "ack": "true"}
    assert again.query["resume_session_id"] == "sess_1"
    assert again.query["last_segment_id"] == "seg_0000"
    assert again.audio == AUDIO[2 * 7201 :]
    said = [message for message in again.messages if message[1] != "ping"]
    assert said == [
        (2 * (RATE - 7201), "flush"),
        (2 * (RATE + 2400 - 7201), "config"),
        (len(again.audio), "end"),
    ]
    assert [event["type"] for event in events] == [
        *("session.begin", "vad.speech_start", "vad.speech_end", "transcript.final"),
        *("vad.speech_start", "transcript.partial", "transcript.eager", "connection.lost"),
        *(
            "transcript.withdrawn",
            "connection.resumed",
            "transcript.partial",
            "vad.speech_end",
            "transcript.final",
            "session.end",
        ),
    ]
    assert events[10]["stable_chars"] == 8
    assert events[7]["code"] == 1006
    assert events[8]["segment_id"] == "seg_0001"
    assert events[9]["resume_offset_ms"] == 900.03


async def test_it_comes_again_until_there_is_room(tmp_path: Path) -> None:
    async def away(line: Line) -> None:
        line.cut()

    async def full(line: Line) -> None:
        await line.say("session.queued", position=1, timeout_seconds=1.0)
        error: dict[str, Any] = {"code": "no_capacity", "message": "full", "recoverable": True}
        await line.say("error", **error, retry_after=0.5)
        await line.close(1013)

    events, lines = await called(tmp_path, broken_after_a_final, away, full, resumed)
    assert lines[3].at - lines[2].at >= 0.5
    assert lines[3].audio == AUDIO[2 * 7201 :]
    (on,) = (event for event in events if event["type"] == "connection.resumed")
    assert on["attempts"] == 3


async def test_one_that_breaks_before_it_began_is_begun_anew_with_all_that_was_said(
    tmp_path: Path,
) -> None:
    async def in_line(line: Line) -> None:
        await line.say("session.queued", position=1, timeout_seconds=30)
        line.cut()

    async def whole(line: Line) -> None:
        await line.begin()
        await line.hear()
        await line.finish()

    events, (_, again) = await called(tmp_path, in_line, whole)
    assert again.audio == AUDIO
    assert "resume_session_id" not in again.query
    assert [event["type"] for event in events] == [
        *("session.queued", "connection.lost", "session.begin", "connection.resumed"),
        "session.end",
    ]
    assert events[3]["session_id"] == events[2]["session_id"]
    assert events[3]["resume_offset_ms"] == 0


@pytest.mark.parametrize(
    ("second", "sentence"),
    [
        ("unknown", "cannot go on: nothing is kept"),
        ("forgetful", "the audio from 0.1 s on is not held any more"),
        ("another", "the server began another"),
    ],
)
async def test_a_session_that_cannot_go_on_fails_with_a_sentence(
    tmp_path: Path, second: str, sentence: str
) -> None:
    async def part(line: Line) -> None:
        match second:
            case "unknown":
                error = {"code": "invalid_parameter", "message": "nothing is kept"}
                await line.say("error", **error, recoverable=False)
                await line.close(4400)
            case "forgetful":
                await line.resume(100)
            case _:
                await line.begin()

    events, _ = await called(tmp_path, broken_after_a_final, part)
    assert events[-1]["type"] == "failed"
    assert sentence in events[-1]["message"]


async def test_a_session_that_the_server_refuses_or_ends_is_over(tmp_path: Path) -> None:
    async def refused(line: Line) -> None:
        error = {"code": "no_capacity", "message": "All busy.", "recoverable": True}
        await line.say("error", **error)
        await line.close(1013)

    async def ended(line: Line) -> None:
        await line.begin()
        error = {"code": "rate_limit", "message": "Too fast.", "recoverable": False}
        await line.say("error", **error)
        await line.close(4029)

    for part, code in ((refused, 1013), (ended, 4029)):
        events, _ = await called(tmp_path, part)
        assert (events[-1]["type"], events[-1]["code"]) == ("failed", code)


async def test_nobody_listening_is_told(tmp_path: Path) -> None:
    file = tmp_path / "audio"
    file.write_bytes(AUDIO)
    async with speaking(["ws://127.0.0.1:1", "ws://127.0.0.1:2"], file) as process:
        (failed,) = await told(process)
    assert failed["code"] == 1006


async def test_a_server_that_falls_silent_is_left(tmp_path: Path) -> None:
    left = asyncio.Event()

    async def frozen(line: Line) -> None:
        await line.begin()
        line.freeze()
        await left.wait()

    async def from_the_start(line: Line) -> None:
        left.set()
        await line.resume(0)
        await line.hear()
        await line.finish()

    events, (_, again) = await called(tmp_path, frozen, from_the_start)
    assert again.audio == AUDIO
    assert events[-1]["type"] == "session.end"


async def test_a_key_travels_as_a_subprotocol(tmp_path: Path) -> None:
    async def whole(line: Line) -> None:
        await line.begin()
        await line.hear()
        await line.finish()

    _, (line,) = await called(tmp_path, whole, api_key="secret")
    assert line.headers["Sec-WebSocket-Protocol"] == "dalston, dalston.api-key.secret"


def test_it_depends_on_nothing() -> None:
    """Which is why `make audit` has nothing to ask of it."""
    folder = Path(__file__).parents[2] / "examples" / "javascript"
    package = json.loads((folder / "package.json").read_text("utf-8"))
    assert not [name for name in package if "ependencies" in name]
    assert not list(folder.glob("*lock*"))


async def late(url: str, taking: asyncio.Event) -> dict[str, Any]:
    """What an application hears that takes no event before it is time."""
    async with asyncio.timeout(60), running(LATE, url) as process:
        assert process.stdin
        await taking.wait()
        process.stdin.write(b"take\n")
        out, err = await process.communicate()
    assert err == b"", err.decode()
    return json.loads(out)


async def test_of_the_partials_that_nobody_takes_the_last_of_each_segment_waits() -> None:
    said = asyncio.Event()

    async def partials(line: Line) -> None:
        await line.begin()
        for number in range(5_000):
            await partial(line, 1.0 + number / 100, "it is", 0)
        await line.say("transcript.final", **SECOND)
        await line.finish()
        said.set()

    async with server(partials) as (url, _):
        heard = await late(url, said)
    assert heard["kinds"]["session.end"] == heard["kinds"]["transcript.final"] == 1
    assert 1 <= heard["kinds"]["transcript.partial"] <= 1001
    assert heard["last"] == 1.0 + 4_999 / 100
    assert heard["failed"] is None


async def test_who_takes_no_events_is_told_and_does_not_fill_the_memory() -> None:
    gone = asyncio.Event()

    async def endless(line: Line) -> None:
        await line.begin()
        try:
            for number in range(100_000):
                await line.say("warning", code="noise", message=f"{number}")
        finally:
            gone.set()

    async with server(endless) as (url, _):
        heard = await late(url, gone)
    assert heard["kinds"]["warning"] < 20_001
    assert "none is taken" in heard["failed"]


async def test_each_connection_of_a_page_has_a_token_of_its_own(tmp_path: Path) -> None:
    tokens = ["first", None, "second"]
    events, lines = await called(tmp_path, broken_after_a_final, resumed, tokens=tokens)
    assert events[-1]["type"] == "session.end"
    offered = [line.headers["Sec-WebSocket-Protocol"] for line in lines]
    assert offered == ["dalston, dalston.api-key.first", "dalston, dalston.api-key.second"]


async def test_two_channels_of_a_connection_go_on_together(tmp_path: Path) -> None:
    apart: dict[str, Any] = {"channels": 2, "multichannel": True}
    events, (_, again) = await called(tmp_path, apart_broken, apart_resumed, **apart)
    assert again.query["resume_session_id"] == "sess_0,sess_1"
    assert again.query["last_segment_id"] == "seg_0000,"
    assert again.audio == AUDIO[4 * 3200 :]
    assert [(event["type"], event.get("channel")) for event in events] == APART_TOLD
