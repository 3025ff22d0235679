"""
A language of tones, with a VAD and a recogniser that understand it exactly: for tests of what
sessions do with audio, where the words must be known to the sample.

A word is a 1 kHz tone of a quarter second; its loudness says which of WORDS it is. The VAD has a
state that fades, so that it matters where a sequence starts. The recogniser hears a word in any
piece of audio that holds most of it. Where a language has to be detected, the first word decides
which of those it may be; and what it is asked for beside the audio shows in the words.
"""

import zlib
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np
import numpy.typing as npt

from dalston.orchestrator.protocol.messages import ClientMessage, ServerMessage, Snapshot
from dalston.orchestrator.transcription.model_requests import (
    Cancel,
    EndOfTurnRequest,
    Hypothesis,
    SpeechRequest,
    TimedWord,
    TranscriptRequest,
)
from dalston.orchestrator.transcription.session import Session

RATE = 16_000
WORDS = [f"w{letter}" for letter in "abcdefghijkl"]
WORD_S, GAP_S = 0.24, 0.08
_LOUDNESS = [400 * 1.35**k for k in range(len(WORDS))]  # peak, of 32768
_LOG_LOUDNESS = np.log(_LOUDNESS)
_BLOCK = 160  # 10 ms
_HEARD = 0.5  # of a word, to recognise it


def silence(seconds: float, rate: int = RATE) -> npt.NDArray[np.float32]:
    return np.zeros(round(seconds * rate), np.float32)


def say(words: Sequence[int], rate: int = RATE, gap_s: float = GAP_S) -> npt.NDArray[np.float32]:
    """These words with a short gap behind each, -1..1."""
    t = np.arange(round(WORD_S * rate)) / rate
    tone = np.sin(2 * np.pi * 1000 * t)
    parts = [
        part for word in words for part in (tone * _LOUDNESS[word] / 32768, silence(gap_s, rate))
    ]
    return np.concatenate([silence(0), *parts]).astype(np.float32)


def pcm(audio: npt.NDArray[np.float32]) -> bytes:
    return np.rint(audio * 32768).astype("<i2").tobytes()


class Vad:
    """Probabilities that fade in and out over some frames; every sequence has its own state."""

    def __init__(self) -> None:
        self.states: dict[str, float] = {}

    def probabilities(self, request: SpeechRequest) -> list[float]:
        if request.start:
            assert request.sequence not in self.states, "a sequence is started once"
            self.states[request.sequence] = 0.0
        state = self.states[request.sequence]
        samples = np.frombuffer(request.audio, np.int16).astype(np.float32)
        assert len(samples) % 512 == 0, "whole frames are asked for"
        answer: list[float] = []
        for frame in samples.reshape(-1, 512):
            active = float(np.sqrt(np.mean(frame**2)) > 60)
            state = 0.4 * state + 0.6 * active
            answer.append(state)
        self.states[request.sequence] = state
        if request.end:
            del self.states[request.sequence]
        return answer


LONGEST_PROMPT = 12  # characters; of more the rest is cut


def mark(request: TranscriptRequest) -> str:
    """What of a request, audio and language apart, shows in every word of its answer."""
    asked = (request.task, request.prompt, request.keywords)
    return "" if asked == ("transcribe", "", ()) else f"{zlib.crc32(repr(asked).encode()) % 1000}"


def recognise(audio: bytes, language: str = "en", mark: str = "", cut: int = 0) -> Hypothesis:
    """The words in the audio, with their times."""
    samples = np.frombuffer(audio, np.int16).astype(np.float32)
    blocks = samples[: len(samples) // _BLOCK * _BLOCK].reshape(-1, _BLOCK)
    loud = np.sqrt(np.einsum("ij,ij->i", blocks, blocks) * (2 / _BLOCK))
    words: list[TimedWord] = []
    tokens: list[int] = []
    edges = np.flatnonzero(np.diff((loud >= 100).astype(np.int8), prepend=0, append=0))
    for first, last in edges.reshape(-1, 2).tolist():
        length = (last - first) * _BLOCK / RATE
        # A word that is cut off is heard if most of it is there.
        if length >= _HEARD * WORD_S:
            level = loud[(first + last) // 2]
            word = int(np.argmin(np.abs(_LOG_LOUDNESS - np.log(level))))
            start = first * _BLOCK / RATE
            words.append(TimedWord(WORDS[word] + mark, start, start + length, 0.9))
            tokens.append(word + len(WORDS) * int(mark or 0))
    text = " ".join(word.text for word in words)
    spelt = [word.text for word in words]
    ends = [len(" ".join(spelt[: n + 1])) for n in range(len(tokens))]
    codes = ["en"] if language == "auto" else language.split()
    spoken = codes[(tokens[0] % len(WORDS) if tokens else 0) % len(codes)]
    return Hypothesis(
        text,
        tokens,
        ends,
        language=spoken,
        prompt_cut=cut,
        words=words,
        token_times=[word.start for word in words],
        token_logprobs=[-0.05] * len(words),
    )


def late_at_first(hypothesis: Hypothesis, late: float) -> Hypothesis:
    """With the first words so many seconds late, and the others pushed by them."""
    if not late:
        return hypothesis
    floor, words = 0.0, list[TimedWord]()
    for number, word in enumerate(hypothesis.words):
        start = max(floor, word.start + (late if number < 2 else 0.0))
        end = max(start + 0.02, word.end)
        words.append(TimedWord(word.text, start, end, word.probability))
        floor = end
    return replace(hypothesis, words=words)


def end_of_turn(audio: bytes) -> float:
    """A turn sounds over behind a word with an even number."""
    tokens = recognise(audio).tokens
    return 0.95 if tokens and tokens[-1] % 2 == 0 else 0.05


Step = bytes | ClientMessage


class Driver:
    """A session with models that answer at once, or `late` when the test says so."""

    def __init__(self, session: Session, late: np.random.Generator | None = None):
        self.session, self.vad, self._late = session, Vad(), late
        self.messages: list[ServerMessage] = []
        self.asked: list[TranscriptRequest] = []  # every transcript that was asked for
        self._speech: list[SpeechRequest] = []
        self._transcripts: dict[int, TranscriptRequest] = {}
        self.late_words = 0.0  # seconds that the first words of each answer are late
        self.unsure = False  # whether some languages are detected with little probability
        self.turns: list[EndOfTurnRequest] = []  # every one that was asked
        self._turns: list[EndOfTurnRequest] = []
        self.collect()

    def collect(self) -> None:
        for request in self.session.requests():
            match request:
                case SpeechRequest(end=True):
                    assert not request.audio
                    self.vad.probabilities(request)
                case SpeechRequest():
                    self._speech.append(request)
                case TranscriptRequest():
                    self.asked.append(request)
                    self._transcripts[request.id] = request
                case EndOfTurnRequest():
                    self.turns.append(request)
                    self._turns.append(request)
                case Cancel():
                    self._transcripts.pop(request.id, None)
        assert len(self._speech) <= 1, "one speech request at a time"
        self.messages += self.session.messages()

    def step(self, step: Step) -> None:
        if isinstance(step, bytes):
            self.session.receive_audio(step)
        else:
            self.session.receive_message(step)
        self.collect()
        self.answer()

    def run(self, steps: Sequence[Step]) -> list[ServerMessage]:
        for step in steps:
            self.step(step)
        self.answer(everything=True)
        return self.messages

    def answer(self, everything: bool = False) -> None:
        """Answer what was asked: all of it, or if late as much as chance will have."""
        while self._speech or self._turns or self._transcripts:
            if self._late and not everything and self._late.random() < 0.4:
                return
            choices = [*self._speech, *self._turns, *self._transcripts.values()]
            request = choices[int(self._late.integers(len(choices)))] if self._late else choices[0]
            if isinstance(request, SpeechRequest):
                self._speech.remove(request)
                self.session.receive_probabilities(self.vad.probabilities(request))
            elif isinstance(request, EndOfTurnRequest):
                self._turns.remove(request)
                self.session.receive_end_of_turn(request.id, end_of_turn(request.audio))
            else:
                del self._transcripts[request.id]
                if self._late and request.kind == "partial":  # it had to wait for its turn
                    request = self.session.receive_turn(request.id)
                cut = max(0, len(request.prompt) - LONGEST_PROMPT)
                hypothesis = recognise(request.audio, request.language, mark(request), cut)
                hypothesis = late_at_first(hypothesis, self.late_words)
                if self.unsure:
                    probability = 0.3 + 0.1 * (len(hypothesis.tokens) % 7)
                    hypothesis = replace(hypothesis, language_probability=probability)
                self.session.receive_hypothesis(request.id, hypothesis)
            self.collect()


def chunks(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    """`data` cut into pieces of these sizes, over and over."""
    pieces: list[bytes] = []
    at = index = 0
    while at < len(data):
        size = sizes[index % len(sizes)]
        pieces.append(data[at : at + size])
        at, index = at + size, index + 1
    return pieces


def snapshots(messages: Sequence[ServerMessage]) -> list[Snapshot]:
    """Each snapshot with the segments of those before it, as a gateway keeps them."""
    kept: list[Snapshot] = []
    for message in messages:
        if isinstance(message, Snapshot):
            before = kept[-1].segments if kept else []
            kept.append(msgspec.structs.replace(message, segments=[*before, *message.segments]))
    return kept
