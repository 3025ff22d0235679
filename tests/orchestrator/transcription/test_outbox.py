"""
The order of messages while some are not known.
"""

from dalston.orchestrator.protocol.messages import (
    Partial,
    Pong,
    ServerMessage,
    SpeechEnd,
    SpeechStart,
)
from dalston.orchestrator.transcription.outbox import Outbox


def told(outbox: Outbox) -> list[ServerMessage]:
    outbox.settle()
    return outbox.collect()


def partial(text: str) -> Partial:
    return Partial("seg_0000", text, 0, 0.0, 1.0)


def test_what_is_known_is_told_in_order_and_once() -> None:
    outbox = Outbox()
    outbox.say(SpeechStart(1.0))
    outbox.say(SpeechEnd(2.0))
    assert told(outbox) == [SpeechStart(1.0), SpeechEnd(2.0)]
    assert told(outbox) == []


def test_nothing_is_told_before_what_is_not_known_yet() -> None:
    outbox = Outbox()
    known: list[ServerMessage] | None = None
    outbox.later(lambda: known)
    outbox.say(SpeechStart(3.0))
    assert told(outbox) == []
    known = [SpeechEnd(2.0)]
    assert told(outbox) == [SpeechEnd(2.0), SpeechStart(3.0)]


def test_a_partial_that_waits_is_replaced_by_the_next() -> None:
    outbox = Outbox()
    known: list[ServerMessage] | None = None
    outbox.later(lambda: known)
    outbox.say(partial("one"))
    outbox.say(partial("one two"))
    known = []
    assert told(outbox) == [partial("one two")]


def test_some_things_are_told_out_of_line() -> None:
    outbox = Outbox()
    outbox.later(lambda: None)
    outbox.say_at_once(Pong())
    assert told(outbox) == [Pong()]
