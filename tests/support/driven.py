"""
Clients of other services, each in a process of its own: tests/clients/drivers says how these are
told what to do.
"""

import asyncio
import json
import os
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DRIVERS = Path(__file__).parents[1] / "clients" / "drivers"
PATIENCE_S = 90.0


@dataclass
class Heard:
    """What a client noticed of one call."""

    partials: list[str] = field(default_factory=list[str])
    finals: list[str] = field(default_factory=list[str])
    error: str = ""  # the name of the exception, or of the event, that told the client
    message: str = ""

    @property
    def text(self) -> str:
        return " ".join(self.finals)


@dataclass
class Driver:
    process: Process
    # Set while there is a call of which it has shown something.
    speaking: asyncio.Event = field(default_factory=asyncio.Event)

    async def follow(self, order: Mapping[str, Any]) -> Heard:
        """What became of a call."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        heard = Heard()
        async with asyncio.timeout(PATIENCE_S):
            while line := await self.process.stdout.readline():
                match json.loads(line):
                    case {"partial": text}:
                        heard.partials.append(text)
                        self.speaking.set()
                    case {"final": text}:
                        heard.finals.append(text)
                    case {"error": name, "message": message}:
                        heard.error, heard.message = name, message
                    case _:
                        self.speaking.clear()
                        return heard
        raise AssertionError("the driver has ended")


@asynccontextmanager
async def drivers(
    command: Sequence[str | Path], names: Sequence[str], **environment: str
) -> AsyncGenerator[dict[str, Driver]]:
    """One for each of these clients, by its name."""
    async with AsyncExitStack() as exits:
        yield {
            name: await exits.enter_async_context(_driver([*command, name], environment))
            for name in names
        }


@asynccontextmanager
async def _driver(
    command: Sequence[str | Path], environment: Mapping[str, str]
) -> AsyncGenerator[Driver]:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=PIPE,
        stdout=PIPE,
        env={**os.environ, "PYTHONPATH": str(DRIVERS), **environment},
    )
    try:
        yield Driver(process)
    finally:
        process.kill()
        await process.wait()
