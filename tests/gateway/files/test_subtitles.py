from support.dialects import final

from dalston.gateway.files.subtitles import srt, vtt

FINALS = [final(0, "Hello there.", 0.3, 1.4), final(1, "a --> b & <c>", 3599.9996, 3725.25)]


def test_subrip_counts_from_one_and_has_commas() -> None:
    assert srt(FINALS) == (
        "1\n00:00:00,300 --> 00:00:01,400\nHello there.\n\n"
        "2\n01:00:00,000 --> 01:02:05,250\na -> b & <c>\n\n"
    )


def test_webvtt_has_a_header_and_points_and_nothing_that_is_taken_for_a_tag() -> None:
    assert vtt(FINALS) == (
        "WEBVTT\n\n00:00:00.300 --> 00:00:01.400\nHello there.\n\n"
        "01:00:00.000 --> 01:02:05.250\na -&gt; b &amp; &lt;c&gt;\n\n"
    )


def test_nothing_said_is_no_cue() -> None:
    assert (srt([]), vtt([])) == ("", "WEBVTT\n\n")
