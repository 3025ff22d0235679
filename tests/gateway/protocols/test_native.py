"""
Our own protocol as a mapping: what the query asks for, and frames that are passed on as they are.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalston.gateway.protocols import Native
from dalston.gateway.protocols.protocol import Asked, Opening, Resume
from dalston.orchestrator.protocol.messages import SessionConfig
from dalston.orchestrator.protocol.parameters import ParameterError

SESSION = "sess_" + 24 * "0"


def native(**query: str) -> Native:
    return Native(Opening(list(query.items()), {}))


def test_without_a_query_everything_is_as_usual() -> None:
    assert native().asked() == Asked(SessionConfig(), [])


def test_what_is_said_of_the_call_is_no_setting_and_not_warned_of() -> None:
    asked = native(
        api_key="dk_1",
        overflow="queue",
        resume_session_id=SESSION,
        last_segment_id="seg_0007",
        language="de",
    ).asked()
    assert asked == Asked(SessionConfig(language="de"), [], "queue", [Resume(SESSION, 7)])


def test_a_parameter_that_nobody_knows_is_warned_of() -> None:
    (warning,) = native(colour="blue").asked().warnings
    assert (warning.code, "colour" in warning.message) == ("unknown_parameter", True)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        (
            {"overflow": "shout"},
            "overflow='shout' is not allowed; it may be reject, queue, degrade",
        ),
        ({"resume_session_id": "sess_1"}, "resume_session_id='sess_1' is no session"),
        (
            {"resume_session_id": SESSION, "last_segment_id": "7"},
            "last_segment_id='7' is no segment, such as seg_0007",
        ),
        ({"sample_rate": "7"}, "sample_rate='7' is not allowed; it may be 8000 to 48000 (Hertz)"),
    ],
)
def test_what_is_wrong_is_named(query: dict[str, str], says: str) -> None:
    with pytest.raises(ParameterError) as refused:
        native(**query).asked()
    assert (str(refused.value), refused.value.code) == (says, "invalid_parameter")


@given(frame=st.text() | st.binary())
def test_frames_are_passed_on_as_they_are(frame: str | bytes) -> None:
    protocol = native()
    (message,) = protocol.receive(frame)
    assert message is frame
    if isinstance(frame, str):
        (told,) = protocol.say(frame)
        assert told is frame


@given(code=st.integers(1000, 4999))
def test_close_codes_are_ours(code: int) -> None:
    assert native().close_code(code) == code
