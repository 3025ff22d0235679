"""
Where and of what a number was measured.
"""

import contextlib
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any


def described() -> dict[str, Any]:
    """This machine; a server that is measured over the network may be on another."""
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "cpu": cpu[1] if cpu else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": _told_by("nvidia-smi", "--query-gpu=name", "--format=csv,noheader"),
        "load_average": round(os.getloadavg()[0], 1),
    }


def commit() -> str:
    root = Path(__file__).resolve().parent.parent
    return _told_by("git", "-C", str(root), "describe", "--always", "--dirty")


def _told_by(*command: str) -> str:
    """What a command prints; nothing if there is no such command, or it fails."""
    with contextlib.suppress(OSError):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return done.stdout.strip()
    return ""
