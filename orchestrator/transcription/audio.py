"""
The bytes a client sends -> 16 kHz samples, addressed by their position in the session.

Positions are samples at 16 kHz since the session began: the session's only clock. Bytes become
samples only when they are asked for, and can become samples again: `restart` goes back to an
earlier position with a resampler that remembers nothing, as a worker does that takes the session
over. So what follows a restart is the same in both.
"""

import numpy as np
import numpy.typing as npt
import soxr

from dalston.orchestrator.protocol.messages import SAMPLE_BYTES, Encoding, client_frame
from dalston.triton.contract import SAMPLE_RATE

# Resampled audio is fed in blocks of this, so that the numbers do not depend on how the client
# happened to cut its frames.
_BLOCKS_PER_SECOND = 100


def _g711() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The 256 values of the mu and the A law of ITU-T G.711, as -1..1."""
    codes = np.arange(256, dtype=np.int32)
    u = ~codes & 0xFF
    magnitude = ((((u & 0x0F) << 3) + 0x84) << ((u & 0x70) >> 4)) - 0x84
    mulaw = np.where(u & 0x80, -magnitude, magnitude)
    a = codes ^ 0x55
    exponent, mantissa = (a & 0x70) >> 4, (a & 0x0F) << 4
    magnitude = np.where(
        exponent == 0, mantissa + 8, (mantissa + 0x108) << np.maximum(exponent - 1, 0)
    )
    alaw = np.where(a & 0x80, magnitude, -magnitude)
    return (mulaw / 32768).astype(np.float32), (alaw / 32768).astype(np.float32)


_MULAW, _ALAW = _g711()


class AudioStream:
    """A session's audio from `position` on; what comes in is the client's bytes from there.

    Frames are the client's (one sample of every channel); positions are ours.
    """

    def __init__(self, encoding: Encoding, sample_rate: int, channels: int, position: int = 0):
        self._encoding = encoding
        self._rate = sample_rate
        self._channels = channels
        self._frame_bytes = SAMPLE_BYTES[encoding] * channels
        # 16 kHz mono s16le is what the models take: it is stored as it comes.
        self._verbatim = (encoding, sample_rate, channels) == ("pcm_s16le", SAMPLE_RATE, 1)
        self._raw = bytearray()  # received and perhaps needed again
        self._raw_frame = self.frame(position)  # of the first byte of _raw
        self._fed = self._raw_frame  # frames before it became samples
        self._pcm = bytearray()  # int16 samples
        self._pcm_position = position  # of the first sample of _pcm
        self._resampler: soxr.ResampleStream | None = None
        self._drained = False
        self.invalid_samples = 0  # floats that were no numbers; heard as silence
        self.restart(position)

    # Positions and frames.

    def position(self, frame: int) -> int:
        """The last position at or before the client's frame number `frame`."""
        return frame * SAMPLE_RATE // self._rate

    def frame(self, position: int) -> int:
        """The first of the client's frames at or after `position`."""
        return client_frame(position, self._rate)

    @property
    def received_frames(self) -> int:
        return self._raw_frame + len(self._raw) // self._frame_bytes

    @property
    def received(self) -> int:
        """The position after all audio received, without a frame of which bytes are missing."""
        return self.position(self.received_frames)

    @property
    def end(self) -> int:
        """The position after the samples that can be read now."""
        return self._pcm_position + len(self._pcm) // 2

    # Receiving and reading.

    def receive(self, data: bytes) -> None:
        self._raw += data

    def read(self, first: int, last: int) -> bytes:
        """Samples [first, last) as int16 bytes. They must not have been forgotten."""
        here = self._pcm_position, self.end
        assert here[0] <= first <= last <= here[1], f"[{first}, {last}) is not here, in {here}"
        offset = self._pcm_position
        return bytes(self._pcm[(first - offset) * 2 : (last - offset) * 2])

    def produce(self, position: int, frame: int) -> int:
        """Turn bytes before the client's `frame` into samples, up to `position` or little more.

        Returns the new end. It can lie short of either: a resampler holds some audio back.
        """
        if self._drained:
            return self.end
        wanted = self.frame(position) - self._fed
        available = min(frame, self.received_frames) - self._fed
        if self._resampler is None:
            self._feed(min(wanted, available))
            return self.end
        block = max(1, self._rate // _BLOCKS_PER_SECOND)
        while self.end < position and available >= block:
            self._feed(block)
            available -= block
        return self.end

    def drain(self, frame: int) -> int:
        """Turn every byte before the client's `frame` into samples, those included that the
        resampler holds back. What comes after it needs a restart first."""
        self.produce(self.position(frame), frame)
        if not self._drained:
            self._drained = True
            self._feed(frame - self._fed, last=True)
        # The resampler rounds the length its own way; the clock decides.
        missing = self.position(frame) - self.end
        if missing > 0:
            self._pcm += bytes(2 * missing)
        elif missing < 0:
            del self._pcm[2 * missing :]
        return self.end

    def restart(self, position: int) -> None:
        """Forget the samples from `position` on, and everything before it: the next to be
        produced is `position`."""
        self._drained = False
        if self._verbatim:
            self.forget(position)
        else:
            self._pcm.clear()
            self._pcm_position = position
            self._fed = self.frame(position)
            if self._rate != SAMPLE_RATE:
                self._resampler = soxr.ResampleStream(
                    self._rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ"
                )
            self.forget_raw(position)

    def forget(self, position: int) -> None:
        """Samples before `position` are not read again, nor restarted at."""
        cut = min(position, self.end) - self._pcm_position
        if cut > 0:
            del self._pcm[: 2 * cut]
            self._pcm_position += cut

    def forget_raw(self, position: int) -> None:
        """Forget audio before `position`: nobody will restart before it."""
        cut = min(self.frame(position), self._fed) - self._raw_frame
        if cut > 0:
            del self._raw[: cut * self._frame_bytes]
            self._raw_frame += cut

    def quietest(self, first: int, last: int, width: int) -> int:
        """The middle of the quietest `width` samples in [first, last), on a grid of `width`."""
        pcm = np.frombuffer(self.read(first, last), np.int16).astype(np.float32)
        count = len(pcm) // width
        energy = (pcm[: count * width].reshape(count, width) ** 2).sum(1)
        return first + int(np.argmin(energy)) * width + width // 2

    # Decoding.

    def _feed(self, frames: int, last: bool = False) -> None:
        if frames <= 0 and not (last and self._resampler is not None):
            return
        frames = max(frames, 0)
        first = (self._fed - self._raw_frame) * self._frame_bytes
        data = bytes(self._raw[first : first + frames * self._frame_bytes])
        self._fed += frames
        if self._verbatim:
            self._pcm += data
            self.forget_raw(self.end)
            return
        samples = self._decode(data)
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples, last=last)
        scaled = np.clip(np.rint(samples * 32768), -32768, 32767)
        self._pcm += scaled.astype("<i2").tobytes()

    def _decode(self, data: bytes) -> npt.NDArray[np.float32]:
        """Mono samples of whole frames, -1..1."""
        if self._encoding == "pcm_s16le":
            samples = np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768)
        elif self._encoding == "pcm_f32le":
            samples = np.frombuffer(data, "<f4").astype(np.float32)
            invalid = ~np.isfinite(samples)
            if count := int(np.count_nonzero(invalid)):
                self.invalid_samples += count
                samples = np.where(invalid, np.float32(0), samples)
            samples = np.clip(samples, -1, 1)
        else:
            samples = _MULAW if self._encoding == "mulaw" else _ALAW
            samples = samples[np.frombuffer(data, np.uint8)]
        if self._channels > 1:
            samples = samples.reshape(-1, self._channels).mean(1, dtype=np.float32)
        return samples
