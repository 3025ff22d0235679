"""
Finals as subtitles: SubRip and WebVTT.
"""

from collections.abc import Sequence

from dalston.orchestrator.protocol.messages import Final


def srt(finals: Sequence[Final]) -> str:
    return "".join(
        f"{number}\n{_clock(final.start, ',')} --> {_clock(final.end, ',')}\n{_line(final)}\n\n"
        for number, final in enumerate(finals, 1)
    )


def vtt(finals: Sequence[Final]) -> str:
    """https://www.w3.org/TR/webvtt1/"""
    cues = (
        f"{_clock(final.start, '.')} --> {_clock(final.end, '.')}\n{_escaped(_line(final))}\n\n"
        for final in finals
    )
    return "WEBVTT\n\n" + "".join(cues)


def _clock(seconds: float, point: str) -> str:
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    minutes, second = divmod(whole, 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour:02}:{minute:02}:{second:02}{point}{milliseconds:03}"


def _line(final: Final) -> str:
    # An arrow is what tells that a line holds times.
    return " ".join(final.text.split()).replace("-->", "->")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
