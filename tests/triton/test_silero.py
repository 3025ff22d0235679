"""
The class that keeps sequences apart gives what the ONNX file gives, to the bit.
"""

import random
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import Pcm, recordings
from support.silero_file import probabilities

from dalston.triton.contract import SAMPLE_RATE, VAD_CONTEXT, VAD_FRAME
from dalston.triton.silero import SWEEP_S, Chunk, SequenceLost, Silero

SPEECH = recordings()[1].audio


@pytest.fixture(scope="module")
def path(model_repository: Path) -> Path:
    return model_repository / "silero_vad" / "1" / "silero.onnx"


@pytest.fixture(scope="module")
def speech_probabilities(path: Path) -> npt.NDArray[np.float32]:
    return probabilities(path, SPEECH)


def ask(silero: Silero, *chunks: Chunk, now: float = 0.0) -> list[npt.NDArray[np.float32]]:
    """The answers to chunks that must all have one."""
    answers: list[npt.NDArray[np.float32]] = []
    for answer in silero.probabilities(chunks, now):
        assert not isinstance(answer, SequenceLost)
        answers.append(answer)
    return answers


def lost(silero: Silero, sequence: str, now: float = 0.0) -> bool:
    """Whether the sequence is unknown."""
    (answer,) = silero.probabilities([Chunk(sequence, np.zeros(0, np.int16))], now)
    return isinstance(answer, SequenceLost)


def cut(audio: Pcm, sizes: list[int]) -> list[Pcm]:
    """`audio` in pieces of these sizes, over and over."""
    pieces: list[Pcm] = []
    at = 0
    while at < len(audio):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(audio[at : at + size])
        at += size
    return pieces


def stream(silero: Silero, sequence: str, pieces: list[Pcm]) -> npt.NDArray[np.float32]:
    answers = [
        ask(silero, Chunk(sequence, piece, start=index == 0, end=index == len(pieces) - 1))[0]
        for index, piece in enumerate(pieces)
    ]
    return np.concatenate(answers)


# --- the numbers ----------------------------------------------------------------------------------


# 000-08
def test_speech_is_heard_where_it_is_and_silence_is_not_taken_for_it(path: Path):
    for recording in recordings():
        (heard,) = ask(Silero(path), Chunk("s", recording.audio, start=True))
        begin = np.arange(len(heard)) * VAD_FRAME / SAMPLE_RATE
        for sentence in recording.sentences:
            inside = (begin > sentence.start) & (begin < sentence.end)
            assert np.mean(heard[inside] > 0.5) > 0.7, (recording.name, sentence)
        first = recording.sentences[0].start - 0.2
        assert np.all(heard[begin < first] < 0.5)


def test_one_chunk_gives_the_numbers_of_the_file_itself(
    path: Path, speech_probabilities: npt.NDArray[np.float32]
):
    (heard,) = ask(Silero(path), Chunk("s", SPEECH, start=True))
    assert len(heard) == len(SPEECH) // VAD_FRAME
    assert np.array_equal(heard, speech_probabilities)


# C-27
@settings(max_examples=30)
@given(sizes=st.lists(st.integers(1, 6000), min_size=1, max_size=8))
def test_any_chunking_gives_the_same_probabilities(
    sizes: list[int], path: Path, speech_probabilities: npt.NDArray[np.float32]
):
    heard = stream(Silero(path), "s", cut(SPEECH[: 4 * SAMPLE_RATE], sizes))
    assert np.array_equal(heard, speech_probabilities[: len(heard)])
    assert len(heard) == 4 * SAMPLE_RATE // VAD_FRAME


# C-27
def test_a_chunk_shorter_than_a_frame_is_answered_with_nothing_and_kept(
    path: Path, speech_probabilities: npt.NDArray[np.float32]
):
    silero = Silero(path)
    assert ask(silero, Chunk("s", SPEECH[:0], start=True))[0].shape == (0,)
    assert ask(silero, Chunk("s", SPEECH[: VAD_FRAME - 1]))[0].shape == (0,)
    (answer,) = ask(silero, Chunk("s", SPEECH[VAD_FRAME - 1 : VAD_FRAME]))
    assert answer.dtype == np.float32
    assert np.array_equal(answer, speech_probabilities[:1])


def test_sixteen_interleaved_sequences_of_odd_chunks_do_not_touch_each_other(path: Path):
    rng = random.Random(3)
    silero = Silero(path)
    audio = {
        f"s{number}": recordings()[number % 10].audio[rng.randrange(3000) :][: 5 * SAMPLE_RATE]
        for number in range(16)
    }
    waiting = {
        name: cut(pcm, [rng.randrange(1, 4000, 2) for _ in range(7)]) for name, pcm in audio.items()
    }
    heard = {name: list[npt.NDArray[np.float32]]() for name in audio}
    while waiting:
        # Some of them at once, as a batch of Triton holds them.
        names = rng.sample(sorted(waiting), rng.randint(1, len(waiting)))
        chunks = [
            Chunk(name, waiting[name].pop(0), start=not heard[name], end=not waiting[name])
            for name in names
        ]
        for name, answer in zip(names, ask(silero, *chunks), strict=True):
            heard[name].append(answer)
            if not waiting[name]:
                del waiting[name]
    assert len(silero) == 0
    for name, pcm in audio.items():
        assert np.array_equal(np.concatenate(heard[name]), probabilities(path, pcm)), name


# --- the states -----------------------------------------------------------------------------------


def test_a_sequence_that_was_never_started_is_lost_and_its_neighbours_are_answered(path: Path):
    silero = Silero(path)
    audio = SPEECH[:VAD_FRAME]
    first, second, third = silero.probabilities(
        [Chunk("a", audio, start=True), Chunk("b", audio), Chunk("c", audio, start=True)], 0.0
    )
    assert isinstance(second, SequenceLost)
    assert "'b': start it again" in str(second)
    assert isinstance(first, np.ndarray)
    assert isinstance(third, np.ndarray)
    assert np.array_equal(first, third)
    assert len(silero) == 2


def test_the_end_of_a_sequence_frees_its_state_and_answers_what_came_with_it(path: Path):
    silero = Silero(path)
    ask(silero, Chunk("s", SPEECH[:VAD_FRAME], start=True))
    (answer,) = ask(silero, Chunk("s", SPEECH[:VAD_FRAME], end=True))
    assert len(answer) == 1
    assert len(silero) == 0
    assert lost(silero, "s")


def test_a_start_begins_anew_whatever_was_there(
    path: Path, speech_probabilities: npt.NDArray[np.float32]
):
    silero = Silero(path)
    ask(silero, Chunk("s", SPEECH[5000:12_345], start=True))
    (again,) = ask(silero, Chunk("s", SPEECH, start=True))
    assert np.array_equal(again, speech_probabilities)
    assert len(silero) == 1


def test_a_sequence_that_never_ends_is_forgotten_when_it_was_idle_for_long(path: Path):
    silero = Silero(path, forget_s=60)
    nothing = SPEECH[:0]
    ask(silero, Chunk("quiet", nothing, start=True), Chunk("busy", nothing, start=True), now=10)
    ask(silero, Chunk("busy", nothing), now=69)
    assert len(silero) == 2
    ask(silero, Chunk("busy", nothing), now=69 + SWEEP_S + 0.5)
    assert len(silero) == 1
    assert lost(silero, "quiet", now=71)
    assert not lost(silero, "busy", now=71)


def test_a_silero_of_a_worker_forgets_nothing_by_itself(path: Path):
    silero = Silero(path)
    ask(silero, Chunk("s", SPEECH[:0], start=True), now=0)
    ask(silero, Chunk("t", SPEECH[:0], start=True), now=1e9)
    assert len(silero) == 2


def test_a_forgotten_sequence_is_lost_and_forgetting_an_unknown_one_is_nothing(path: Path):
    silero = Silero(path)
    ask(silero, Chunk("s", SPEECH[:0], start=True))
    silero.forget("s")
    silero.forget("unheard of")
    assert lost(silero, "s")


def test_the_context_of_a_frame_is_the_end_of_the_one_before(path: Path):
    # Without it the numbers would be others: the property above would be empty.
    silero = Silero(path)
    ask(silero, Chunk("s", SPEECH[: 30 * VAD_FRAME], start=True))
    (with_context,) = ask(silero, Chunk("s", SPEECH[30 * VAD_FRAME : 31 * VAD_FRAME]))
    changed = SPEECH.copy()
    changed[30 * VAD_FRAME - VAD_CONTEXT : 30 * VAD_FRAME] = 0
    assert with_context[0] == probabilities(path, SPEECH)[30]
    assert with_context[0] != probabilities(path, changed)[30]
