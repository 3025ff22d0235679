"""
ElevenLabs' realtime protocol as a mapping. # 003-35
"""

import base64
from typing import Any

import pytest
from support.dialects import Dialect, final, partial

from dalston.gateway.protocols.elevenlabs import ElevenLabs
from dalston.gateway.protocols.protocol import ClientError
from dalston.orchestrator.protocol.messages import Flushed, SessionBegin, SessionConfig
from dalston.orchestrator.protocol.parameters import ParameterError

AUDIO = bytes(range(200))


def elevenlabs(query: str = "") -> Dialect:
    dialect = Dialect(ElevenLabs, f"model_id=scribe_v2_realtime&{query}")
    dialect.config()
    return dialect


def chunk(audio: bytes = b"", **more: Any) -> dict[str, Any]:
    encoded = base64.b64encode(audio).decode()
    return {"message_type": "input_audio_chunk", "audio_base_64": encoded, **more}


def test_a_client_commits_unless_it_says_otherwise() -> None:
    assert elevenlabs().config().endpointing == "manual"
    assert elevenlabs("commit_strategy=vad").config().endpointing == "auto"


def test_the_query_becomes_settings() -> None:
    assert elevenlabs(
        "audio_format=ulaw_8000&commit_strategy=vad&vad_silence_threshold_secs=0.7"
        "&vad_threshold=0.4&language_code=deu&include_timestamps=true&keyterms=Zara&keyterms=Ida"
    ).config() == SessionConfig(
        encoding="mulaw",
        sample_rate=8000,
        language="de",
        word_timestamps=True,
        vad_threshold=0.4,
        min_silence_duration_ms=700,
        keywords=("Zara", "Ida"),
        flushed=True,
    )


def test_secondary_languages_are_chosen_from() -> None:
    config = elevenlabs("language_code=en&secondary_languages=de&secondary_languages=spa").config()
    assert (config.language, config.languages) == ("auto", ("en", "de", "es"))


@pytest.mark.parametrize(
    "query",
    [
        "audio_format=opus",
        "commit_strategy=never",
        "vad_silence_threshold_secs=9",
        "entity_redaction=all",
    ],
)
def test_what_cannot_be_done_is_refused(query: str) -> None:
    with pytest.raises(ParameterError):
        elevenlabs(query)


def test_chunks_are_audio_and_commits() -> None:
    dialect = elevenlabs()
    assert dialect.receive(chunk(AUDIO, commit=False, previous_text=None)) == [AUDIO]
    assert dialect.receive(chunk(AUDIO, commit=True)) == [AUDIO, '{"type":"flush"}']
    assert dialect.receive(chunk(commit=True)) == ['{"type":"flush"}']


def test_an_empty_chunk_keeps_the_connection_alive() -> None:
    assert elevenlabs().receive(chunk(commit=False)) == ['{"type":"ping"}']


@pytest.mark.parametrize(
    "frame",
    ["hello", '{"message_type":"shout"}', chunk(AUDIO, sample_rate=8000), b"\x00\x01"],
)
def test_what_makes_no_sense_ends_the_call(frame: Any) -> None:
    with pytest.raises(ClientError):
        elevenlabs().receive(frame)


def test_the_session_is_told_with_its_settings() -> None:
    begin = SessionBegin(
        session_id="sess_1", protocol_version="1.0", config=SessionConfig(), warnings=[]
    )
    (told,) = elevenlabs().say(begin)
    assert (told["message_type"], told["session_id"]) == ("session_started", "sess_1")
    assert told["config"]["commit_strategy"] == "manual"


def test_one_commit_is_all_that_was_said_since_the_last() -> None:
    dialect = elevenlabs()
    (shown,) = dialect.say(final(0, "Hello there.", 0.3, 1.4), partial(1, "My name", "", 2.0, 2.5))
    assert shown == {"message_type": "partial_transcript", "text": "Hello there. My name"}
    (told,) = dialect.say(final(1, "My name is Ida.", 2.0, 3.0), Flushed(3.0))
    assert told == {
        "message_type": "committed_transcript",
        "text": "Hello there. My name is Ida.",
    }
    (nothing,) = dialect.say(Flushed(4.0))
    assert nothing["text"] == ""


def test_each_final_is_committed_where_silence_commits() -> None:
    dialect = elevenlabs("commit_strategy=vad")
    told = dialect.say(final(0, "Hello.", 0.3, 1.4), final(1, "Bye.", 2.0, 3.0), Flushed(3.0))
    assert [what["text"] for what in told] == ["Hello.", "Bye."]


@pytest.mark.parametrize("asked", ["include_timestamps", "include_language_detection"])
def test_a_commit_is_told_twice_to_who_wants_more_than_the_text(asked: str) -> None:
    dialect = elevenlabs(f"commit_strategy=vad&{asked}=true")
    first, second = dialect.say(final(0, "Hello there.", 0.3, 1.3))
    assert first["message_type"] == "committed_transcript"
    assert second["message_type"] == "committed_transcript_with_timestamps"
    assert first["text"] == second["text"]
    if asked == "include_language_detection":
        assert (second["language_code"], second["words"]) == ("en", None)


def test_words_and_what_is_between_them_make_up_the_text() -> None:
    dialect = elevenlabs("include_timestamps=true")
    dialect.say(final(0, "Hello there.", 0.3, 1.3), final(1, "Bye.", 2.0, 2.5))
    _, told = dialect.say(Flushed(3.0))
    assert "".join(item["text"] for item in told["words"]) == told["text"] == "Hello there. Bye."
    assert [item["type"] for item in told["words"]] == ["word", "spacing"] * 2 + ["word"]
    times = [time for item in told["words"] for time in (item["start"], item["end"])]
    assert times == sorted(times)
