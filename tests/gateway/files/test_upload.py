"""
What is uploaded lies on disk, and never for longer than it is wanted.
"""

import asyncio
import errno
import os
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

import pytest
import starlette.formparsers
from support.fronted import FakeWorker, Gateway, gateway_over
from support.uploads import BOUNDARY, Answer, form, post, recorded, scribe
from support.waiting import until

from dalston.gateway.files import upload

FORM, BODY = "/v1/audio/transcriptions", "/v1/listen"
PATHS = pytest.mark.parametrize("path", [FORM, BODY])
LARGE = recorded("wav", 60)  # of which only the first megabyte is in memory


async def send(gateway: Gateway, path: str, file: bytes) -> Answer:
    if path == BODY:
        return await post(gateway.url, path, file, "audio/wav")
    return await post(gateway.url, path, form([("model", "m")], file))


def files_here() -> list[str]:
    """Of this process, those that have no name (any more)."""
    found = list[str]()
    for link in Path("/proc/self/fd").iterdir():
        try:
            found.append(os.readlink(link))
        except OSError:
            continue  # the one that lists them
    return [name for name in found if name.endswith("(deleted)") and "/tmp" in name]


@PATHS
async def test_a_large_file_is_on_disk_and_gone_with_the_answer(
    redis_url: str, path: str, tmp_path: Path
) -> None:
    before = len(files_here())
    async with gateway_over(redis_url) as gateway:
        async with FakeWorker(gateway.slots, "a", scribe).running():
            sending = asyncio.create_task(send(gateway, path, LARGE))
            await until(lambda: len(files_here()) > before)
            assert (await sending).status == 200
        assert len(files_here()) == before


@PATHS
async def test_a_client_that_leaves_while_it_uploads_leaves_nothing_behind(
    redis_url: str, path: str
) -> None:
    before = len(files_here())
    body = form([("model", "m")], LARGE) if path == FORM else LARGE
    kind = f"multipart/form-data; boundary={BOUNDARY}" if path == FORM else "audio/wav"
    async with gateway_over(redis_url) as gateway:
        _, writer = await asyncio.open_connection(*gateway.url.split(":"))
        writer.write(f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n".encode())
        writer.write(f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        writer.write(body[:1_500_000])
        await until(lambda: len(files_here()) > before)
        writer.transport.abort()
        await until(lambda: len(files_here()) == before)


@PATHS
async def test_a_full_disk_is_said_to_be_full(
    redis_url: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(SpooledTemporaryFile[bytes]):
        def write(self, s: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    for module in (upload, starlette.formparsers):
        monkeypatch.setattr(module, "SpooledTemporaryFile", Full)
    async with gateway_over(redis_url) as gateway:
        answer = await send(gateway, path, LARGE)
    assert answer.status == 507
    assert b"no room on the disk" in answer.body


@PATHS
async def test_a_body_that_does_not_end_is_not_waited_for(redis_url: str, path: str) -> None:
    kind = f"multipart/form-data; boundary={BOUNDARY}" if path == FORM else "audio/wav"
    async with gateway_over(redis_url, upload_seconds=0.3) as gateway:
        reader, writer = await asyncio.open_connection(*gateway.url.split(":"))
        writer.write(f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n".encode())
        writer.write(f"Content-Type: {kind}\r\nContent-Length: 100000\r\n\r\n".encode())
        writer.write(form([("model", "m")], bytes(9000))[:5000])
        async with asyncio.timeout(10):
            assert (await reader.readline()).split()[1] == b"408"
        writer.close()
