"""
Audio out of containers: whatever people record, as samples of ours. To be used in a thread, for
decoding is work; it knows no event loop.

FFmpeg (through PyAV) reads the bytes that it is given and nothing else: formats that name other
files or addresses, as playlists do, are not in FORMATS, and nothing may be opened through any
protocol. What a header says of a length is not believed: audio is counted as it is decoded.
"""

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import av
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.container import InputContainer
from av.error import FFmpegError

from dalston.gateway.protocols.protocol import Container
from dalston.triton.contract import SAMPLE_RATE

# By the names of FFmpeg's demuxers; m4a, mp4 and 3gp are mov, webm is matroska.
FORMATS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,asf,au,avi,caf,eac3,flac,flv,matroska,mov,mp3,mpeg,mpegts,ogg,"
    "w64,wav,wv"
)
PIECE = SAMPLE_RATE  # bytes: half a second
# Hertz. A minute that claims to have one sample a second would become hours.
RATES = range(4_000, 768_001)


class NotAudio(ValueError):
    """No audio can be had of this; says why in a sentence."""


class TooLong(ValueError):
    """It is longer than audio may be; says so in a sentence."""


_LIVE = {"webm": "matroska", "ogg": "ogg", "mp4": "mov"}


class Readable(Protocol):
    def read(self, size: int) -> bytes:
        """At most so many bytes, and none at the end; it may wait."""
        ...


@dataclass(frozen=True)
class Raw:
    """Samples without a container."""

    codec: str  # as FFmpeg calls it: s16le, f32le, mulaw, alaw
    rate: int  # Hertz
    channels: int = 1


def pieces(file: BinaryIO, longest_s: float, raw: Raw | None = None) -> Generator[bytes]:
    """The audio of a file at 16 kHz, 16 bit, in one channel, in pieces of half a second. raw: what
    it is if it has no container.

    Raises NotAudio, and TooLong once more than longest_s was decoded.
    """
    rest = bytearray()
    some = False
    with _opened(file, raw) as container:
        if not container.streams.audio:
            raise NotAudio("the file holds no audio")
        for part in _resampled(_frames(container), longest_s):
            some = True
            rest += part
            while len(rest) >= PIECE:
                yield bytes(rest[:PIECE])
                del rest[:PIECE]
    if not some:
        raise NotAudio("the file holds no audio that can be decoded")
    if rest:
        yield bytes(rest)


def live_format(name: Container, first: bytes) -> str:
    """FFmpeg's name of a container that is called so, or that begins like this. Raises NotAudio."""
    if name in _LIVE:
        return _LIVE[name]
    for begins, known in ((b"\x1aE\xdf\xa3", "webm"), (b"OggS", "ogg")):
        if first.startswith(begins):
            return _LIVE[known]
    if first[4:8] in (b"ftyp", b"styp", b"moov"):
        return _LIVE["mp4"]
    raise NotAudio("the audio is neither WebM nor Ogg nor MP4")


def samples(file: Readable, form: str) -> Generator[bytes]:
    """The same of a stream that still comes, as soon as it can be decoded. form: FFmpeg's name of
    its container. Raises NotAudio."""
    options = {"format_whitelist": form, "protocol_whitelist": "none", "fflags": "nobuffer"}
    try:
        container = av.open(
            file, "r", format=form, options=options, metadata_errors="ignore", buffer_size=4096
        )
    except (FFmpegError, ValueError):
        raise NotAudio(f"the audio is broken, or no {form}") from None
    with container:
        if not container.streams.audio:
            raise NotAudio("there is no audio in it")
        yield from _resampled(_frames(container), math.inf)


def _opened(file: BinaryIO, raw: Raw | None) -> InputContainer:
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "none"}
    try:
        if raw is None:
            return av.open(file, "r", options=options, metadata_errors="ignore")
        options = {
            "format_whitelist": raw.codec,
            "protocol_whitelist": "none",
            "sample_rate": str(raw.rate),
            "ch_layout": f"{raw.channels}c",
        }
        return av.open(file, "r", format=raw.codec, options=options)
    except (FFmpegError, ValueError):
        sentence = "the file is broken, or no format of audio or video that is known here"
        raise NotAudio(sentence) from None


def _frames(container: InputContainer) -> Iterator[AudioFrame]:
    """All that can be decoded: what is broken is passed over, as players do."""
    stream = container.streams.audio[0]
    stream.codec_context.thread_count = 1
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except FFmpegError:
            return  # it breaks off here
        if packet is None:
            return
        try:
            for frame in packet.decode():
                assert isinstance(frame, AudioFrame)
                yield frame
        except FFmpegError:
            continue


def _resampled(frames: Iterator[AudioFrame], longest_s: float) -> Iterator[bytes]:
    resampler, before, length_s = None, None, 0.0
    for frame in frames:
        if not frame.samples:
            continue
        if frame.sample_rate not in RATES:
            raise NotAudio(f"its audio has {frame.sample_rate} samples a second")
        length_s += frame.samples / frame.sample_rate
        if length_s > longest_s:
            raise TooLong(f"the audio is longer than {longest_s:g} s")
        frame.pts = None  # gaps in the times that it tells are none in what was said
        shape = frame.format.name, frame.layout.name, frame.sample_rate
        if resampler is None or shape != before:
            if resampler:
                yield from _through(resampler, None)
            resampler, before = AudioResampler("s16", "mono", SAMPLE_RATE), shape
        yield from _through(resampler, frame)
    if resampler:
        yield from _through(resampler, None)


def _through(resampler: AudioResampler, frame: AudioFrame | None) -> list[bytes]:
    try:
        return [_samples(part) for part in resampler.resample(frame)]
    except (FFmpegError, ValueError):
        raise NotAudio("its audio cannot be resampled") from None


def _samples(frame: AudioFrame) -> bytes:
    return bytes(frame.planes[0])[: 2 * frame.samples]
