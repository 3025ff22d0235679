"""
Child processes that do not outlive us, and ports that nobody uses.
"""

import asyncio
import os
import secrets
import socket
from collections import deque
from collections.abc import Sequence
from pathlib import Path

# Waits until its input ends, which is when we do; then nothing is left of a process group, of
# files that begin alike, and of a folder.
_GUARD = 'read -r _; kill -s KILL -- "-$1"; rm -f "$2"*; [ -z "$3" ] || rm -rf -- "$3"'


def dies_with_us(command: Sequence[str]) -> list[str]:
    """The command of a process that is killed when we die, however that happens.

    A SIGKILL leaves us no time to stop our children. setpriv (util-linux) asks the kernel for it
    and then becomes the command. Python code between fork and exec could ask as well, but there
    gRPC's fork handlers run too, and now and then they abort the child.
    """
    return ["setpriv", "--pdeathsig", "KILL", "--", *command]


async def guard(group: int, files: str, folder: Path | None = None) -> asyncio.subprocess.Process:
    """A process that, should we die, kills a process group and removes the files `files`*, and
    a folder.

    For grandchildren, whom dies_with_us does not reach. Kill it when it is not needed any more.
    """
    return await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", _GUARD, "sh", str(group), files, str(folder or "")),
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )


_given = deque[int]()  # file descriptors that claim ports
_GIVEN = 256
# Below those that the kernel gives to whoever connects (ip_local_port_range begins at 32768): one
# of these could be taken for an outgoing connection before its server listens.
_PORTS = range(15_000, 32_000)


def free_port() -> int:
    """A TCP port of the loopback interface that was free a moment ago, another each time, and
    another than any process of ours was given that lives.

    Raises OSError if none can be had.
    """
    for _ in range(1_000):
        port = secrets.choice(_PORTS)  # no seed: processes shall not choose the same
        with socket.socket() as probe, socket.socket(socket.AF_UNIX) as claim:
            # As servers do: connections that were closed a moment ago are no obstacle.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                # Until somebody listens others see by this name, which is no file and goes with its
                # process, that the port is given away.
                claim.bind(f"\0dalston-port-{port}")
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            _given.append(claim.detach())
        if len(_given) > _GIVEN:
            os.close(_given.popleft())
        return port
    raise OSError(f"no TCP port from {_PORTS[0]} to {_PORTS[-1]} is free")
