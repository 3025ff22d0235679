"""
What the end of a connection to a worker means. How one begins is tested with real connections in
test_call.py.
"""

import pytest

from dalston.gateway.calls.worker_link import lost
from dalston.orchestrator.protocol.close_codes import CloseCode
from dalston.orchestrator.protocol.messages import Error, Pong, SessionTerminated, serialize

ERROR = serialize(Error(code="internal_error", message="x", recoverable=False))
TERMINATED = serialize(SessionTerminated(session_id="s", reason="lag_exceeded", recoverable=False))
SOMETHING = serialize(Pong())


@pytest.mark.parametrize(
    ("code", "last", "is_lost"),
    [
        (CloseCode.ABNORMAL, SOMETHING, True),  # it died
        (CloseCode.GOING_AWAY, SOMETHING, True),
        (CloseCode.SERVICE_RESTART, "", True),  # it drains
        (CloseCode.INTERNAL, SOMETHING, True),  # its library closed, without a word of why
        (CloseCode.INTERNAL, ERROR, False),  # the session failed, and would fail elsewhere
        (CloseCode.GOING_AWAY, TERMINATED, False),
        (CloseCode.ABNORMAL, TERMINATED, False),
        (CloseCode.NORMAL, SOMETHING, False),
        (CloseCode.LAG, TERMINATED, False),
    ],
)
def test_a_session_is_lost_if_its_worker_has_not_ended_it(
    code: CloseCode, last: str, is_lost: bool
) -> None:
    assert lost(code, last) is is_lost
