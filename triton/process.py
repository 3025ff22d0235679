"""
Child processes that do not outlive us, and ports that nobody uses.
"""

import ctypes
import signal
import socket

_PR_SET_PDEATHSIG = 1  # prctl(2)
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """Between fork and exec: the child is killed when its parent dies, however that happens.

    A SIGKILL of the parent leaves it no time to stop its children.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def free_port() -> int:
    """A TCP port of the loopback interface that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
