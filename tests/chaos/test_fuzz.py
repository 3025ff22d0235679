"""
Nothing that comes in may crash a session or a process. Longer: `make fuzz`.
"""

from pathlib import Path
from typing import Any, get_args

import fuzz
import pytest
from deployment import deployed
from hypothesis import given, settings
from hypothesis import strategies as st
from support.speech import WORDS
from tongues import TONGUES

from dalston.orchestrator.protocol.messages import (
    Clear,
    ClientMessage,
    Commit,
    Configure,
    Encoding,
    End,
    Error,
    Flush,
    MessageError,
    Ping,
    ServerMessage,
    SessionBegin,
    SessionConfig,
    SessionEnd,
    SpeechEnd,
    SpeechStart,
    parse,
    parse_server,
    serialize,
)
from dalston.orchestrator.protocol.parameters import ParameterError, session_config
from dalston.orchestrator.transcription.model_requests import (
    Cancel,
    EndOfTurnRequest,
    Hypothesis,
    SpeechRequest,
    TimedWord,
    TranscriptRequest,
)
from dalston.orchestrator.transcription.session import Session, State
from dalston.triton.contract import VAD_FRAME

# Scenes of minutes, ten of them: a busy machine takes longer than two minutes for some.
pytestmark = pytest.mark.timeout(400)

CONTROLS: list[ClientMessage] = [
    Flush(),
    Commit(),
    Clear(),
    Ping(),
    Configure(language="en"),
    Configure(language="tlh"),
    Configure(vad_threshold=0.0, min_speech_duration_ms=50, min_silence_duration_ms=50),
    Configure(vad_threshold=1.0, interim_results=False, word_timestamps=True),
    Configure(prefix_padding_ms=0),
]


class Chance:
    """What a session is told, by chance: audio, messages, answers and failures in any order."""

    def __init__(self, session: Session, data: st.DataObject):
        self.session, self._data = session, data
        self.messages: list[ServerMessage] = []
        self._speech: list[SpeechRequest] = []
        self._transcripts: dict[int, TranscriptRequest] = {}
        self._collect()

    def _draw(self, strategy: st.SearchStrategy[Any]) -> Any:
        return self._data.draw(strategy)

    def _collect(self) -> None:
        """What the session asks and says; turns are judged at once, which may have it ask more."""
        turns = list[EndOfTurnRequest]()
        for request in self.session.requests():
            match request:
                case SpeechRequest(end=True):
                    pass
                case SpeechRequest():
                    self._speech.append(request)
                case TranscriptRequest():
                    self._transcripts[request.id] = request
                case EndOfTurnRequest():
                    turns.append(request)
                case Cancel():
                    self._transcripts.pop(request.id, None)
        self.messages += self.session.messages()
        for request in turns:
            judged = self._draw(st.sampled_from([None, 0.0, 1.0]))
            self.session.receive_end_of_turn(request.id, judged)
        if turns:
            self._collect()

    def step(self) -> None:
        match self._draw(st.sampled_from("aaaasssssttmgl")):
            case "a":
                size = self._draw(st.sampled_from([0, 1, 3, 639, 9_600, 64_000, 400_001]))
                filling = self._draw(st.sampled_from([b"\0", b"\xff\x7f\xc0", b"\x12\x34"]))
                self.session.receive_audio((filling * size)[:size])
            case "s" if self._speech:
                self._answer_speech()
            case "l" if self._speech:
                self._speech.pop()
                self.session.receive_speech_lost()
            case "t" if self._transcripts:
                self._answer_transcript(self._draw(st.sampled_from(list(self._transcripts))))
            case "m":
                self.session.receive_message(self._draw(st.sampled_from(CONTROLS)))
            case "g":
                self.session.receive_invalid("garbage")
            case _:
                pass
        self._collect()

    def _answer_speech(self) -> None:
        request = self._speech.pop()
        frames = len(request.audio) // 2 // VAD_FRAME
        level = self._draw(st.sampled_from([0.0, 0.4, 0.5, 0.9, 1.0]))
        change = self._draw(st.integers(0, frames))
        probabilities = [level] * change + [1.0 - level] * (frames - change)
        self.session.receive_probabilities(probabilities)

    def _answer_transcript(self, id: int) -> None:
        request = self._transcripts.pop(id)
        if self._draw(st.booleans()) and request.kind == "partial":
            request = self.session.receive_turn(id)
        if self._draw(st.integers(0, 4)) == 0:
            return self.session.receive_failure(id, "it cannot be had")
        said = self._draw(st.lists(st.sampled_from([*WORDS, "wa wa", ""]), max_size=5))
        length = len(request.audio) / 2 / 16_000
        words = [TimedWord(word, n * 0.3, n * 0.3 + length, 0.5) for n, word in enumerate(said)]
        text = " ".join(said)
        ends = [len(" ".join(said[: n + 1])) for n in range(len(said))]
        hypothesis = Hypothesis(text, list(range(len(said))), ends, language="en", words=words)
        self.session.receive_hypothesis(id, hypothesis)

    def finish(self) -> None:
        self.session.receive_message(End())
        self._collect()
        while self._speech or self._transcripts:
            if self._speech:
                self._answer_speech()
            else:
                self._answer_transcript(next(iter(self._transcripts)))
            self._collect()


@settings(max_examples=80)
@given(data=st.data())
def test_a_session_survives_everything_in_any_order_and_ends_in_order(data: st.DataObject) -> None:
    config = SessionConfig(
        encoding=data.draw(st.sampled_from(get_args(Encoding))),
        sample_rate=data.draw(st.sampled_from([8_000, 16_000, 44_100])),
        channels=data.draw(st.integers(1, 2)),
        language=data.draw(st.sampled_from(["en", "auto"])),
        endpointing=data.draw(st.sampled_from(["auto", "smart", "manual"])),
        max_utterance_duration=5.0,
    )
    chance = Chance(Session("s", config, "fast", languages={"en"}), data)
    for _ in range(data.draw(st.integers(0, 30))):
        chance.step()
    chance.finish()
    assert chance.session.state is State.DONE
    assert isinstance(chance.messages[0], SessionBegin)
    assert isinstance(chance.messages[-1], SessionEnd)
    speaking = False
    for message in chance.messages:
        assert parse_server(serialize(message)) is not None
        if isinstance(message, SpeechStart | SpeechEnd):
            assert speaking is isinstance(message, SpeechEnd)
            speaking = not speaking
    assert not speaking


@settings(max_examples=300)
@given(rng=st.randoms(use_true_random=False), frames=st.integers(1, 20))
def test_every_fuzzed_text_is_a_message_or_refused_in_a_sentence(rng: Any, frames: int) -> None:
    made = fuzz.Frames(rng)
    for _ in range(frames):
        try:
            parse(made.text())
        except MessageError as error:
            assert len(str(error)) > 10  # noqa: PT017 - most are fine, and none may raise another


@settings(max_examples=300)
@given(text=st.one_of(st.text(max_size=200), st.binary(max_size=200)))
def test_any_text_is_a_message_or_refused(text: str | bytes) -> None:
    try:
        parse(text)
    except MessageError as error:
        assert serialize(Error(code="invalid_message", message=str(error), recoverable=True))  # noqa: PT017


_NAMES = st.sampled_from([*SessionConfig.__struct_fields__, "colour", "resume_session_id"])
_VALUES = st.one_of(st.text(max_size=20), st.integers().map(str), st.floats().map(str))


@settings(max_examples=300)
@given(query=st.dictionaries(_NAMES, _VALUES, max_size=5))
def test_any_parameters_are_settings_or_refused_by_name(query: dict[str, str]) -> None:
    try:
        session_config(query)
    except ParameterError as error:
        assert any(name in str(error) for name in query)  # noqa: PT017


@pytest.mark.timeout(180)
async def test_gateway_and_worker_survive_any_frames_and_end_every_session(tmp_path: Path) -> None:
    async with deployed(tmp_path, fuzz.SIZE) as deployment:
        result = await fuzz.fuzz(deployment, 4_000, seed=7)
    assert result.broken == []
    assert result.frames >= 4_000
    assert result.sessions > 20
    assert result.paths.keys() == {tongue.path for tongue in TONGUES}
