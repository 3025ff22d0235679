"""
What language a session is taken to be in.
"""

import msgspec
import pytest

from dalston.orchestrator.protocol.messages import (
    Final,
    SessionConfig,
    Snapshot,
    parse_server,
    serialize,
)
from dalston.orchestrator.transcription.decoding import Decoding, Ended, Utterance
from dalston.orchestrator.transcription.languages import KEPT_AHEAD, Evidence, evidence_of
from dalston.orchestrator.transcription.model_requests import Hypothesis, TranscriptRequest
from dalston.orchestrator.transcription.outbox import Outbox

RATE = 16_000
ANY, EACH = SessionConfig(), SessionConfig(language_detection="utterance")


class Speaker:
    """Says utterances to a Decoding, whose model is told what it hears in them."""

    def __init__(self, config: SessionConfig = ANY):
        self.config, self.outbox = config, Outbox()
        self.decoding = Decoding("fast", self.outbox)
        self.said = 0
        self.asked: list[str] = []

    def says(self, seconds: float, language: str, probability: float) -> Final:
        """One utterance, in which the model detects this if it is asked to detect."""
        start, end = 1_000_000 * self.said, 1_000_000 * self.said + round(seconds * RATE)
        utterance = Utterance(start, start, number=self.said)
        self.said += 1
        self.decoding.close(
            Ended(utterance, end, end, end, b"", self.config, 0, cut=False, void=False)
        )
        while requests := self.decoding.requests():
            for request in requests:
                assert isinstance(request, TranscriptRequest)
                self.asked.append(request.language)
                opened = request.language == "auto" or " " in request.language
                answer = Hypothesis(
                    "text",
                    language=language if opened else request.language,
                    language_probability=probability if opened else 1.0,
                )
                self.decoding.receive_hypothesis(request.id, answer, 5)
        (final,) = self.outbox.collect()
        assert isinstance(final, Final)
        return final


# 000-17
def test_a_short_first_utterance_does_not_bind_the_session() -> None:
    speaker = Speaker()
    assert speaker.says(1.2, "cy", 0.39).language == "cy"  # nothing else is known
    assert speaker.says(4.0, "en", 0.98).language == "en"
    assert speaker.says(1.0, "cy", 0.3).language == "en"
    assert speaker.asked == ["auto", "auto", "en"]


def test_a_sure_but_wrong_first_utterance_is_put_right_by_those_that_follow() -> None:
    speaker = Speaker()
    assert speaker.says(2.0, "ja", 0.9).language == "ja"
    assert speaker.says(4.0, "en", 0.98).language == "en"
    assert speaker.says(4.0, "en", 0.98).language == "en"
    assert speaker.says(4.0, "ja", 0.9).language == "en"
    assert speaker.decoding.evidence(0).leading == "en"


def test_with_enough_speech_in_it_a_language_is_kept_and_detected_no_more() -> None:
    speaker = Speaker()
    for _ in range(4):
        speaker.says(3.0, "de", 0.95)
    assert speaker.asked == ["auto", "auto", "de", "de"]


def test_what_sounds_like_another_language_on_less_evidence_is_asked_for_again() -> None:
    speaker = Speaker()
    speaker.says(3.0, "en", 0.95)
    final = speaker.says(2.0, "nl", 0.6)
    assert (final.language, speaker.asked) == ("en", ["auto", "auto", "en"])


def test_unsure_utterances_are_no_evidence_however_many() -> None:
    speaker = Speaker()
    for _ in range(9):
        speaker.says(5.0, "la", 0.45)
    assert speaker.decoding.evidence(0).votes == {}
    assert speaker.asked == ["auto"] * 9


def test_short_utterances_add_up() -> None:
    speaker = Speaker()
    for _ in range(8):
        speaker.says(1.0, "fr", 0.9)
    assert speaker.asked[0] == "auto"
    assert speaker.asked[-1] == "fr"


@pytest.mark.parametrize("probability", [0.3, 0.45])
def test_among_few_languages_less_is_certain_enough(probability: float) -> None:
    """The probability is among all that the model knows."""
    evidence, some = Evidence(), SessionConfig(languages=("en", "de"))
    evidence.add(some, "de", probability, 3 * RATE)
    assert evidence.votes["de"] > 0
    evidence.add(ANY, "en", probability, 3 * RATE)
    assert "en" not in evidence.votes


def test_where_each_is_detected_an_unsure_one_is_in_that_of_the_last_sure_one() -> None:
    speaker = Speaker(EACH)
    assert speaker.says(2.0, "en", 0.9).language == "en"
    assert speaker.says(2.0, "de", 0.9).language == "de"
    assert speaker.says(2.0, "nl", 0.4).language == "de"
    assert speaker.says(0.6, "nl", 0.9).language == "de"
    assert speaker.asked == ["auto", "auto", "auto", "de", "de"]


def test_the_evidence_goes_on_with_the_snapshot() -> None:
    snapshot = Snapshot(
        session_id="s", epoch=1, position=0, replay_from=0, controls=0, config=ANY,
        detected_language="en", next_segment=0, speech_samples=0, segments=[],
        language_votes={"en": 2.25, "ja": 1.0},
    )  # fmt: skip
    again = parse_server(serialize(snapshot))
    assert isinstance(again, Snapshot)
    assert evidence_of(again) == Evidence({"en": 2.25, "ja": 1.0}, "en")
    # One of a worker of before there were votes had kept what it detected.
    old = msgspec.structs.replace(again, language_votes=None)
    assert evidence_of(old).kept == "en"
    assert KEPT_AHEAD <= sum(evidence_of(old).votes.values())
