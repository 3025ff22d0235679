"""
The own decoder says what CTranslate2 says, and drafts change what it costs alone.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import drafts
import numpy as np
import onnx
import pytest
import random_whisper
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from recordings import Pcm, recordings, spoken

from dalston.triton import conversion, graphs, weights
from dalston.triton.contract import SAMPLE_RATE
from dalston.triton.greedy import (
    DECODER,
    ENCODER,
    HEAD,
    Controls,
    Decoded,
    Encoded,
    Floats,
    Greedy,
    Task,
    _Row,  # pyright: ignore[reportPrivateUsage]
)
from dalston.triton.whisper import Row, Transcript, Whisper

PROMPT = [50_258, 50_363]  # <|startoftranscript|><|notimestamps|>
SENTENCES = spoken()
LONG = [recording.audio for recording in recordings()]


@pytest.fixture(scope="module")
def own(checkpoint: Path) -> Whisper:
    return Whisper(checkpoint)


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory, hugging_face: Path) -> tuple[Whisper, Whisper]:
    """The own decoder and CTranslate2's, both in float32."""
    folder = tmp_path_factory.mktemp("exact")
    conversion.convert(hugging_face, folder / "plain", "float32")
    shutil.copytree(folder / "plain", folder / "graphs")
    graphs.write(folder / "graphs", quantized=False)
    return Whisper(folder / "graphs"), Whisper(folder / "plain")


@pytest.fixture(scope="module")
def babbler(tmp_path_factory: pytest.TempPathFactory) -> Greedy:
    """Random weights: it never stops by itself, and its attention is anywhere."""
    folder = tmp_path_factory.mktemp("babbler")
    random_whisper.write(folder / "hugging-face", random_whisper.tensors())
    conversion.convert(folder / "hugging-face", folder / "converted", "float32")
    graphs.write(folder / "converted", quantized=False)
    return Greedy(folder / "converted", Controls(end=50_257, no_speech=50_362))


def transcribed(whisper: Whisper, rows: list[Row]) -> list[Transcript]:
    results = whisper.transcribe(rows)
    assert all(isinstance(result, Transcript) for result in results), results
    return [result for result in results if isinstance(result, Transcript)]


def growing(audio: Pcm) -> list[Row]:
    """As partials ask, every half second."""
    return [Row(audio[:end], language="en") for end in range(8_000, len(audio), 8_000)]


def test_the_own_decoder_says_what_the_reference_decoder_says(
    exact: tuple[Whisper, Whisper],
) -> None:
    rows = [row for audio in SENTENCES[::3] for row in growing(audio)]
    rows += [Row(audio, words=True) for audio in (*SENTENCES, *LONG[:3])]
    ours, theirs = (transcribed(whisper, rows) for whisper in exact)
    assert [one.text for one in ours] == [one.text for one in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.average_logprob == pytest.approx(other.average_logprob, abs=2e-3)
        assert one.no_speech_probability == pytest.approx(other.no_speech_probability, abs=2e-3)
        assert one.language == other.language
        starts = ([word.start for word in found.words] for found in (one, other))
        assert next(starts) == pytest.approx(next(starts), abs=0.021)


def test_with_a_prompt_too_it_says_what_the_reference_decoder_says(
    exact: tuple[Whisper, Whisper],
) -> None:
    prompt = "Set the light. " * 20
    rows = [
        Row(audio, language="en", prompt=prompt[: 75 * n]) for n, audio in enumerate(SENTENCES[:4])
    ]
    rows += [Row(np.zeros(32_000, np.int16), language="en", prompt=prompt)]
    ours, theirs = (transcribed(whisper, rows) for whisper in exact)
    assert [one.tokens for one in ours] == [one.tokens for one in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.average_logprob == pytest.approx(other.average_logprob, abs=2e-3)
        # It is read where the transcript starts, behind the prompt.
        assert one.no_speech_probability == pytest.approx(other.no_speech_probability, abs=2e-3)


def test_eight_bits_change_hardly_a_word(own: Whisper, exact: tuple[Whisper, Whisper]) -> None:
    rows = [Row(audio, language="en") for audio in SENTENCES]
    pairs = zip(transcribed(own, rows), transcribed(exact[1], rows), strict=True)
    assert sum(ours.text != theirs.text for ours, theirs in pairs) <= 1


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_no_draft_changes_what_is_said(own: Whisper, data: st.DataObject) -> None:
    audio = data.draw(st.sampled_from(SENTENCES))
    (plain,) = transcribed(own, [Row(audio, language="en")])
    said = plain.tokens
    kept = data.draw(st.integers(0, len(said)))
    drafts = st.lists(st.one_of(st.sampled_from(said), st.integers(0, 50_256)), max_size=40)
    draft = [*said[:kept], *data.draw(drafts)]
    (drafted,) = transcribed(own, [Row(audio, language="en", draft=draft)])
    # To the last bit: less would decide between words that are nearly as likely, on real speech.
    assert (drafted.text, drafted.tokens) == (plain.text, plain.tokens)
    assert drafted.token_logprobs == plain.token_logprobs


def test_token_times_are_the_same_by_drafts_and_prefixes_and_near_the_words(own: Whisper) -> None:
    for audio in SENTENCES[:6]:
        (plain,) = transcribed(own, [Row(audio, language="en", words=True)])
        said, half = plain.tokens, len(plain.tokens) // 2
        assert len(plain.token_times) == len(said)
        rows = [
            Row(audio, language="en", draft=said),
            Row(audio, language="en", draft=[*said[:half], 0]),
            Row(audio, language="en", prefix=said[:half]),
            Row(audio, language="en", prefix=said[:half], draft=said[half:]),
        ]
        for found in transcribed(own, rows):
            assert found.tokens == said
            assert found.token_times == pytest.approx(plain.token_times, abs=0.021)
        # A token begins its word, or goes on with it.
        starts = np.array([word.start for word in plain.words])
        distances = [np.abs(starts - time).min() for time in plain.token_times]
        assert np.median(distances) <= 0.15
        assert all(0 <= time <= len(audio) / SAMPLE_RATE for time in plain.token_times)


def test_token_logprobs_are_the_same_by_drafts_and_nothing_is_told_of_a_prefix(
    own: Whisper,
) -> None:
    for audio in SENTENCES[:6]:
        (plain,) = transcribed(own, [Row(audio, language="en")])
        said, half = plain.tokens, len(plain.tokens) // 2
        assert len(plain.token_logprobs) == len(said)
        assert max(plain.token_logprobs) <= 0
        # All but the end's.
        spoken = sum(plain.token_logprobs)
        assert spoken - 20 <= plain.average_logprob * (len(said) + 1) <= spoken
        for draft in (said, [*said[:half], 0]):
            (found,) = transcribed(own, [Row(audio, language="en", draft=draft)])
            assert found.token_logprobs == pytest.approx(plain.token_logprobs, abs=1e-3)
        (forced,) = transcribed(own, [Row(audio, language="en", prefix=said[:half])])
        expected = [0.0] * half + plain.token_logprobs[half:]
        assert forced.token_logprobs == pytest.approx(expected, abs=1e-3)


def test_a_checkpoint_without_alignment_heads_tells_no_token_times(
    checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "without"
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()  # a link, perhaps
    (folder / "config.json").write_text(json.dumps(config | {"alignment_heads": []}))
    graphs.write(folder)
    (found,) = transcribed(Whisper(folder), [Row(SENTENCES[0], language="en")])
    assert found.tokens
    assert found.token_times == []


def test_alignment_heads_that_the_decoder_does_not_have_are_refused(
    checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "wrong"
    shutil.copytree(checkpoint, folder)
    (folder / "config.json").unlink()
    for wrong in ([[99, 0]], [[0, 99]], [[0]], "all", 7):
        (folder / "config.json").write_text(json.dumps({"alignment_heads": wrong}))
        with pytest.raises(ValueError, match=r"config\.json"):
            graphs.write(folder)


MARKS = frozenset({2, 6})


def attended(frame: int, window: int = 400) -> Floats:
    """An attention that is most on one frame of a window."""
    attention = np.full(window, 0.5 / window, np.float32)
    attention[frame] += 0.5
    return attention


def said_until_it_rewinds(frames: list[int], audio: int) -> tuple[list[int], bool]:
    """What is kept of tokens 0, 1, 2, ... that attend these frames of so many of audio."""
    encoded = Encoded(np.zeros((400, 1), np.float32), [])
    row = _Row(Task(encoded, [0], 100, audio), Decoded([]))
    for token, frame in enumerate(frames):
        if row.accept(token, -0.5, attended(frame), Controls(end=-1, no_speech=-1, marks=MARKS)):
            break
    assert row.decoded.logprob == -0.5 * len(row.decoded.tokens)
    assert len(row.decoded.frames) == len(row.decoded.tokens)
    return row.decoded.tokens, row.decoded.rewound


@pytest.mark.parametrize(
    ("frames", "kept", "rewound"),
    [
        ([10, 60, 120, 180], 4, False),
        ([10, 60, 120, 180, 170, 190, 2], 7, False),  # the last is a mark
        ([0, 45, 68, 190, 80, 100, 9, 120], 8, False),  # one that was not sure looked at the end
        ([10, 60, 0, 120, 180, 20, 70, 130], 5, True),  # all again
        ([10, 60, 20, 180, 140, 180, 10, 20], 7, True),  # marks look anywhere
        ([10, 60, 120, 180, 140], 5, False),  # a look back within a second
        ([10, 120, 20, 60, 180], 5, False),  # a jump before the end was reached
    ],
)
def test_what_jumps_back_from_the_end_of_the_audio_is_a_repeat_and_not_said(
    frames: list[int], kept: int, rewound: bool
) -> None:
    assert said_until_it_rewinds(frames, audio=200) == (list(range(kept)), rewound)


@given(frames=st.lists(st.integers(0, 399), max_size=30), audio=st.integers(1, 400))
def test_nothing_is_said_behind_a_jump_back_and_what_moves_on_is_kept(
    frames: list[int], audio: int
) -> None:
    kept, rewound = said_until_it_rewinds(frames, audio)
    assert rewound == (len(kept) < len(frames))
    onward = sorted(min(frame, audio - 1) for frame in frames)
    assert said_until_it_rewinds(onward, audio) == (list(range(len(frames))), False)


def test_the_silence_that_fills_the_window_is_not_the_end_of_the_audio() -> None:
    encoded = Encoded(np.zeros((400, 1), np.float32), [])
    row = _Row(Task(encoded, [0], 100, 200), Decoded([]))
    for frame in (10, 60, 80):
        attention = attended(frame)
        attention[390] = 0.9
        assert not row.accept(5, -0.5, attention, Controls(end=-1, no_speech=-1))
    assert row.decoded.frames == [10, 60, 80]


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_no_draft_changes_where_a_repeat_is_cut_off(babbler: Greedy, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    encoded = babbler.encode(
        rng.standard_normal((80, data.draw(st.sampled_from([400, 600]))), "f4")
    )
    task = Task(encoded, PROMPT, 60, data.draw(st.integers(100, encoded.frames)))
    (plain,) = babbler.decode([task])
    drafts = st.lists(st.sampled_from([*plain.tokens, 5]), max_size=20)
    kept = data.draw(st.integers(0, len(plain.tokens)))
    draft = [*plain.tokens[:kept], *data.draw(drafts)]
    (drafted,) = babbler.decode([replace(task, draft=draft)])
    assert (drafted.tokens, drafted.rewound) == (plain.tokens, plain.rewound)


def test_a_draft_behind_a_prefix_is_checked_too(own: Whisper) -> None:
    (plain,) = transcribed(own, [Row(SENTENCES[0], language="en")])
    half = len(plain.tokens) // 2
    prefix, rest = plain.tokens[:half], plain.tokens[half:]
    for draft in (rest, rest[:1], [1, 2, 3], []):
        row = Row(SENTENCES[0], language="en", prefix=prefix, draft=draft)
        assert transcribed(own, [row])[0].tokens == plain.tokens


def test_rows_of_all_windows_with_and_without_drafts_share_a_run(own: Whisper) -> None:
    audio = [*SENTENCES[:6], *LONG[:2]]
    alone = [transcribed(own, [Row(one, language="en")])[0] for one in audio]
    rows = [
        Row(one, language="en", draft=found.tokens if index % 2 else ())
        for index, (one, found) in enumerate(zip(audio, alone, strict=True))
    ]
    together = transcribed(own, rows)
    assert [found.text for found in together] == [found.text for found in alone]


def test_no_final_depends_on_what_was_heard_before_or_is_decoded_beside_it(own: Whisper) -> None:
    found = drafts.differing(own, [(audio, "en") for audio in SENTENCES[:3]])
    assert len(found) == 6 + len(drafts.BATCHES)
    assert all((count, differ) == (6, 0) for count, differ, _ in found.values())


def test_a_draft_of_what_is_heard_needs_one_pass(checkpoint: Path, own: Whisper) -> None:
    (plain,) = transcribed(own, [Row(SENTENCES[0], language="en")])
    passes = list[int]()

    class Counted(Greedy):
        def decode(self, tasks):  # pyright: ignore
            decoded = super().decode(tasks)  # pyright: ignore
            passes.extend(one.passes for one in decoded)
            return decoded

    counted = Whisper(checkpoint)
    counted._greedy = Counted(checkpoint, counted._controls(checkpoint))  # pyright: ignore[reportPrivateUsage]
    transcribed(counted, [Row(SENTENCES[0], language="en", draft=plain.tokens)])
    transcribed(counted, [Row(SENTENCES[0], language="en")])
    assert passes == [1, len(plain.tokens) + 1]


def test_the_weights_are_those_of_the_checkpoint(hugging_face: Path, tmp_path: Path) -> None:
    conversion.convert(hugging_face, tmp_path / "exact", "float32")
    read = weights.read(tmp_path / "exact" / "model.bin")
    names = {name for name in read if name.endswith((".weight", ".bias"))}
    given = conversion.tensors(hugging_face)
    assert names == {*given, "model.decoder.projection.weight"}
    given["model.decoder.projection.weight"] = given["model.decoder.embed_tokens.weight"]
    for name in names:
        np.testing.assert_array_equal(read[name], given[name].astype(np.float32))


def test_equal_tensors_that_are_stored_once_are_read_under_all_their_names(tmp_path: Path) -> None:
    tensors = random_whisper.tensors()
    norms = [name for name in tensors if name.endswith("norm.weight")]
    for name in norms:
        tensors[name] = np.ones_like(tensors[name])
    conversion.convert(random_whisper.write(tmp_path / "given", tensors), tmp_path / "out", "int8")
    read = weights.read(tmp_path / "out" / "model.bin")
    assert all(np.array_equal(read[name], tensors[name]) for name in norms)
    graphs.write(tmp_path / "out")


def test_a_file_that_is_no_model_is_refused_with_its_name(tmp_path: Path) -> None:
    for content in (b"", b"not weights at all", b"\x06\0\0\0\x02\0a\0" + bytes(8)):
        (tmp_path / "model.bin").write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.bin cannot be read"):
            graphs.write(tmp_path)


def test_graphs_that_are_broken_are_refused_with_their_name(
    checkpoint: Path, tmp_path: Path
) -> None:
    for name in (ENCODER, DECODER, HEAD):
        folder = tmp_path / name
        shutil.copytree(checkpoint, folder)
        (folder / name).write_bytes(b"no graph")
        with pytest.raises(ValueError, match=name):
            Whisper(folder)


@pytest.mark.parametrize("levels", [63, 127])
def test_weights_use_the_levels_that_the_processor_multiplies_exactly(
    levels: int, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "weight_levels", lambda: levels)
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*.onnx"))
    graphs.write(folder)
    largest = [
        int(np.abs(numpy_helper.to_array(constant).astype(np.int32)).max())
        for name in (ENCODER, DECODER, HEAD)
        for constant in onnx.load(folder / name).graph.initializer
        if constant.data_type == onnx.TensorProto.INT8
    ]
    assert largest
    assert set(largest) == {levels}


def test_the_smaller_levels_do_not_overflow_sixteen_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs.weight_levels.cache_clear()
    monkeypatch.setattr(Path, "read_text", lambda _path, _encoding: "flags : avx2 fma")  # pyright: ignore[reportUnknownLambdaType]
    levels = graphs.weight_levels()
    graphs.weight_levels.cache_clear()
    assert 2 * 255 * levels < 2**15
