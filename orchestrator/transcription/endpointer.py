"""
Where utterances begin and end: hysteresis over speech probabilities, without I/O.

                        p >= threshold            min_speech of it
            SILENCE -------------------> ONSET --------------------> SPEECH
               ^                           |                           |
               |   min_silence, DROPPED    |    min_silence, ENDPOINT  |
               +---------------------------+---------------------------+

In speech a frame is silent below threshold - RELEASE, and a run of silence lasts until a frame
reaches the threshold again (the rules of Silero's own VADIterator). A run of `pause` that may still
end is told too, so that a final can be asked for before it is due.

With rules for turns the silence that ends confirmed speech depends on what it sounded like. At each
PAUSE somebody is asked, and told to `judge`: `shortest` if the turn sounds over, `longest` if not,
min_silence if nobody can tell. Frames that could end a turn of `shortest` are not for this class
until the answer is there (`undecided`), so the answer counts from a place in the audio, whenever it
came. Silence of `longest` ends every turn.
"""

from dataclasses import dataclass
from enum import Enum

# Hysteresis: what ends speech is well below what starts it (silero-vad utils_vad.py).
RELEASE = 0.15
# The audio of a final ends so long after the last speech: consonants fade below any threshold.
# When so much silence is heard, the final can be asked for.
PAUSE = 3_200  # samples: 200 ms
# Where the client ends utterances. Whoever listens for the end itself says so after 200 ms of
# silence (the usual setting of voice agents): a final asked for then is not there before it has
# been decoded.
QUICK_PAUSE = 1_536  # samples: 96 ms


class Event(Enum):
    ONSET = "speech may have begun at `onset`"
    CONFIRMED = "it has"
    DROPPED = "it had not: too short"
    PAUSE = "silent since `silence`, long enough for a speculative final"
    RESUMED = "the pause was only one"
    ENDPOINT = "the utterance is over since `silence`"


@dataclass(frozen=True)
class TurnRules:
    """How much silence ends a turn; lengths are samples, PAUSE at least."""

    threshold: float  # probability that it is over, from which it sounds over
    shortest: int
    longest: int


@dataclass(frozen=True)
class Thresholds:
    """Settings of one session; lengths are samples."""

    threshold: float
    min_speech: int
    min_silence: int
    manual: bool  # no endpoint: only the client ends utterances
    turns: TurnRules | None = None  # None: min_silence ends them all
    pause: int = PAUSE


class Endpointer:
    def __init__(self) -> None:
        self.onset: int | None = None  # start of the first frame of speech; None in silence
        self.confirmed = False
        self.silence: int | None = None  # start of the run of silence; None while speaking
        self.spoke = False  # whether any frame since onset reached the threshold
        self._paused = False
        # Of this pause: whether somebody is asked how it sounds, has answered, and what.
        self._asked = self._judged = False
        self._over: float | None = None

    def resume_speech(self, onset: int) -> None:
        """Begin in the middle of speech: after a cut."""
        self.__init__()
        self.onset, self.confirmed = onset, True

    def earliest(self, position: int, rules: Thresholds) -> int:
        """Where the next event that anybody waits for can be at the earliest, whatever is heard
        from `position` on. (An onset that is not confirmed yet is nothing to wait for.)"""
        if self.onset is None:
            return position + rules.min_speech
        silence = position if self.silence is None else self.silence
        quiet = self._enough(rules)
        earliest = silence + (quiet if self._paused else min(rules.pause, quiet))
        return earliest if self.confirmed else min(earliest, self.onset + rules.min_speech)

    def undecided(self, end: int, rules: Thresholds) -> bool:
        """Whether a frame that ends at `end` has to wait for `judge`."""
        if self.silence is None or not self._asked or rules.turns is None:
            return False
        return end - self.silence >= rules.turns.shortest

    def judge(self, probability: float | None) -> None:
        """How likely it is that this pause is the end of a turn; None: nobody can tell."""
        if self._asked:  # else speech went on meanwhile
            self._asked, self._judged, self._over = False, True, probability

    def _enough(self, rules: Thresholds) -> int:
        """How much silence ends the speech, in samples."""
        turns = rules.turns
        if turns is None or not self.confirmed:
            return rules.min_silence
        if self._judged and self._over is None:
            return max(rules.min_silence, turns.shortest)
        sounds_over = self._over is not None and self._over >= turns.threshold
        return turns.shortest if self._asked or sounds_over else turns.longest

    def receive(self, probability: float, start: int, end: int, rules: Thresholds) -> Event | None:
        """The next frame, samples [start, end): what it means, if anything."""
        speaks = probability >= rules.threshold
        if self.onset is None:
            if not speaks:
                return None
            self.__init__()
            self.onset, self.spoke = start, True
            return Event.ONSET
        if speaks:
            self.spoke = True
            self.silence = None
        elif probability < rules.threshold - RELEASE and self.silence is None:
            self.silence = start
        if self.silence is None:
            if self._paused:
                self._paused = self._asked = self._judged = False
                self._over = None
                return Event.RESUMED
            if not self.confirmed and end - self.onset >= rules.min_speech:
                self.confirmed = True
                return Event.CONFIRMED
            return None
        quiet = end - self.silence
        if quiet >= self._enough(rules) and not (rules.manual and self.confirmed):
            return Event.ENDPOINT if self.confirmed else Event.DROPPED
        if quiet >= rules.pause and self.confirmed and not self._paused:
            self._paused = True
            self._asked = rules.turns is not None
            return Event.PAUSE
        return None
