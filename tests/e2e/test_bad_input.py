"""
Whatever a client sends: a clear answer, the session goes on where it can, the slot comes back.
"""

import contextlib
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from recordings import recordings
from support.stack import Stack
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

STREAM = "/v1/audio/transcriptions/stream"
SENTENCE = recordings()[0].audio[: 4 * 16_000].tobytes()
END = '{"type":"end"}'


@asynccontextmanager
async def streaming(stack: Stack, query: str = "language=en") -> AsyncGenerator[ClientConnection]:
    """A stream; afterwards its slot is back and the server is well."""
    async with connect(f"{stack.url}{STREAM}?{query}", max_size=None) as connection:
        yield connection
    stack.until_free()
    assert stack.http("/health")[0] == 200


async def answers(connection: ClientConnection) -> tuple[list[Any], int | None]:
    messages: list[Any] = []
    try:
        while True:
            messages.append(json.loads(await connection.recv()))
    except ConnectionClosed:
        return messages, connection.close_code


def of(kind: str, messages: list[Any]) -> list[Any]:
    return [message for message in messages if message["type"] == kind]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "not json",
        "[1,2,3]",
        '{"type":"selfdestruct"}',
        '{"type":"config","language":42}',
        '{"type":"config","vad_threshold":17}',
        '{"type":"end","x":' + "[" * 4_000 + "]" * 4_000 + "}",
        '{"a":' * 3_000,
        "x" * 100_000,
    ],
    ids=lambda text: text[:20],
)
async def test_text_that_is_no_message_is_answered_and_the_session_goes_on(
    stack: Stack, text: str
) -> None:
    async with streaming(stack) as connection:
        await connection.send(SENTENCE[:50_000])
        await connection.send(text)
        await connection.send(SENTENCE[50_000:])
        await connection.send(END)
        messages, code = await answers(connection)
    (error,) = of("error", messages)
    assert (error["code"], error["recoverable"]) == ("invalid_message", True)
    assert len(error["message"]) > 20
    assert len(of("transcript.final", messages)) == 1
    assert code == 1000


async def test_an_unknown_language_in_config_changes_nothing(stack: Stack) -> None:
    async with streaming(stack) as connection:
        await connection.send('{"type":"config","language":"tlh"}')
        await connection.send(SENTENCE)
        await connection.send(END)
        messages, code = await answers(connection)
    (error,) = of("error", messages)
    assert (error["code"], error["recoverable"]) == ("language_unsupported", True)
    assert of("transcript.final", messages)[0]["language"] == "en"
    assert code == 1000


async def test_frames_of_odd_length_are_whole_audio(stack: Stack) -> None:
    async with streaming(stack) as connection:
        for at in range(0, len(SENTENCE), 1_111):
            await connection.send(SENTENCE[at : at + 1_111])
        await connection.send(END)
        messages, code = await answers(connection)
    async with streaming(stack) as connection:
        await connection.send(SENTENCE)
        await connection.send(END)
        whole, _ = await answers(connection)
    assert code == 1000
    assert messages[-1]["segments"] == whole[-1]["segments"] != []


async def test_ten_megabytes_in_a_frame_end_the_session_with_what_was_said(stack: Stack) -> None:
    async with streaming(stack) as connection:
        await connection.send(SENTENCE)
        await connection.send(bytes(10_000_000))
        messages, code = await answers(connection)
    (error,) = of("error", messages)
    assert (error["code"], error["recoverable"], code) == ("invalid_message", False, 1009)
    assert len(of("transcript.final", messages)) == 1
    assert messages[-1]["type"] == "session.end"


async def test_more_than_a_worker_would_take_is_closed_with_1009(stack: Stack) -> None:
    async with streaming(stack) as connection:
        with contextlib.suppress(ConnectionClosed):  # while it is still being sent
            await connection.send(bytes(20_000_000))
        _, code = await answers(connection)
    assert code == 1009


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("model=gigantic", "invalid_parameter"),
        ("language=tlh", "language_unsupported"),
        ("encoding=opus", "invalid_parameter"),
        ("sample_rate=96000", "invalid_parameter"),
        ("sample_rate=fast", "invalid_parameter"),
        ("channels=5", "invalid_parameter"),
        ("interim_results=perhaps", "invalid_parameter"),
        ("vad_threshold=2", "invalid_parameter"),
        ("max_utterance_duration=60", "invalid_parameter"),
    ],
)
async def test_a_parameter_that_is_not_allowed_is_named(
    stack: Stack, query: str, code: str
) -> None:
    async with streaming(stack, query) as connection:
        (error,), close_code = await answers(connection)
    assert (error["code"], close_code) == (code, 4400)
    assert query.split("=")[0] in error["message"]


async def test_an_unknown_parameter_is_warned_of(stack: Stack) -> None:
    async with streaming(stack, "colour=red") as connection:
        await connection.send(END)
        messages, code = await answers(connection)
    (warning,) = messages[0]["warnings"]
    assert (warning["code"], code) == ("unknown_parameter", 1000)
    assert "colour" in warning["message"]


async def test_a_wrong_path_is_explained(stack: Stack) -> None:
    async with connect(f"{stack.url}/v1/transcribe") as connection:
        (error,), code = await answers(connection)
    assert code == 1008
    assert STREAM in error["message"]


async def test_audio_and_messages_after_end_are_refused(stack: Stack) -> None:
    async with streaming(stack) as connection:
        await connection.send(SENTENCE)
        await connection.send(END)
        await connection.send(SENTENCE)
        await connection.send('{"type":"flush"}')
        messages, code = await answers(connection)
    assert code == 1000
    assert messages[-1]["type"] == "session.end"
    assert messages[-1]["total_duration"] == 4.0
    for error in of("error", messages):
        assert error["code"] == "invalid_message"
        assert "after the end" in error["message"]


async def test_floats_that_are_no_numbers_are_told_and_heard_as_silence(stack: Stack) -> None:
    async with streaming(stack, "encoding=pcm_f32le&language=en") as connection:
        await connection.send(b"\xff\xff\xff\xff" * 8_000)
        await connection.send(END)
        messages, code = await answers(connection)
    (error,) = of("error", messages)
    assert (error["code"], error["recoverable"], code) == ("invalid_audio", True, 1000)
    assert messages[-1]["total_duration"] == 0.5


async def test_nothing_at_all_is_an_empty_transcript(stack: Stack) -> None:
    async with streaming(stack) as connection:
        await connection.send(END)
        messages, code = await answers(connection)
    assert [message["type"] for message in messages[-1:]] == ["session.end"]
    assert (messages[-1]["transcript"], code) == ("", 1000)


async def test_push_to_talk_needs_no_silence(stack: Stack) -> None:
    async with streaming(stack, "language=en&endpointing=manual") as connection:
        await connection.send(SENTENCE)
        await connection.send(bytes(2 * 16_000 * 3))
        await connection.send('{"type":"commit"}')
        await connection.send(END)
        messages, _ = await answers(connection)
    kinds = [m["type"] for m in messages if m["type"] != "transcript.partial"]
    assert kinds == [
        "session.begin",
        "vad.speech_start",
        "vad.speech_end",
        "transcript.final",
        "session.end",
    ]
