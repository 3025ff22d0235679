"""
Bytes of every format to samples, and back to any position.
"""

import math
import struct

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dalston.orchestrator.protocol.messages import Encoding
from dalston.orchestrator.transcription.audio import AudioStream

RATES = [8_000, 11_025, 12_345, 16_000, 22_050, 24_000, 44_100, 48_000]


def tone(hertz: float, seconds: float, rate: int) -> npt.NDArray[np.float32]:
    t = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * hertz * t)).astype(np.float32)


def s16(audio: npt.NDArray[np.float32]) -> bytes:
    return np.rint(audio * 32767).astype("<i2").tobytes()


def samples(stream: AudioStream, first: int, last: int) -> npt.NDArray[np.int16]:
    return np.frombuffer(stream.read(first, last), np.int16)


def drained(stream: AudioStream, data: bytes) -> npt.NDArray[np.int16]:
    stream.receive(data)
    return samples(stream, 0, stream.drain(stream.received_frames))


# 000-26, 000-37
def test_pcm_at_16_khz_is_taken_as_it_is() -> None:
    data = np.arange(-500, 500, dtype="<i2").tobytes()
    assert drained(AudioStream("pcm_s16le", 16_000, 1), data).tobytes() == data


# 001-10
def test_an_odd_byte_is_carried_over() -> None:
    data = np.arange(1000, dtype="<i2").tobytes()
    stream = AudioStream("pcm_s16le", 16_000, 1)
    for at in range(0, len(data), 7):
        stream.receive(data[at : at + 7])
        stream.produce(10**9, stream.received_frames)
    assert stream.read(0, 1000) == data


def test_a_byte_that_never_comes_is_no_sample() -> None:
    stream = AudioStream("pcm_s16le", 16_000, 1)
    stream.receive(b"\1\0\2")
    assert stream.received_frames == 1


def test_floats_are_clipped_and_what_is_no_number_is_silence() -> None:
    values = np.array([0.5, 2.0, -3.0, math.nan, math.inf, -math.inf], "<f4")
    stream = AudioStream("pcm_f32le", 16_000, 1)
    assert drained(stream, values.tobytes()).tolist() == [16384, 32767, -32768, 0, 0, 0]
    assert stream.invalid_samples == 3


@given(st.binary(max_size=400))
@example(struct.pack("<2f", math.inf, -math.inf))
@example(struct.pack("<I", 0x7F800001))  # a NaN that signals
def test_any_bytes_are_floats_without_a_warning(data: bytes) -> None:
    stream = AudioStream("pcm_f32le", 48_000, 1)
    drained(stream, data)
    whole = data[: len(data) // 4 * 4]
    assert stream.invalid_samples == sum(
        not math.isfinite(x) for (x,) in struct.iter_unpack("<f", whole)
    )


def test_two_channels_are_mixed() -> None:
    pairs = np.array([[1000, 3000], [-200, 200]], "<i2")
    assert drained(AudioStream("pcm_s16le", 16_000, 2), pairs.tobytes()).tolist() == [2000, 0]


# L-01
# Values of ITU-T G.711's tables 1a and 2a, scaled to 16 bits as every decoder does.
@pytest.mark.parametrize(
    ("encoding", "code", "value"),
    [
        ("mulaw", 0xFF, 0),
        ("mulaw", 0x7F, 0),
        ("mulaw", 0x80, 32124),
        ("mulaw", 0x00, -32124),
        ("mulaw", 0xF0, 120),
        ("mulaw", 0xC2, 1_756),
        ("alaw", 0xD5, 8),
        ("alaw", 0x55, -8),
        ("alaw", 0xAA, 32256),
        ("alaw", 0x2A, -32256),
        ("alaw", 0x85, 4_224),
    ],
)
def test_g711_codes_mean_what_the_standard_says(encoding: Encoding, code: int, value: int) -> None:
    assert drained(AudioStream(encoding, 16_000, 1), bytes([code])).tolist() == [value]


@pytest.mark.parametrize("encoding", ["mulaw", "alaw"])
def test_g711_is_symmetric_and_monotone(encoding: Encoding) -> None:
    values = drained(AudioStream(encoding, 16_000, 1), bytes(range(256)))
    assert sorted(np.abs(values[:128]).tolist()) == sorted(np.abs(values[128:]).tolist())
    assert len(set(values.tolist())) >= 255  # mu-law has two zeros


@pytest.mark.parametrize("rate", RATES)
def test_a_tone_keeps_its_pitch_its_level_and_its_place(rate: int) -> None:
    heard = drained(AudioStream("pcm_s16le", rate, 1), s16(tone(1000, 2.0, rate)))
    expected = tone(1000, 2.0, 16_000) * 32767
    middle = slice(2_000, 30_000)
    assert np.abs(heard[middle] - expected[middle]).max() < 150


@pytest.mark.parametrize("rate", RATES)
def test_the_number_of_samples_is_exact(rate: int) -> None:
    for frames in (0, 1, 17, rate, rate + 1):
        stream = AudioStream("pcm_s16le", rate, 1)
        stream.receive(bytes(2 * frames))
        assert stream.drain(frames) == frames * 16_000 // rate == stream.received


# 001-37
@settings(max_examples=40, deadline=None)
@given(
    rate=st.sampled_from(RATES),
    encoding=st.sampled_from(["pcm_s16le", "pcm_f32le", "mulaw", "alaw"]),
    sizes=st.lists(st.integers(1, 9_000), min_size=1, max_size=8),
    seed=st.integers(0, 2**32 - 1),
)
def test_samples_do_not_depend_on_how_bytes_were_cut(
    rate: int, encoding: Encoding, sizes: list[int], seed: int
) -> None:
    r = np.random.default_rng(seed)
    count = rate
    if encoding == "pcm_f32le":
        data = r.uniform(-1, 1, count).astype("<f4").tobytes()
    else:
        data = r.integers(0, 256, count * (2 if encoding == "pcm_s16le" else 1), np.uint8).tobytes()
    whole = drained(AudioStream(encoding, rate, 1), data)
    stream = AudioStream(encoding, rate, 1)
    at = index = 0
    while at < len(data):
        size = sizes[index % len(sizes)]
        stream.receive(data[at : at + size])
        stream.produce(stream.end + int(r.integers(0, 4_000)), stream.received_frames)
        at, index = at + size, index + 1
    assert np.array_equal(samples(stream, 0, stream.drain(stream.received_frames)), whole)


@settings(max_examples=40, deadline=None)
@given(rate=st.sampled_from(RATES), at=st.integers(0, 20_000), seed=st.integers(0, 2**32 - 1))
def test_a_restart_gives_what_a_new_stream_from_there_gives(rate: int, at: int, seed: int) -> None:
    data = np.random.default_rng(seed).integers(-9_000, 9_000, 2 * rate, "<i2").tobytes()
    stream = AudioStream("pcm_s16le", rate, 1)
    stream.receive(data)
    stream.produce(25_000, stream.received_frames)
    stream.restart(at)
    end = stream.drain(stream.received_frames)
    fresh = AudioStream("pcm_s16le", rate, 1, at)
    fresh.receive(data[2 * fresh.frame(at) :])
    assert fresh.drain(fresh.received_frames) == end
    assert stream.read(at, end) == fresh.read(at, end)


def test_samples_that_were_forgotten_cannot_be_read() -> None:
    stream = AudioStream("pcm_s16le", 16_000, 1)
    stream.receive(bytes(2_000))
    stream.produce(1_000, 1_000)
    stream.forget(500)
    with pytest.raises(AssertionError, match="not here"):
        stream.read(499, 600)


def test_a_long_stream_keeps_no_more_than_it_is_told_to() -> None:
    stream = AudioStream("pcm_s16le", 48_000, 1)
    for second in range(60):
        stream.receive(bytes(96_000))
        stream.produce((second + 1) * 16_000, stream.received_frames)
        stream.forget(second * 16_000 - 16_000)
        stream.forget_raw(second * 16_000 - 16_000)
    kept = len(stream._raw) + len(stream._pcm)  # pyright: ignore[reportPrivateUsage]
    assert kept < 4 * (96_000 + 32_000)


def test_the_quietest_place_is_found() -> None:
    audio = np.full(16_000, 0.3, np.float32)
    audio[9_600:11_200] = 0.01
    stream = AudioStream("pcm_s16le", 16_000, 1)
    stream.receive(s16(audio))
    stream.produce(16_000, 16_000)
    assert 9_600 < stream.quietest(0, 16_000, 1_536) < 11_200
