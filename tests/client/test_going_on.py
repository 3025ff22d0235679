"""
A client whose connections break, against servers that say what the test wants.
"""

import asyncio
from typing import Any

import pytest
from support.scripted import APART_TOLD, RATE, Line, Part, apart_broken, apart_resumed, server

from dalston import client

AUDIO = b"".join(n.to_bytes(2, "little") for n in range(2 * RATE))
FIRST = {"segment_id": "seg_0000", "text": "one", "start": 0.1, "end": 0.8}
SECOND = {"segment_id": "seg_0001", "text": "two", "start": 1.1, "end": 1.8}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "BACKOFF_FIRST_S", 0.02)


async def speak(session: client.Session) -> None:
    """Two seconds in pieces of 50 ms, somewhat faster than they are spoken."""
    for start in range(0, len(AUDIO), 800):
        await session.send(AUDIO[start : start + 800])
        if start == len(AUDIO) // 2:
            await session.flush()
        await asyncio.sleep(0.01)
    await session.end()


async def called(*parts: Part, **parameters: Any) -> tuple[list[client.Event], list[Line]]:
    async with (
        asyncio.timeout(20),
        server(*parts) as (url, lines),
        client.connect(url, **parameters) as session,
    ):
        speaking = asyncio.create_task(speak(session))
        try:
            events = [event async for event in session]
        finally:
            speaking.cancel()
            await asyncio.gather(speaking, return_exceptions=True)
        return events, lines


async def failed(*parts: Part, **parameters: Any) -> client.SessionFailed:
    with pytest.raises(client.SessionFailed) as failure:
        await called(*parts, **parameters)
    return failure.value


async def broken_after_a_final(line: Line) -> None:
    await line.begin()
    await line.say("vad.speech_start", timestamp=0.2)
    await line.hear(20_000)
    await line.say("vad.speech_end", timestamp=0.8)
    await line.say("transcript.final", **FIRST)
    await line.ack(1.2, 0.8)
    await line.say("vad.speech_start", timestamp=1.15)
    await asyncio.sleep(0.05)
    line.cut()


async def resumed(line: Line) -> None:
    await line.resume(900.03)
    await line.say("vad.speech_start", timestamp=1.15)
    await line.hear()
    await line.say("vad.speech_end", timestamp=1.8)
    await line.say("transcript.final", **SECOND)
    await line.finish()


async def test_it_goes_on_where_the_server_says_and_the_events_are_those_of_one_session() -> None:
    events, (first, again) = await called(broken_after_a_final, resumed)
    assert "resume_session_id" not in first.query
    assert first.query["ack"] == again.query["ack"] == "true"
    assert again.query["resume_session_id"] == "sess_1"
    assert again.query["last_segment_id"] == "seg_0000"
    # 900.03 ms are 7200.24 samples: rounded up.
    assert again.audio == AUDIO[2 * 7201 :]
    assert again.messages == [(2 * (RATE - 7201) + 800, "flush"), (len(again.audio), "end")]
    lost, on = (event for event in events if event["type"].startswith("connection."))
    assert (lost["type"], lost["code"]) == ("connection.lost", 1006)
    assert (on["type"], on["session_id"], on["resume_offset_ms"]) == (
        *("connection.resumed", "sess_1"),
        900.03,
    )
    assert [event["type"] for event in events if not event["type"].startswith("conn")] == [
        *("session.begin", "vad.speech_start", "vad.speech_end", "transcript.final"),
        *("vad.speech_start", "vad.speech_end", "transcript.final", "session.end"),
    ]


async def test_acks_are_for_those_who_ask() -> None:
    async def acking(line: Line) -> None:
        await line.begin()
        await line.hear()
        await line.ack(2.0, 1.8)
        await line.finish()

    for asked, expected in ((True, 1), (False, 0)):
        events, _ = await called(acking, ack=asked)
        assert sum(event["type"] == "ack" for event in events) == expected


# 004-22
async def test_what_is_said_while_no_server_answers_is_not_lost() -> None:
    async def away(line: Line) -> None:
        line.cut()

    events, lines = await called(broken_after_a_final, *[away] * 4, resumed)
    assert lines[-1].audio == AUDIO[2 * 7201 :]
    (on,) = (event for event in events if event["type"] == "connection.resumed")
    assert on["attempts"] == 5


async def test_the_next_gateway_is_asked_first() -> None:
    async def gone(line: Line) -> None:
        pytest.fail("it is the other's turn")

    async with (
        asyncio.timeout(10),
        server(broken_after_a_final, gone) as (one, _),
        server(resumed) as (other, lines),
        client.connect([one, other]) as session,
    ):
        speaking = asyncio.create_task(speak(session))
        events = [event async for event in session]
        await speaking
    assert events[-1]["type"] == "session.end"
    assert lines[0].query["resume_session_id"] == "sess_1"


async def test_the_first_gateway_that_answers_is_taken() -> None:
    async def whole(line: Line) -> None:
        await line.begin()
        await line.hear()
        await line.finish()

    async with server(whole) as (url, _), client.connect(["ws://127.0.0.1:1", url]) as session:
        await session.end()
        assert [event async for event in session][-1]["type"] == "session.end"


async def test_without_room_it_comes_again_after_the_time_it_was_told() -> None:
    async def full(line: Line) -> None:
        error: dict[str, Any] = {"code": "no_capacity", "message": "full", "recoverable": True}
        await line.say("session.queued", position=1, timeout_seconds=1.0)
        await line.say("error", **error, retry_after=0.5)
        await line.close(1013)

    events, (_, refused, again) = await called(broken_after_a_final, full, resumed)
    assert again.at - refused.at >= 0.5
    assert not [event for event in events if event["type"] in ("error", "session.queued")]


@pytest.mark.parametrize("code", [1001, 1011, 1012, 1013])
async def test_a_server_that_has_to_go_is_left_for_another(code: int) -> None:
    async def going(line: Line) -> None:
        await line.begin()
        if code == 1001:
            terminated = {"session_id": "sess_1", "reason": "server_drain", "recoverable": True}
            await line.say("session.terminated", **terminated)
        await line.close(code)

    async def from_the_start(line: Line) -> None:
        await line.resume(0)
        await line.hear()
        await line.finish()

    events, lines = await called(going, from_the_start)
    assert lines[1].audio == AUDIO
    assert [event["type"] for event in events] == [
        *("session.begin", "connection.lost", "connection.resumed", "session.end"),
    ]
    assert events[1]["reason"] == ("server_drain" if code == 1001 else "")


async def test_a_server_that_falls_silent_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PING_EVERY_S", 0.05)
    monkeypatch.setattr(client, "SILENT_S", 0.3)

    async def frozen(line: Line) -> None:
        await line.begin()
        line.freeze()
        await asyncio.sleep(2)

    async def from_the_start(line: Line) -> None:
        await line.resume(0)
        await line.hear()
        await line.finish()

    events, (_, again) = await called(frozen, from_the_start)
    assert again.audio == AUDIO
    assert events[-1]["type"] == "session.end"


async def test_a_server_that_does_not_read_for_a_while_is_not_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client, "PING_EVERY_S", 0.05)
    monkeypatch.setattr(client, "SILENT_S", 0.3)

    async def busy(line: Line) -> None:
        await line.begin()
        await asyncio.sleep(1.5)  # the library keeps some frames, then reads no more
        await line.hear()
        await line.finish()

    async with (
        asyncio.timeout(20),
        server(busy) as (url, lines),
        client.connect(url, resume=False) as session,
    ):

        async def speak() -> None:
            for _ in range(300):
                await session.send(bytes(32_000))
            await session.end()

        speaking = asyncio.create_task(speak())
        events = [event async for event in session]
        await speaking
    assert [event["type"] for event in events] == ["session.begin", "session.end"]
    assert len(lines[0].audio) == 9_600_000


# What is not gone on with.


async def test_a_session_that_is_not_kept_any_more_fails_with_a_sentence() -> None:
    async def unknown(line: Line) -> None:
        sentence = "nothing is kept of session 'sess_1'; begin a new one"
        error = {"code": "invalid_parameter", "message": sentence, "recoverable": False}
        await line.say("error", **error)
        await line.close(4400)

    failure = await failed(broken_after_a_final, unknown)
    assert "cannot go on: nothing is kept" in str(failure)
    assert failure.code == 4400
    assert failure.error is not None


async def test_audio_that_is_not_held_any_more_fails_with_a_sentence() -> None:
    async def forgetful(line: Line) -> None:
        await line.resume(100)

    failure = await failed(broken_after_a_final, forgetful)
    assert "the audio from 0.1 s on is not held any more" in str(failure)


async def test_a_new_session_instead_of_the_old_one_is_not_taken_for_it() -> None:
    async def another(line: Line) -> None:
        await line.begin()

    assert "the server began another" in str(await failed(broken_after_a_final, another))


async def test_it_does_not_try_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "RESUME_S", 0.5)

    async def away(line: Line) -> None:
        line.cut()

    failure = await failed(broken_after_a_final, *[away] * 20)
    assert "no other could be had" in str(failure)


async def test_connections_that_break_at_once_are_not_tried_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client, "RESUME_S", 0.5)

    async def brief(line: Line) -> None:
        await line.resume(900)
        line.cut()

    failure = await failed(broken_after_a_final, *[brief] * 20)
    assert "no other could be had" in str(failure)


@pytest.mark.parametrize(
    ("kind", "fields", "code"),
    [
        ("error", {"code": "rate_limit", "message": "too fast", "recoverable": False}, 4029),
        ("error", {"code": "internal_error", "message": "failed", "recoverable": False}, 1011),
        ("session.terminated", {"reason": "taken_over", "recoverable": False}, 1001),
        ("error", {"code": "invalid_message", "message": "what?", "recoverable": True}, 1009),
        ("pong", {}, 1000),
    ],
)
async def test_a_session_that_the_server_ended_is_over(
    kind: str, fields: dict[str, Any], code: int
) -> None:
    async def ending(line: Line) -> None:
        await line.begin()
        await line.say(kind, **fields)
        await line.close(code)

    assert (await failed(ending)).code == code


async def whole(line: Line) -> None:
    await line.begin()
    await line.hear()
    await line.say("transcript.final", **FIRST)
    await line.finish()


async def test_one_that_breaks_before_it_began_is_begun_anew_with_all_that_was_said() -> None:
    async def in_line(line: Line) -> None:
        await line.say("session.queued", position=1, timeout_seconds=30)
        await line.hear(20_000)
        line.cut()

    events, (_, again) = await called(in_line, whole)
    assert again.audio == AUDIO
    assert "resume_session_id" not in again.query
    assert [event["type"] for event in events] == [
        "session.queued",
        "connection.lost",
        "session.begin",
        "connection.resumed",
        "transcript.final",
        "session.end",
    ]
    assert events[3]["session_id"] == events[2]["session_id"]
    assert events[3]["resume_offset_ms"] == 0


async def test_one_the_application_goes_on_with_itself_is_gone_on_with_by_the_next() -> None:
    async def at_once(line: Line) -> None:
        line.cut()

    async def further(line: Line) -> None:
        await line.resume(900)
        await line.hear()
        await line.finish()

    events, (_, again) = await called(at_once, further, resume_session_id="sess_1")
    assert again.audio == AUDIO
    assert again.query["resume_session_id"] == "sess_1"
    assert events[-1]["type"] == "session.end"


async def test_servers_that_never_begin_one_are_not_tried_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client, "RESUME_S", 0.5)

    async def away(line: Line) -> None:
        line.cut()

    failure = await failed(*[away] * 20)
    assert failure.code == 1006
    assert "no other could be had" in str(failure)


async def test_a_refusal_is_an_answer_and_nothing_is_begun_anew() -> None:
    async def full(line: Line) -> None:
        await line.say("error", code="no_capacity", message="All busy.", recoverable=True)
        await line.close(1013)

    failure = await failed(full, whole)
    assert (failure.code, str(failure)) == (1013, "All busy.")


async def test_sending_fails_once_the_session_is_over() -> None:
    async def ending(line: Line) -> None:
        await line.begin()
        await line.close(4008)

    async with server(ending) as (url, _), client.connect(url) as session:
        with pytest.raises(client.SessionFailed):
            assert [event async for event in session] == []
        with pytest.raises(client.SessionFailed):
            await session.send(b"12")


async def test_whoever_leaves_is_not_called_back() -> None:
    async def one(line: Line) -> None:
        await line.begin()
        await line.hear()

    async with server(one) as (url, lines):
        async with client.connect(url) as session:
            await session.send(AUDIO)
            await asyncio.sleep(0.05)
            session.abort()
            with pytest.raises(client.SessionFailed):
                assert [event async for event in session] == []
        await asyncio.sleep(0.2)
        assert len(lines) == 1


# Waiting.


async def test_the_application_waits_while_the_server_is_behind() -> None:
    going = asyncio.Event()

    async def slow(line: Line) -> None:
        await line.begin()
        await line.ack(0.0, 0.0)
        await line.hear(90 * 2 * RATE)
        await going.wait()
        await line.ack(60.0, 60.0)
        await line.hear()
        await line.finish()

    async with asyncio.timeout(10), server(slow) as (url, _), client.connect(url) as session:
        async for event in session:
            if event["type"] == "session.begin":
                break
        await asyncio.sleep(0.05)
        for _ in range(90):
            await session.send(bytes(2 * RATE))
        await session.send(bytes(2))
        more = asyncio.create_task(session.send(bytes(2)))
        await asyncio.sleep(0.1)
        assert not more.done()
        going.set()
        await more
        await session.end()
        assert [event async for event in session][-1]["type"] == "session.end"


async def test_what_nobody_reads_does_not_pile_up_and_stops_nobody_who_sends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client, "UNREAD", 10)

    async def talking(line: Line) -> None:
        await line.begin()
        await line.ack(0.0, 0.0)
        for _ in range(50):
            await line.say("pong")
        await line.hear()
        await line.finish()

    async with asyncio.timeout(10), server(talking) as (url, _), client.connect(url) as session:
        for _ in range(100):
            await session.send(bytes(2 * RATE))
        await session.end()
        await asyncio.sleep(0.1)
        assert len([event async for event in session]) == 52


async def test_a_key_goes_into_the_header() -> None:
    async def whole(line: Line) -> None:
        await line.begin()
        await line.hear()
        await line.finish()

    _, (line,) = await called(whole, api_key="secret")
    assert line.headers["Authorization"] == "Bearer secret"
    assert "api_key" not in line.query


async def test_without_a_key_the_one_of_the_environment_is_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DALSTON_API_KEY", "of-the-environment")
    _, (line,) = await called(whole)
    assert line.headers["Authorization"] == "Bearer of-the-environment"
    for given, shown in (("mine", "Bearer mine"), ("", None)):
        _, (line,) = await called(whole, api_key=given)
        assert line.headers.get("Authorization") == shown


async def test_each_connection_has_a_token_of_its_own() -> None:
    made = 0

    async def token() -> str:
        nonlocal made
        made += 1
        if made == 2:
            raise OSError("the backend is away")
        return f"token-{made}"

    events, lines = await called(broken_after_a_final, resumed, api_key=token)
    assert events[-1]["type"] == "session.end"
    assert [line.headers["Authorization"] for line in lines] == ["Bearer token-1", "Bearer token-3"]


async def test_two_channels_of_a_connection_go_on_together() -> None:
    events, (_, again) = await called(apart_broken, apart_resumed, channels=2, multichannel=True)
    assert again.query["resume_session_id"] == "sess_0,sess_1"
    assert again.query["last_segment_id"] == "seg_0000,"
    assert again.audio == AUDIO[4 * 3200 :]
    assert [(event["type"], event.get("channel")) for event in events] == APART_TOLD
