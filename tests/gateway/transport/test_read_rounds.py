"""
Callers are read in rounds: the first at once, all who speak in the next moment together, and
nobody is forgotten.
"""

import asyncio
import socket
from collections.abc import Generator
from contextlib import contextmanager

import pytest
from support.fronted import STREAM, FakeWorker, Gateway, echo
from support.waiting import until
from support.wire import BINARY, TEXT, Wire, frame

from dalston.gateway.transport import read_rounds
from dalston.gateway.transport.read_rounds import Rounds


class Caller:
    """What one says, and is heard to say in which round."""

    def __init__(self, heard: list[bytes]):
        self.mouth, self.ear = socket.socketpair()
        self._heard = heard

    def read(self) -> None:
        self._heard.append(self.ear.recv(100))


@contextmanager
def callers(heard: list[bytes], count: int) -> Generator[list[Caller]]:
    made = [Caller(heard) for _ in range(count)]
    try:
        yield made
    finally:
        for caller in made:
            caller.mouth.close()
            caller.ear.close()


async def test_the_first_is_heard_at_once_and_the_next_together(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(read_rounds, "ROUND_S", 0.4)
    reading, heard = Rounds(), list[bytes]()
    with callers(heard, 3) as (a, b, c):
        for caller in (a, b, c):
            reading.add(caller.ear.fileno(), caller.read)
        a.mouth.send(b"first")
        await asyncio.sleep(0.1)
        assert heard == [b"first"]
        b.mouth.send(b"second")
        await asyncio.sleep(0.05)
        c.mouth.send(b"third")
        await asyncio.sleep(0.05)
        assert heard == [b"first"]
        await until(lambda: len(heard) == 3)
        # Behind a round in which nobody spoke, the first is heard at once again.
        await asyncio.sleep(1.0)
        b.mouth.send(b"fourth")
        await asyncio.sleep(0.1)
        assert sorted(heard) == [b"first", b"fourth", b"second", b"third"]
        for caller in (a, b, c):
            reading.remove(caller.ear.fileno())


async def test_one_who_is_removed_is_not_heard_and_others_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(read_rounds, "ROUND_S", 0.1)
    reading, heard = Rounds(), list[bytes]()
    with callers(heard, 3) as (a, b, c):
        a.mouth.send(b"a")
        b.mouth.send(b"b")

        def read_and_remove() -> None:
            for one in (a, b):
                reading.remove(one.ear.fileno())
            heard.append(b"one of two")

        for caller in (a, b):  # whichever is first removes the other within the round
            reading.add(caller.ear.fileno(), read_and_remove)
        reading.add(c.ear.fileno(), c.read)
        await until(lambda: heard == [b"one of two"])
        c.mouth.send(b"c")
        await until(lambda: heard == [b"one of two", b"c"])
        await asyncio.sleep(0.3)
        assert heard == [b"one of two", b"c"]
        reading.remove(c.ear.fileno())
        reading.remove(c.ear.fileno())  # twice is once


async def test_when_all_have_left_and_others_come_they_are_heard():
    reading, heard = Rounds(), list[bytes]()
    for _ in range(2):
        with callers(heard, 1) as (a,):
            reading.add(a.ear.fileno(), a.read)
            a.mouth.send(b"here")
            said = len(heard) + 1
            await until(lambda said=said: len(heard) == said)
            reading.remove(a.ear.fileno())
    assert heard == [b"here", b"here"]


async def test_one_who_speaks_without_end_does_not_silence_the_others(gateway: Gateway):
    async with FakeWorker(gateway.slots, "a", echo).running():
        port = int(gateway.url.split(":")[1])
        loud, quiet = await Wire.open(port, STREAM), await Wire.open(port, STREAM)
        audio = frame(BINARY, bytes(3200))
        flood = asyncio.create_task(_flood(loud, audio))
        for _ in range(5):
            await quiet.send(audio)
            await asyncio.sleep(0.05)
        await quiet.send(frame(TEXT, b'{"type":"end"}'))
        assert quiet.finished
        await asyncio.wait([quiet.finished], timeout=10)
        flood.cancel()
        heard = [m["bytes"] for m in quiet.messages if "bytes" in m]
        assert heard == [3200] * 5
        await quiet.close()
        loud.writer.transport.abort()  # in order it would wait until all is read
        await loud.close()
    await gateway.until_held(0)


async def _flood(caller: Wire, audio: bytes) -> None:
    while True:
        await caller.send(audio)
        await asyncio.sleep(0)


async def test_a_caller_who_vanishes_gives_the_slot_back(gateway: Gateway):
    async with FakeWorker(gateway.slots, "a", echo).running():
        caller = await Wire.open(int(gateway.url.split(":")[1]), STREAM)
        await caller.send(frame(BINARY, bytes(3200)))
        await gateway.until_held(1)
        await caller.close()
        await gateway.until_held(0)
