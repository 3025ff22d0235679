"""
A Redis of a test's own, to be killed, stopped and started again.
"""

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dalston.cli.up import redis_server
from dalston.triton.process import dies_with_us, free_port

FORGETFUL = ("--save", "")
REMEMBERS = ("--save", "", "--appendonly", "yes", "--appendfsync", "always")


def _port() -> int:
    """A free one, and so is a cluster's second, 10,000 above."""
    while True:
        port = free_port()
        with contextlib.suppress(OSError, OverflowError), socket.socket() as second:
            second.bind(("127.0.0.1", port + 10_000))
            return port


@dataclass
class RedisProcess:
    folder: Path
    options: tuple[str, ...] = FORGETFUL
    port: int = field(default_factory=_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Until it listens."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [redis_server(), *self.options, "--port", str(self.port)]
        command += ["--bind", "127.0.0.1", "--dir", str(self.folder)]
        self.process = subprocess.Popen(dies_with_us(command), stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while True:
            try:
                return socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                assert time.monotonic() < deadline, "Redis does not start"
                time.sleep(0.005)

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()

    @contextmanager
    def stopped(self) -> Generator[None]:
        """It hangs: connections are taken, nothing is answered."""
        assert self.process
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


@contextmanager
def redis_process(folder: Path, *options: str) -> Generator[RedisProcess]:
    redis = RedisProcess(folder, options or FORGETFUL)
    try:
        redis.start()
        yield redis
    finally:
        redis.kill()


def sentinel(folder: Path, port: int, password: str = "") -> RedisProcess:
    """A Sentinel that watches a master at `port`, and needs no second opinion."""
    folder.mkdir()
    lines = [f"sentinel monitor speech 127.0.0.1 {port} 1"]
    lines += ["sentinel down-after-milliseconds speech 300"]
    lines += ["sentinel failover-timeout speech 2000"]
    if password:
        lines.append(f"sentinel auth-pass speech {password}")
    (folder / "sentinel.conf").write_text("\n".join(lines) + "\n")
    return RedisProcess(folder, (str(folder / "sentinel.conf"), "--sentinel"))
