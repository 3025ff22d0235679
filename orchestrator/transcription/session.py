"""
The life of one transcription, without I/O.

                receive End, or finish()         last final is told
    LISTENING ----------------------------> ENDING ----------------> DONE

After each receive_*() collect requests(), to be sent to the models, and messages(), to be sent to
the client. A session opens no socket, starts no task and reads no clock: the same audio, messages
and answers give the same messages, however the audio was cut into pieces. It changes when it is
given something, never when something is collected.

Inside, six machines work together:

    machine         its states, and what moves it                       where
    line of input   audio and client messages, in the order they came;  AudioStream, _markers
                    a message takes effect when the cursor is there     _advance, _take_effect
    VAD request     none -> waiting -> undecided -> none; if it fails,  _waiting, _undecided
                    its sequence is asked again from its start          _ask_speech, _go_on
    endpointer      silence -> onset -> speech; a pause may wait for    endpointer.py
                    the answer whether the turn is over                 _decide
    partial         none -> asked (-> its turn comes) -> none           decoding.py
    finals          ended -> asked -> known -> told, in order           decoding.py, outbox.py
    snapshot        stated at each restart, told once the finals        _restart, _stated
                    before it are known

How the same input gives the same messages. A cursor walks along the line in frames of 32 ms, one
request for speech probabilities at a time, and everything is decided at the cursor: where
utterances begin and end, and what audio a final is made of. At each end of an utterance, each cut
and every 20 s of silence the session restarts at the cursor, with a new VAD sequence and a new
resampler, and states itself in a Snapshot. Both hear some seconds from before the cursor again, of
which nothing is decided any more: a VAD that has heard nothing yet misses the first half second of
somebody who speaks quietly. Another session that goes on from there has the same inputs as this
one. Finals are asked for as soon as possible and told in the order of the audio.

With endpointing=smart a model is asked at each pause whether the turn is over. Its answer counts
from a fixed place in the audio on (endpointer.py), and the cursor waits there for it. So endpoints
depend on the answer and not on when it came. If none comes at all, which is decided by whoever
asks, silence ends the utterance; only that can differ when the audio is heard again.

Partials are the exception: they show what is known at the moment, and depend on when answers came.
So do eager finals: whether one is told depends on whether its answer came within the pause.
"""

import sys
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum, auto

import msgspec

from dalston.orchestrator.protocol.messages import (
    PROTOCOL_VERSION,
    Clear,
    ClientMessage,
    Commit,
    ConfigUpdated,
    Configure,
    End,
    EndReason,
    Error,
    Flush,
    Flushed,
    Notice,
    Ping,
    Pong,
    ServerMessage,
    SessionBegin,
    SessionConfig,
    SessionEnd,
    Snapshot,
    SpeechEnd,
    SpeechStart,
    Stats,
    Warn,
)
from dalston.orchestrator.protocol.parameters import hints, objection
from dalston.orchestrator.transcription import assembler
from dalston.orchestrator.transcription.audio import AudioStream
from dalston.orchestrator.transcription.changes import changes, configured, merged, thresholds
from dalston.orchestrator.transcription.decoding import PARTIAL_EVERY, Decoding, Ended, Utterance
from dalston.orchestrator.transcription.endpointer import (
    Endpointer,
    Event,
)
from dalston.orchestrator.transcription.model_requests import (
    EndOfTurnRequest,
    Hypothesis,
    Request,
    SpeechRequest,
    TranscriptRequest,
)
from dalston.orchestrator.transcription.outbox import Outbox
from dalston.orchestrator.transcription.redaction import Patterns, Redaction
from dalston.triton.contract import SAMPLE_RATE, TURN_AUDIO, VAD_FRAME, Variant

# All lengths are samples at 16 kHz.
# What is asked of the VAD at once: each question costs as much as hearing ten times the audio, so
# we ask only as often as decisions need it. A session that catches up asks for up to the last.
HOP, LONG_HOP, LONGEST_HOP = 3 * VAD_FRAME, 8 * VAD_FRAME, 32 * VAD_FRAME  # 96 ms, 256 ms, 1 s
SILENCE_BETWEEN_SNAPSHOTS = 20 * SAMPLE_RATE
# What a new sequence of the VAD hears from before its first decision, as far as there is any. Of
# speech 20 dB below the usual level it then misses 0.3 percent of what one unbroken sequence finds;
# with two seconds 1.0, with none 3.1.
WARM_UP = 125 * VAD_FRAME  # 4 s
# Before the session was silence: a sequence that has heard some finds more of a quiet first word.
SILENCE_BEFORE = 16 * VAD_FRAME
# An utterance that is too long is cut where it is quietest, in this much of its end (or a third
# of it). The first part keeps the audio up to half a second after the cut, the second part begins a
# second before it, so that a word at the cut is whole in one of them.
CUT_SEARCH = 5 * SAMPLE_RATE
CUT_AFTER, CUT_BEFORE = SAMPLE_RATE // 2, SAMPLE_RATE
CUT_WIDTH = 3 * VAD_FRAME
_OF_LANGUAGE = {"language", "languages", "language_detection"}


class State(Enum):
    LISTENING = auto()
    ENDING = auto()
    DONE = auto()


@dataclass(frozen=True)
class Marker:
    """A client message, at its place in the line of audio."""

    message: Configure | Flush | Clear | End
    frame: int  # the client's frame that it came before
    ordinal: int  # among the text frames of the session
    reason: EndReason = "client_end"


class Session:
    def __init__(
        self,
        session_id: str,
        config: SessionConfig,
        variant: Variant,
        *,
        languages: Collection[str],
        translates: bool = False,
        epoch: int = 1,
        warnings: list[Notice] | None = None,
        snapshot: Snapshot | None = None,
        partial_every: int = PARTIAL_EVERY,
        patterns: Patterns | None = None,
    ):
        self.id, self.epoch = session_id, epoch
        self.variant: Variant = variant
        # What the variant can do.
        self._languages, self._translates = languages, translates
        self.state = State.LISTENING
        self._config = snapshot.config if snapshot else config
        self._config_to_come = self._config  # once every message in the line has taken effect
        self._rules = thresholds(self._config)
        self._outbox = Outbox()
        redaction = Redaction(self._config.redact, patterns)
        self._decoding = Decoding(variant, self._outbox, snapshot, partial_every, redaction)
        self._requests: list[Request] = []

        # The line of input, and how far it is decided.
        start = snapshot.replay_from if snapshot else 0
        c = self._config
        self._audio = AudioStream(c.encoding, c.sample_rate, c.channels, start)
        self._markers: deque[Marker] = deque()
        self._text_frames = self._controls = snapshot.controls if snapshot else 0
        self._cursor = snapshot.position if snapshot else 0
        self._searched = self._cursor  # the furthest it has been
        self._restarted = self._cursor  # where it was at the last restart
        self._origin = _warm_from(start, self._cursor)  # where the VAD's sequence begins
        self._begin = start  # of the audio that is here
        self._floor: int = start  # no utterance begins before it
        if snapshot and snapshot.floor is not None:
            self._floor = snapshot.floor
        self._told_invalid = self._told_late = False
        self._said_end = False  # the client, that is: it knows that nothing may follow

        # The VAD: one request at a time, in a new sequence after each restart.
        self._sequence = 0
        self._fed = self._origin  # audio before it was sent in this sequence
        self._waiting = False
        self._undecided = deque[float]()  # probabilities that came, of frames after the cursor
        self._turns_asked = 0  # the last is the one whose answer counts
        self._told_unjudged = False
        self._enough = 0  # frames of the client: with fewer there is nothing to ask
        self._endpointer = Endpointer()
        self._open: Utterance | None = None
        self._dropped: tuple[Utterance, int] | None = None  # and the cursor when that was decided

        self._next_segment = snapshot.next_segment if snapshot else 0
        self._segments_stated = len(self._decoding.segments)
        self._speech = snapshot.speech_samples if snapshot else 0
        # Seconds that it lasted elsewhere; by the clock, which whoever runs a session knows.
        self.elapsed_before = snapshot.elapsed_seconds if snapshot else 0.0
        # Set when the models are overloaded: each utterance gets only its first partial.
        self.sparing = False

        self._outbox.say(
            SessionBegin(
                session_id=session_id,
                protocol_version=PROTOCOL_VERSION,
                config=self._config,
                warnings=warnings or [],
            )
        )
        if snapshot and snapshot.continues:
            self._continue_speech()
        self._outbox.settle()

    # What goes out.

    def requests(self) -> list[Request]:
        requests, self._requests = self._requests, []
        return requests + self._decoding.requests()

    def messages(self) -> list[ServerMessage]:
        return self._outbox.collect()

    @property
    def received(self) -> int:
        """Samples of audio received since the session began."""
        return self._audio.received

    @property
    def decided(self) -> int:
        """How many of them the cursor has passed."""
        return self._cursor

    @property
    def searched(self) -> int:
        """How many were searched for speech. (A cut takes the cursor back.)"""
        return self._searched

    @property
    def processed(self) -> int:
        """The position before which everything is decided and every final is told."""
        overdue = self._decoding.overdue
        return self._searched if overdue is None else overdue

    @property
    def messages_waiting(self) -> int:
        """How many client messages wait in the line for a model to answer."""
        return len(self._markers) if self._waiting or self._undecided else 0

    @property
    def config(self) -> SessionConfig:
        return self._config

    @property
    def language(self) -> str:
        """The language that is spoken: the one it was set to, or the one that was found; "auto" as
        long as that is not known."""
        if self._config.language != "auto":
            return self._config.language
        evidence = self._decoding.evidence(self._decoding.generation)
        return evidence.leading or evidence.last or "auto"

    @property
    def stats(self) -> Stats:
        return self._decoding.stats

    def final_due(self) -> int:
        """Where the final told next was due: the audio was searched for speech up to there when
        its utterance was known to be over. To be asked once for each."""
        return self._decoding.dues.popleft() if self._decoding.dues else self._searched

    @property
    def last_transcript(self) -> float | None:
        """Where the last final that was told ends, in seconds."""
        segments = self._decoding.segments
        return segments[-1].end if segments else None

    # What comes in.

    def receive_audio(self, data: bytes) -> bool:
        """Some more bytes of the client's audio, cut anywhere. False: nothing came of it, so there
        is nothing to collect."""
        if self.state is State.LISTENING:
            self._audio.receive(data)
            if self._audio.received_frames < self._enough:
                return False
            self._advance()
        elif self.state is State.ENDING and self._said_end and not self._told_late:
            self._told_late = True
            self._refuse("audio after the end of the session")
        return True

    def receive_message(self, message: ClientMessage) -> None:
        self._text_frames += 1
        match self.state, message:
            case State.DONE, _:
                pass
            case _, Ping():
                # Out of line: it asks whether the connection lives.
                self._outbox.say_at_once(Pong())
            case State.LISTENING, Configure():
                self._configure(message)
            case State.LISTENING, Flush() | Commit():
                self._mark(message if isinstance(message, Flush) else Flush())
                self._advance()
            case State.LISTENING, Clear():
                self._mark(message)
                self._advance()
            case State.LISTENING, End():
                self.finish(message.reason)
            case State.ENDING, _ if self._said_end:
                name = type(message).__struct_config__.tag
                self._refuse(f"{name} after the end of the session")
            case _:
                pass

    def receive_invalid(self, sentence: str) -> None:
        """A text frame that is no message, or one that cannot be followed."""
        self._text_frames += 1
        if self.state is not State.DONE:
            self._refuse(sentence)

    def finish(self, reason: EndReason) -> None:
        """End the session: no more audio comes, and what was said is finished first."""
        if self.state is State.LISTENING:
            self._mark(End(), reason)
            self.state = State.ENDING
            self._said_end = reason == "client_end"
            self._advance()

    def abandon(self) -> None:
        """The client is gone: nothing more will be told. The VAD still learns that it is over."""
        self.state = State.DONE
        self._end_sequence()

    def receive_probabilities(self, probabilities: list[float]) -> None:
        """The answer to the SpeechRequest asked last."""
        assert self._waiting, "probabilities nobody asked for"
        self._waiting = False
        self._undecided.extend(probabilities)
        self._go_on()

    def receive_end_of_turn(self, id: int, probability: float | None) -> None:
        """The answer to an EndOfTurnRequest; None: there is none, and silence decides."""
        if probability is None and not self._told_unjudged:
            self._told_unjudged = True
            sentence = "whether turns are over cannot be told at the moment; silence ends them"
            self._outbox.say_at_once(Warn(code="turns_not_judged", message=sentence))
        if id == self._turns_asked:
            self._endpointer.judge(probability)
            self._go_on()

    def _go_on(self) -> None:
        """Decide what is known, up to a frame that has to wait for another answer."""
        while self._undecided:
            end = self._fed + VAD_FRAME
            if end > self._cursor and self._endpointer.undecided(end, self._rules):
                break
            probability = self._undecided.popleft()
            start, self._fed = self._fed, end
            if end <= self._cursor:
                continue  # decided before: the new sequence only had to hear it
            self._cursor = end
            self._searched = max(self._searched, self._cursor)
            if self._decide(probability, start):
                self._undecided.clear()  # restarted: asked again, in a new sequence
        self._advance()

    def receive_speech_lost(self) -> None:
        """The SpeechRequest failed, and its sequence with it: it is heard again from its start."""
        assert self._waiting, "the failure of nothing"
        self._waiting = False
        self._sequence += 1
        self._fed = self._origin
        self._advance()

    def receive_turn(self, id: int) -> TranscriptRequest:
        """A partial had to wait for its turn, which has come: what to ask instead, with the audio
        that came meanwhile."""
        assert self._open, "a partial is called off with its utterance"
        audio = self._audio.read(self._open.shown_from, self._cursor)
        return self._decoding.receive_turn(id, audio, self._cursor, self._config)

    def receive_hypothesis(self, id: int, hypothesis: Hypothesis, elapsed_ms: int = 0) -> None:
        """The answer to a TranscriptRequest; ignored if it was cancelled meanwhile."""
        self._decoding.receive_hypothesis(id, hypothesis, elapsed_ms)
        if self._open and self._endpointer.silence is not None:
            end = self._endpointer.silence
            self._decoding.show_speculation(self._open, id, self._config, end)
        self._ask_partial()
        self._outbox.settle()

    def receive_failure(self, id: int, sentence: str) -> None:
        """A TranscriptRequest that cannot be answered."""
        self._decoding.receive_failure(id, sentence)
        self._outbox.settle()

    def _configure(self, change: Configure) -> None:
        """Accepted or refused at once, in force where it stands among the audio."""
        to_come = configured(self._config_to_come, change)
        if wrong := objection(to_come, self._languages, self._translates):
            code, sentence = wrong
            return self._outbox.say_at_once(Error(code=code, message=sentence, recoverable=True))
        self._mark(change)
        self._config_to_come = to_come
        self._outbox.say_at_once(ConfigUpdated(to_come))
        if change.vad_threshold is not None:
            for hint in hints(to_come):
                self._outbox.say_at_once(Warn(code=hint.code, message=hint.message))
        self._advance()

    def _refuse(self, sentence: str) -> None:
        self._outbox.say_at_once(Error(code="invalid_message", message=sentence, recoverable=True))

    # The line of input.

    def _mark(
        self, message: Configure | Flush | Clear | End, reason: EndReason = "client_end"
    ) -> None:
        frame = self._audio.received_frames
        last = self._markers[-1] if self._markers else None
        if last and last.frame == frame and isinstance(message, Configure):
            # Two at the same place are one: however many come, they take no room.
            if isinstance(last.message, Configure):
                message = merged(last.message, message)
                self._markers.pop()
        self._markers.append(Marker(message, frame, self._text_frames, reason))

    def _advance(self) -> None:
        """Ask for the next probabilities, or let a message take effect, as far as it goes."""
        self._enough = 0
        while not (self._waiting or self._undecided) and self.state is not State.DONE:
            marker = self._markers[0] if self._markers else None
            # Audio after a message that ends something belongs to what follows.
            ending = next((m for m in self._markers if not isinstance(m.message, Configure)), None)
            frame = ending.frame if ending else self._audio.received_frames
            undecided = max(self._fed, self._cursor)  # the first sample
            end = self._audio.produce(undecided + LONGEST_HOP, frame)
            # A restart goes back to a cut and its overlap at most.
            self._audio.forget_raw(self._cursor - CUT_SEARCH - WARM_UP - SAMPLE_RATE)
            if marker and marker is not ending:
                end = min(end, self._audio.position(marker.frame))
            whole = min(end - self._fed, LONGEST_HOP) // VAD_FRAME * VAD_FRAME
            hop = VAD_FRAME if marker or self._fed < self._cursor else self._hop()
            worth = end - undecided >= VAD_FRAME if marker else end > self._begin
            if whole >= hop and worth:
                self._ask_speech(whole)
            elif marker is None:
                self._enough = self._audio.frame(self._fed + hop)
                break
            elif marker is ending:
                end = self._audio.position(marker.frame)
                if end >= self._cursor:
                    self._audio.drain(marker.frame)
                if end - undecided < VAD_FRAME:
                    self._markers.popleft()
                    self._cursor = max(end, self._cursor)
                    self._searched = max(self._searched, self._cursor)
                    self._take_effect(marker)
            elif self._audio.position(marker.frame) - undecided >= VAD_FRAME:
                if ending is None:
                    break  # the resampler holds the audio before it, until more comes
                self._audio.drain(ending.frame)
            else:
                self._markers.popleft()
                self._take_effect(marker)
        if self._waiting or self._undecided:
            self._enough = sys.maxsize
        if self._audio.invalid_samples and not self._told_invalid:
            self._told_invalid = True
            sentence = "some values in the audio are no numbers; they are heard as silence"
            self._outbox.say_at_once(
                Error(code="invalid_audio", message=sentence, recoverable=True)
            )
        self._outbox.settle()

    def _take_effect(self, marker: Marker) -> None:
        """Let a client message take effect: the cursor has come to it."""
        self._controls = marker.ordinal
        utterance = self._open
        # It may come in the middle of what is heard again, all of which is decided. What is open
        # then begins after it.
        late = self._audio.position(marker.frame) < self._cursor
        match marker.message:
            case Configure():
                self._config = configured(self._config, marker.message)
                self._rules = thresholds(self._config)
                if _OF_LANGUAGE & changes(marker.message).keys():
                    self._decoding.generation += 1
                return
            case Flush() | Clear() if late:
                pass
            case Clear():
                if utterance:
                    self._forget(utterance)
            case End() if late:
                if utterance:
                    self._forget(utterance)
            case Flush() | End():
                if utterance:
                    self._confirm(utterance)  # however short: the client says it was something
                    silence = self._endpointer.silence
                    end = self._cursor if silence is None else silence
                    self._close(utterance, end, min(end + self._rules.pause, self._cursor))
        answered = isinstance(marker.message, Flush) and marker.message.answered
        if answered and self._config.flushed:
            self._outbox.say(Flushed(assembler.seconds(self._cursor)))
        if isinstance(marker.message, End):
            self._end_sequence()
            self._outbox.later(lambda: self._end(marker.reason))
        elif not late:
            self._restart(self._cursor)

    def _end(self, reason: EndReason) -> list[ServerMessage]:
        self.state = State.DONE
        duration = assembler.seconds(self._cursor)
        return [
            SessionEnd(
                session_id=self.id,
                reason=reason,
                total_duration=duration,
                total_audio_seconds=duration,
                total_speech_duration=assembler.seconds(self._speech),
                wall_seconds=0.0,  # told by whoever has a clock
                transcript=assembler.transcript(self._decoding.segments),
                segments=self._decoding.segments,
                stats=self._decoding.stats,
            )
        ]

    def _restart(self, position: int, *, floor: int | None = None, continues: bool = False) -> None:
        """Go on from `position` as a session does that is given the snapshot stated here. floor:
        where no utterance begins before; if not given, all that is in no final yet may be used."""
        if floor is None:
            floor = max(position - self._lookback, self._floor)
        replay_from = self._begin = max(self._begin, min(floor, position - WARM_UP))
        self._end_sequence()
        self._sequence += 1
        self._floor = floor
        self._audio.restart(replay_from)
        self._restarted = self._cursor = position
        self._origin = self._fed = _warm_from(replay_from, position)
        self._endpointer, self._dropped = Endpointer(), None
        snapshot = Snapshot(
            session_id=self.id,
            epoch=self.epoch,
            position=position,
            replay_from=replay_from,
            floor=floor,
            controls=self._controls,
            config=self._config,
            detected_language=None,
            next_segment=self._next_segment,
            speech_samples=self._speech,
            segments=[],
            continues=continues,
        )
        generation = self._decoding.generation
        self._outbox.later(lambda: [self._stated(snapshot, generation)])

    def _stated(self, snapshot: Snapshot, generation: int) -> Snapshot:
        """The snapshot, now that the finals before it are known."""
        segments = self._decoding.segments[self._segments_stated :]
        self._segments_stated += len(segments)
        evidence = self._decoding.evidence(generation)
        return msgspec.structs.replace(
            snapshot,
            detected_language=evidence.last,
            language_votes=evidence.votes,
            prompt_cut_told=self._decoding.prompt_cut_told(snapshot.config),
            segments=segments,
            overlap_words=self._decoding.overlap_words,
        )

    # Speech and silence.

    @property
    def _lookback(self) -> int:
        return self._config.prefix_padding_ms * SAMPLE_RATE // 1000

    @property
    def _sequence_id(self) -> str:
        return f"{self.id}.{self.epoch}.{self._sequence}"

    def _hop(self) -> int:
        """How much audio to wait for: up to where something can be decided, if that is soon."""
        decision = self._endpointer.earliest(self._fed, self._rules)
        if self._open and self._open.next_partial > self._fed:
            decision = min(decision, self._open.next_partial)
        frames = -((self._fed - decision) // VAD_FRAME)
        # In a pause the client waits for the decision, so ask for no frame more than it needs.
        shortest = HOP if self._endpointer.silence is None else VAD_FRAME
        return max(shortest, min(frames * VAD_FRAME, LONG_HOP))

    def _ask_speech(self, length: int) -> None:
        self._waiting = True
        first, last = self._fed, self._fed + length
        silence = bytes(2 * max(0, min(self._begin, last) - first))
        audio = silence + self._audio.read(max(first, self._begin), max(last, self._begin))
        start = self._fed == self._origin
        self._requests.append(SpeechRequest(self._sequence_id, audio, start=start))

    def _end_sequence(self) -> None:
        if self._fed > self._origin:
            self._requests.append(SpeechRequest(self._sequence_id, b"", end=True))
            self._origin = self._fed

    def _decide(self, probability: float, start: int) -> bool:
        """What the frame [start, cursor) means. True: the session has restarted."""
        event = self._endpointer.receive(probability, start, self._cursor, self._rules)
        silence = self._endpointer.silence
        utterance = self._open
        if utterance is None:
            if event is Event.ONSET:
                first, onset = max(start - self._lookback, self._floor), start
                if self._dropped and first < self._dropped[1]:
                    # What was too short to be speech is followed by more: it was its beginning.
                    first, onset = self._dropped[0].start, self._dropped[0].onset
                due = start + self._decoding.partial_every
                self._open = Utterance(first, onset, next_partial=due)
            elif self._cursor - self._restarted >= SILENCE_BETWEEN_SNAPSHOTS:
                self._restart(self._cursor)
                return True
            return False
        match event:
            case Event.DROPPED:
                self._open, self._dropped = None, (utterance, self._cursor)
                self._endpointer = Endpointer()
                return False
            case Event.ENDPOINT if silence is not None:
                self._close(utterance, silence, min(silence + self._rules.pause, self._cursor))
                self._restart(self._cursor)
                return True
            case Event.CONFIRMED:
                self._confirm(utterance)
            case Event.PAUSE if silence is not None:
                last = silence + self._rules.pause
                audio = self._audio.read(utterance.start, last)
                self._decoding.speculate(utterance, audio, silence, last, self._config)
                if self._rules.turns:
                    self._turns_asked += 1
                    self._requests.append(
                        EndOfTurnRequest(self._turns_asked, audio[-2 * TURN_AUDIO :])
                    )
            case Event.RESUMED:
                self._decoding.resume(utterance)
            case _:
                pass
        longest = int(self._config.max_utterance_duration * SAMPLE_RATE)
        if self._cursor - utterance.start >= longest:
            self._cut(utterance, longest)
            return True
        self._ask_partial()
        return False

    def _ask_partial(self) -> None:
        utterance = self._open
        if (
            utterance is not None
            and utterance.number >= 0
            and self._config.interim_results
            and self._endpointer.silence is None  # else nothing new was said
            and not (self.sparing and utterance.shown)
            and self._decoding.partial_due(utterance, self._cursor)
        ):
            audio = self._audio.read(utterance.shown_from, self._cursor)
            self._decoding.ask_partial(utterance, audio, self._cursor, self._config)

    def _confirm(self, utterance: Utterance) -> None:
        if utterance.number < 0:
            utterance.number = self._next_segment
            self._next_segment += 1
            if self._config.enable_vad:
                self._outbox.say(SpeechStart(assembler.seconds(utterance.onset)))

    def _tell_end(self, utterance: Utterance, position: int) -> None:
        self._speech += position - utterance.onset
        if self._config.enable_vad:
            self._outbox.say(SpeechEnd(assembler.seconds(position)))

    def _close(self, utterance: Utterance, end: int, last: int, cut: bool = False) -> None:
        """Its speech ended at `end`; its final is made of the audio up to `last`."""
        # The second side of a cut may be silent from its first frame on; it still takes time.
        end = max(end, min(utterance.onset + VAD_FRAME, self._cursor))
        self._tell_end(utterance, end)
        self._decoding.close(
            Ended(
                utterance,
                end,
                last,
                self._searched,
                self._audio.read(utterance.start, last),
                self._config,
                self._decoding.generation,
                cut,
                void=not self._endpointer.spoke,
            )
        )
        self._open = None
        self._floor = last

    def _forget(self, utterance: Utterance) -> None:
        """The client takes it back: no final."""
        if utterance.number >= 0:
            self._tell_end(utterance, self._cursor)
        self._decoding.resume(utterance)
        self._decoding.abandon()
        self._open = None
        self._floor = self._cursor

    def _cut(self, utterance: Utterance, longest: int) -> None:
        """End it at its quietest recent point, and go on with another from there."""
        after = min(CUT_AFTER, longest // 12)
        search = min(CUT_SEARCH, longest // 3)
        cut = self._audio.quietest(self._cursor - search, self._cursor - after, CUT_WIDTH)
        self._close(utterance, cut, cut + after, cut=True)
        self._restart(cut, floor=max(cut - CUT_BEFORE, utterance.start), continues=True)
        self._continue_speech()

    def _continue_speech(self) -> None:
        """After a cut, the next utterance begins where the last one ended."""
        self._open = Utterance(
            start=self._floor,
            onset=self._cursor,
            continues=True,
            next_partial=self._cursor + self._decoding.partial_every,
        )
        self._endpointer.resume_speech(self._cursor)
        self._confirm(self._open)


def _warm_from(first: int, position: int) -> int:
    """Where a sequence begins whose frames have an edge at `position`, with audio from `first`."""
    return position - min(position - first + SILENCE_BEFORE, WARM_UP) // VAD_FRAME * VAD_FRAME
