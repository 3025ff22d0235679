"""
What clients and sessions say to each other: the vocabulary, and its wire form.

Every message is one frozen struct; its tag is its `type` on the wire. The native protocol is
these structs as JSON, one in a text frame, and audio as binary frames (docs/protocol.md). Other
protocols are mappings over them. Optional fields are omitted when unset, never null; unknown
fields are ignored. All times are seconds of the session's audio, counted in samples.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from dalston.triton.contract import SAMPLE_RATE, Task, Variant

PROTOCOL_VERSION = "1.0"
Frame = str | bytes  # of a WebSocket: a message, or audio

ErrorCode = Literal[
    "forbidden",
    "internal_error",
    "invalid_audio",
    "invalid_message",
    "invalid_parameter",
    "lag_exceeded",
    "language_unsupported",
    "no_capacity",
    "rate_limit",
    "session_timeout",
    "slow_reader",
    "unauthorized",
    "worker_lost",
]
EndReason = Literal["client_end", "idle_timeout", "max_duration", "server_drain", "terminated"]
Encoding = Literal["pcm_s16le", "pcm_f32le", "mulaw", "alaw"]
SAMPLE_BYTES: dict[Encoding, int] = {"pcm_s16le": 2, "pcm_f32le": 4, "mulaw": 1, "alaw": 1}

# What settings may be; everything outside is refused with a sentence.
SampleRate = Annotated[int, Meta(ge=8_000, le=48_000)]  # Hertz
Channels = Annotated[int, Meta(ge=1, le=2)]  # 2 are mixed down
Channel = Annotated[int, Meta(ge=0, le=1)]  # the first is 0
Threshold = Annotated[float, Meta(ge=0.0, le=1.0)]  # speech probability
Milliseconds = Annotated[int, Meta(ge=50, le=2_000)]
# A turn cannot be judged before a final is speculated: PAUSE in transcription/endpointer.py.
TurnSilence = Annotated[int, Meta(ge=200, le=5_000)]  # milliseconds
Padding = Annotated[int, Meta(ge=0, le=1_000)]  # milliseconds of audio kept before an onset
# Whisper hears 30 s at most. Below 5 s sentences would be cut that nobody spoke in one breath.
UtteranceSeconds = Annotated[float, Meta(ge=5.0, le=30.0)]
# Text that goes before what is said. The models take its last 224 tokens, which are some thousand
# letters; in the query of a URL, three times as long, more would not pass every proxy.
LONGEST_PROMPT = 2_000
Prompt = Annotated[str, Meta(max_length=LONGEST_PROMPT)]
# Names and terms. They take the place of the prompt, and what is expected everywhere is heard
# where it was not said.
MOST_KEYWORDS, LONGEST_KEYWORD = 50, 50  # characters
Keyword = Annotated[str, Meta(min_length=1, max_length=LONGEST_KEYWORD, pattern=r"^[^\x00-\x1f]*$")]
Keywords = Annotated[tuple[Keyword, ...], Meta(max_length=MOST_KEYWORDS)]
Languages = tuple[str, ...]  # ISO 639-1
# What is taken out of text: numbers, emails, and patterns that the server has a name for.
REDACTION_NAME = "[a-z][a-z0-9_]{0,30}"
MOST_REDACTIONS = 20
Redactions = Annotated[
    tuple[Annotated[str, Meta(pattern=f"^{REDACTION_NAME}$")], ...],
    Meta(max_length=MOST_REDACTIONS),
]
LanguageDetection = Literal["session", "utterance"]


class Message(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", kw_only=True):
    """The base of all messages: frozen structs whose tag is their `type`."""

    # Where each channel has a session of its own, told by the gateway: which of them says this.
    # What a client says with it is for that one only, else for all. A session knows of one channel.
    channel: Channel | None = None


def prefix(kind: type[Message]) -> str:
    """How a message of this kind begins on the wire: most need not be read any further."""
    return f'{{"type":"{kind.__struct_config__.tag}"'


def of_channel(message: str, channel: int) -> str:
    """A message of a session, as it is told of this channel."""
    return f'{message[:-1]},"channel":{channel}}}'


# --- from the client -----------------------------------------------------------------------------


class Configure(Message, tag="config", frozen=True):
    """Change settings from this point of the audio on; what is not named stays."""

    language: str | None = None
    languages: Languages | None = None
    language_detection: LanguageDetection | None = None
    task: Task | None = None
    prompt: Prompt | None = None
    keywords: Keywords | None = None
    interim_results: bool | None = None
    word_timestamps: bool | None = None
    endpointing: Literal["auto", "manual"] | None = None
    vad_threshold: Threshold | None = None
    min_speech_duration_ms: Milliseconds | None = None
    min_silence_duration_ms: Milliseconds | None = None
    prefix_padding_ms: Padding | None = None


class Flush(Message, tag="flush", frozen=True):
    """End the open utterance here and transcribe it."""

    answered: bool = True  # if answers were asked for; not what a gateway does for a muted client


class Commit(Message, tag="commit", frozen=True):
    """The same as Flush, under the name other protocols give it."""


class Clear(Message, tag="clear", frozen=True):
    """Forget the open utterance."""


class End(Message, tag="end", frozen=True):
    """No more audio: finish what was said, then end the session."""

    # Gateways say why they end a session; clients have no reason to.
    reason: EndReason = "client_end"


class Ping(Message, tag="ping", frozen=True):
    """Answered by Pong at once."""


ClientMessage = Configure | Flush | Commit | Clear | End | Ping


# --- to the client -------------------------------------------------------------------------------


def client_frame(position: int, sample_rate: int) -> int:
    """The first frame of `sample_rate` a second at or after `position`, samples at 16 kHz."""
    return -(-position * sample_rate // SAMPLE_RATE)


class SessionConfig(msgspec.Struct, frozen=True):
    """How a session listens; every field is told to the client in session.begin.

    The same names are the query parameters of the native protocol.
    """

    sample_rate: SampleRate = 16_000
    encoding: Encoding = "pcm_s16le"
    channels: Channels = 1
    language: str = "auto"  # ISO 639-1, or "auto"
    languages: Languages = ()  # to choose from where it is "auto"; none: from all
    language_detection: LanguageDetection = "session"  # once, or for each utterance
    task: Task = "transcribe"  # translate: into English
    prompt: Prompt = ""
    keywords: Keywords = ()
    model: Variant = "fast"
    interim_results: bool = True
    word_timestamps: bool = False
    enable_vad: bool = True  # whether speech_start and speech_end are sent
    ack: bool = False  # whether acks are sent, for a client that resumes
    flushed: bool = False  # whether flush is answered once the finals before it are told
    eager: bool = False  # whether finals are told before it is certain that they are
    # auto: silence ends utterances. smart: how long it takes depends on whether the turn sounds
    # over. manual: only flush and end finish them.
    endpointing: Literal["auto", "smart", "manual"] = "auto"
    vad_threshold: Threshold = 0.5
    min_speech_duration_ms: Milliseconds = 250
    min_silence_duration_ms: Milliseconds = 500
    # Of endpointing=smart: the probability from which a turn sounds over, the silence that ends one
    # that does, and the silence that ends any.
    turn_threshold: Threshold = 0.9
    turn_silence_ms: TurnSilence = 300
    max_silence_duration_ms: TurnSilence = 1_000
    prefix_padding_ms: Padding = 300
    max_utterance_duration: UtteranceSeconds = 30.0
    redact: Redactions = ()  # taken out of all text
    # Audio that is there already: it comes as fast as it is taken, nobody waits for each word, and
    # what live sessions ask of the models goes first. Gateways say so, clients cannot; of live
    # audio nothing is told of it.
    recorded: Literal[True] | msgspec.UnsetType = msgspec.UNSET
    model_id: str = ""  # which checkpoint that is

    @property
    def frame_bytes(self) -> int:
        """Of the client's audio: one sample of every channel."""
        return SAMPLE_BYTES[self.encoding] * self.channels

    @property
    def bytes_per_second(self) -> int:
        """Bytes of the client's audio in a second."""
        return self.frame_bytes * self.sample_rate

    def frame(self, position: int) -> int:
        """The first of the client's frames at or after `position`, samples at 16 kHz."""
        return client_frame(position, self.sample_rate)


class Notice(msgspec.Struct, frozen=True):
    """One of session.begin's warnings."""

    code: str
    message: str


class SessionBegin(Message, tag="session.begin", kw_only=True, frozen=True):
    session_id: str
    # No defaults where a client should always see the field: defaults are omitted.
    protocol_version: str
    config: SessionConfig
    warnings: list[Notice]
    resumed_from: str | None = None  # the session this one goes on with
    # Of a resumed session: the time from which its audio is to be sent again. Not whole: the
    # client's sample is resume_offset_ms * sample_rate / 1000, rounded up.
    resume_offset_ms: float | None = None


class Queued(Message, tag="session.queued", frozen=True):
    """No slot is free yet; comes again when the position changes."""

    position: int  # 1: the next
    timeout_seconds: float  # from now


class Ack(Message, tag="ack", frozen=True):
    """How far the audio got, in seconds of the session."""

    received: float
    processed: float  # searched for speech
    finalised: float  # never needed again: a resumed session does not begin before it


class SpeechStart(Message, tag="vad.speech_start", frozen=True):
    timestamp: float


class SpeechEnd(Message, tag="vad.speech_end", frozen=True):
    timestamp: float


class Partial(Message, tag="transcript.partial", frozen=True):
    segment_id: str
    text: str
    stable_chars: int  # so much of text stays as it is in every later partial of the segment
    start: float
    end: float  # the audio it covers


class Eager(Message, tag="transcript.eager", kw_only=True, frozen=True):
    """The final of a segment, should the speaker say no more: told while they pause.

    The final of the segment confirms it, or Withdrawn takes it back.
    """

    segment_id: str
    text: str
    start: float
    end: float
    language: str


class Withdrawn(Message, tag="transcript.withdrawn", frozen=True):
    """The Eager of this segment does not hold: speech goes on, or the client took it back."""

    segment_id: str


class Word(msgspec.Struct, frozen=True):
    word: str
    start: float
    end: float
    confidence: float


class Final(Message, tag="transcript.final", kw_only=True, frozen=True):
    segment_id: str
    text: str
    start: float
    end: float
    confidence: float  # geometric mean of the probabilities of its tokens
    language: str
    processing_ms: int  # from asking the model to its answer
    words: list[Word] | None = None  # if the session asked for word_timestamps


class Segment(msgspec.Struct, frozen=True):
    start: float
    end: float
    text: str
    segment_id: str


class ConfigUpdated(Message, tag="config.updated", frozen=True):
    config: SessionConfig


class Flushed(Message, tag="flushed", frozen=True):
    """Answers a flush: all that was said before it is told."""

    at: float  # where in the audio the flush stands


class Pong(Message, tag="pong", frozen=True):
    pass


class Warn(Message, tag="warning", kw_only=True, frozen=True):
    code: str
    message: str
    lag_seconds: float | None = None
    warning_threshold_seconds: float | None = None
    hard_threshold_seconds: float | None = None


class Stats(msgspec.Struct):
    """What a session cost and how steady its partials were. Counted up while it lasts."""

    partials: int = 0
    finals: int = 0
    speculative_finals_used: int = 0
    speculative_finals_dropped: int = 0
    stable_words: int = 0  # words that partials had declared stable
    stable_words_changed: int = 0  # of these, changed by the final
    # What the encoder saw: speech and the silence that fills its windows. Seconds.
    partial_window_seconds: float = 0.0
    final_window_seconds: float = 0.0
    # Where a final's time went, on average: orchestrator/worker/stage_times.py. Milliseconds.
    final_stages_ms: dict[str, float] = {}


class SessionEnd(Message, tag="session.end", kw_only=True, frozen=True):
    session_id: str
    reason: EndReason
    total_duration: float  # seconds of audio received
    total_audio_seconds: float  # the same, under its later name
    total_speech_duration: float
    wall_seconds: float  # that the session lasted by the clock
    transcript: str
    segments: list[Segment]
    stats: Stats


class SessionTerminated(Message, tag="session.terminated", kw_only=True, frozen=True):
    session_id: str
    reason: str
    recoverable: bool
    last_transcript_offset_ms: int | None = None
    recovery_hint: str | None = None


class Error(Message, tag="error", kw_only=True, frozen=True):
    code: ErrorCode
    message: str
    recoverable: bool
    retry_after: int | None = None  # seconds
    request_id: str | None = None


RETRY_AFTER_S = 5  # what a caller without a slot is told to wait


def refusal(code: ErrorCode, sentence: str) -> Error:
    """What a caller is told who gets no session: to come back, if only room is missing."""
    no_capacity = code == "no_capacity"
    return Error(
        code=code,
        message=sentence,
        recoverable=no_capacity,
        retry_after=RETRY_AFTER_S if no_capacity else None,
    )


# --- from worker to gateway only -----------------------------------------------------------------


class Snapshot(Message, tag="session.snapshot", kw_only=True, frozen=True):
    """All it takes to continue a session from here as if nothing had happened.

    Positions are samples at 16 kHz since the session began. To continue, a worker is given this
    and the audio from `replay_from` on. A worker that is given one is given all segments in it; on
    the way from a worker `segments` holds only those since the snapshot before.
    """

    session_id: str
    epoch: int
    position: int  # everything before it is decided
    replay_from: int  # at or before position: what is heard again to go on from there
    controls: int  # client messages that took effect before position
    config: SessionConfig
    detected_language: str | None  # the last that was certain enough
    next_segment: int
    speech_samples: int
    segments: list[Segment]
    floor: int | None = None  # no utterance begins before it; None: before replay_from
    continues: bool = False  # in the middle of a cut utterance
    prompt_cut_told: bool = False  # that the prompt of `config` is too long
    overlap_words: list[Word] = []  # of the utterance before, for the join of a cut
    elapsed_seconds: float = 0.0  # that the session lasted by the clock
    language_votes: dict[str, float] | None = None  # seconds of speech that were found to be in it


ServerMessage = (
    SessionBegin
    | Queued
    | Ack
    | SpeechStart
    | SpeechEnd
    | Partial
    | Eager
    | Withdrawn
    | Final
    | ConfigUpdated
    | Flushed
    | Pong
    | Warn
    | SessionEnd
    | SessionTerminated
    | Error
    | Snapshot
)

_client = msgspec.json.Decoder(ClientMessage)
_server = msgspec.json.Decoder(ServerMessage)
_encoder = msgspec.json.Encoder()

# A control message is a few words; anything longer is a mistake, and not worth parsing.
LONGEST_TEXT = 16_384  # characters
# A binary frame longer than this is a mistake, if nobody says otherwise: 32 s of 16 kHz PCM.
LONGEST_FRAME = 1 << 20  # bytes
# Longer messages no WebSocket here takes in: a connection that brings one is closed with 1009.
# Snapshots and the end of a session of hours have to fit.
LONGEST_MESSAGE = 16 << 20  # bytes
LONGEST_QUOTE = 200  # characters of what a client sent, in the answer that refuses it


class MessageError(ValueError):
    """A text frame that is no message; says why in a sentence."""


def parse(text: str | bytes) -> ClientMessage:
    """The client message in one text frame. Raises MessageError."""
    if len(text) > LONGEST_TEXT:
        raise MessageError(f"a control message of {len(text)} characters; {LONGEST_TEXT} at most")
    try:
        return _client.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise MessageError(f"not a message of this protocol: {quote(str(error))}") from None


def quote(text: str) -> str:
    return text if len(text) <= LONGEST_QUOTE else f"{text[:LONGEST_QUOTE]}…"


def parse_server(text: str | bytes) -> ServerMessage:
    """The inverse of serialize(). Raises msgspec.MsgspecError."""
    return _server.decode(text)


def serialize(message: ServerMessage | ClientMessage) -> str:
    return _encoder.encode(message).decode()


def segment_id(number: int) -> str:
    return f"seg_{number:04}"


def segment_number(segment_id: str) -> int:
    """Of seg_0007 it is 7; -1 if that is no segment, nor one that a session can have."""
    digits = segment_id.removeprefix("seg_")
    known = digits != segment_id and digits.isdecimal() and len(digits) <= 9
    return int(digits) if known else -1
