"""
Callers whose connection is cut, falls silent, or ends in the middle of a frame, and whose gateway
is killed: their finals are those of a caller nobody disturbed, none twice, none lost.
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from deployment import Deployment, Size, deployed
from recordings import recordings
from support.javascript import speaking, told
from support.proxy import Proxy

from dalston import client

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

RECORDING = recordings()[0]
AUDIO = RECORDING.audio.tobytes()
CHUNK_S, CHUNK = 0.1, 3200
# In the middle of what is said, before anything is, and behind everything.
SPOKEN = [(sentence.start + sentence.end) / 2 for sentence in RECORDING.sentences]
QUIET = RECORDING.sentences[0].end + 0.35
FINISHED = len(RECORDING.audio) / 16_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateways(
    model_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Deployment]:
    """Two, before two workers."""
    async with deployed(tmp_path_factory.mktemp("two"), Size(tritons=1, sessions=16)) as deployment:
        yield deployment


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def undisturbed(gateways: Deployment) -> list[client.Event]:
    events = await transcribed(gateways.urls, [])
    assert len(finals(events)) == len(RECORDING.sentences)
    return events


@asynccontextmanager
async def wire(deployment: Deployment) -> AsyncGenerator[tuple[list[Proxy], list[str]]]:
    """A way to each gateway that nobody else uses."""
    proxies = [Proxy(member.port) for member in deployment.of("gateway")]
    for proxy in proxies:
        await proxy.open()
    try:
        yield proxies, [f"ws://127.0.0.1:{proxy.port}" for proxy in proxies]
    finally:
        for proxy in proxies:
            await proxy.close()


async def transcribed(
    urls: list[str],
    moments: list[float],
    disturb: Callable[[], Any] = lambda: None,
    audio: bytes = AUDIO,
    **parameters: Any,
) -> list[client.Event]:
    """All events of a caller who speaks in real time and is disturbed at these moments, but not
    before the session has begun: until then there is none to go on with, only one to begin anew."""
    moments = list(moments)
    begun = asyncio.Event()
    chunk = CHUNK * int(parameters.get("channels", 1))
    async with client.connect(urls, language="en", **parameters) as session:

        async def send() -> None:
            began = asyncio.get_running_loop().time()
            for at in range(0, len(audio), chunk):
                spoken = at / chunk * CHUNK_S
                await asyncio.sleep(began + spoken - asyncio.get_running_loop().time())
                if moments and spoken >= moments[0]:
                    moments.pop(0)
                    await begun.wait()
                    disturb()
                await session.send(audio[at : at + chunk])
            await session.end()
            if moments:
                disturb()

        sending = asyncio.create_task(send())
        events = list[client.Event]()
        async for event in session:
            events.append(event)
            begun.set()
        await sending
    return events


def finals(events: list[client.Event]) -> list[dict[str, Any]]:
    kept = ("segment_id", "text", "start", "end")
    return [
        {key: event[key] for key in kept} for event in events if event["type"] == "transcript.final"
    ]


def same(events: list[client.Event], undisturbed: list[client.Event]) -> None:
    """For who listens, as if nothing had happened."""
    assert finals(events) == finals(undisturbed)
    assert events[-1]["type"] == "session.end"
    assert events[-1]["transcript"] == undisturbed[-1]["transcript"]
    assert events[-1]["segments"] == undisturbed[-1]["segments"]
    assert [event["type"] for event in events].count("session.begin") == 1
    speech = [event for event in events if event["type"].startswith("vad.")]
    told = [event for event in undisturbed if event["type"].startswith("vad.")]
    assert [event["type"] for event in speech] == [event["type"] for event in told]
    assert [event["timestamp"] for event in speech] == pytest.approx(
        [event["timestamp"] for event in told], abs=0.25
    )
    shown = dict[str, str]()
    for event in events:
        if event["type"] == "transcript.partial":
            assert event["text"].startswith(shown.get(event["segment_id"], ""))
            shown[event["segment_id"]] = event["text"][: event["stable_chars"]]


def resumed(events: list[client.Event]) -> int:
    kinds = [event["type"] for event in events]
    assert kinds.count("connection.lost") == kinds.count("connection.resumed")
    return kinds.count("connection.resumed")


MOMENTS = {
    "at the first word": [SPOKEN[0]],
    "before anything was said": [0.2],
    "in a pause": [QUIET],
    "when everything was said": [FINISHED],
    "in every sentence": SPOKEN,
    # All but the last may find the connection still broken.
    "again and again": [SPOKEN[0], SPOKEN[0] + 0.5, SPOKEN[0] + 0.8, SPOKEN[0] + 1.1, SPOKEN[-1]],
}


# 002-31, 004-22
async def test_a_connection_that_is_cut(
    gateways: Deployment, undisturbed: list[client.Event]
) -> None:
    async def caller(name: str, how: str) -> None:
        async with wire(gateways) as (proxies, urls):
            events = await transcribed(
                urls, MOMENTS[name], lambda: [getattr(proxy, how)() for proxy in proxies]
            )
        same(events, undisturbed)
        # A moment behind everything may be one too late.
        least = min(len(MOMENTS[name]), 2) - (name == "when everything was said")
        assert resumed(events) >= least, (name, how)

    await asyncio.gather(*(caller(name, how) for name in MOMENTS for how in ("reset", "truncate")))


async def test_a_connection_that_falls_silent(
    gateways: Deployment, undisturbed: list[client.Event]
) -> None:
    async with wire(gateways) as (proxies, urls):
        events = await transcribed(
            urls, [SPOKEN[1]], lambda: [proxy.silence() for proxy in proxies]
        )
    same(events, undisturbed)
    assert resumed(events) == 1


async def test_a_gateway_that_is_killed(
    gateways: Deployment, undisturbed: list[client.Event]
) -> None:
    """The one they all are at; some are in mid-word, others are not. One knows no other: it waits
    for the same."""
    victim = gateways.members["gateway-1"].part.process
    assert victim

    async def caller(delay_s: float, urls: list[str], *moments: float) -> list[client.Event]:
        await asyncio.sleep(delay_s)
        return await transcribed(urls, list(moments), victim.kill)

    calls = await asyncio.gather(
        caller(0, gateways.urls, SPOKEN[1]),
        caller(0, gateways.urls[:1]),
        *(caller(delay, gateways.urls) for delay in (0.1, 1.3, 2.4)),
    )
    for events in calls:
        same(events, undisturbed)
        assert resumed(events) == 1
    await gateways.until_ready()


async def streamed(deployment: Deployment, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`dalston stream`, cut off in mid-word."""
    async with wire(deployment) as (proxies, urls):
        command = [sys.executable, "-m", "dalston.cli.main", "stream", "--language", "en"]
        for url in urls:
            command += ["--url", url]
        file = Path(__file__).parents[2] / "demo" / "samples" / RECORDING.name
        process = await asyncio.create_subprocess_exec(
            *command, str(file), *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        while not len(proxies[0]):
            assert process.returncode is None
            await asyncio.sleep(0.05)
        await asyncio.sleep(SPOKEN[1])
        proxies[0].reset()
        out, err = await process.communicate()
        assert process.returncode == 0, err
        return subprocess.CompletedProcess(command, 0, out.decode(), err.decode())


async def test_the_command_shows_it(gateways: Deployment, undisturbed: list[client.Event]) -> None:
    plain, lines = await asyncio.gather(streamed(gateways), streamed(gateways, "--json"))
    same([json.loads(line) for line in lines.stdout.splitlines()], undisturbed)
    assert "connection.resumed" in lines.stdout
    shown = plain.stdout.splitlines()
    assert [line for line in shown if "connection" in line] == [
        "the connection was lost; what is said is kept",
        "the connection is back",
    ]
    said = " ".join(" ".join(line.split()[1:]) for line in shown if "connection" not in line)
    assert said == undisturbed[-1]["transcript"]


async def test_in_javascript_too(
    gateways: Deployment, undisturbed: list[client.Event], tmp_path: Path
) -> None:
    """Cut in mid-word, twice, in one session; in another its gateway is killed."""
    file = tmp_path / "audio"
    file.write_bytes(AUDIO)

    async def cut() -> list[dict[str, Any]]:
        async with wire(gateways) as (proxies, urls):
            async with speaking(urls, file, language="en") as process:
                telling = asyncio.create_task(told(process))
                while not len(proxies[0]):
                    await asyncio.sleep(0.05)
                for pause in (SPOKEN[0], SPOKEN[1] - SPOKEN[0], 0.7):
                    await asyncio.sleep(pause)
                    for proxy in proxies:
                        proxy.reset()
                return await telling

    async def killed() -> list[dict[str, Any]]:
        victim = gateways.members["gateway-1"].part.process
        assert victim
        async with speaking(gateways.urls, file, language="en") as process:
            telling = asyncio.create_task(told(process))
            await asyncio.sleep(SPOKEN[2])
            victim.kill()
            return await telling

    for events in await asyncio.gather(cut(), killed()):
        same(events, undisturbed)
        assert resumed(events) >= 1
    await gateways.until_ready()


# 003-11, 004-22
async def test_two_channels_whose_connection_is_cut_and_whose_worker_is_killed(
    gateways: Deployment, undisturbed: list[client.Event]
) -> None:
    """Each channel says what it says alone, once."""
    left = RECORDING.audio
    right = np.resize(recordings()[1].audio, len(left))
    both = np.column_stack([left, right]).tobytes()
    worker = gateways.members["worker-1"].part.process
    assert worker
    async with wire(gateways) as (proxies, urls):
        disturbances = [worker.kill, lambda: [proxy.reset() for proxy in proxies]]
        alone, events = await asyncio.gather(
            transcribed(gateways.urls[1:], [], audio=right.tobytes()),
            transcribed(
                urls,
                [SPOKEN[0], SPOKEN[1]],
                lambda: disturbances.pop(0)(),
                both,
                channels=2,
                multichannel=True,
            ),
        )
    assert resumed(events) == 1
    for channel, expected in enumerate((undisturbed, alone)):
        told = [event for event in events if event.get("channel") == channel]
        assert finals(told) == finals(expected)
        (end,) = (event for event in told if event["type"] == "session.end")
        assert end["transcript"] == expected[-1]["transcript"]
    await gateways.until_ready()
