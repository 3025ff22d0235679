"""
From utterances to partials and finals: what to ask the Whisper models and what to tell of it.

Part of a session, and like it without I/O. Partials are asked for one at a time while somebody
speaks. A final is asked for when its utterance has ended, or speculatively when it pauses; nothing
in its request decides but the audio, the language, the variant and what the client asks for (task,
prompt, keywords), so that it can be repeated at any time with the same result. (What was heard so
far goes along as a draft, which only saves time.) Finals are told in order: the second side of a
cut is joined to the first, and what language is spoken is decided by all up to this one
(languages.py): a final that was heard in another is asked for once more.
"""

from collections import defaultdict, deque
from dataclasses import dataclass, field, replace

from dalston.orchestrator.protocol.messages import (
    Eager,
    Error,
    Final,
    Partial,
    Segment,
    ServerMessage,
    SessionConfig,
    Snapshot,
    Stats,
    Warn,
    Withdrawn,
    Word,
    segment_id,
)
from dalston.orchestrator.transcription import assembler
from dalston.orchestrator.transcription.agreement import Agreement
from dalston.orchestrator.transcription.languages import Evidence, evidence_of
from dalston.orchestrator.transcription.model_requests import (
    Cancel,
    Hypothesis,
    Request,
    TranscriptRequest,
)
from dalston.orchestrator.transcription.outbox import Outbox
from dalston.orchestrator.transcription.redaction import Redaction
from dalston.triton.contract import PROMPT_TOKENS, SAMPLE_RATE, Variant

PARTIAL_EVERY = SAMPLE_RATE // 2  # samples of speech, unless the worker is set otherwise
# After an outage or a burst several utterances wait; they may share a batch.
FINALS_IN_FLIGHT = 4


@dataclass
class Decode:
    """A final's request, from asking to answer."""

    id: int
    asked: tuple[object, ...]  # all that decides it
    last: int  # position after its audio
    done: bool = False
    hypothesis: Hypothesis | None = None  # None when done: it failed
    failure: str = ""
    elapsed_ms: int = 0

    @property
    def open(self) -> bool:
        """Whether the model was to find out the language."""
        language = str(self.asked[1])
        return language == "auto" or " " in language


@dataclass
class Utterance:
    """Somebody speaks. Positions are samples of the session's audio."""

    start: int  # of its final's audio: the onset less the lookback
    onset: int
    number: int = -1  # of its segment; given once the onset is confirmed
    continues: bool = False  # the second side of a cut
    next_partial: int = 0
    shown: bool = False  # by a partial
    language: str = ""  # of the partial shown last
    agreement: Agreement = field(default_factory=Agreement)
    speculation: Decode | None = None
    eager: bool = False  # whether its final was told before it is certain

    @property
    def shown_from(self) -> int:
        """Where partials begin: after a cut the overlap was shown already."""
        return self.onset if self.continues else self.start

    @property
    def segment_id(self) -> str:
        return segment_id(self.number)


@dataclass
class Ended:
    """An utterance that waits for its final."""

    utterance: Utterance
    end: int  # of its speech
    last: int  # of its final's audio
    due: int  # where it was known that it ended
    audio: bytes  # [utterance.start, last)
    config: SessionConfig  # at its end
    generation: int
    cut: bool  # another utterance continues it
    void: bool  # nothing was said
    decode: Decode | None = None
    # Language and probability, if it was asked which it is, and what it is after all.
    detected: tuple[str, float] | None = None
    language: str = ""

    @property
    def speech(self) -> int:
        return self.end - self.utterance.onset

    @property
    def words(self) -> bool:
        """Whether their times are needed: they cost the model a quarter of a final."""
        return self.config.word_timestamps or self.cut or self.utterance.continues


class Decoding:
    def __init__(
        self,
        variant: Variant,
        outbox: Outbox,
        snapshot: Snapshot | None = None,
        partial_every: int = PARTIAL_EVERY,
        redaction: Redaction | None = None,
    ):
        self._variant: Variant = variant
        self._redaction = redaction or Redaction()
        self.partial_every = partial_every  # samples
        self._outbox = outbox
        self._requests: list[Request] = []
        self._request_ids = 0
        self._partial: tuple[int, Utterance, int] | None = None  # in flight: id, of, audio end
        self._finals: dict[int, Decode] = {}  # in flight
        self._ended: deque[Ended] = deque()  # in order; told from the left
        # A language configured anew is detected anew, for the utterances that end after it.
        self.generation = 0
        self._evidence = defaultdict[int, Evidence](Evidence)
        self.segments: list[Segment] = []
        self.stats = Stats()
        # Of the utterance told last, for the join with one that continues it.
        self.overlap_words: list[Word] = []
        # Prompt and keywords of which it was told last that they are too long.
        self._cut_told: tuple[object, ...] = ()
        self.dues: deque[int] = deque(maxlen=FINALS_IN_FLIGHT)  # where the last told were due
        if snapshot:
            self.segments = list(snapshot.segments)
            self.overlap_words = list(snapshot.overlap_words)
            self._evidence[0] = evidence_of(snapshot)
            if snapshot.prompt_cut_told:
                self._cut_told = (snapshot.config.prompt, snapshot.config.keywords)

    def requests(self) -> list[Request]:
        """What is asked and was not taken before."""
        requests, self._requests = self._requests, []
        return requests

    @property
    def overdue(self) -> int | None:
        """The position at which the oldest final was due that is not told yet."""
        return self._ended[0].due if self._ended else None

    def evidence(self, generation: int) -> Evidence:
        """What is found out of the language, to be read before more is told."""
        return self._evidence[generation]

    def prompt_cut_told(self, config: SessionConfig) -> bool:
        return self._cut_told == (config.prompt, config.keywords)

    def _language(self, config: SessionConfig, generation: int, speech: int) -> str:
        """What to ask a model for: the configured language, or the one found to be spoken, or
        those that it may be. speech: samples of it."""
        if config.language != "auto":
            return config.language
        return self._evidence[generation].asked(config, speech)

    def _language_is_open(self, ended: Ended) -> bool:
        """Whether the finals before it may still decide what language this one is asked with."""
        config = ended.config
        if config.language != "auto" or ended is self._ended[0]:
            return False
        return not self._evidence[ended.generation].settled(config, ended.speech)

    def _heard_in_another(self, ended: Ended) -> bool:
        """Whether it was heard in another language than the one that is spoken by all there is to
        say so; then it is to be asked for in that."""
        decode = ended.decode
        if decode is None or decode.hypothesis is None or ended.detected:
            return False
        if ended.config.language != "auto" or not decode.hypothesis.text or not decode.open:
            return False
        hypothesis = decode.hypothesis
        ended.detected = hypothesis.language, hypothesis.language_probability
        evidence = self._evidence[ended.generation]
        ended.language = evidence.judged(ended.config, *ended.detected, ended.speech)
        return ended.language != hypothesis.language

    # While an utterance is open.

    def partial_due(self, utterance: Utterance, position: int) -> bool:
        return self._partial is None and position >= utterance.next_partial

    def ask_partial(
        self,
        utterance: Utterance,
        audio: bytes,
        position: int,
        config: SessionConfig,
    ) -> None:
        """`audio` is [utterance.shown_from, position)."""
        # One that is late does not make the next come early.
        due = utterance.next_partial + self.partial_every
        utterance.next_partial = due if due > position else position + self.partial_every
        self._request_ids += 1
        self._partial = (self._request_ids, utterance, position)
        request = self._partial_request(audio, config, position)
        self._requests.append(replace(request, urgent=not utterance.shown))

    def receive_turn(
        self, id: int, audio: bytes, position: int, config: SessionConfig
    ) -> TranscriptRequest:
        """The partial whose turn has come, with the audio up to `position`."""
        assert self._partial, "a partial that was called off has no turn"
        of, utterance, asked = self._partial
        assert of == id, "a partial that was called off has no turn"
        if position > asked:
            self._partial = (id, utterance, position)
            utterance.next_partial = position + self.partial_every
        return self._partial_request(audio, config, position)

    def _partial_request(
        self, audio: bytes, config: SessionConfig, position: int
    ) -> TranscriptRequest:
        assert self._partial
        id, utterance, _ = self._partial
        prefix = utterance.agreement.tokens
        language = self._language(config, self.generation, position - utterance.onset)
        if prefix and config.language == "auto":
            language = utterance.language  # what is agreed on cannot go on in another
        return TranscriptRequest(
            id,
            "partial",
            audio,
            language,
            self._variant,
            prefix,
            draft=tuple(utterance.agreement.before[len(prefix) :]),
            task=config.task,
            prompt=config.prompt,
            keywords=config.keywords,
        )

    def speculate(
        self, utterance: Utterance, audio: bytes, end: int, last: int, config: SessionConfig
    ) -> None:
        """The speaker pauses: ask for the final that is due if this turns out to be the end, which
        then was at `end`."""
        # While an earlier final is due the models are late: this one would hardly come earlier,
        # and where speech goes on its decode is lost. A recording is heard ahead of its finals: it
        # is known in a moment whether speech goes on.
        if self._ended or config.recorded:
            return
        language = self._language(config, self.generation, end - utterance.onset)
        words = config.word_timestamps or utterance.continues
        utterance.speculation = self._ask_final(utterance, audio, last, language, words, config)

    def resume(self, utterance: Utterance) -> None:
        """Speech goes on: take back what was asked for and told in the pause."""
        if utterance.eager:
            utterance.eager = False
            self._outbox.say(Withdrawn(utterance.segment_id))
        if decode := utterance.speculation:
            utterance.speculation = None
            self.stats.speculative_finals_dropped += 1
            if self._finals.pop(decode.id, None):
                self._requests.append(Cancel(decode.id))

    def abandon(self) -> None:
        """No utterance is open any more: a partial is of no use."""
        if self._partial:
            self._requests.append(Cancel(self._partial[0]))
            self._partial = None

    def close(self, ended: Ended) -> None:
        """The utterance is over; its final is told here in the order of messages."""
        utterance = ended.utterance
        decode = utterance.speculation
        language = self._language(ended.config, ended.generation, ended.speech)
        if decode and decode.asked == _asked(ended.last, language, ended.words, ended.config):
            ended.decode, utterance.speculation, utterance.eager = decode, None, False
            self.stats.speculative_finals_used += 1
        else:
            self.resume(utterance)
        self.abandon()
        self._ended.append(ended)
        self._outbox.later(lambda: self._final(ended))
        self._settle()

    # Answers.

    def receive_hypothesis(self, id: int, hypothesis: Hypothesis, elapsed_ms: int) -> None:
        if self._partial and self._partial[0] == id:
            _, utterance, position = self._partial
            self._partial = None
            self.stats.partial_window_seconds += hypothesis.window_seconds
            self._show(utterance, hypothesis, position)
        elif decode := self._finals.pop(id, None):
            decode.done, decode.hypothesis, decode.elapsed_ms = True, hypothesis, elapsed_ms
            self.stats.final_window_seconds += hypothesis.window_seconds
            self._settle()

    def show_speculation(
        self, utterance: Utterance, id: int, config: SessionConfig, end: int
    ) -> None:
        """The answer to a speculation is worth showing while its utterance is still open, whose
        speech ended at `end`."""
        decode = utterance.speculation
        if not (decode and decode.id == id and decode.hypothesis):
            return
        if config.interim_results:
            self._show(utterance, decode.hypothesis, decode.last, whole=True)
        if config.eager:
            self._tell_eager(utterance, decode.hypothesis, end, config)

    def _tell_eager(
        self, utterance: Utterance, hypothesis: Hypothesis, end: int, config: SessionConfig
    ) -> None:
        decode = utterance.speculation
        if config.language == "auto" and decode and decode.open:
            evidence, speech = self._evidence[self.generation], end - utterance.onset
            found = hypothesis.language, hypothesis.language_probability
            if evidence.judged(config, *found, speech) != hypothesis.language:
                return  # it will be asked for in another language
        # No final is due before it (see speculate), so what it is joined with is known.
        text, _ = self._said(utterance, hypothesis, end, self.overlap_words, config)
        if text:
            utterance.eager = True
            self._outbox.say(
                Eager(
                    segment_id=utterance.segment_id,
                    text=text,
                    start=assembler.seconds(utterance.shown_from),
                    end=assembler.seconds(end),
                    language=hypothesis.language,
                )
            )

    def receive_failure(self, id: int, sentence: str) -> None:
        if self._partial and self._partial[0] == id:
            self._partial = None  # the next is due soon enough
        elif decode := self._finals.pop(id, None):
            decode.done, decode.failure = True, sentence
            self._settle()

    # Telling.

    def _show(
        self, utterance: Utterance, hypothesis: Hypothesis, position: int, whole: bool = False
    ) -> None:
        if not hypothesis.text:
            return
        shown = utterance.agreement.receive(hypothesis, whole)
        if shown is None:
            return
        utterance.shown, utterance.language = True, hypothesis.language
        text, stable = self._redaction.partial(shown.text, shown.stable, utterance.continues)
        if not text:
            return
        self.stats.partials += 1
        self._outbox.say(
            Partial(
                utterance.segment_id,
                text,
                stable,
                assembler.seconds(utterance.shown_from),
                assembler.seconds(position),
            )
        )

    def _ask_final(
        self,
        utterance: Utterance,
        audio: bytes,
        last: int,
        language: str,
        words: bool,
        config: SessionConfig,
    ) -> Decode:
        self._request_ids += 1
        decode = Decode(self._request_ids, _asked(last, language, words, config), last)
        self._finals[decode.id] = decode
        # The draft is no part of what decides the final: it only makes it cheaper.
        draft = tuple(utterance.agreement.before)
        self._requests.append(
            TranscriptRequest(
                decode.id,
                "final",
                audio,
                language,
                self._variant,
                draft=draft,
                words=words,
                task=config.task,
                prompt=config.prompt,
                keywords=config.keywords,
                segment_id=utterance.segment_id,
                recorded=bool(config.recorded),
            )
        )
        return decode

    def _settle(self) -> None:
        """Tell the finals that are known, then ask for those that can be asked for: telling one
        can settle the language, and so what the next is asked with."""
        self._outbox.settle()
        for ended in self._ended:
            if ended.decode or ended.void:
                continue
            if self._language_is_open(ended):
                continue
            if len(self._finals) >= FINALS_IN_FLIGHT:
                return
            language = ended.language
            language = language or self._language(ended.config, ended.generation, ended.speech)
            ended.decode = self._ask_final(
                ended.utterance, ended.audio, ended.last, language, ended.words, ended.config
            )

    def _said(
        self,
        utterance: Utterance,
        hypothesis: Hypothesis,
        end: int,
        before: list[Word],
        config: SessionConfig,
        cut: bool = False,
    ) -> tuple[str, list[Word]]:
        """Text and words of an utterance whose speech ended at `end`, less what is `before` a cut
        that it continues, and less what is redacted. cut: another utterance continues it."""
        text, language = hypothesis.text, _written(hypothesis, config)
        continues = utterance.continues
        first = utterance.start if continues else utterance.onset
        words = assembler.session_words(hypothesis, utterance.start, first, end)
        if self._redaction:
            text = self._redaction.text(text, continues, cut)
            words = self._redaction.words(words, language, continues, cut)
        if not continues:
            return text, words
        words = assembler.after_cut(words, before, utterance.onset)
        return assembler.text_of(words, language), words

    def _final(self, ended: Ended) -> list[ServerMessage] | None:
        """What is told of an utterance that ended; None: not known yet."""
        decode, utterance = ended.decode, ended.utterance
        if not ended.void and (decode is None or not decode.done):
            return None
        if self._heard_in_another(ended):
            ended.decode = None
            return None
        first = self._ended.popleft()
        assert ended is first, "finals are told in order"
        before, self.overlap_words = self.overlap_words, []
        if ended.void or decode is None:
            return []
        if decode.hypothesis is None:
            sentence = f"{utterance.segment_id} could not be transcribed: {decode.failure}"
            return [Error(code="internal_error", message=sentence, recoverable=True)]

        hypothesis, config = decode.hypothesis, ended.config
        warnings: list[ServerMessage] = self._cut_warning(hypothesis, config)
        language = hypothesis.language
        end = ended.last if ended.cut else ended.end
        text, words = self._said(utterance, hypothesis, end, before, config, ended.cut)
        if ended.cut:
            self.overlap_words = assembler.overlap(words, ended.end)
            words = assembler.before_cut(words, ended.end)
            text = assembler.text_of(words, _written(hypothesis, config))
        if not text:
            return warnings
        if ended.detected:
            self._evidence[ended.generation].add(config, *ended.detected, ended.speech)
        shown, _ = self._redaction.partial(utterance.agreement.text, 0, utterance.continues)
        stable, changed = assembler.changed_words(shown, text, ended.cut)
        self.stats.finals += 1
        self.stats.stable_words += stable
        self.stats.stable_words_changed += changed
        final = Final(
            segment_id=utterance.segment_id,
            text=text,
            start=assembler.seconds(utterance.shown_from),
            end=assembler.seconds(ended.end),
            confidence=assembler.confidence(hypothesis),
            language=language,
            processing_ms=decode.elapsed_ms,
            words=words if config.word_timestamps else None,
        )
        self.dues.append(ended.due)
        self.segments.append(Segment(final.start, final.end, final.text, final.segment_id))
        return [*warnings, final]

    def _cut_warning(self, hypothesis: Hypothesis, config: SessionConfig) -> list[ServerMessage]:
        """Once for each prompt, and before the first final that was made with it."""
        if not hypothesis.prompt_cut or self.prompt_cut_told(config):
            return []
        self._cut_told = (config.prompt, config.keywords)
        sentence = (
            f"{hypothesis.prompt_cut} tokens of prompt and keywords are left out: the model takes "
            f"{PROMPT_TOKENS} and goes by the last"
        )
        return [Warn(code="prompt_cut", message=sentence)]


def _written(hypothesis: Hypothesis, config: SessionConfig) -> str:
    """The language of its text."""
    return "en" if config.task == "translate" else hypothesis.language


def _asked(last: int, language: str, words: bool, config: SessionConfig) -> tuple[object, ...]:
    """All that decides a final, but where its audio starts and the variant."""
    return last, language, words, config.task, config.prompt, config.keywords
