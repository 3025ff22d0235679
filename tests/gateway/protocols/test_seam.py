"""
A protocol that nobody serves, plugged into the gateway as any other would be: what calls do for
their clients they do for its clients too.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest
from support.fronted import FakeWorker, Gateway, echo, gateway_over
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from dalston.gateway.access.access import Access
from dalston.gateway.protocols import PROTOCOLS
from dalston.gateway.protocols.protocol import Asked, ClientProtocol, Opening, Reply
from dalston.orchestrator.protocol.messages import (
    LONGEST_FRAME,
    End,
    Frame,
    SessionConfig,
    serialize,
)

ADMIN = {"Authorization": "Bearer secret"}


class Shouted(ClientProtocol):
    """Its first text is the language, and everything is told in capitals."""

    def __init__(self, opening: Opening):
        self._language = dict(opening.query).get("language")

    def greeting(self) -> Sequence[Frame]:
        return ("WELCOME",)

    def asked(self) -> Asked | None:
        return Asked(SessionConfig(language=self._language)) if self._language else None

    def receive(self, frame: Frame) -> Sequence[Frame | Reply]:
        if isinstance(frame, bytes):
            return (frame,)
        if self._language is None:
            self._language = frame
            return (Reply(f"LANGUAGE {frame}"),)
        return (serialize(End()),) if frame == "bye" else (Reply("WHAT?"),)

    def say(self, message: str) -> Sequence[Frame]:
        kind = json.loads(message)["type"]
        return (kind.upper(), b"!") if kind == "got" else (kind.upper(),)

    def close_code(self, reason: int) -> int:
        return 4200 if reason == 1000 else 4900


@pytest.fixture
async def gateway(redis_url: str) -> AsyncGenerator[Gateway]:
    protocols = {**PROTOCOLS, "/shouted": Shouted}
    async with gateway_over(redis_url, protocols=protocols, handshake_seconds=1.0) as gateway:
        yield gateway


def shouted(gateway: Gateway, query: str = "") -> connect:
    return connect(f"ws://{gateway.url}/shouted?{query}", compression=None)


async def all_of(stream: ClientConnection) -> tuple[list[str | bytes], int | None]:
    frames = list[str | bytes]()
    try:
        async with asyncio.timeout(10):
            while True:
                frames.append(await stream.recv())
    except ConnectionClosed:
        return frames, stream.close_code


@pytest.mark.parametrize("early", [0, 1, 5])
async def test_a_call_is_what_its_first_message_says_and_nothing_said_before_is_lost(
    gateway: Gateway, early: int
) -> None:
    worker = FakeWorker(gateway.slots, "a", echo)
    async with worker.running(), shouted(gateway) as stream:
        assert await stream.recv() == "WELCOME"
        for _ in range(early):
            await stream.send(bytes(3200))
        await stream.send("de")
        await stream.send(bytes(3200))
        await stream.send("hm")
        await stream.send("bye")
        frames, code = await all_of(stream)
    assert frames[0] == "LANGUAGE de"
    assert frames.count("GOT") == frames.count(b"!") == early + 1
    assert "WHAT?" in frames
    assert (frames[-1], code) == ("SESSION.END", 4200)
    (request,) = worker.requests
    assert json.loads(request["config"])["language"] == "de"
    await gateway.until_held(0)


async def test_settings_may_stand_in_the_query(gateway: Gateway) -> None:
    async with (
        FakeWorker(gateway.slots, "a", echo).running(),
        shouted(gateway, "language=nl") as stream,
    ):
        await stream.send("bye")
        frames, code = await all_of(stream)
    assert frames == ["WELCOME", "SESSION.BEGIN", "SESSION.END"]
    assert code == 4200


async def test_who_is_refused_is_told_so_in_their_own_words(gateway: Gateway) -> None:
    async with shouted(gateway, "language=nl") as stream:  # there is no worker
        assert await all_of(stream) == (["WELCOME", "ERROR"], 4900)


async def test_who_says_no_settings_is_let_go_and_has_taken_nothing(gateway: Gateway) -> None:
    worker = FakeWorker(gateway.slots, "a", echo)
    async with worker.running(), shouted(gateway) as stream:
        assert await all_of(stream) == (["WELCOME", "ERROR"], 4900)
    assert worker.requests == []


async def test_who_leaves_before_saying_what_they_want_is_not_waited_for(gateway: Gateway) -> None:
    stream = await shouted(gateway)
    await stream.recv()
    stream.transport.abort()
    async with asyncio.timeout(0.9):  # the patience for settings is 1 s
        while (await gateway.http("/health/extended", headers=ADMIN))[1]["connections"]:
            await asyncio.sleep(0.02)


async def test_a_drain_does_not_wait_for_settings(redis_url: str) -> None:
    protocols = {**PROTOCOLS, "/shouted": Shouted}
    async with gateway_over(redis_url, protocols=protocols, drain_seconds=0.0) as gateway:
        async with shouted(gateway) as stream:
            await stream.recv()
            gateway.stop.set()
            assert await all_of(stream) == (["ERROR"], 4900)


async def test_who_speaks_before_their_key_is_checked_is_heard(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = Access.holder

    async def slow(access: Access, *shown: Any) -> Any:
        await asyncio.sleep(0.2)
        return await holder(access, *shown)

    monkeypatch.setattr(Access, "holder", slow)
    async with FakeWorker(gateway.slots, "a", echo).running(), shouted(gateway) as stream:
        for frame in (bytes(3200), bytes(3200), "de", "bye"):
            await stream.send(frame)
        frames, code = await all_of(stream)
    assert (frames.count("GOT"), frames[-1], code) == (2, "SESSION.END", 4200)


async def test_more_audio_than_a_frame_holds_before_any_settings_is_refused(
    gateway: Gateway,
) -> None:
    async with shouted(gateway) as stream:
        for _ in range(3):
            await stream.send(bytes(LONGEST_FRAME // 2))
        frames, code = await all_of(stream)
    assert (frames[-1], code) == ("ERROR", 4900)


async def test_native_callers_are_served_beside_them(gateway: Gateway) -> None:
    async with FakeWorker(gateway.slots, "a", echo).running(), gateway.stream() as stream:
        await stream.send('{"type":"end"}')
        assert json.loads(await stream.recv())["type"] == "session.begin"
