import base64
import json
from pathlib import Path
from typing import Any

import perf_analyzer
import pytest
import single_triton
import spoken_requests
from perf_analyzer_binary import PerfAnalyzerError, find_binary

from dalston.orchestrator.transcription.model_requests import Hypothesis, TranscriptRequest
from dalston.orchestrator.transcription.session import HOP
from dalston.triton.contract import (
    SAMPLE_RATE,
    VAD_FRAME,
    VAD_INPUTS,
    WHISPER_INPUTS,
    window_seconds,
)

SPOKEN = spoken_requests.recordings()


def samples(tensors: dict[str, Any]) -> int:
    return tensors["AUDIO"]["shape"][0]


# --- what is asked -------------------------------------------------------------------------------


def test_a_sequence_holds_every_hop_of_its_recording() -> None:
    for recording in SPOKEN:
        *hops, end = spoken_requests.speech_requests(recording)
        whole = len(recording.audio) // (2 * VAD_FRAME) * 2 * VAD_FRAME
        assert b"".join(hop.audio for hop in hops) == recording.audio[:whole]
        assert {len(hop.audio) for hop in hops[:-1]} == {2 * HOP}
        assert 0 < len(hops[-1].audio) <= 2 * HOP
        assert [hop.start for hop in hops] == [True] + [False] * (len(hops) - 1)
        assert end.end
        assert not end.audio


def test_finals_are_the_utterances_with_silence_around_them() -> None:
    finals = spoken_requests.final_requests(SPOKEN, "fast")
    spoken = [end - start for recording in SPOKEN for start, end in recording.utterances]
    for final, length in zip(finals, spoken, strict=True):
        assert 0 < len(final.audio) // 2 - length <= SAMPLE_RATE // 2
    # Right-sized: they do not all go through one window.
    assert len({window_seconds(len(final.audio) // 2) for final in finals}) > 1
    assert [final.language for final in finals].count("auto") == len(SPOKEN)


async def test_partials_grow_and_begin_with_what_was_agreed_on() -> None:
    async def hears_a_word_each_half_second(request: TranscriptRequest) -> Hypothesis:
        words = ["word"] * (len(request.audio) // SAMPLE_RATE)
        ends = [5 * number + 4 for number in range(len(words))]
        return Hypothesis(
            " ".join(words),
            tokens=range(len(words)),
            token_ends=ends,
            token_logprobs=[-0.001] * len(words),
        )

    (final,) = spoken_requests.final_requests(
        [spoken_requests.Recording(bytes(2 * 3 * SAMPLE_RATE), ((0, 2 * SAMPLE_RATE),))], "fast"
    )
    partials = await spoken_requests.partial_requests(
        [spoken_requests.Recording(bytes(2 * 3 * SAMPLE_RATE), ((0, 2 * SAMPLE_RATE),))],
        "fast",
        hears_a_word_each_half_second,
    )
    assert [len(partial.audio) / 2 / SAMPLE_RATE for partial in partials] == [0.5, 1, 1.5, 2]
    assert all(final.audio.startswith(partial.audio) for partial in partials)
    # A word is agreed on when two hypotheses have it and another follows.
    assert [partial.prefix for partial in partials] == [(), (), (0,), (0, 1)]


def test_steps_have_the_inputs_of_the_contract() -> None:
    (speech, *_), (final, *_) = (
        spoken_requests.speech_requests(SPOKEN[0]),
        spoken_requests.final_requests(SPOKEN, "accurate"),
    )
    assert set(spoken_requests.step(speech)) == {tensor.name for tensor in VAD_INPUTS}
    tensors = spoken_requests.step(final, full_window=True)
    assert set(tensors) == {tensor.name for tensor in WHISPER_INPUTS}
    assert base64.b64decode(tensors["AUDIO"]["content"]["b64"]) == final.audio
    assert samples(tensors) == len(final.audio) // 2
    assert tensors["PREFIX"] == {"content": [], "shape": [0]}
    assert (tensors["WORDS"], tensors["FULL_WINDOW"]) == ([True], [True])


def test_an_end_without_audio_is_an_empty_tensor() -> None:
    end = spoken_requests.speech_requests(SPOKEN[0])[-1]
    assert spoken_requests.step(end) == {"AUDIO": {"content": [], "shape": [0]}}


def test_threads_that_take_every_nth_request_come_round_to_all() -> None:
    steps = [{"AUDIO": number} for number in range(10)]
    once, again = spoken_requests.mixed(steps), spoken_requests.mixed(steps)
    assert once == again != steps
    assert len(once) == 9
    assert len(spoken_requests.mixed(steps[:9])) == 9


def test_the_audio_of_a_request_is_averaged_over_sequences(tmp_path: Path) -> None:
    hop, end = {"AUDIO": {"shape": [HOP]}}, {"AUDIO": {"shape": [0]}}
    data = spoken_requests.write(tmp_path / "data.json", [[hop, end], [hop, hop, hop, end]])
    assert data.audio_s == 4 / 6 * HOP / SAMPLE_RATE
    assert json.loads(data.path.read_text()) == {"data": [[hop, end], [hop, hop, hop, end]]}


# --- what is understood --------------------------------------------------------------------------

REPORT = """\
Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,\
Server Compute Input,Server Compute Infer,Server Compute Output,Client Recv,\
p50 latency,p90 latency,p95 latency,p99 latency,Avg latency,request/response,response wait
4,1909.53,3,330,634,25,912,98,0,1981,2200,2289,3997,2005,3,1999
"""
OUTPUT = """\
Request concurrency: 4
  Client:\x20
    Request count: 6950
    Sequence count: 61 (16.7599 seq/sec)
    Throughput: 1909.53 infer/sec
  Server:\x20
    Inference count: 6953
    Execution count: 3568
    Successful request count: 6953
"""


def test_the_report_is_understood() -> None:
    measured = perf_analyzer.parse(REPORT, OUTPUT)
    assert measured == perf_analyzer.Measured(
        requests=6950,
        per_second=1909.53,
        average_ms=2.005,
        p50_ms=1.981,
        p95_ms=2.289,
        p99_ms=3.997,
        queue_ms=0.634,
        compute_ms=1.035,
        batch=6953 / 3568,
    )


def test_a_row_says_when_nothing_settled(tmp_path: Path) -> None:
    load = perf_analyzer.Load("silero_vad", "speech", live=32)
    row = perf_analyzer.line(load, None, spoken_requests.InputData(tmp_path, 0.096))
    assert "32 live" in row
    assert "did not settle" in row


def test_what_does_not_run_is_no_perf_analyzer(tmp_path: Path) -> None:
    with pytest.raises(PerfAnalyzerError, match=r"/bin/false cannot be run"):
        find_binary(Path("/bin/false"), tmp_path)


# --- the real binary, the real server ------------------------------------------------------------


# K-07
def test_all_three_models_answer_perf_analyzer(
    model_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Fetched from the package index the first time; if that fails, so does this, with the reason.
    kept = Path(__file__).parents[2] / "build" / "perf_analyzer"
    kept.mkdir(parents=True, exist_ok=True)
    binary = find_binary(None, kept)
    loads = [
        perf_analyzer.Load("silero_vad", "speech", in_flight=4),
        perf_analyzer.Load("whisper_fast", "final", in_flight=2),
        perf_analyzer.Load("whisper_fast", "partial", in_flight=1),
        perf_analyzer.Load("whisper_accurate", "full", in_flight=1),
    ]
    with single_triton.running(model_repository, tmp_path / "run") as url:
        perf_analyzer.run(
            binary, url, loads, perf_analyzer.Requests(8), SPOKEN[:1], tmp_path / "data"
        )
        out = capsys.readouterr().out
        # One request that fails makes the run fail.
        bad = spoken_requests.step(spoken_requests.final_requests(SPOKEN, "fast")[0])
        data = spoken_requests.write(tmp_path / "bad.json", [bad | {"TASK": ["sing"]}])
        with pytest.raises(PerfAnalyzerError, match="whisper_fast.*sing"):
            perf_analyzer.measure(binary, url, loads[1], data, perf_analyzer.Requests(2))

    rows = json.loads(out.splitlines()[-1])["rows"]
    assert [row["model"] for row in rows] == [load.model for load in loads]
    assert all(row["measured"]["requests"] >= 8 for row in rows)
    assert all(load.model in out for load in loads)
