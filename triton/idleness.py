"""
Which models nobody has used for long. No I/O, no clock.

Triton counts what a model was asked, whoever asks. Our own probes are counted too, so they are
taken off; what is left is use.
"""


class Idleness:
    """after_s: so long after its last use a model is idle; None: never."""

    def __init__(self, after_s: float | None):
        self._after_s = after_s
        self._counts: dict[str, int] = {}  # models; requests, when last looked at
        self._used: dict[str, float] = {}  # models; seconds of the caller's clock

    def loaded(self, model: str, now: float) -> None:
        """It is there, and somebody wants it: its count begins anew."""
        self._counts.pop(model, None)
        self._used[model] = now

    def counted(self, model: str, requests: int, now: float) -> bool:
        """What Triton's statistics say; whether there were more than last time."""
        more = requests > self._counts.get(model, 0)
        if more:  # a probe may be counted a moment later
            self._counts[model] = requests
            self._used[model] = now
        return more

    def probed(self, model: str) -> None:
        """One request that is counted, or about to be, was ours."""
        self._counts[model] = self._counts.get(model, 0) + 1

    def idle_s(self, model: str, now: float) -> float:
        return now - self._used.get(model, now)

    def is_idle(self, model: str, now: float) -> bool:
        return self._after_s is not None and self.idle_s(model, now) >= self._after_s
