"""
Child processes that do not outlive us, and ports that nobody uses.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Sequence

# Waits until its input ends, which is when we do; then nothing is left of a process group and of
# files that begin alike.
_GUARD = 'read -r _; kill -s KILL -- "-$1"; rm -f "$2"*'


def dies_with_us(command: Sequence[str]) -> list[str]:
    """The command of a process that is killed when we die, however that happens.

    A SIGKILL leaves us no time to stop our children. setpriv (util-linux) asks the kernel for it
    and then becomes the command. Python code between fork and exec could ask as well, but there
    gRPC's fork handlers run too, and now and then they abort the child.
    """
    return ["setpriv", "--pdeathsig", "KILL", "--", *command]


async def guard(group: int, files: str) -> asyncio.subprocess.Process:
    """A process that, should we die, kills a process group and removes the files `files`*.

    For grandchildren, whom dies_with_us does not reach. Kill it when it is not needed any more.
    """
    return await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", _GUARD, "sh", str(group), files),
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )


_given = deque[int](maxlen=256)  # ports, lately


def free_port() -> int:
    """A TCP port of the loopback interface that was free a moment ago, another each time."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port not in _given:
            _given.append(port)
            return port
