"""
Logs of other processes, kept from growing without end.
"""

import os
from pathlib import Path


def shorten(log: Path, most_bytes: int) -> None:
    """Keep `log` and what is older, in a file beside it, below `most_bytes` altogether.

    Whoever writes has to append, and goes on as before. What is written at this very moment may be
    lost.
    """
    size, half = log.stat().st_size, most_bytes // 2
    if size < half:
        return
    with log.open("rb") as file:
        file.seek(max(0, size - half))
        older = file.read(half)
    os.truncate(log, 0)
    log.with_name(f"{log.name}.1").write_bytes(older)
