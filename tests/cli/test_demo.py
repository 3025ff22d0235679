"""
What the demo plays, and how it counts the words that are wrong.
"""

import json
from pathlib import Path

import pytest
import soundfile

from dalston.cli import demo
from dalston.cli.models import Choice


def test_a_real_model_is_given_human_speech_and_the_toy_one_its_own_words():
    assert demo.bundled(Choice("cpu")).file.name == "human.wav"
    assert demo.bundled(Choice("gpu")).file.name == "human.wav"
    assert demo.bundled(Choice("demo")).file.name == "00.wav"
    assert demo.bundled(Choice("demo", ["fast=/a/checkpoint"])).file.name == "human.wav"


def test_the_human_recording_is_short_and_everybody_in_it_is_credited():
    file = demo.bundled(Choice("cpu")).file
    with soundfile.SoundFile(file) as audio:
        assert (audio.samplerate, audio.channels) == (16_000, 1)
        seconds = len(audio) / audio.samplerate
    assert 20 <= seconds <= 40
    assert file.stat().st_size < 1.5e6
    (about,) = json.loads(file.with_suffix(".json").read_text("utf-8"))
    speakers = len(about["sentences"])
    assert speakers == 3
    for name in ("voice", "times", "sources", "licences"):
        assert len(about[name]) == speakers
    assert all(start < end < seconds for start, end in about["times"])
    credits = (Path(__file__).parents[2] / "demo" / "README.md").read_text("utf-8")
    for source in ("inaugural address", "LJ001-0004", "1272-128104-0000", "CC BY 4.0"):
        assert source in credits


@pytest.mark.parametrize(
    ("said", "got", "errors"),
    [
        ("ask not what", "ask not what", 0),
        ("ask not what", "", 3),
        ("", "thank you", 2),
        ("ask not what", "ask what", 1),
        ("ask not what", "ask me not what", 1),
        ("ask not what", "ask nut what", 1),
        ("a b c d", "b c d a", 2),
        ("say it once", "say it once say it once", 3),
    ],
)
def test_an_error_is_a_word_put_in_taken_out_or_replaced(said: str, got: str, errors: int):
    assert demo.distance(said.split(), got.split()) == errors


def test_case_and_punctuation_are_no_errors():
    said = demo.words("And so, my fellow Americans: it's Mr. Quilter.")
    assert said == "and so my fellow americans it's mr quilter".split()
