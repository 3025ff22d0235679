"""
What a client uploads: it lies in a temporary file, not in memory, and has limits of its own.

Temporary files have no name (tempfile.TemporaryFile), so none is left behind, however the gateway
ends. They are in TMPDIR; the first megabyte of each is in memory.
"""

import asyncio
import contextlib
import errno
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from io import BytesIO
from tempfile import SpooledTemporaryFile
from typing import BinaryIO, cast

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from dalston.gateway.files.refused import Refused

# A multipart body: parts that are text, and bytes of each.
MOST_FIELDS, LONGEST_FIELD = 100, 64 << 10
IN_MEMORY = 1 << 20  # bytes
# What is still read of a body that is refused, so that its client comes to read the answer.
DROPPED_BYTES, DROPPED_S = 16 << 20, 2.0


@dataclass
class Upload:
    """A file, and what was said with it."""

    file: BinaryIO
    fields: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    has_file: bool = True  # a form may have none

    def all(self, name: str) -> list[str]:
        return [value for known, value in self.fields if known == name]

    def one(self, name: str, default: str = "") -> str:
        """The last of them."""
        return next(reversed(self.all(name)), default)

    def close(self) -> None:
        self.file.close()


async def receive_form(request: Request, most_bytes: int, within_s: float) -> Upload:
    """A multipart form with one file, or none. Raises Refused and starlette's
    ClientDisconnect."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise Refused("invalid_parameter", "the body has to be multipart/form-data")
    parser = MultiPartParser(
        request.headers,
        _limited(request, most_bytes),
        max_files=1,
        max_fields=MOST_FIELDS,
        max_part_size=LONGEST_FIELD,
    )
    try:
        async with _in_time(within_s):
            form = await parser.parse()
    except MultiPartException as error:
        raise Refused("invalid_parameter", f"the form: {error.message}") from None
    fields, file = list[tuple[str, str]](), None
    for name, value in form.multi_items():
        if not isinstance(value, UploadFile):
            fields.append((name, value))
        elif name == "file":
            file = value.file
        else:
            value.file.close()
    return Upload(file or BytesIO(), fields, file is not None)


async def receive_body(request: Request, most_bytes: int, within_s: float) -> Upload:
    """A body that is the file. Raises Refused and starlette's ClientDisconnect."""
    file = SpooledTemporaryFile(IN_MEMORY)
    try:
        async with _in_time(within_s):
            async for part in _limited(request, most_bytes):
                if file.tell() + len(part) > IN_MEMORY:
                    await asyncio.to_thread(file.write, part)
                else:
                    file.write(part)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return Upload(cast("BinaryIO", file))


async def drop_rest(request: Request) -> None:
    """Read what is left of a body that nobody wants, but not for ever."""
    dropped = 0
    with contextlib.suppress(Exception):
        async with asyncio.timeout(DROPPED_S):
            async for part in request.stream():
                dropped += len(part)
                if dropped > DROPPED_BYTES:
                    return


async def _limited(request: Request, most_bytes: int) -> AsyncGenerator[bytes]:
    """Raises Refused as soon as the body is known to be too large."""
    sentence = f"the body is larger than {most_bytes} bytes"
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > most_bytes:
        raise Refused("file_too_large", sentence)
    received = 0
    async for part in request.stream():
        received += len(part)
        if received > most_bytes:
            raise Refused("file_too_large", sentence)
        yield part


@contextlib.asynccontextmanager
async def _in_time(within_s: float) -> AsyncGenerator[None]:
    """What goes wrong while a body is received. Raises Refused."""
    try:
        async with asyncio.timeout(within_s):
            yield
    except TimeoutError:
        sentence = f"the body was not whole after {within_s:g} s"
        raise Refused("session_timeout", sentence) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise Refused("disk_full", "there is no room on the disk for this file") from None
