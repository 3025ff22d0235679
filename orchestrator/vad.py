"""
Where utterances begin and end: hysteresis over speech probabilities, without I/O.

                        p >= threshold            min_speech of it
            SILENCE -------------------> ONSET --------------------> SPEECH
               ^                           |                           |
               |   min_silence, DROPPED    |    min_silence, ENDPOINT  |
               +---------------------------+---------------------------+

In speech a frame is silent below threshold - RELEASE, and a run of silence lasts until a frame
reaches the threshold again (the rules of Silero's own VADIterator). A run of PAUSE that may still
end is told too, so that a final can be asked for before it is due.
"""

from dataclasses import dataclass
from enum import Enum

# Hysteresis: what ends speech is well below what starts it (silero-vad utils_vad.py).
RELEASE = 0.15
# The audio of a final ends so long behind the last speech: consonants fade below any threshold.
# When so much silence is heard, the final can be asked for.
PAUSE = 3_200  # samples: 200 ms


class Event(Enum):
    ONSET = "speech may have begun at `onset`"
    CONFIRMED = "it has"
    DROPPED = "it had not: too short"
    PAUSE = "silent since `silence`, long enough for a speculative final"
    RESUMED = "the pause was only one"
    ENDPOINT = "the utterance is over since `silence`"


@dataclass(frozen=True)
class Thresholds:
    """Settings of one session; lengths are samples."""

    threshold: float
    min_speech: int
    min_silence: int
    manual: bool  # no endpoint: only the client ends utterances


class Endpointer:
    def __init__(self) -> None:
        self.onset: int | None = None  # start of the first frame of speech; None in silence
        self.confirmed = False
        self.silence: int | None = None  # start of the run of silence; None while speaking
        self.heard = False  # whether any frame since onset reached the threshold
        self._paused = False

    def resume_speech(self, onset: int) -> None:
        """Begin in the middle of speech: behind a cut."""
        self.__init__()
        self.onset, self.confirmed = onset, True

    def earliest(self, position: int, rules: Thresholds) -> int:
        """Where the next event that anybody waits for can be at the earliest, whatever is heard
        from `position` on. (An onset that is not confirmed yet is nothing to wait for.)"""
        if self.onset is None:
            return position + rules.min_speech
        silence = position if self.silence is None else self.silence
        quiet = rules.min_silence if self._paused else min(PAUSE, rules.min_silence)
        earliest = silence + quiet
        return earliest if self.confirmed else min(earliest, self.onset + rules.min_speech)

    def receive(self, probability: float, start: int, end: int, rules: Thresholds) -> Event | None:
        """The next frame, samples [start, end): what it means, if anything."""
        speaks = probability >= rules.threshold
        if self.onset is None:
            if not speaks:
                return None
            self.__init__()
            self.onset, self.heard = start, True
            return Event.ONSET
        if speaks:
            self.heard = True
            self.silence = None
        elif probability < rules.threshold - RELEASE and self.silence is None:
            self.silence = start
        if self.silence is None:
            if self._paused:
                self._paused = False
                return Event.RESUMED
            if not self.confirmed and end - self.onset >= rules.min_speech:
                self.confirmed = True
                return Event.CONFIRMED
            return None
        quiet = end - self.silence
        if quiet >= rules.min_silence and not (rules.manual and self.confirmed):
            return Event.ENDPOINT if self.confirmed else Event.DROPPED
        if quiet >= PAUSE and self.confirmed and not self._paused:
            self._paused = True
            return Event.PAUSE
        return None
