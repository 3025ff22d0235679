"""
Wyoming's events as a mapping, written and read by the wyoming package itself.
"""

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.dialects import END, final
from wyoming.asr import (
    Transcribe,
    Transcript,
    TranscriptChunk,
    TranscriptStart,
    TranscriptStop,
)
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.error import Error as WyomingError
from wyoming.event import Event, Eventable, read_event, write_event
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong

from dalston.gateway.protocols.protocol import ClientError, Frame, Opening, Reply
from dalston.gateway.protocols.wyoming import Wyoming
from dalston.orchestrator.protocol.messages import (
    Configure,
    Error,
    ErrorCode,
    Flush,
    Flushed,
    Partial,
    ServerMessage,
    SessionConfig,
    SessionTerminated,
    parse,
    serialize,
)

START = AudioStart(16_000, 2, 1)


def wire(event: Eventable | Event) -> bytes:
    out = io.BytesIO()
    write_event(event if isinstance(event, Event) else event.event(), out)
    return out.getvalue()


def read(frame: Frame) -> Event:
    stream = io.BytesIO(frame.encode() if isinstance(frame, str) else frame)
    event = read_event(stream)
    assert event
    assert not stream.read()
    return event


class Client:
    """What it hears is what the wyoming package reads."""

    def __init__(self, *languages: str):
        self.protocol = Wyoming(Opening([], {}), languages or ("en", "de"))

    def sends(self, event: Eventable | Event) -> list[Any]:
        """Audio, messages of ours, and events as replies."""
        return [
            read(part.frame) if isinstance(part, Reply) else part
            for part in self.protocol.receive(wire(event))
        ]

    def hears(self, *messages: ServerMessage) -> list[Event]:
        return [
            read(frame) for message in messages for frame in self.protocol.say(serialize(message))
        ]

    @property
    def config(self) -> SessionConfig:
        asked = self.protocol.asked()
        assert asked
        return asked.config


def test_it_describes_itself_before_anything_is_asked_for() -> None:
    client = Client("en", "de")
    (event,) = client.sends(Describe())
    (program,) = Info.from_event(event).asr
    assert program.installed
    assert program.supports_transcript_streaming
    assert [model.languages for model in program.models] == [["de", "en"]] * 2
    assert client.protocol.asked() is None


def test_a_ping_is_answered() -> None:
    client = Client()
    assert [Pong.from_event(event).text for event in client.sends(Ping("hm"))] == ["hm"]
    assert [Pong.from_event(event).text for event in client.sends(Ping())] == [None]


def test_an_utterance_is_what_stands_between_start_and_stop() -> None:
    client = Client()
    assert client.sends(Transcribe(language="de-AT", name="accurate")) == []
    assert client.sends(START) == []
    assert client.config == SessionConfig(
        language="de", model="accurate", interim_results=False, enable_vad=False, flushed=True
    )
    assert client.sends(AudioChunk(16_000, 2, 1, b"\1\2")) == [b"\1\2"]
    assert client.sends(AudioStop()) == [serialize(Flush())]
    told = client.hears(final(0, "Guten Tag.", 0.1, 1.0, "de"), final(1, "Hallo!", 1.5, 2.0, "de"))
    assert [TranscriptStart.from_event(told[0]).language] == ["de"]
    assert [TranscriptChunk.from_event(e).text for e in told[1:]] == ["Guten Tag.", " Hallo!"]
    transcript, stop = client.hears(Flushed(2.1))
    assert Transcript.from_event(transcript) == Transcript("Guten Tag. Hallo!", language="de")
    assert TranscriptStop.is_type(stop.type)


def test_nothing_said_is_an_empty_transcript() -> None:
    client = Client()
    client.sends(START)
    assert [Transcript.from_event(e).text for e in client.hears(Flushed(1.0))] == [""]
    assert [Transcript.from_event(e).text for e in Client().sends(AudioStop())] == [""]


def test_the_next_utterance_may_be_in_another_language() -> None:
    client = Client()
    client.sends(Transcribe(language="en"))
    client.sends(START)
    client.sends(AudioStop())
    client.hears(final(0, "Hello.", 0.1, 1.0), Flushed(1.0))
    assert client.sends(Transcribe(language="en")) == []
    (text,) = client.sends(Transcribe(language="de", transcript_names=["Zara"]))
    assert parse(text) == Configure(language="de", keywords=("Zara",))
    assert client.sends(START) == []
    chunk, transcript = client.hears(final(1, "Ja.", 2.0, 3.0, "de"), Flushed(3.0))[1:3]
    assert (chunk.data["text"], transcript.data["text"]) == ("Ja.", "Ja.")


def test_audio_may_begin_without_a_start() -> None:
    client = Client()
    assert client.sends(AudioChunk(22_050, 2, 2, bytes(8))) == [bytes(8)]
    assert (client.config.sample_rate, client.config.channels) == (22_050, 2)
    assert client.config.language == "auto"


@pytest.mark.parametrize(
    ("event", "why"),
    [
        (AudioStart(16_000, 4, 1), "audio of 4 bytes a sample"),
        (AudioStart(1_000, 2, 1), "sample_rate"),
        (AudioStart(16_000, 2, 5), "channels"),
        (Event("audio-start", {"rate": "16 kHz"}), "not an event of Wyoming"),
        (Event("transcribe", {"language": 5}), "not an event of Wyoming"),
    ],
)
def test_what_cannot_be_done_is_refused(event: Eventable | Event, why: str) -> None:
    with pytest.raises(ClientError, match=why):
        Client().sends(event)


def test_the_format_of_audio_cannot_change() -> None:
    client = Client()
    client.sends(START)
    with pytest.raises(ClientError, match="cannot change"):
        client.sends(AudioChunk(8_000, 2, 1, bytes(4)))


@pytest.mark.parametrize("kind", ["select-program", "played", "run-satellite", "x"])
def test_what_is_not_known_is_dropped(kind: str) -> None:
    assert Client().sends(Event(kind, {"name": "x"}, b"123")) == []


@pytest.mark.parametrize("code", ["no_capacity", "unauthorized", "invalid_message"])
def test_errors_are_told(code: ErrorCode) -> None:
    (event,) = Client().hears(Error(code=code, message="why", recoverable=False))
    assert WyomingError.from_event(event) == WyomingError("why", code)


def test_partials_are_not_told_and_an_end_that_nobody_asked_for_is() -> None:
    client = Client()
    assert client.hears(Partial("seg_0000", "he", 0, 0.1, 0.5), END) == []
    ended = SessionTerminated(session_id="s", reason="worker_lost", recoverable=False)
    assert [WyomingError.from_event(e).code for e in client.hears(ended)] == ["worker_lost"]


@given(
    sizes=st.lists(st.integers(0, 50), max_size=8), stamps=st.lists(st.integers(0, 9), max_size=8)
)
def test_audio_is_what_chunks_hold_whether_they_are_alike_or_not(
    sizes: list[int], stamps: list[int]
) -> None:
    client = Client()
    heard, sent = b"", b""
    for at, size in enumerate(sizes):
        audio = bytes([at]) * size
        stamp = stamps[at] if at < len(stamps) else None
        heard += b"".join(client.sends(AudioChunk(16_000, 2, 1, audio, stamp)))
        sent += audio
    assert heard == sent


def event(kind: str, said: dict[str, Any]) -> bytes:
    return wire(Event(kind, said))


@given(
    frames=st.lists(
        st.binary(max_size=60)
        | st.builds(
            event,
            st.sampled_from(["transcribe", "audio-start", "audio-chunk", "audio-stop", "ping"]),
            st.dictionaries(
                st.sampled_from(["rate", "width", "channels", "text", "language", "name"]),
                st.none() | st.integers() | st.text(max_size=5) | st.booleans(),
            ),
        ),
        max_size=6,
    )
)
def test_nothing_that_a_client_sends_breaks_it(frames: list[bytes]) -> None:
    protocol = Wyoming(Opening([], {}))
    try:
        for frame in frames:
            for part in protocol.receive(frame):
                if isinstance(part, Reply):
                    read(part.frame)
                elif isinstance(part, str):
                    parse(part)
            protocol.asked()
    except ClientError:
        pass
