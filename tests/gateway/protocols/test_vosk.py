"""
vosk-server's protocol as a mapping.
"""

import pytest
from support.dialects import END, Dialect, final, partial

from dalston.gateway.protocols.protocol import ClientError
from dalston.gateway.protocols.vosk import Vosk
from dalston.orchestrator.protocol.messages import SessionConfig

CHUNK = bytes(3200)


def test_the_config_becomes_settings() -> None:
    dialect = Dialect(Vosk)
    config = {"sample_rate": 16000.0, "phrase_list": ["zara", "[unk]"], "words": True}
    assert dialect.receive({"config": config}) == []
    dialect.receive(CHUNK)
    assert dialect.config() == SessionConfig(keywords=("zara",), word_timestamps=True)


def test_without_a_config_audio_is_as_usual_for_vosk() -> None:
    dialect = Dialect(Vosk)
    dialect.receive(CHUNK)
    assert dialect.config().sample_rate == 8000


def test_each_chunk_is_answered_once() -> None:
    dialect = Dialect(Vosk)
    assert dialect.receive(CHUNK) == [CHUNK, {"partial": ""}]
    assert dialect.say(partial(0, "hello", "", 0.0, 1.0)) == []
    assert dialect.receive(CHUNK) == [CHUNK, {"partial": "hello"}]
    assert dialect.say(final(0, "hello there", 0.0, 1.0)) == []
    _, result = dialect.receive(CHUNK)
    assert result["text"] == "hello there"
    assert result["result"][0] == {"conf": 0.9, "start": 0.0, "end": 0.5, "word": "hello"}
    assert dialect.receive(CHUNK) == [CHUNK, {"partial": ""}]


def test_the_end_is_answered_by_all_that_is_left() -> None:
    dialect = Dialect(Vosk)
    dialect.receive(CHUNK)
    assert dialect.receive({"eof": 1}) == ['{"type":"end"}']
    told = dialect.say(final(0, "hello there", 0.0, 1.0), final(1, "bye", 1.0, 2.0), END)
    assert [what["text"] for what in told] == ["hello there bye"]


def test_the_end_of_nothing_is_answered_too() -> None:
    dialect = Dialect(Vosk)
    assert dialect.receive({"eof": 1}) == ['{"type":"end"}']
    assert dialect.say(END) == [{"text": ""}]


@pytest.mark.parametrize("frame", ["hello", {"config": {"sample_rate": "x"}}])
def test_what_makes_no_sense_ends_the_call(frame: object) -> None:
    with pytest.raises(ClientError):
        Dialect(Vosk).receive(frame)  # pyright: ignore[reportArgumentType]


def test_a_rate_that_cannot_be_heard_ends_the_call() -> None:
    dialect = Dialect(Vosk)
    dialect.receive({"config": {"sample_rate": 4000}})
    with pytest.raises(ClientError, match="sample_rate"):
        dialect.receive(CHUNK)
