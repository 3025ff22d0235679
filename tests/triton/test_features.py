import numpy as np
import numpy.typing as npt
import pytest
from recordings import recordings

from dalston.triton.contract import LONGEST_AUDIO, SAMPLE_RATE, WINDOWS
from dalston.triton.features import HOP, N_FFT, log_mel, mel_filters

Audio = npt.NDArray[np.int16]

SPEECH = recordings()[0].audio
SECOND = SAMPLE_RATE // HOP  # frames


def noise(samples: int, loudness: float = 3000.0) -> Audio:
    return (np.random.default_rng(7).standard_normal(samples) * loudness).astype(np.int16)


def tone(hertz: float, samples: int) -> Audio:
    t = np.arange(samples) / SAMPLE_RATE
    return (np.sin(2 * np.pi * hertz * t) * 10_000).astype(np.int16)


# --- the definition, slowly -----------------------------------------------------------------------
# Radford et al. 2022, 2.2: "80-channel log-magnitude Mel spectrogram ... 25-millisecond windows
# with a stride of 10 milliseconds"; the rest is openai-whisper's audio.py.


def slaney_mel(hertz: float) -> float:
    """Slaney, Auditory Toolbox (1998): 3 mel are 200 Hz below 1 kHz, 27 a factor of 6.4 above."""
    return 3 * hertz / 200 if hertz < 1000 else 15 + 27 * np.log(hertz / 1000) / np.log(6.4)


def slaney_hertz(mel: float) -> float:
    return 200 * mel / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)


def defined_filters(n_mels: int) -> npt.NDArray[np.float64]:
    top = slaney_mel(8000)
    edges = [slaney_hertz(top * index / (n_mels + 1)) for index in range(n_mels + 2)]
    filters = np.zeros((n_mels, 201))
    for mel in range(n_mels):
        low, peak, high = edges[mel : mel + 3]
        for bin in range(201):
            hertz = bin * 40.0
            if low < hertz <= peak:
                filters[mel, bin] = (hertz - low) / (peak - low)
            elif peak < hertz < high:
                filters[mel, bin] = (high - hertz) / (high - peak)
        filters[mel] *= 2 / (high - low)
    return filters


def defined_log_mel(pcm: Audio, frames: int, n_mels: int) -> npt.NDArray[np.float64]:
    audio = np.zeros(frames * 160)
    audio[: len(pcm)] = pcm / 32768
    mirrored = np.pad(audio, 200, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    filters = defined_filters(n_mels)
    logs = np.zeros((n_mels, frames))
    for frame in range(frames):
        power = np.abs(np.fft.rfft(mirrored[frame * 160 : frame * 160 + 400] * window)) ** 2
        logs[:, frame] = np.log10(np.maximum(filters @ power, 1e-10))
    return (np.maximum(logs, logs.max() - 8) + 4) / 4


@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize(
    ("audio", "seconds"),
    [
        (SPEECH[: 3 * SAMPLE_RATE], 4),
        (SPEECH[8000:40_001], 4),
        (noise(2 * SAMPLE_RATE), 4),
        (noise(SAMPLE_RATE, loudness=1.0), 4),
        (tone(440, 5 * SAMPLE_RATE), 6),
        (noise(4 * SAMPLE_RATE), 4),  # to the last sample
        (noise(4 * SAMPLE_RATE - 100), 4),  # into the mirrored end
        (noise(1), 4),
        (noise(159), 4),
        (noise(201), 4),
        (noise(LONGEST_AUDIO), 30),
        (np.concatenate([SPEECH, SPEECH, SPEECH])[:LONGEST_AUDIO], 30),
        (np.zeros(0, np.int16), 4),
        (np.zeros(SAMPLE_RATE, np.int16), 4),
    ],
)
def test_features_are_those_of_the_definition(audio: Audio, seconds: int, n_mels: int):
    frames = seconds * SECOND
    features = log_mel(audio, frames, n_mels)
    assert features.shape == (n_mels, frames)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, defined_log_mel(audio, frames, n_mels), atol=2e-5)


@pytest.mark.parametrize("n_mels", [80, 128])
def test_filters_are_triangles_between_neighbours_on_slaneys_scale(n_mels: int):
    filters = mel_filters(n_mels)
    assert filters.shape == (n_mels, N_FFT // 2 + 1)
    np.testing.assert_allclose(filters, defined_filters(n_mels), atol=1e-7)


def test_the_first_filters_are_those_whisper_ships():
    # mel_filters.npz of openai-whisper, mel_80.
    assert mel_filters(80)[0, :3] == pytest.approx([0, 0.02486259, 0], abs=1e-7)
    assert mel_filters(80)[1, :4] == pytest.approx([0, 0.00199082, 0.02287177, 0], abs=1e-7)


def test_filters_over_finer_bins_have_equal_area():
    hertz = np.arange(0, 8000, 0.5)
    np.testing.assert_allclose(mel_filters(80, hertz).sum(axis=1) * 0.5, 1, rtol=1e-3)


def test_silence_is_silent_and_not_zero():
    # A checkpoint hears 0.0 as sound.
    features = log_mel(np.zeros(0, np.int16), 4 * SECOND, 80)
    np.testing.assert_allclose(features, -1.5, atol=1e-6)


def test_a_tone_is_loudest_in_the_filter_around_it():
    features = log_mel(tone(1000, 2 * SAMPLE_RATE), 4 * SECOND, 80)
    loudest = features[:, SECOND].argmax()
    peaks = mel_filters(80).argmax(axis=1) * 40.0
    assert abs(peaks[loudest] - 1000) <= 40


def test_frames_begin_every_10_ms_at_the_audio_they_are_about():
    click = np.zeros(2 * SAMPLE_RATE, np.int16)
    click[SAMPLE_RATE] = 20_000
    features = log_mel(click, 4 * SECOND, 80)
    heard = np.flatnonzero(features.max(axis=0) > features.min())
    # 400 samples around each centre: a frame before, the frame itself, a frame behind.
    assert heard.tolist() == [SECOND - 1, SECOND, SECOND + 1]


@pytest.mark.parametrize("window", WINDOWS[1:])
def test_a_larger_window_has_the_same_features_and_silence_behind_them(window: int):
    small = log_mel(SPEECH[: 3 * SAMPLE_RATE], WINDOWS[0] * SECOND, 80)
    large = log_mel(SPEECH[: 3 * SAMPLE_RATE], window * SECOND, 80)
    assert np.array_equal(large[:, : small.shape[1]], small)
    assert np.all(large[:, small.shape[1] :] == small.min())


def test_audio_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="64001 samples do not fit into 400 frames"):
        log_mel(noise(64_001), 400, 80)
