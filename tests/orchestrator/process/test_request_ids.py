import re
from contextvars import copy_context

import pytest

from dalston.orchestrator.process.request_ids import named, new_or, request_id
from dalston.orchestrator.protocol.messages import Error, Pong, ServerMessage

ERROR = Error(code="internal_error", message="no", recoverable=False)


def named_in(id: str, message: ServerMessage) -> ServerMessage:
    def inside() -> ServerMessage:
        request_id.set(id)
        return named(message)

    return copy_context().run(inside)


def test_an_error_is_named_and_other_messages_are_not() -> None:
    named = named_in("req_1", ERROR)
    assert isinstance(named, Error)
    assert (named.request_id, named.message) == ("req_1", "no")
    assert named_in("req_1", Pong()) == Pong()


def test_outside_of_requests_there_is_no_name() -> None:
    assert named(ERROR) is ERROR


@pytest.mark.parametrize("id", ["x", "0b5a-11", "Root=1-67891233-abcdef", "x" * 128])
def test_a_sane_id_is_taken_over(id: str) -> None:
    assert new_or(id) == id


@pytest.mark.parametrize("id", [None, "", "x" * 129, "a b", "a\n", "ä", "a;b", "١"])
def test_others_are_replaced_by_one_of_ours(id: str | None) -> None:
    assert re.fullmatch("req_[0-9a-f]{24}", new_or(id))
