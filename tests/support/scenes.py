"""
Scenes: audio of the language of tones and messages in turn, drawn at random, and what of a
session's answers must always be the same.
"""

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from hypothesis import strategies as st

from dalston.orchestrator.protocol.messages import (
    SAMPLE_BYTES,
    Clear,
    ClientMessage,
    Commit,
    ConfigUpdated,
    Configure,
    Eager,
    End,
    Error,
    Flush,
    Partial,
    ServerMessage,
    SessionConfig,
    SessionEnd,
    Snapshot,
    Stats,
    Withdrawn,
)
from dalston.orchestrator.transcription.session import Session
from support.sounds import encoded
from support.speech import RATE, WORDS, Step, chunks, say, silence

CONTROLS: list[ClientMessage] = [
    Flush(),
    Commit(),
    Clear(),
    Configure(language="en"),
    Configure(language="auto"),
    Configure(min_silence_duration_ms=300),
    Configure(vad_threshold=0.6),
    Configure(word_timestamps=False),
    Configure(languages=("en", "es")),
    Configure(language="auto", language_detection="utterance"),
    Configure(language="auto", languages=("es", "en"), language_detection="utterance"),
    Configure(language_detection="session"),
    Configure(task="translate"),
    Configure(prompt="a short one"),
    Configure(prompt="one that is too long"),
    Configure(keywords=("wa", "wb")),
]


@dataclass(frozen=True)
class Scene:
    """What is said to a session: audio and messages in turn."""

    config: SessionConfig
    parts: list[bytes | ClientMessage]
    score: str = ""  # the same for people

    def __repr__(self) -> str:
        """Without the megabytes of audio."""
        return f"Scene({self.config}, score={self.score!r})"

    def session(self, snapshot: Snapshot | None = None) -> Session:
        return Session(
            "s", self.config, "fast", languages={"en", "es"}, translates=True, snapshot=snapshot
        )

    def steps(self, sizes: list[int], parts: list[Any] | None = None) -> list[Step]:
        """With the audio between messages cut into pieces of these sizes."""
        steps: list[Step] = []
        audio = b""
        for part in [*(self.parts if parts is None else parts), End()]:
            if isinstance(part, bytes):
                audio += part
            else:
                steps += [*chunks(audio, sizes), part]
                audio = b""
        return steps

    def rest(self, snapshot: Snapshot) -> list[bytes | ClientMessage]:
        """What a session that continues from the snapshot is still to be told."""
        rate, width = self.config.sample_rate, SAMPLE_BYTES[self.config.encoding]
        audio = b"".join(part for part in self.parts if isinstance(part, bytes))
        at = -(-snapshot.replay_from * rate // RATE) * width
        parts: list[bytes | ClientMessage] = []
        behind = told = 0
        for part in self.parts:
            if isinstance(part, bytes):
                behind += len(part)
                continue
            told += 1
            if told > snapshot.controls:
                parts += [audio[at:behind], part]
                at = max(at, behind)
        return [*parts, audio[at:]]


def utterances() -> st.SearchStrategy[list[int]]:
    short = st.lists(st.integers(0, len(WORDS) - 1), min_size=1, max_size=6)
    # 110 words without a pause last 35 s: they are cut.
    long = st.integers(100, 115).map(lambda n: [(7 * k) % len(WORDS) for k in range(n)])
    return st.one_of(short, short, short, short, short, short, short, long)


@st.composite
def scenes(draw: st.DrawFn, controls: bool = True) -> Scene:
    config = SessionConfig(
        language=(language := draw(st.sampled_from(["en", "auto", "auto"]))),
        languages=draw(st.sampled_from([(), ("en", "es")])) if language == "auto" else (),
        language_detection=draw(st.sampled_from(["session", "utterance"]))
        if language == "auto"
        else "session",
        prompt=draw(st.sampled_from(["", "", "a prompt", "a prompt of many words"])),
        keywords=draw(st.sampled_from([(), (), ("wc",)])),
        sample_rate=draw(st.sampled_from([16_000, 16_000, 8_000, 22_050, 24_000, 44_100, 48_000])),
        encoding=draw(st.sampled_from(["pcm_s16le", "pcm_s16le", "pcm_f32le", "mulaw", "alaw"])),
        word_timestamps=True,
        endpointing=draw(st.sampled_from(["auto", "auto", "smart", "smart", "manual"])),
        eager=draw(st.booleans()),
        flushed=draw(st.booleans()),
    )
    rate = config.sample_rate
    parts: list[bytes | ClientMessage] = []
    score: list[object] = []
    for _ in range(draw(st.integers(1, 5))):
        pause = draw(st.sampled_from([0.0, 0.1, 0.3, 0.45, 0.6, 1.0, 3.0, 22.0]))
        words = draw(utterances())
        sound = np.concatenate([silence(pause, rate), say(words, rate)])
        # A message can fall anywhere, in the middle of a word too.
        cut = draw(st.integers(0, len(sound)))
        parts.append(encoded(sound[:cut], config.encoding))
        if controls and draw(st.integers(0, 3)) == 0:
            parts.append(draw(st.sampled_from(CONTROLS)))
        parts.append(encoded(sound[cut:], config.encoding))
        score += [pause, words, cut, *(p for p in parts[-2:-1] if not isinstance(p, bytes))]
    return Scene(config, parts, " ".join(map(str, score))[:2000])


def told(messages: list[ServerMessage]) -> list[ServerMessage]:
    """What must not depend on how audio and answers came: all but partials and eager finals, and
    what counts them.

    The answer to `config`, also one that refuses it, is given at once, so it stands where the
    message came.
    """
    kept: list[ServerMessage] = []
    for message in messages:
        if isinstance(message, SessionEnd):
            kept.append(msgspec.structs.replace(message, stats=Stats()))
        elif isinstance(message, Error) and message.code == "invalid_parameter":
            pass
        elif not isinstance(message, Partial | Eager | Withdrawn | ConfigUpdated):
            kept.append(message)
    return kept


# Bytes, from 10 ms of the most that a second has. Single ones have a test of their own: a scene
# has up to 40 MB.
SIZES = st.lists(st.integers(1_999, 60_000), min_size=1, max_size=5)
