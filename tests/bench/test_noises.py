"""
Sounds without a word.
"""

import numpy as np
from noises import noises


def test_every_sound_is_as_long_as_asked_for_and_the_same_each_time() -> None:
    first, again = noises(12.0, None), noises(12.0, None)
    assert list(first) == [
        "silence",
        "white noise",
        "pink noise",
        "hum",
        "tones",
        "chords",
        "keyboard",
        "breath",
    ]
    for name, audio in first.items():
        assert (audio.dtype, len(audio)) == (np.int16, 12 * 16_000)
        assert np.array_equal(audio, again[name])
        assert audio.any() == (name != "silence")


def test_no_sound_is_louder_than_a_microphone_takes() -> None:
    for audio in noises(60.0, None).values():
        assert np.abs(audio.astype(int)).max() < 32_000
