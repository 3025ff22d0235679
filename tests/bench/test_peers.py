"""
What the servers side by side say, and what counts as a broken promise.
"""

import json
import struct
from dataclasses import asdict, replace
from typing import Any

import peers
import pytest
from peer_callers import (
    Call,
    Dalston,
    Heard,
    Listener,
    RealtimeSTT,
    Script,
    Sentence,
    WhisperLive,
    WhisperLiveKit,
)

SCRIPT = Script(b"", (Sentence("turn on", 0.5, 1.5), Sentence("the light", 3.0, 4.0)))


def listened(*heard: tuple[float, Heard]) -> Call:
    """What is counted of texts that came at these seconds."""
    listener, call = Listener(SCRIPT), Call(0, sentences=2)
    for now, text in heard:
        listener.hear(now, [text])
    listener.count(call)
    return call


def test_our_partials_and_finals_are_read_and_nothing_else() -> None:
    text = {"text": "turn on", "start": 0.4, "end": 1.5}
    server = Dalston()
    assert server.read({"type": "transcript.partial", **text}, 1.0) == [
        Heard("turn on", 0.4, 1.5, False)
    ]
    assert server.read({"type": "transcript.final", **text}, 2.0)[0].final
    assert server.read({"type": "vad.speech_start", "timestamp": 0.4}, 0.6) == []


def test_finals_of_realtimestt_are_those_of_its_recordings_in_their_order() -> None:
    server = RealtimeSTT()
    started = {"type": "timeline", "event": "recording_started"}
    ended = {"type": "timeline", "event": "recording_ended"}
    assert server.read(started, 0.8) == []
    (partial,) = server.read({"type": "realtime", "text": "turn"}, 1.2)
    assert (partial.start, partial.end, partial.final) == (pytest.approx(0.5), 1.2, False)
    server.read(ended, 1.9)
    server.read(started, 3.3)  # before the final of the first
    (first,) = server.read({"type": "final", "text": "Turn on."}, 3.5)
    assert (first.start, first.end, first.final) == (pytest.approx(0.5), 1.9, True)
    server.read(ended, 4.5)
    (second,) = server.read({"type": "final", "text": "The light."}, 4.6)
    assert (second.start, second.end) == (pytest.approx(3.0), 4.5)


def test_realtimestt_takes_audio_behind_its_description() -> None:
    frame = RealtimeSTT().audio(b"\1\2" * 1600)
    (length,) = struct.unpack("<I", frame[:4])
    assert json.loads(frame[4 : 4 + length])["frames"] == 1600
    assert frame[4 + length :] == b"\1\2" * 1600


def test_whisper_live_repeats_completed_segments_and_they_are_read_once() -> None:
    server = WhisperLive()
    done = {"start": "0.000", "end": "1.500", "text": " turn on", "completed": True}
    shown = {"start": "1.500", "end": "3.400", "text": " the", "completed": False}
    assert server.read({"segments": [done]}, 2.0) == [Heard(" turn on", 0.0, 1.5, True)]
    assert server.read({"segments": [done, shown]}, 3.5) == [Heard(" the", 1.5, 3.4, False)]
    assert server.read({"message": "DISCONNECT"}, 4.0) == []


def line(text: str, start: str, end: str) -> dict[str, Any]:
    return {"text": text, "start": start, "end": end, "speaker": 1 if text else -2}


def test_of_whisperlivekit_new_words_in_lines_are_final_and_a_new_buffer_is_not() -> None:
    server = WhisperLiveKit()
    buffered = {"lines": [], "buffer_transcription": " turn"}
    assert server.read(buffered, 1.0) == [Heard("turn", 0.0, 1.0, False)]
    assert server.read(buffered, 1.1) == []
    first = line(" turn on", "0:00:00.46", "0:00:01.40")
    assert server.read({"lines": [first], "buffer_transcription": ""}, 1.8) == [
        Heard("turn on", 0.0, 1.4, True)
    ]
    silence, second = line("", "0:00:01.50", "0:00:03.00"), line(" the", "0:00:03.00", "0:01:03.30")
    message = {"lines": [first, silence, second], "buffer_transcription": "light"}
    assert server.read(message, 63.5) == [
        Heard("the", 1.4, 63.3, True),
        Heard("light", 63.3, 63.5, False),
    ]


def test_times_count_from_the_true_onset_and_the_true_end() -> None:
    call = listened(
        (1.1, Heard("turn", 0.4, 1.0, False)),
        (2.1, Heard("Turn on.", 0.4, 1.5, True)),
        (3.9, Heard("the", 2.9, 3.8, False)),
        (4.5, Heard("The light.", 2.9, 4.0, True)),
    )
    assert call.first_text == pytest.approx([0.6, 0.9])
    assert call.after_speech == pytest.approx([0.6, 0.5])
    assert (call.unseen, call.lost, call.words) == (0, 0, "turn on the light")


def test_of_a_sentence_in_two_finals_the_one_with_its_end_counts() -> None:
    call = listened((1.1, Heard("turn", 0.4, 0.7, True)), (2.2, Heard("on", 0.7, 1.5, True)))
    assert call.after_speech == pytest.approx([0.7])
    assert call.lost == 1


def test_two_sentences_in_one_final_are_both_told_by_it() -> None:
    call = listened((4.6, Heard("turn on the light", 0.0, 4.0, True)))
    assert call.after_speech == pytest.approx([3.1, 0.6])
    assert call.lost == 0


def test_a_sentence_that_is_neither_shown_nor_told_is_unseen_and_lost() -> None:
    call = listened((2.1, Heard("turn on", 0.4, 1.5, True)), (5.0, Heard("  ", 2.9, 4.0, True)))
    assert (call.unseen, call.lost) == (1, 1)


def kept(script: int = 0, **changes: Any) -> Call:
    return replace(Call(script, 1, [0.7], [0.6], words="a b c d e f g h i j"), **changes)


def run(*calls: Call, late: float = 0.0) -> peers.Run:
    return peers.Run(len(calls), [asdict(call) for call in calls], [late])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"first_text": [0.7, 1.5]}, ["first text p95 1500 ms"]),
        ({"after_speech": [1.01]}, ["final after speech p95 1010 ms"]),
        ({"after_speech": []}, ["final after speech p95 none"]),
        ({"unseen": 1}, ["1 sentences never shown"]),
        ({"lost": 2}, ["2 finals lost"]),
        ({"failure": "WAIT: 3"}, ["1 calls failed: WAIT: 3"]),
        ({"words": "a b c d e f g h i x"}, []),
        ({"words": "a b c d e f g h"}, ["2 of 10 words unlike those of one caller alone"]),
        ({"script": 1, "words": "something else"}, []),  # nobody read that one alone
    ],
)
def test_each_clause_of_the_promise_can_be_broken(changes: dict[str, Any], said: list[str]) -> None:
    assert peers.broken(run(kept(**changes)), run(kept())) == said


def test_a_run_whose_callers_were_late_is_void() -> None:
    (said,) = peers.broken(run(kept(), late=0.2), run(kept()))
    assert said == "the callers were 200 ms late: the run is void"


def test_a_run_in_which_somebody_else_used_the_cores_is_void() -> None:
    (said,) = peers.broken(replace(run(kept()), others_percent=80.0), run(kept()))
    assert said == "somebody else used 80 % of a core: the run is void"


def result(streams: int | None) -> dict[str, Any]:
    return {"streams_at_slo": streams}


def test_ours_is_compared_with_the_best_and_one_that_holds_none_counts_as_one() -> None:
    servers = {"dalston": result(30), "a": result(0), "b": result(4), "c": result(None)}
    told = peers.compared(servers)
    assert (told["streams_at_slo"], told["ratio"], told["holds_none"]) == (30, 7.5, ["a"])
    assert told["peers"] == {"a": 1, "b": 4, "c": None}


def test_without_a_peer_that_ran_there_is_no_ratio() -> None:
    told = peers.compared({"dalston": result(30), "c": result(None)})
    assert told["ratio"] is None


def test_of_rounds_the_median_counts() -> None:
    told = peers.median([result(4), result(9), result(None), result(5)])
    assert (told["streams_at_slo"], told["rounds"]) == (5, [4, 9, 5])
