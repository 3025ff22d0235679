"""
What hostile connections (hostile.py) cost a gateway, and what honest callers beside them notice.
"""

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import hostile
import psutil
from deployment import ROOT, Deployment
from journal import percentile
from websockets.asyncio.client import connect

# Callers who are there all the time. A gateway reads in rounds of 40 ms (read_rounds.py), which a
# caller on a machine of their own seldom waits for: so many always do, with enemies and without.
HONEST = 8
_CHUNK_S, _ASKS = 0.1, 2  # chunks between two questions: below the rate of messages
_PATH = os.pathsep.join(str(ROOT / folder) for folder in ("tests/chaos", "tests"))


@dataclass(frozen=True)
class Cost:
    """Of a kind of connection, beside honest callers."""

    kind: str
    answer_p95_ms: float  # of the honest callers
    answer_p95_without_ms: float  # before all kinds and after
    mb: float  # by which the gateway grew, for each connection
    cores: float  # of the gateway, for each connection, as a multiple of an honest caller's


class Honest:
    """Callers who speak in real time, and ask now and then whether they are heard."""

    def __init__(self, port: int):
        self._url = f"ws://127.0.0.1:{port}{hostile.STREAM}?language=en"
        self.answers = list[float]()  # seconds

    async def speak(self, seconds: float, after_s: float) -> None:
        await asyncio.sleep(after_s)
        async with connect(self._url, compression=None, proxy=None, max_size=None) as line:
            asked = list[float]()

            async def hear() -> None:
                async for said in line:
                    if json.loads(said)["type"] == "pong" and asked:
                        self.answers.append(time.monotonic() - asked.pop(0))

            hearing = asyncio.create_task(hear())
            began, number = time.monotonic(), 0
            while time.monotonic() < began + seconds:
                await line.send(bytes(3200))
                number += 1
                if not (asked or number % _ASKS):
                    asked.append(time.monotonic())
                    await line.send('{"type":"ping"}')
                due = began + number * _CHUNK_S
                await asyncio.sleep(max(0.0, due - time.monotonic()))
            await line.send('{"type":"end"}')
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(hearing, 10)


async def costs(
    deployment: Deployment, kinds: Sequence[str], connections: int, seconds: float
) -> list[Cost]:
    """Of each kind, so many connections for so long."""
    gateway = deployment.of("gateway")[0]
    process = psutil.Process(gateway.pid)

    def used_s() -> float:
        times = process.cpu_times()
        return times.user + times.system

    async def beside(*command: str, callers: int = HONEST) -> tuple[float, float, float]:
        """Answers' p95 in ms, processor seconds a second, and MB of growth."""
        honest, before_mb, before_s = Honest(gateway.port), _rss(process), used_s()
        began, most_mb = time.monotonic(), before_mb
        enemies = None
        if command:
            enemies = await asyncio.create_subprocess_exec(
                *(sys.executable, hostile.__file__, *command),
                env=os.environ | {"PYTHONPATH": _PATH},
            )
        speaking = [
            asyncio.create_task(honest.speak(seconds, _CHUNK_S * number / callers))
            for number in range(callers)
        ]
        while not all(task.done() for task in speaking):
            await asyncio.wait(speaking, timeout=0.2)
            most_mb = max(most_mb, _rss(process))
        await asyncio.gather(*speaking)
        cores = (used_s() - before_s) / (time.monotonic() - began)
        if enemies:
            await enemies.wait()
        await quiet()
        return 1000 * percentile(honest.answers, 0.95), cores, most_mb - before_mb

    async def quiet() -> None:
        """Nobody is connected any more, and what they left is done."""
        while any(
            one.status == psutil.CONN_ESTABLISHED and one.laddr.port == gateway.port
            for one in process.net_connections("tcp")
        ):
            await asyncio.sleep(0.1)
        used = used_s() - 1.0
        while used_s() - used > 0.05:
            used = used_s()
            await asyncio.sleep(0.5)

    await beside()  # what is loaded at the first call
    (_, few, _), (before_ms, many, _) = await beside(callers=1), await beside()
    of_honest = max(1e-6, (many - few) / (HONEST - 1))
    print(f"an honest caller costs the gateway {of_honest:.2%} of a core", file=sys.stderr)
    told = dict[str, tuple[float, float, float]]()
    for kind in kinds:
        told[kind] = await beside(kind, str(gateway.port), str(connections), str(seconds))
    after_ms, _, _ = await beside()
    return [
        Cost(
            kind,
            answer_ms,
            (before_ms + after_ms) / 2,
            mb / connections,
            max(0.0, cores - many) / connections / of_honest,
        )
        for kind, (answer_ms, cores, mb) in told.items()
    ]


def _rss(process: psutil.Process) -> float:
    return process.memory_info().rss / 1e6
