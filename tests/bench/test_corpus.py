"""
A folder of speech: what is read of its manifest, and what is made of its recordings.
"""

import json
from pathlib import Path
from typing import Any

import corpus
import numpy as np
import pytest
import soundfile
from recordings import Pcm, Sentence

RATE = 16_000


def loud(seconds: float) -> Pcm:
    rng = np.random.default_rng(1)
    return np.rint(3000 * rng.standard_normal(round(seconds * RATE))).astype(np.int16)


def quiet(seconds: float) -> Pcm:
    return (loud(seconds) // 300).astype(np.int16)


def said(before: float, speech: float, after: float) -> Pcm:
    return np.concatenate([quiet(before), loud(speech), quiet(after)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One utterance, one in German, a conversation of two utterances, two channels."""
    one, other = said(0.5, 2.0, 0.4), said(0.1, 1.0, 0.2)
    both = np.concatenate([one, quiet(1), other])
    channels = np.stack([one, np.resize(other, len(one))], 1)
    files = {"en_one.wav": one, "de_other.wav": other, "mix.wav": both, "two.wav": channels}
    for name, audio in files.items():
        soundfile.write(tmp_path / name, audio, RATE)
    (tmp_path / "mix.rttm").write_text(
        "SPEAKER mix 1 0.500 2.000 <NA> <NA> a <NA> <NA>\n"
        "SPEAKER mix 1 4.000 1.000 <NA> <NA> b <NA> <NA>\n"
    )
    turns: list[dict[str, Any]] = [
        {"speaker": "a", "start": 0.0, "end": 2.9, "text": "turn on", "file": "en_one.wav"},
        {"speaker": "b", "start": 3.9, "end": 5.2, "text": "the light", "file": "de_other.wav"},
    ]
    about = [
        {"file": "en_one.wav", "kind": "utterance", "language": "en", "text": "Turn on."},
        {
            "file": "de_other.wav",
            "kind": "utterance",
            "language": "de",
            "text": "Licht",
            "part": "x",
        },
        {
            "file": "mix.wav",
            "kind": "conversation",
            "language": "en",
            "text": "turn on the light",
            "turns": turns,
            "rttm": "mix.rttm",
        },
        {
            "file": "two.wav",
            "kind": "two-channel",
            "language": "en",
            "text": None,
            "channel_text": ["turn on", "the light"],
        },
    ]
    (tmp_path / "manifest.json").write_text(json.dumps(about))
    return tmp_path


def test_every_file_is_an_item_and_every_channel_of_two(folder: Path) -> None:
    found = corpus.items(folder)
    assert [(item.name, item.part, item.text) for item in found] == [
        ("en_one.wav", "en", "Turn on."),
        ("de_other.wav", "x", "Licht"),
        ("mix.wav", "mix", "turn on the light"),
        ("two.wav, 0", "two", "turn on"),
        ("two.wav, 1", "two", "the light"),
    ]
    assert np.array_equal(found[3].audio, found[0].audio)


def test_turns_that_were_put_there_are_timed_where_their_sound_is(folder: Path) -> None:
    (mix,) = (item for item in corpus.items(folder) if item.part == "mix")
    first, second = mix.timed
    assert (first.start, first.end) == pytest.approx((0.5, 2.5), abs=0.02)
    assert (second.start, second.end) == pytest.approx((4.0, 5.0), abs=0.02)


def test_turns_that_somebody_only_heard_are_not_timed(folder: Path) -> None:
    about = json.loads((folder / "manifest.json").read_text())
    for turn in about[2]["turns"]:
        del turn["file"]
    (folder / "manifest.json").write_text(json.dumps(about))
    assert not any(item.timed for item in corpus.items(folder))


def test_callers_say_english_utterances_with_silence_after_each(folder: Path) -> None:
    (recording,) = corpus.recordings(folder)
    (sentence,) = recording.sentences
    assert sentence.text == "Turn on."
    assert (sentence.start, sentence.end) == pytest.approx((0.5, 2.5), abs=0.02)
    assert not recording.audio[-RATE:].any()


def test_a_folder_without_a_manifest_is_told(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="manifest.json is missing"):
        corpus.items(tmp_path)


def test_what_is_put_together_tells_where_each_sentence_is(folder: Path) -> None:
    (item,) = corpus.together(folder)
    (sentence,) = item.timed
    assert isinstance(sentence, Sentence)
    within = item.audio[round(sentence.start * RATE) : round(sentence.end * RATE)]
    assert np.array_equal(within, loud(2.0)[: len(within)])
    assert item.text == "Turn on."


def test_speech_begins_and_ends_where_it_is_loud() -> None:
    assert corpus.speech(said(0.7, 1.5, 0.3)) == pytest.approx((0.7, 2.2), abs=0.02)
    clicked = said(0.7, 1.5, 0.3)
    clicked[1600:1700] = 20_000  # too short for speech
    assert corpus.speech(clicked)[0] == pytest.approx(0.7, abs=0.02)


def test_a_telephone_keeps_the_words_and_loses_what_is_high(folder: Path) -> None:
    item = corpus.items(folder)[0]
    heard = corpus.telephone(item)
    assert abs(len(heard.audio) - len(item.audio)) <= 2
    power = np.abs(np.fft.rfft(heard.audio.astype(float))) ** 2
    above = power[round(4200 / 8000 * len(power)) :].sum()
    assert above < 0.01 * power.sum()


def test_a_room_is_what_is_heard_while_nobody_speaks(folder: Path) -> None:
    about = json.loads((folder / "manifest.json").read_text())
    assert len(corpus.rooms(folder)) == 0  # put together: there is no room
    for turn in about[2]["turns"]:
        del turn["file"]
    (folder / "manifest.json").write_text(json.dumps(about))
    room = corpus.rooms(folder)
    # 0.3 s before, 1.5 s less a fifth of a second twice between, nothing after.
    assert len(room) / RATE == pytest.approx(0.3 + 1.1, abs=0.02)
    assert np.abs(room).max() < 100
