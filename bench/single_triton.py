"""
A Triton without gateway, worker and Redis, for what asks the models themselves.
"""

import asyncio
import math
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from dalston.triton.installation import ServerError
from dalston.triton.probe import probe_all
from dalston.triton.process import dies_with_us, free_port


@contextmanager
def running(repository: Path, folder: Path, within_s: float = math.inf) -> Generator[str]:
    """`dalston triton` with its log in `folder`, ready; the address of its HTTP.

    Raises ServerError, also if it is not ready in time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log, grpc, http = folder / "triton.log", free_port(), free_port()
    command = [sys.executable, "-m", "dalston.cli.main", "triton"]
    command += ["--repository", str(repository), "--run-dir", str(folder)]
    command += ["--grpc-port", str(grpc), "--http-port", str(http)]
    command += ["--metrics-port", str(free_port())]
    with log.open("wb") as file:
        process = subprocess.Popen(dies_with_us(command), stdout=file, stderr=file)
    deadline = time.monotonic() + within_s
    try:
        while not _answers(f"127.0.0.1:{grpc}"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise ServerError(f"Triton does not start:\n{log.read_text(errors='replace')}")
            time.sleep(0.1)
        yield f"127.0.0.1:{http}"
    finally:
        process.terminate()
        process.wait(20)


def _answers(address: str) -> bool:
    # A server that is still loading has no port open yet: whoever answers has every model.
    try:
        asyncio.run(probe_all(address))
    except ServerError:
        return False
    return True
