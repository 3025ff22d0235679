"""
What language a session is in, by the evidence of its utterances. Without I/O.

Where the language is to be detected once for a session, each utterance votes for the one that was
detected in it, with the more weight the longer and surer it is. As long as no language is far
enough ahead each is detected anew, so what a short first utterance was taken for is put right by
the next. An utterance is in the language that leads when it has voted too: one that sounds
like another language on less evidence than there is for the leading one is none. Where the language
of each utterance is detected, the last that was certain enough stands in for those that are not.
"""

from dataclasses import dataclass, field

from dalston.orchestrator.protocol.messages import SessionConfig, Snapshot
from dalston.triton.contract import SAMPLE_RATE

# Below the first probability an utterance is no evidence, from the second on it counts in full: of
# base, 12 s window, utterances of 1 to 2.5 s. Above 0.8 one of 55 was wrong, below 0.5 half were.
UNCERTAIN, CERTAIN = 0.5, 0.8
# Where only some languages are allowed the probability is still among all.
AMONG_SOME = 0.5
# In less speech no language is detected where there is one that was certain enough. Of utterances
# of a second a quarter were taken for another language, of 1.5 s one in 15.
LANGUAGE_SPEECH = 3 * SAMPLE_RATE // 2
# So far ahead of all others together, in seconds of speech, a language is kept.
KEPT_AHEAD = 5.0
# With so much for it, in seconds of speech, short utterances are asked for in the leading one.
SHORT_GO_BY = 1.0


@dataclass
class Evidence:
    """What was found out since the language was configured."""

    votes: dict[str, float] = field(default_factory=dict[str, float])  # seconds of speech
    last: str | None = None  # that was certain enough

    @property
    def leading(self) -> str | None:
        return max(self.votes, key=self.votes.__getitem__) if self.votes else None

    @property
    def kept(self) -> str | None:
        """The language that is asked for from now on."""
        leading = self.leading
        if leading is None:
            return None
        others = sum(votes for language, votes in self.votes.items() if language != leading)
        return leading if self.votes[leading] - others >= KEPT_AHEAD else None

    def asked(self, config: SessionConfig, speech: int) -> str:
        """What to ask a model for an utterance of so many samples of speech: a language, or
        those that it may be."""
        short = speech < LANGUAGE_SPEECH
        if config.language_detection == "utterance":
            found = self.last if short else None
        else:
            found = self.kept
            if short and (leading := self.leading) and self.votes[leading] >= SHORT_GO_BY:
                found = leading
        return found or " ".join(config.languages) or "auto"

    def settled(self, config: SessionConfig, speech: int) -> bool:
        """Whether no other utterance can change what is asked for this one."""
        if config.language_detection == "utterance":
            return speech >= LANGUAGE_SPEECH
        return self.kept is not None

    def judged(self, config: SessionConfig, language: str, probability: float, speech: int) -> str:
        """The language of an utterance in which this one was detected."""
        if config.language_detection == "utterance":
            certain = _weight(config, probability) > 0
            return language if certain or self.last is None else self.last
        votes = self._with(config, language, probability, speech)
        return max(votes, key=votes.__getitem__) if votes else language

    def add(self, config: SessionConfig, language: str, probability: float, speech: int) -> None:
        """An utterance was told."""
        if _weight(config, probability) > 0 and speech >= LANGUAGE_SPEECH:
            self.last = language
        self.votes = self._with(config, language, probability, speech)

    def _with(
        self, config: SessionConfig, language: str, probability: float, speech: int
    ) -> dict[str, float]:
        seconds = _weight(config, probability) * speech / SAMPLE_RATE
        if seconds <= 0:
            return self.votes
        return {**self.votes, language: self.votes.get(language, 0.0) + seconds}


def _weight(config: SessionConfig, probability: float) -> float:
    scale = AMONG_SOME if config.languages else 1.0
    share = (probability / scale - UNCERTAIN) / (CERTAIN - UNCERTAIN)
    return min(max(share, 0.0), 1.0)


def evidence_of(snapshot: Snapshot) -> Evidence:
    """What a session that goes on there knows of its language."""
    found = snapshot.detected_language
    votes = snapshot.language_votes
    if votes is None:  # of a worker that knew of no votes
        votes = {found: KEPT_AHEAD} if found else {}
    return Evidence(dict(votes), found)
