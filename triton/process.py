"""
Child processes that do not outlive us, and ports that nobody uses.
"""

import asyncio
import ctypes
import signal
import socket

# Waits until its input ends, which is when we do; then nothing is left of a process group and of
# files that begin alike.
_GUARD = 'read -r _; kill -s KILL -- "-$1"; rm -f "$2"*'
_PR_SET_PDEATHSIG = 1  # prctl(2)
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """Between fork and exec: the child is killed when its parent dies, however that happens.

    A SIGKILL of the parent leaves it no time to stop its children.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


async def guard(group: int, files: str) -> asyncio.subprocess.Process:
    """A process that, should we die, kills a process group and removes the files `files`*.

    For grandchildren, whom die_with_parent does not reach. Kill it when it is not needed any more.
    """
    return await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", _GUARD, "sh", str(group), files),
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )


def free_port() -> int:
    """A TCP port of the loopback interface that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
