"""
What every driver does: wait for an order, let its client speak, and print what the client noticed.

A driver is a program that uses clients of other services as their users do, in an environment that
has them. It is started with the name of one of its clients. An order is a line of JSON at standard
input:

    {"url": "http://127.0.0.1:8000", "key": "dk_...", "audio": {"16000": FILE, "24000": FILE}}

with files of 16 bit samples. Answers are lines of JSON at standard output, until {"over": true}:

    {"partial": TEXT}    {"final": TEXT}    {"error": NAME, "message": TEXT}
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

CHUNK_S = 0.1
SILENCE_S, PATIENCE_S = 2.0, 30.0  # after what is said: at least, and at most


@dataclass(frozen=True)
class Order:
    url: str  # http://, or https://
    key: str
    audio: Mapping[str, str]

    @property
    def websocket(self) -> str:
        return self.url.replace("http", "ws", 1)

    async def speak(
        self,
        rate: int,
        send: Callable[[bytes], Awaitable[object]],
        over: Callable[[], bool] = lambda: True,
    ) -> None:
        """As a microphone: in real time, and then silence until `over`."""
        said = Path(self.audio[str(rate)]).read_bytes()  # noqa: ASYNC240
        size, began, sent_s = 2 * int(rate * CHUNK_S), time.monotonic(), 0.0
        end_s = len(said) / 2 / rate
        for at in count(0, size):
            sent_s = at / 2 / rate
            if sent_s > end_s + SILENCE_S and over():
                return
            if sent_s > end_s + PATIENCE_S:
                raise TimeoutError("what was said is not understood to its end")
            await asyncio.sleep(began + sent_s - time.monotonic())
            await send(said[at : at + size].ljust(size, b"\0"))


@asynccontextmanager
async def explained_by(listening: asyncio.Future[None]) -> AsyncGenerator[None]:
    """What fails here fails for the reason that whoever listens has heard, if there is one."""
    try:
        yield
    except Exception:
        await asyncio.wait([listening], timeout=5)
        if listening.done():
            listening.result()
        raise


class Failed(Exception):
    """A client tells of errors by other means than an exception."""

    def __init__(self, name: str, sentence: str):
        super().__init__(sentence)
        self.name = name


def tell(**answer: object) -> None:
    print(json.dumps(answer), flush=True)


def drive(clients: Mapping[str, Callable[[Order], Awaitable[None]]]) -> None:
    """Follow orders for the client that is named in the command line."""
    asyncio.run(_follow(clients[sys.argv[1]]))


async def _follow(client: Callable[[Order], Awaitable[None]]) -> None:
    while line := await asyncio.to_thread(sys.stdin.readline):
        try:
            await client(Order(**json.loads(line)))
        except Failed as failed:
            tell(error=failed.name, message=str(failed))
        except Exception as error:
            tell(error=type(error).__name__, message=str(error))
        tell(over=True)
