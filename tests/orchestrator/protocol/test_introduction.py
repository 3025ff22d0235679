"""
What proves that somebody has the secret, and what does not. With real connections:
tests/orchestrator/worker/test_worker.py and tests/gateway/access/test_access.py.
"""

import pytest

from dalston.orchestrator.protocol.introduction import checked, introduced, nonce

HERE, ELSEWHERE = "ws://10.0.0.1:9000", "ws://10.0.0.2:9000"


def test_both_sides_believe_each_other_if_they_have_the_same_secret() -> None:
    number = nonce()
    worker = introduced("secret", number, HERE)
    assert worker
    gateway = checked("secret", number, HERE, worker.answer())
    assert gateway
    assert worker.is_first_frame(gateway.first_frame())
    assert "secret" not in worker.answer() + gateway.first_frame() + repr(worker)


def test_a_worker_is_not_believed_with_another_secret_number_or_address() -> None:
    number = nonce()
    worker = introduced("secret", number, HERE)
    assert worker
    answer = worker.answer()
    assert checked("another", number, HERE, answer) is None
    assert checked("secret", nonce(), HERE, answer) is None
    # Somebody who passes on what a real worker answers is not reached where that one is.
    assert checked("secret", number, ELSEWHERE, answer) is None
    for nothing in ("", " ", "1", answer.partition(" ")[0], f"{answer}0", "ü ü"):
        assert checked("secret", number, HERE, nothing) is None


def test_a_gateway_is_not_believed_with_what_the_worker_said_or_what_was_said_before() -> None:
    number = nonce()
    worker, again = introduced("secret", number, HERE), introduced("secret", number, HERE)
    assert worker
    assert again
    gateway = checked("secret", number, HERE, worker.answer())
    assert gateway
    for frame in (worker.answer(), worker.answer().partition(" ")[2], "", b"\xff", "ü"):
        assert not worker.is_first_frame(frame)
    assert not again.is_first_frame(gateway.first_frame())


@pytest.mark.parametrize("number", ["", "x" * 65, "a\nb", "ü-"])
def test_who_sends_no_number_is_no_gateway(number: str) -> None:
    assert introduced("secret", number, HERE) is None
