"""
Our own protocol (docs/protocol.md): the messages of orchestrator/protocol/messages.py as JSON, one
in a text frame, and audio in binary frames. The settings of the session are in the URL's query.
"""

import re
from collections.abc import Mapping, Sequence
from typing import get_args

from dalston.gateway.protocols.protocol import (
    Asked,
    ClientProtocol,
    Container,
    Opening,
    Overflow,
    Resume,
)
from dalston.gateway.protocols.vendors import apart, flag
from dalston.orchestrator.protocol.messages import Frame, segment_number
from dalston.orchestrator.protocol.parameters import ParameterError, session_config

# Parameters that say who calls and how, not how the session listens.
_OF_THE_CALL = {
    "api_key",
    "last_segment_id",
    "multichannel",
    "overflow",
    "resume_session_id",
    "token",
}
_OF_SAMPLES = {"channels", "encoding", "sample_rate"}
_SESSION = re.compile(r"sess_[0-9a-f]{24}")


class Native(ClientProtocol):
    subprotocols = ("dalston",)
    resumes = True

    def __init__(self, opening: Opening):
        self._query = dict(opening.query)

    def asked(self) -> Asked:
        query = self._query
        container = _container(query)
        # What is in a container says itself how it is sampled; what comes out of it is as usual.
        other = _OF_THE_CALL | _OF_SAMPLES if container else _OF_THE_CALL
        of_session = {name: query[name] for name in query if name not in other}
        config, warnings = session_config(of_session)
        config, channels = apart(
            config, flag("multichannel", query.get("multichannel", "")), container
        )
        resume = _resume(query, channels)
        if container and resume:
            sentence = (
                f"a session with encoding={container} cannot be gone on with; begin a new one"
            )
            raise ParameterError("resume_session_id", resume[0].session_id, sentence)
        return Asked(
            config, warnings, _overflow(query), resume, channels=channels, container=container
        )

    def receive(self, frame: Frame) -> Sequence[Frame]:
        return (frame,)

    def say(self, message: str) -> Sequence[Frame]:
        return (message,)

    def close_code(self, reason: int) -> int:
        return reason


def _container(query: Mapping[str, str]) -> Container | None:
    return next((known for known in get_args(Container) if query.get("encoding") == known), None)


def _overflow(query: Mapping[str, str]) -> Overflow | None:
    asked = query.get("overflow")
    for known in get_args(Overflow):
        if asked == known:
            return known
    if asked is None:
        return None
    allowed = ", ".join(get_args(Overflow))
    raise ParameterError(
        "overflow", asked, f"overflow={asked!r} is not allowed; it may be {allowed}"
    )


def _resume(query: Mapping[str, str], channels: int) -> Sequence[Resume]:
    if "resume_session_id" not in query:
        return ()
    ids = query["resume_session_id"].split(",")
    last = query.get("last_segment_id", "").split(",")
    if len(ids) != channels or len(set(ids)) != channels:
        sentence = f"resume_session_id names {len(ids)} sessions; {channels} are to be gone on with"
        raise ParameterError("resume_session_id", ",".join(ids), sentence)
    if last != [""] and len(last) != channels:
        sentence = f"last_segment_id names {len(last)} segments, of {channels} sessions"
        raise ParameterError("last_segment_id", ",".join(last), sentence)
    return [
        _resumed(*pair) for pair in zip(ids, last if last != [""] else [""] * channels, strict=True)
    ]


def _resumed(session_id: str, last: str) -> Resume:
    if not _SESSION.fullmatch(session_id):  # it becomes part of a key
        sentence = f"resume_session_id={session_id!r} is no session"
        raise ParameterError("resume_session_id", session_id, sentence)
    number = segment_number(last)
    if last and number < 0:
        sentence = f"last_segment_id={last!r} is no segment, such as seg_0007"
        raise ParameterError("last_segment_id", last, sentence)
    return Resume(session_id, number)
