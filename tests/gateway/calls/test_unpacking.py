"""
What browsers record, as they send it: WebM and Ogg with Opus, MP4 in fragments with AAC.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fronted import FakeWorker, drained, gateway_over
from support.registered import BEGIN
from support.uploads import contained, end, tone
from support.waiting import until
from websockets.asyncio.server import ServerConnection

from dalston.gateway.calls.unpacking import AT_ONCE, Unpacking
from dalston.gateway.protocols.protocol import Container
from dalston.orchestrator.protocol.messages import Configure, End, Flush, Frame, serialize

# As MediaRecorder writes them: nothing says how long they are, and each part follows from those
# before it.
LIVE: dict[Container, tuple[str, str, dict[str, str]]] = {
    "webm": ("webm", "libopus", {"live": "1", "cluster_time_limit": "100"}),
    "ogg": ("ogg", "libopus", {"page_duration": "100000"}),
    "mp4": (
        "mp4",
        "aac",
        {"movflags": "empty_moov+default_base_moof+frag_every_frame", "frag_duration": "100000"},
    ),
}
FLUSH, END = serialize(Flush()), serialize(End())
KINDS = pytest.mark.parametrize("kind", LIVE)


def recording(kind: Container, seconds: float = 3.0) -> bytes:
    container, codec, options = LIVE[kind]
    return contained(tone(seconds, 48_000), 48_000, container, codec, options=options)


@dataclass
class Hearing:
    """Whoever is told what comes out."""

    frames: list[Frame] = field(default_factory=list[Frame])
    refused: list[str] = field(default_factory=list[str])

    def unpacking(self, container: Container) -> Unpacking:
        return Unpacking(container, self.frames.append, self.refused.append)

    @property
    def seconds(self) -> float:
        return sum(len(frame) for frame in self.frames if isinstance(frame, bytes)) / 32_000

    @property
    def audio(self) -> bytes:
        return b"".join(frame for frame in self.frames if isinstance(frame, bytes))

    async def over(self) -> None:
        await until(lambda: self.refused or END in self.frames)


async def heard(container: Container, *frames: Frame) -> Hearing:
    hearing = Hearing()
    unpacking = hearing.unpacking(container)
    for frame in frames:
        unpacking.push(frame)
    await hearing.over()
    unpacking.close()
    return hearing


@KINDS
@pytest.mark.parametrize("named", [True, False])
async def test_samples_come_out_of_what_browsers_record(kind: Container, named: bool) -> None:
    hearing = await heard(kind if named else "auto", recording(kind), END)
    assert hearing.refused == []
    assert hearing.frames[-1] == END
    assert hearing.seconds == pytest.approx(3.0, abs=0.1)
    samples = np.frombuffer(hearing.audio, "<i2")[8000:40_000].astype(float)
    assert np.argmax(np.abs(np.fft.rfft(samples))) / 2 == pytest.approx(440, abs=2)


@KINDS
async def test_it_is_heard_while_it_is_recorded(kind: Container) -> None:
    file, hearing = recording(kind), Hearing()
    unpacking = hearing.unpacking(kind)
    unpacking.push(file[: len(file) // 2])
    await until(lambda: hearing.seconds > 1.0)
    unpacking.push(file[len(file) // 2 :])
    await until(lambda: hearing.seconds > 2.5)
    unpacking.close()


@KINDS
@settings(max_examples=5)
@given(sizes=st.lists(st.integers(1, 9000), min_size=1, max_size=5))
def test_however_it_is_cut_the_samples_are_the_same(kind: Container, sizes: list[int]) -> None:
    file = recording(kind)
    parts, at = list[Frame](), 0
    while at < len(file):
        size = sizes[len(parts) % len(sizes)] + 50
        parts.append(file[at : at + size])
        at += size

    async def both() -> tuple[bytes, bytes]:
        return (await heard(kind, *parts, END)).audio, (await heard(kind, file, END)).audio

    cut, whole = asyncio.run(both())
    assert cut == whole


@KINDS
async def test_a_message_keeps_its_place_among_the_audio(kind: Container) -> None:
    file = recording(kind)
    half = len(file) // 2
    hearing = await heard(kind, file[:half], FLUSH, "no message", file[half:], END)
    at = hearing.frames.index(FLUSH)
    before = sum(len(f) for f in hearing.frames[:at] if isinstance(f, bytes)) / 32_000
    assert before == pytest.approx(1.5, abs=0.3)
    assert hearing.frames[at + 1] == "no message"


@pytest.mark.parametrize("container", ["webm", "ogg", "mp4", "auto"])
@pytest.mark.parametrize("what", [b"no container at all" * 200, bytes(9000)])
async def test_what_is_no_such_container_is_refused(container: Container, what: bytes) -> None:
    hearing = await heard(container, what, END)
    assert len(hearing.refused) == 1
    assert hearing.audio == b""


async def test_who_says_nothing_but_messages_is_heard_too() -> None:
    change = serialize(Configure(language="nl"))
    hearing = await heard("auto", change, END)
    assert (hearing.frames, hearing.refused) == ([change, END], [])


async def test_while_its_caller_is_paused_only_little_is_decoded() -> None:
    # Silence is 200 times as short in it.
    file = contained(np.zeros(48_000 * 300, np.int16), 48_000, "webm", "libopus")
    hearing = Hearing()
    unpacking = hearing.unpacking("webm")
    unpacking.pause()
    unpacking.push(file)
    unpacking.resume()
    await until(lambda: hearing.seconds > 0)
    unpacking.pause()
    before = len(hearing.frames)
    await _settled(lambda: len(hearing.frames))
    most_s = 300 * 2 * AT_ONCE / len(file) + 1
    assert sum(map(len, hearing.frames[before:])) / 32_000 < most_s
    unpacking.resume()
    unpacking.push(END)
    await hearing.over()
    assert hearing.seconds == pytest.approx(300, abs=0.2)
    unpacking.close()


async def _settled(read: Callable[[], int]) -> None:
    """Until a number does not change any more."""
    before = -1
    while before != read():
        before = read()
        await asyncio.sleep(0.2)


async def listens(connection: ServerConnection) -> None:
    await connection.send(BEGIN)
    seconds = 0.0
    async for frame in connection:
        if isinstance(frame, bytes):
            seconds += len(frame) / 32_000
        else:
            await connection.send(end(seconds))
            await connection.close(1000)


@KINDS
async def test_a_browser_is_heard_through_the_gateway(redis_url: str, kind: Container) -> None:
    file = recording(kind)
    async with gateway_over(redis_url) as gateway:
        worker = FakeWorker(gateway.slots, "a", listens)
        async with worker.running(), gateway.stream(f"encoding={kind}&sample_rate=48000") as stream:
            for at in range(0, len(file), 2000):
                await stream.send(file[at : at + 2000])
            await stream.send(END)
            messages, code = await drained(stream)
        assert (messages[-1]["total_duration"], code) == (pytest.approx(3.0, abs=0.1), 1000)
        await gateway.until_held(0)


async def test_what_cannot_be_decoded_ends_the_call_with_a_sentence(redis_url: str) -> None:
    async with gateway_over(redis_url) as gateway:
        async with FakeWorker(gateway.slots, "a", listens).running():
            async with gateway.stream("encoding=auto") as stream:
                await stream.send(bytes(3200))
                messages, code = await drained(stream)
        errors: list[Any] = [told for told in messages if told["type"] == "error"]
        assert [(told["code"], code) for told in errors] == [("invalid_audio", 4400)]
        assert "neither WebM nor Ogg nor MP4" in errors[0]["message"]
        await gateway.until_held(0)


async def test_a_session_in_a_container_cannot_be_gone_on_with(redis_url: str) -> None:
    query = f"encoding=webm&resume_session_id=sess_{'0' * 24}"
    async with gateway_over(redis_url) as gateway, gateway.stream(query) as stream:
        messages, code = await drained(stream)
    assert (messages[0]["code"], code) == ("invalid_parameter", 4400)
    assert "cannot be gone on with" in messages[0]["message"]
