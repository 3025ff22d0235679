"""
What the end-of-turn network is shown: the features that it was trained on, of the right seconds.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from recordings import recordings

from dalston.triton.contract import SAMPLE_RATE, TURN_AUDIO
from dalston.triton.features import mel_filters
from dalston.triton.turn import EndOfTurn, turn_features

SPEECH = recordings()[1].audio


def defined(audio: npt.NDArray[np.int16]) -> npt.NDArray[np.float64]:
    """transformers' WhisperFeatureExtractor(chunk_length=8) with do_normalize, as pipecat's
    _whisper_features.py has it: the audio behind zeros, mean 0 and variance 1, in double precision.
    """
    samples = np.zeros(TURN_AUDIO)
    heard = audio[-TURN_AUDIO:] / 32768
    samples[TURN_AUDIO - len(heard) :] = heard
    samples = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
    padded = np.pad(samples, 200, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 400)[::160][:-1]
    power = np.abs(np.fft.rfft(windows * np.hanning(401)[:-1])) ** 2
    logs = np.log10(np.maximum(1e-10, mel_filters(80).astype(np.float64) @ power.T))
    return (np.maximum(logs, logs.max() - 8) + 4) / 4


@pytest.mark.parametrize("seconds", [0.3, 2.0, 8.0, 11.0])
def test_features_are_those_of_the_extractor_it_was_trained_with(seconds: float):
    audio = np.tile(SPEECH, 5)[: round(seconds * SAMPLE_RATE)]
    found = turn_features(audio)
    assert found.shape == (80, 800)
    assert found.dtype == np.float32
    assert np.abs(found - defined(audio)).max() < 1e-4


def test_loudness_does_not_matter_and_nothing_is_no_error():
    assert np.abs(turn_features(SPEECH) - turn_features(SPEECH // 4)).mean() < 0.02
    assert np.isfinite(turn_features(SPEECH[:0])).all()


def test_only_the_last_eight_seconds_are_heard(turns_repository: Path):
    turn = EndOfTurn(turns_repository / "end_of_turn" / "1" / "end_of_turn.onnx")
    long = np.tile(SPEECH, 5)
    assert len(long) > TURN_AUDIO
    probability = turn.probability(long)
    assert 0 <= probability <= 1
    assert turn.probability(long[-TURN_AUDIO:]) == probability


def test_a_sentence_that_was_said_sounds_more_over_than_half_of_it(turns_repository: Path):
    turn = EndOfTurn(turns_repository / "end_of_turn" / "1" / "end_of_turn.onnx")
    pause = np.zeros(SAMPLE_RATE // 5, np.int16)
    sentence = recordings()[0].sentences[0]
    start, end = round(sentence.start * SAMPLE_RATE), round(sentence.end * SAMPLE_RATE)
    audio = recordings()[0].audio
    whole = turn.probability(np.concatenate([audio[start:end], pause]))
    half = turn.probability(np.concatenate([audio[start : (start + end) // 2], pause]))
    assert whole > half
