"""
Disks that are full, and no descriptor left: sessions go on, nobody waits for ever, no loop spins,
and afterwards all is as before. With everything else at once: test_chaos.py.
"""

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import checks
from deployment import Deployment, Member, Size, deployed
from injector import BUSY
from intruders import asked
from support import hardships
from websockets.asyncio.client import ClientConnection

SIZE = Size(gateways=1, workers=1, tritons=1, instant=True)
LASTING_S = 2.2  # a heartbeat comes every two seconds


async def answered(connection: ClientConnection) -> None:
    """Its gateway and its worker are there."""
    await connection.send(bytes(3200))
    await connection.send('{"type":"ping"}')
    async with asyncio.timeout(10):
        while json.loads(await connection.recv())["type"] != "pong":
            pass


async def begins(deployment: Deployment) -> bool:
    return (await asked(deployment.door(), 0, {}, random.Random(1)))[0] == "session.begin"


async def share_of_processor(member: Member, work: Callable[[], Awaitable[None]]) -> float:
    """What it takes while it has no descriptors, and somebody asks for something in vain."""
    before, began = hardships.processor_s(member.pid), time.monotonic()
    with hardships.no_descriptors(member.pid):
        await asyncio.gather(work(), asyncio.sleep(LASTING_S))
        return (hardships.processor_s(member.pid) - before) / (time.monotonic() - began)


async def test_full_disks_and_missing_descriptors_end_no_session_and_leave_nothing(
    tmp_path: Path,
) -> None:
    async with deployed(tmp_path, SIZE) as deployment:
        logs = checks.Logs(tmp_path)
        async with deployment.door().connect(0, {}, random.Random(1)) as connection:
            assert json.loads(await connection.recv())["type"] == "session.begin"
            for member in [*deployment.of("gateway"), *deployment.of("worker")]:
                with hardships.full_disk(member.pid):
                    await answered(connection)
                    assert await begins(deployment)

                async def ask_in_vain() -> None:
                    await answered(connection)
                    await begins(deployment)

                assert await share_of_processor(member, ask_in_vain) < BUSY
                async with asyncio.timeout(20):
                    while not await begins(deployment):
                        await asyncio.sleep(0.05)
            await answered(connection)
        assert all(len(member.pids) == 1 for member in deployment.members.values())
        assert logs.troubles() == []
        async with asyncio.timeout(20):
            while await checks.slots(await deployment.redis(), ()):
                await asyncio.sleep(0.05)
