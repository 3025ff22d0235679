"""
What is taken out of text, and that nothing of it is left in any message of a session.
"""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.speech import Driver, chunks, pcm, say, silence

from dalston.orchestrator.protocol.messages import (
    End,
    Final,
    Partial,
    SessionConfig,
    SessionEnd,
    Snapshot,
    Word,
    serialize,
)
from dalston.orchestrator.transcription import assembler
from dalston.orchestrator.transcription.agreement import ends_word
from dalston.orchestrator.transcription.decoding import Decoding, Ended, Utterance
from dalston.orchestrator.transcription.model_requests import (
    Hypothesis,
    TimedWord,
    TranscriptRequest,
)
from dalston.orchestrator.transcription.outbox import Outbox
from dalston.orchestrator.transcription.redaction import (
    PatternError,
    Redaction,
    read_patterns,
)
from dalston.orchestrator.transcription.session import Session

BOTH = Redaction(["numbers", "emails"])


# Text.


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("my card is 4111 1111 1111 1111, thanks", "my card is [number], thanks"),
        ("call +44 (20) 7946-0958.", "call +[number]."),
        ("it is four one one one", "it is [number]"),
        ("Double Five, nine", "[number]"),
        ("null drei eins vier", "[number]"),
        ("cinq six sept huit", "[number]"),
        ("١٢٣٤", "[number]"),
        ("电话是13800138000谢谢", "电话是[number]谢谢"),
        ("I have 2 cats and 12 dogs", "I have 2 cats and 12 dogs"),
        ("no one knows", "no one knows"),
        ("write to ann.lee+x@mail.example.com, please", "write to [email], please"),
        ("écrivez à rené@exemple.fr", "écrivez à [email]"),
        ("我的邮箱是a.b@c.cn谢谢", "我的邮箱是[email]谢谢"),
        ("it is ann dot lee at example dot com", "it is [email]"),
        ("meet me at home", "meet me at home"),
    ],
)
def test_numbers_and_addresses_are_replaced_by_their_names(said: str, told: str) -> None:
    assert BOTH.text(said) == told


def test_only_what_is_asked_for_is_replaced() -> None:
    said = "1234 of ann@example.com"
    assert Redaction(["numbers"]).text(said) == "[number] of ann@example.com"
    assert Redaction(["emails"]).text(said) == "1234 of [email]"
    assert not Redaction()


def test_digits_that_touch_a_cut_are_replaced_however_few_they_are() -> None:
    assert BOTH.text("12, and 34", cut_before=True) == "[number], and 34"
    assert BOTH.text("12, and 34.", cut_after=True) == "12, and [number]."


# Words with times.

letters = st.sampled_from(["one", "5", "55,", "4111", "a", "we", "x@y.co", "at", "dot", "b2b", "-"])


@given(st.lists(letters, min_size=1, max_size=12), st.sampled_from(["en", "zh"]))
def test_words_are_replaced_in_step_with_the_text(said: list[str], language: str) -> None:
    words = [Word(text, n, n + 0.5, 0.5 + n / 100) for n, text in enumerate(said)]
    told = BOTH.words(words, language)
    assert assembler.text_of(told, language) == BOTH.text(assembler.text_of(words, language))
    assert (told[0].start, told[-1].end) == (words[0].start, words[-1].end)
    assert all(a.end <= b.start for a, b in zip(told, told[1:], strict=False))


def test_the_words_of_one_number_become_one_word() -> None:
    words = [Word(text, n, n + 0.5, 0.9) for n, text in enumerate("call 4111 1111, now".split())]
    number = Word("[number],", 1, 2.5, 0.9)
    assert BOTH.words(words, "en") == [words[0], number, words[3]]


# Partials.


@given(st.lists(letters, min_size=1, max_size=12), st.data())
def test_what_is_stable_of_a_partial_stays_to_the_letter(
    said: list[str], data: st.DataObject
) -> None:
    redaction = Redaction(["numbers", "emails", "b"], read_patterns(r"b b\db"))
    text, told = " ".join(said), ""
    ends = [end for end in range(len(text)) if ends_word(text, end)]
    for stable in [*ends, len(text)]:
        at = data.draw(st.sampled_from([end for end in [*ends, len(text)] if end >= stable]))
        shown, count = redaction.partial(text[:at], stable)
        assert shown.startswith(told)
        assert count >= len(told)
        told = shown[:count]


@given(st.lists(letters, min_size=1, max_size=12), st.integers(1, 12))
def test_no_partial_shows_a_part_of_a_number_that_the_final_replaces(
    said: list[str], words: int
) -> None:
    shown, _ = Redaction(["numbers"]).partial(" ".join(said[:words]), 0)
    assert Redaction(["numbers"]).text(" ".join(said)).startswith(shown)


def test_digits_at_the_end_are_shown_once_it_is_known_what_they_are() -> None:
    shown = [BOTH.partial(text, 0)[0] for text in ("it is 4", "it is 41 1", "it is 41 cats")]
    assert shown == ["it is", "it is [number]", "it is 41 cats"]
    assert BOTH.partial("I am ann@exam", 0)[0] == "I am"


# Patterns.


def test_a_pattern_has_a_name_and_is_replaced_by_it() -> None:
    patterns = read_patterns("# of our customers\n\ncustomer \\b[A-Z]{2}-\\d{2}\\b\n")
    redaction = Redaction(["customer"], patterns)
    assert redaction.text("it is AB-12 I think") == "it is [customer] I think"
    assert redaction.partial("it is AB-12 I", 0)[0] == "it is [customer] I"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (r"twice (a)\1", "line 1: invalid escape sequence"),
        ("Upper a", "line 1: 'Upper' is no name"),
        ("emails a", "line 1: 'emails' is no name"),
        ("many a*", "line 1: the pattern matches where nothing is"),
        ("alone", "line 1: the pattern matches where nothing is"),
    ],
)
def test_a_pattern_that_cannot_be_used_is_refused_with_its_line(line: str, why: str) -> None:
    with pytest.raises(PatternError, match=why):
        read_patterns(line)


def test_no_pattern_takes_longer_than_its_text_is_long() -> None:
    """One that takes backtracking engines 2^n steps is only another automaton here."""
    redaction = Redaction(["slow"], read_patterns("slow (x+x+)+y"))
    said = "x" * 100_000
    assert redaction.text(said) == said


# Sessions.


def everything(messages: list[object]) -> str:
    return json.dumps([serialize(message) for message in messages])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("longest", [5.0, 30.0])
def test_nothing_of_it_is_in_any_message_or_snapshot(longest: float) -> None:
    config = SessionConfig(
        language="en",
        word_timestamps=True,
        eager=True,
        redact=("secret",),
        max_utterance_duration=longest,
    )
    patterns = read_patterns("secret w[c-e]")
    session = Session("s", config, "fast", languages={"en"}, patterns=patterns)
    driver = Driver(session)
    words = [1, 2, 3, 4, 5] * 5
    audio = pcm(np.concatenate([say(words), silence(0.8), say([3, 1]), silence(0.8)]))
    driver.run([*chunks(audio, [3200]), End()])
    assert {Partial, Final, Snapshot, SessionEnd} <= {type(m) for m in driver.messages}
    told = everything([*driver.messages])
    assert "secret]" in told
    assert not {word for word in ("wc", "wd", "we") if f"{word} " in told or f'{word}\\"' in told}
    end = driver.messages[-1]
    assert isinstance(end, SessionEnd)
    assert end.transcript == " ".join(m.text for m in driver.messages if isinstance(m, Final))


def test_a_number_on_both_sides_of_a_cut_is_in_neither() -> None:
    outbox = Outbox()
    decoding = Decoding("fast", outbox, redaction=Redaction(["numbers"]))
    config, audio = SessionConfig(language="en", word_timestamps=True), bytes(2 * 16_000)

    def decode(utterance: Utterance, said: str, cut: bool) -> None:
        over = Ended(
            utterance, utterance.onset + 16_000, utterance.onset + 16_000, 0, audio, config, 0,
            cut=cut, void=False,
        )  # fmt: skip
        decoding.close(over)
        (request,) = [r for r in decoding.requests() if isinstance(r, TranscriptRequest)]
        words = [TimedWord(w, 0.2 * n, 0.2 * n + 0.2, 0.9) for n, w in enumerate(said.split())]
        decoding.receive_hypothesis(request.id, Hypothesis(said, words=words, language="en"), 5)

    decode(Utterance(0, 0, number=0), "it is 4 1", cut=True)
    assert [word.word for word in decoding.overlap_words] == ["it", "is", "[number]"]
    decode(Utterance(16_000, 16_000, number=1, continues=True), "1 2 thanks", cut=False)
    first, second = (m for m in outbox.collect() if isinstance(m, Final))
    assert not set("0123456789") & set(first.text + second.text)
    assert second.text.endswith("thanks")
