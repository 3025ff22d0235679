import numpy as np

from dalston.triton.adaptation.choose import (
    Errors,
    Proof,
    Sample,
    beginnings,
    between,
    distance,
    errors,
    pieces,
)

NOTHING = np.zeros(16_000, np.int16)


def proof(short: int = 10, twice: int = 0, cut: int = 5) -> Proof:
    return Proof(Errors(1000, short, twice), Errors(1000, 10, 0), Errors(100, cut, 0))


def test_case_and_punctuation_are_no_errors() -> None:
    assert pieces("What, my dear -- well-known?", "en") == "what my dear well known".split()
    assert pieces("客観的 実在。", "ja") == list("客観的実在")


def test_distances_are_levenshteins() -> None:
    assert distance("a b c".split(), "a b c".split()) == 0
    assert distance("a b c".split(), "a x c d".split()) == 2
    assert distance([], "a b".split()) == 2
    assert distance("a b".split(), []) == 2


def test_a_sentence_said_twice_is_a_runaway() -> None:
    samples = [Sample(NOTHING, "en")]
    said = "ask not what your country can do for you"
    assert errors([said], [f"{said} {said}"], samples).runaways == 1
    assert errors([said], [said], samples) == Errors(9, 0, 0)


def test_a_proof_holds_where_nothing_is_lost() -> None:
    assert proof().objections() == []
    assert proof(short=13).objections() == []


def test_a_proof_objects_to_words_lost_sentences_said_twice_and_partials_of_their_own() -> None:
    assert "right-sized windows" in proof(short=14).objections()[0]
    assert "twice" in proof(twice=1).objections()[0]
    assert "beginnings" in proof(cut=26).objections()[0]


def test_beginnings_are_shorter_than_what_they_begin() -> None:
    samples = [Sample(np.arange(16_000 * 9, dtype=np.int16), "en") for _ in range(20)]
    made = beginnings(samples)
    assert len(made) == 20
    assert all(len(one.audio) < 8 * 16_000 for one in made)
    assert all(np.array_equal(one.audio, samples[0].audio[: len(one.audio)]) for one in made)


def test_norms_between_two_are_a_straight_line() -> None:
    one, two = {"a": np.zeros(3, np.float32)}, {"a": np.full(3, 2, np.float32)}
    assert between(one, two, 0.25)["a"].tolist() == [0.5, 0.5, 0.5]
