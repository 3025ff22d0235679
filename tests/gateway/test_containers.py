import io
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from support.uploads import CONTAINERS, contained, film, recorded, tone

from dalston.gateway.containers import PIECE, NotAudio, Raw, TooLong, pieces


def heard(file: bytes, longest_s: float = 100.0, raw: Raw | None = None) -> npt.NDArray[np.float64]:
    audio = b"".join(pieces(io.BytesIO(file), longest_s, raw))
    return np.frombuffer(audio, "<i2").astype(float)


def is_the_tone(samples: npt.NDArray[np.float64], seconds: float) -> bool:
    """As loud and as long; codecs add some milliseconds at either end."""
    middle = samples[4000:-4000]
    spectrum = np.abs(np.fft.rfft(middle))
    hertz = np.argmax(spectrum) * 16_000 / len(middle)
    loud = np.sqrt(np.mean(middle**2))
    as_long = abs(len(samples) / 16_000 - seconds) < 0.1
    return bool(as_long and abs(hertz - 440) < 2 and 4000 < loud < 7500)


@pytest.mark.parametrize("kind", CONTAINERS)
def test_audio_comes_out_of_what_people_upload(kind: str) -> None:
    assert is_the_tone(heard(recorded(kind)), 2.0)


def test_channels_are_mixed_and_any_rate_becomes_ours() -> None:
    assert is_the_tone(heard(contained(tone(2, 44_100), 44_100, layout="stereo")), 2.0)
    assert is_the_tone(heard(contained(tone(2, 8_000), 8_000)), 2.0)
    assert is_the_tone(heard(contained(tone(2, 96_000), 96_000, layout="5.1")), 2.0)


def test_samples_without_a_container_are_what_they_are_said_to_be() -> None:
    raw = tone(2, 24_000).astype("<i2").tobytes()
    assert is_the_tone(heard(raw, raw=Raw("s16le", 24_000)), 2.0)
    loud = (tone(2, 8_000) / 32768).astype("<f4").tobytes()
    assert is_the_tone(heard(loud, raw=Raw("f32le", 8_000)), 2.0)


def test_it_comes_in_pieces_of_half_a_second_and_a_rest() -> None:
    sizes = [len(piece) for piece in pieces(io.BytesIO(recorded("wav", 1.75)), 10)]
    assert sizes == [PIECE, PIECE, PIECE, PIECE // 2]


@pytest.mark.parametrize(
    ("file", "why"),
    [
        (b"", "broken"),
        (b"Some words, which somebody has named song.mp3.\n" * 100, "broken"),
        (bytes(range(256)) * 40, "broken"),
        (film(), "no audio"),
        (recorded("wav")[:44], "broken|no audio"),
    ],
    ids=["empty", "text", "noise", "film", "no samples"],
)
def test_what_is_no_audio_is_said_to_be_none(file: bytes, why: str) -> None:
    with pytest.raises(NotAudio, match=why):
        heard(file)


@pytest.mark.parametrize("kind", CONTAINERS)
def test_what_breaks_off_is_heard_as_far_as_it_goes_or_refused(kind: str) -> None:
    file = recorded(kind)
    try:
        assert 0 < len(heard(file[: len(file) // 2])) < 2.1 * 16_000
    except NotAudio:
        assert kind == "m4a"  # it says at its end what it is


@pytest.mark.parametrize("kind", CONTAINERS)
def test_bytes_that_are_wrong_in_the_middle_end_nothing(kind: str) -> None:
    file = bytearray(recorded(kind, 4.0))
    middle = len(file) // 2
    file[middle : middle + 40] = b"\xff\x00" * 20
    assert len(heard(bytes(file))) > 1.5 * 16_000


def test_audio_is_as_long_as_it_is_decoded_to_whatever_its_header_says() -> None:
    file = contained(np.zeros(60 * 16_000, np.int16), 16_000, "flac", "flac")
    assert len(file) < 60_000  # 32 times as much when it is decoded
    decoded = list[bytes]()
    with pytest.raises(TooLong, match="longer than 10 s"):
        decoded.extend(pieces(io.BytesIO(file), 10))
    assert sum(map(len, decoded)) <= 2 * 10 * 16_000
    wav = bytearray(recorded("wav"))
    at = wav.index(b"data") + 4
    wav[at : at + 4] = struct.pack("<I", 0x7FFFFFF0)  # bytes of audio, as its header says
    assert is_the_tone(heard(bytes(wav), 10), 2.0)


def test_a_minute_does_not_become_hours_by_a_rate_that_nobody_records_at() -> None:
    wav = bytearray(recorded("wav"))
    wav[24:28] = struct.pack("<I", 1)
    with pytest.raises(NotAudio, match="1 samples a second"):
        heard(bytes(wav))


@pytest.mark.parametrize("how", ["playlist", "list of files", "session description"])
def test_a_file_that_names_others_opens_none(how: str, tmp_path: Path) -> None:
    other = tmp_path / "other.wav"
    other.write_bytes(recorded("wav"))
    text = {
        "playlist": f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfile://{other}\n#EXT-X-ENDLIST\n",
        "list of files": f"ffconcat version 1.0\nfile '{other}'\n",
        "session description": "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=audio 9 RTP/AVP 0\n",
    }[how]
    with pytest.raises(NotAudio, match="broken"):
        heard(text.encode())
