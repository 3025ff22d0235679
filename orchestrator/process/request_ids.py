"""
One name for a connection or an HTTP request: in the logs of every process it passes through, and
in every error its client is told.

The name and the session it became are in context variables, so that whoever logs need not know
them: a connection is served by a task of its own, and the tasks it starts inherit both.
"""

import re
import secrets
from contextvars import ContextVar

import msgspec

from dalston.orchestrator.protocol.messages import Error, ServerMessage

request_id: ContextVar[str] = ContextVar("request_id", default="")
session_id: ContextVar[str] = ContextVar("session_id", default="")

# What clients and proxies call theirs: UUIDs, traces, "Root=1-67891233-abcdef". It goes into logs
# and headers, so it may not be anything.
_SANE = re.compile(r"[A-Za-z0-9._:=/+-]{1,128}")


def new_or(given: str | None) -> str:
    """The id a client gave, if it is a sane one; else a new one."""
    return given if given and _SANE.fullmatch(given) else f"req_{secrets.token_hex(12)}"


def named(message: ServerMessage) -> ServerMessage:
    """An error with the id of the request it answers; anything else as it is."""
    if isinstance(message, Error) and (id := request_id.get()):
        return msgspec.structs.replace(message, request_id=id)
    return message
