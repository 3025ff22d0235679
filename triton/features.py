"""
Audio to Whisper's log-mel features, in numpy. Knows nothing about models or Triton.

The same numbers as `whisper.audio.log_mel_spectrogram` (openai-whisper 20250625) up to rounding:
25 ms Hann windows every 10 ms, power spectrum, Slaney mel filters, log10, at most 8 below the
loudest, scaled to about -1..1. Padding is zero audio, never zero features: silence is about -1
in feature space, and a checkpoint hears 0.0 as sound.
"""

import functools

import numpy as np
import numpy.typing as npt

SAMPLE_RATE = 16_000  # Hertz
N_FFT = 400  # samples: 25 ms
HOP = 160  # samples: 10 ms, 100 feature frames a second


def _hertz_to_mel(hertz: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Slaney's scale (Auditory Toolbox): linear to 1 kHz, logarithmic above."""
    hertz = np.asarray(hertz, np.float64)
    linear = hertz * 3 / 200
    return np.where(
        hertz < 1000, linear, 15 + np.log(np.maximum(hertz, 1000) / 1000) * 27 / np.log(6.4)
    )


def _mel_to_hertz(mel: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))


def mel_filters(
    n_mels: int, hertz: npt.NDArray[np.float64] | None = None
) -> npt.NDArray[np.float32]:
    """Triangular filters of equal area, [n_mels, N_FFT / 2 + 1], spaced evenly in mel to 8 kHz.

    hertz: the frequency of each spectrum bin, if not the usual multiples of 40 Hz.
    """
    if hertz is None:
        hertz = np.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1)
    edges = _mel_to_hertz(np.linspace(0, _hertz_to_mel(SAMPLE_RATE / 2), n_mels + 2))
    low, peak, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (hertz - low) / (peak - low), (high - hertz) / (high - peak)
    triangles = np.maximum(0, np.minimum(rising, falling))
    return (triangles * 2 / (high - low)).astype(np.float32)


_filters = functools.cache(mel_filters)
_WINDOW = np.hanning(N_FFT + 1)[:-1].astype(np.float32)  # periodic, as torch.hann_window
_SILENCE = np.float32(-10.0)  # log10 of the floor 1e-10


def log_mel(pcm: npt.NDArray[np.int16], frames: int, n_mels: int) -> npt.NDArray[np.float32]:
    """Features [n_mels, frames] of 16 kHz `pcm`, zero audio behind it up to frames * HOP samples.

    Raises ValueError if the audio is longer than that.
    """
    return log_mel_of(pcm.astype(np.float32) / 32768, frames, n_mels)


def log_mel_of(
    samples: npt.NDArray[np.float32], frames: int, n_mels: int
) -> npt.NDArray[np.float32]:
    """The same of samples of any scale."""
    length = frames * HOP
    if len(samples) > length:
        raise ValueError(f"{len(samples)} samples do not fit into {frames} frames")
    # Only frames that touch the audio are computed: the others are silence.
    count = min(frames, (len(samples) + N_FFT // 2 - 1) // HOP + 1)
    audio = np.zeros(max(count * HOP + N_FFT, N_FFT), np.float32)
    half = N_FFT // 2
    audio[half : half + len(samples)] = samples
    # Both ends of the window are mirrored, as torch.stft(center=True) does.
    head = audio[half + 1 : 2 * half + 1]
    audio[:half] = head[::-1]
    if count == frames:
        end = half + length
        audio[end : end + half] = audio[end - half - 1 : end - 1][::-1]
    windows = np.lib.stride_tricks.sliding_window_view(audio, N_FFT)[: count * HOP : HOP]
    spectrum = np.fft.rfft(windows * _WINDOW, axis=-1)
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
    logs = np.full((n_mels, frames), _SILENCE, np.float32)
    logs[:, :count] = np.log10(np.maximum(_filters(n_mels) @ power.T, 1e-10))
    return (np.maximum(logs, logs.max() - 8) + 4) / 4
