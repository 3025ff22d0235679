"""
The connection to the worker of a slot: how it begins, and what its end means.
"""

import asyncio
import http
from urllib.parse import urlencode

import msgspec
from picows import WSHandshakeError, WSInvalidStatusError
from pydantic import SecretStr

from dalston.orchestrator.capacity.slots import Slot
from dalston.orchestrator.process import request_ids, traces
from dalston.orchestrator.protocol import introduction
from dalston.orchestrator.protocol.close_codes import CloseCode
from dalston.orchestrator.protocol.messages import (
    LONGEST_MESSAGE,
    Error,
    SessionConfig,
    SessionTerminated,
    Snapshot,
    prefix,
)
from dalston.orchestrator.protocol.websocket_peer import Peer, PeerClosed, connected

CONNECT_S = 1.5  # for a worker to answer; it is on the same network
BEGIN_S = 3.0  # and to begin the session
_STRANGER = (
    "it does not prove that it has our DALSTON_WORKER_SECRET: it has none or another, registers as "
    "what another worker is, or is older than this gateway"
)
_TERMINATED = prefix(SessionTerminated)
_LAST_WORDS = (prefix(Error), _TERMINATED)


class WorkerAway(Exception):
    """This worker does not have the session; another may."""


class SessionRefused(Exception):
    """A worker does not take this session, nor would another: its words, and its close code."""

    def __init__(self, frame: str, code: int):
        super().__init__(frame)
        self.frame, self.code = frame, code


async def begin(
    slot: Slot, how: SessionConfig | Snapshot, secret: SecretStr | None
) -> tuple[Peer, str]:
    """Begin a session with these settings at the slot's worker, or continue it from the snapshot.

    Returns the connection and the worker's first frame.

    Raises WorkerAway and SessionRefused.
    """
    parameters = {
        "session_id": slot.session_id,
        "epoch": str(slot.epoch),
        "request_id": request_ids.request_id.get(),
    }
    parameters["resume" if isinstance(how, Snapshot) else "settings"] = "1"
    headers = {traces.HEADER: parent} if (parent := traces.header()) else {}
    number = introduction.nonce()
    if secret:
        headers[introduction.NONCE_HEADER] = number
    try:
        url = f"{slot.endpoint}/session?{urlencode(parameters)}"
        link = await connected(url, headers, LONGEST_MESSAGE, CONNECT_S)
    except WSInvalidStatusError as error:
        if error.response and error.response.status == http.HTTPStatus.UNAUTHORIZED:
            raise WorkerAway(_STRANGER) from None
        raise WorkerAway(repr(error)) from None
    except (OSError, TimeoutError, WSHandshakeError) as error:
        raise WorkerAway(repr(error)) from None
    try:
        if secret:
            # Before it is told anything.
            link.send_now(_proof(link, secret.get_secret_value(), number, slot.endpoint))
        async with asyncio.timeout(BEGIN_S):
            # Not in the URL: a prompt may be longer than a request line.
            link.send_now(msgspec.json.encode(how).decode())
            frame = await link.received()
            assert isinstance(frame, str)
            if frame.startswith(_LAST_WORDS):
                await link.ended()
                if link.close_code == CloseCode.NO_CAPACITY:
                    raise WorkerAway("it takes no more sessions")
                raise SessionRefused(frame, link.close_code)
            return link, frame
    except (PeerClosed, TimeoutError) as error:
        link.abort()
        raise WorkerAway(repr(error)) from None
    except BaseException:
        link.abort()
        raise


def _proof(link: Peer, secret: str, number: str, endpoint: str) -> str:
    """Ours, for a worker that has proven itself. Raises WorkerAway if it has not."""
    answer = link.transport.response.headers.get(introduction.PROOF_HEADER, "")
    known = introduction.checked(secret, number, endpoint, answer)
    if known is None:
        raise WorkerAway(_STRANGER)
    return known.first_frame()


def lost(code: int, last: str) -> bool:
    """Whether a worker that closed so, `last` being its last words, has left its session to us."""
    if last.startswith(_TERMINATED):
        return False
    if code in (CloseCode.ABNORMAL, CloseCode.GOING_AWAY, CloseCode.SERVICE_RESTART):
        return True
    # If the worker gave no reason, its library has closed the connection.
    return code == CloseCode.INTERNAL and not last.startswith(_LAST_WORDS)
