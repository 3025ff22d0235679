"""
The whole stack, started as a user does: `dalston up`.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dalston.triton.process import dies_with_us, free_port


@dataclass
class Stack:
    process: subprocess.Popen[bytes]
    port: int
    data_dir: Path

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def http(self, path: str) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as got:
                return got.status, json.load(got)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def held(self) -> int:
        """Slots that are taken."""
        return self.http("/v1/realtime/status")[1]["active_sessions"]

    def until_free(self) -> None:
        deadline = time.monotonic() + 10
        while self.held():
            assert time.monotonic() < deadline, "a slot did not come back"
            time.sleep(0.02)


def start_stack(
    data_dir: Path, workers: int, tritons: int = 1, profile: str = "demo", **environment: str
) -> Stack:
    """`dalston up` in a process of its own, ready. data_dir: a folder with the models; the stack
    has one of its own below it."""
    own = Path(tempfile.mkdtemp(dir=data_dir))
    (own / "model_repository").symlink_to(data_dir / "model_repository")
    port = free_port()
    command = [sys.executable, "-m", "dalston.cli.main", "up", "--port", str(port)]
    command += ["--data-dir", str(own), "--profile", profile]
    command += ["--workers", str(workers), "--tritons", str(tritons)]
    process = subprocess.Popen(
        dies_with_us(command), env=os.environ | environment, start_new_session=True
    )
    stack, deadline = Stack(process, port, own), time.monotonic() + 90
    while True:
        try:
            if stack.http("/health")[0] == 200 and workers_ready(stack) == workers:
                return stack
        except OSError:
            pass
        assert process.poll() is None, "dalston up has ended"
        assert time.monotonic() < deadline, "dalston up does not get ready"
        time.sleep(0.05)


def workers_ready(stack: Stack) -> int:
    return len(stack.http("/v1/realtime/status")[1]["workers"])
