"""
What a running process can be short of: room on the disk, descriptors, the right time.

None of it needs root. Limits are the kernel's, of one process (prlimit); the disk is full in that
writes into files fail, with EFBIG instead of ENOSPC. The time is libfaketime's, where it is
installed: the wall clock jumps, the monotonic one goes on.
"""

import contextlib
import os
import resource
from collections.abc import Generator
from pathlib import Path

import psutil

_LIBRARIES = "lib*/**/faketime/libfaketimeMT.so.1"  # in /usr
# Of redis-server, which would die of the signal that comes with EFBIG. Python ignores it.
IGNORING_FULL_DISKS = ("/bin/sh", "-c", 'trap "" XFSZ; exec "$@"', "sh")


def fake_time() -> Path | None:
    """The library by which the clock of a process can be set; None if it is not there."""
    return next(iter(sorted(Path("/usr").glob(_LIBRARIES))), None)


def with_clock(library: Path, file: Path) -> dict[str, str]:
    """The environment of a process whose clock set_clock(file) sets."""
    set_clock(file, 0)
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_CACHE_DURATION": "1",  # seconds until a change is seen
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DISABLE_SHM": "1",
    }


def set_clock(file: Path, seconds: int) -> None:
    """So far ahead of the real one."""
    new = file.with_suffix(".new")
    new.write_text(f"{seconds:+d}s\n")
    os.replace(new, file)


@contextlib.contextmanager
def full_disk(pid: int) -> Generator[None]:
    """Every write into a file fails."""
    with _limited(pid, resource.RLIMIT_FSIZE, 0):
        yield


@contextlib.contextmanager
def no_descriptors(pid: int) -> Generator[None]:
    """Nothing more can be opened, and no connection accepted."""
    files = Path(f"/proc/{pid}/fd")
    free = next(number for number in range(1 << 20) if not (files / str(number)).is_symlink())
    with _limited(pid, resource.RLIMIT_NOFILE, free):
        yield


@contextlib.contextmanager
def _limited(pid: int, which: int, limit: int) -> Generator[None]:
    before = resource.prlimit(pid, which)
    resource.prlimit(pid, which, (limit, before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, which, before)


def processor_s(pid: int) -> float:
    """Raises psutil.NoSuchProcess."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system
