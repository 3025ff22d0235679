"""
Two workers of two sessions each, and who gets in.
"""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest
from recordings import recordings
from support.stack import Stack

from dalston import client


async def begun(exits: AsyncExitStack, url: str) -> client.Session:
    """A session that has its slot."""
    session = await exits.enter_async_context(client.connect(url, language="en"))
    async for event in session:
        if event["type"] == "session.begin":
            break
    return session


def loads(stack: Stack) -> list[int]:
    workers: list[Any] = stack.http("/v1/realtime/status")[1]["workers"]
    return [worker["active_sessions"] for worker in workers]


# 000-04, 000-47, 002-04
async def test_workers_share_sessions_and_the_next_one_is_refused(stack: Stack) -> None:
    stack.until_free()
    async with AsyncExitStack() as exits:
        for expected in ([1, 0], [1, 1], [1, 2], [2, 2]):
            await begun(exits, stack.url)
            assert sorted(loads(stack)) == sorted(expected)
        status, body = stack.http("/v1/realtime/status")
        assert (status, body["status"], body["available_capacity"]) == (200, "at_capacity", 0)
        with pytest.raises(client.SessionFailed) as refused:
            await begun(exits, stack.url)
        assert refused.value.code == 1013
        assert refused.value.error is not None
        assert refused.value.error["code"] == "no_capacity"
        assert refused.value.error["retry_after"] == 5
        # A full stack is a healthy one.
        assert stack.http("/health")[0] == 200
    stack.until_free()


@pytest.mark.parametrize("after", ["begin", "silence", "a word", "a final", "end"])
async def test_a_caller_may_leave_at_any_point_and_its_slot_is_back(
    stack: Stack, after: str
) -> None:
    stack.until_free()
    audio = recordings()[0].audio.tobytes()
    length = {"begin": 0, "silence": 8_000, "a word": 40_000, "a final": 130_000}
    async with client.connect(stack.url, language="en") as session:
        await session.send(audio[: length.get(after, len(audio))])
        if after == "end":
            await session.end()
        await asyncio.sleep(0.2)
        session.abort()
    stack.until_free()
    async with client.connect(stack.url) as session:
        await session.end()
        assert [event["type"] async for event in session][-1] == "session.end"
