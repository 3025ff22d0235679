"""
What a session asks of the models, and what they answer. Knows neither session nor models.

Audio is 16 kHz mono, int16, little endian, as bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from dalston.triton.contract import Task, Variant


class SpeechRequest(msgspec.Struct, frozen=True):
    """The speech probability of each 32 ms of `audio`, the next in its sequence.

    An `end` carries no audio and nobody waits for its answer: the sequence is over.
    """

    sequence: str
    audio: bytes
    start: bool = False
    end: bool = False


@dataclass(frozen=True)
class TranscriptRequest:
    id: int  # of this session; a Cancel or an answer names it
    kind: Literal["partial", "final"]
    audio: bytes
    language: str  # ISO 639-1, or "auto", or several codes with spaces between them
    variant: Variant
    prefix: tuple[int, ...] = ()  # tokens that the hypothesis begins with
    draft: tuple[int, ...] = ()  # and that probably follow: what is asked costs less if they do
    words: bool = False
    task: Task = "transcribe"
    # What may be private is shown in no log.
    prompt: str = field(default="", repr=False)
    keywords: tuple[str, ...] = field(default=(), repr=False)
    segment_id: str = field(default="", compare=False)  # of a final: for people who look at traces
    # Of a partial: nothing of its utterance was shown yet, so it waits for no turn. Of others the
    # session is told when their turn has come, and asks with the audio that came meanwhile.
    urgent: bool = False
    recorded: bool = False  # of a final: nobody waits for it as long as live sessions ask


@dataclass(frozen=True)
class EndOfTurnRequest:
    """How likely it is that the turn is over which `audio` is the end of."""

    id: int  # of this session
    audio: bytes


@dataclass(frozen=True)
class Cancel:
    """Nobody wants the answer to this TranscriptRequest any more."""

    id: int


Request = SpeechRequest | TranscriptRequest | EndOfTurnRequest | Cancel


@dataclass(frozen=True)
class TimedWord:
    text: str
    start: float  # seconds from the start of the request's audio
    end: float
    probability: float


@dataclass(frozen=True)
class Hypothesis:
    """What a Whisper variant heard. The fields are the outputs of triton/contract.py."""

    text: str
    tokens: Sequence[int] = ()
    token_ends: Sequence[int] = ()
    language: str = "en"
    language_probability: float = 1.0
    average_logprob: float = 0.0
    no_speech_probability: float = 0.0
    window_seconds: float = 0.0  # that the encoder saw; of a final that was asked twice, both
    prompt_cut: int = 0  # tokens
    words: Sequence[TimedWord] = field(default_factory=tuple[TimedWord, ...])
    # Seconds from the start of the request's audio; empty where the model does not tell them.
    token_times: Sequence[float] = ()
    # 0 for those of the prefix; empty where the model does not tell them.
    token_logprobs: Sequence[float] = ()
    stages: Mapping[str, float] = field(default_factory=dict[str, float])  # seconds, of finals
