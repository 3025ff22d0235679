"""
Rows in, transcripts out: each decided by its row alone, each failure its own.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import pytest
import random_whisper
from recordings import Pcm, Recording, foreign, recordings, spoken

from dalston.triton import graphs, repeats
from dalston.triton import whisper as whisper_module
from dalston.triton.contract import LONGEST_AUDIO, SAMPLE_RATE
from dalston.triton.conversion import convert
from dalston.triton.features import log_mel
from dalston.triton.vocabulary import Vocabulary
from dalston.triton.whisper import (
    MANY_LIMIT,
    MANY_PER_SECOND,
    TOKENS_EXTRA,
    TOKENS_LIMIT,
    TOKENS_PER_SECOND,
    Row,
    RowError,
    Transcript,
    Whisper,
    _Answer,  # pyright: ignore[reportPrivateUsage]
)

SENTENCES = spoken()
SPEECH = SENTENCES[0]


def silence(seconds: float) -> Pcm:
    return np.zeros(round(seconds * SAMPLE_RATE), np.int16)


def noise(seconds: float, loudness: float, seed: int = 0) -> Pcm:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(round(seconds * SAMPLE_RATE)) * loudness).astype(np.int16)


@pytest.fixture(scope="module", params=[1, 5], ids=["greedy", "beam"])
def demo(request: pytest.FixtureRequest, checkpoint: Path) -> Whisper:
    """The demo checkpoint."""
    return Whisper(checkpoint, beam_size=request.param)


@pytest.fixture(scope="module")
def greedy(checkpoint: Path) -> Whisper:
    return Whisper(checkpoint)


@pytest.fixture(scope="module")
def vocabulary(checkpoint: Path) -> Vocabulary:
    return Vocabulary.load(checkpoint)


@pytest.fixture(scope="module")
def babbler_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("babbler")
    random_whisper.write(folder / "hugging-face", random_whisper.tensors())
    convert(folder / "hugging-face", folder / "converted", "float32")
    graphs.write(folder / "converted")
    return folder / "converted"


@pytest.fixture(scope="module", params=[1, 3], ids=["greedy", "beam"])
def babbler(request: pytest.FixtureRequest, babbler_folder: Path) -> Whisper:
    """A checkpoint that never stops by itself."""
    return Whisper(babbler_folder, beam_size=request.param)


def transcripts(whisper: Whisper, rows: Sequence[Row]) -> list[Transcript]:
    """The results of rows that must all have a transcript."""
    results = whisper.transcribe(rows)
    assert len(results) == len(rows)
    for result in results:
        assert isinstance(result, Transcript), result
    return [result for result in results if isinstance(result, Transcript)]


def same(a: Transcript, b: Transcript) -> bool:
    """In all that is told; the last digits of a score may depend on what was added up beside it."""
    scores = ("language_probability", "average_logprob", "no_speech_probability")
    close = all(abs(getattr(a, name) - getattr(b, name)) < 1e-4 for name in scores)
    rest = dict.fromkeys(scores, 0.0)
    return close and replace(a, **rest) == replace(b, **rest)


def transcript(whisper: Whisper, row: Row) -> Transcript:
    (result,) = transcripts(whisper, [row])
    return result


# --- alone and in company -------------------------------------------------------------------------


def test_a_row_says_the_same_alone_and_among_rows_of_all_kinds(demo: Whisper):
    rows = [
        *(Row(audio, words=index % 2 == 0) for index, audio in enumerate(SENTENCES)),
        *(Row(audio, language="de") for audio in SENTENCES[:3]),
        *(Row(recording.audio, language="en", words=True) for recording in recordings()[:4]),
        Row(SPEECH, full_window=True),
        Row(silence(2)),
    ]
    order: list[int] = np.random.default_rng(2).permutation(len(rows)).tolist()
    together = list[Transcript]()
    for first in range(0, len(rows), 16):  # as Triton batches them
        together += transcripts(demo, [rows[index] for index in order[first : first + 16]])
    alone = [transcript(demo, rows[index]) for index in order]
    # Another shape of batch may turn a tie in arithmetic; on most machines it turns none.
    turned = [
        index for index, (a, b) in enumerate(zip(alone, together, strict=True)) if not same(a, b)
    ]
    assert len(turned) <= len(rows) // 40


def test_a_row_that_never_stops_is_cut_by_its_own_length_and_not_by_its_neighbours(
    babbler: Whisper,
):
    short, long = Row(noise(0.5, 3000)), Row(noise(3.7, 3000, seed=1))
    prefixed = Row(noise(1, 3000, seed=2), prefix=[400] * 90)
    alone = transcript(babbler, short)
    for among in transcripts(babbler, [short, long])[0], transcripts(babbler, [prefixed, short])[1]:
        assert among.tokens == alone.tokens
        assert among.average_logprob == pytest.approx(alone.average_logprob, abs=1e-4)
        assert among.suspect == alone.suspect


def test_a_row_with_a_prompt_says_the_same_alone_and_among_others(demo: Whisper):
    rows = [
        *(Row(audio, language="en", prompt="Set the light.") for audio in SENTENCES[:2]),
        *(Row(audio, language="en", prompt="light " * 300) for audio in SENTENCES[:2]),
        *(Row(audio, language="en", keywords=["temperature", "light"]) for audio in SENTENCES[:2]),
        *(Row(audio, language="en") for audio in SENTENCES[:2]),
    ]
    together = transcripts(demo, rows)
    assert all(same(transcript(demo, row), one) for row, one in zip(rows, together, strict=True))
    assert [bool(one.prompt_cut) for one in together] == [False] * 2 + [True] * 2 + [False] * 4


def test_the_longest_prompt_leaves_room_for_half_a_minute_of_text(babbler: Whisper):
    row = Row(noise(28, 3000), prompt="light " * 300)
    (answer,) = transcripts(babbler, [row])
    assert answer.prompt_cut
    assert len(answer.tokens) <= 448 - 4 - 225  # positions, controls, prompt


def test_results_are_in_the_order_of_rows_whatever_windows_they_are_grouped_by(greedy: Whisper):
    lengths = [12, 1, 29, 3, 5, 1, 20]
    audio = np.concatenate([recording.audio for recording in recordings()])
    rows = [Row(audio[: seconds * SAMPLE_RATE], language="en") for seconds in lengths]
    together = transcripts(greedy, rows)
    assert [one.text for one in together] == [transcript(greedy, row).text for row in rows]
    assert len({one.text for one in together}) >= 4


def test_no_rows_are_no_results(greedy: Whisper):
    assert greedy.transcribe([]) == []


# --- windows --------------------------------------------------------------------------------------


class Watched(Whisper):
    """Remembers the seconds that the encoder saw, row by row."""

    def __init__(self, folder: Path, **how: Any):
        super().__init__(folder, **how)
        self.windows: list[int] = []

    def _decode(self, rows: list[Row], windows: list[int]) -> list[Transcript]:
        self.windows += windows
        return super()._decode(rows, windows)


@pytest.mark.parametrize(
    ("seconds", "window"), [(0, 4), (1, 4), (3.75, 4), (3.8, 6), (9, 12), (16, 24), (30, 30)]
)
def test_the_encoder_sees_the_smallest_window_that_holds_the_row(
    checkpoint: Path, seconds: float, window: int
):
    watched = Watched(checkpoint)
    transcript(watched, Row(noise(seconds, 100), language="en"))
    assert watched.windows == [window]


@pytest.mark.parametrize(
    ("seconds", "window"), [(0, 8), (1, 8), (6, 8), (6.1, 12), (10, 12), (28.5, 30), (30, 30)]
)
def test_the_checkpoint_says_how_small_a_window_may_be(
    checkpoint: Path, seconds: float, window: int
):
    watched = Watched(checkpoint, shortest_window=8, margin=2.0)
    transcript(watched, Row(noise(seconds, 100), language="en"))
    assert watched.windows == [window]


def test_a_full_window_is_thirty_seconds_for_that_row_alone(checkpoint: Path):
    watched = Watched(checkpoint)
    rows = [Row(SPEECH, language="en"), Row(SPEECH, language="en", full_window=True)]
    small, full = transcripts(watched, rows)
    assert watched.windows == [4, 30]
    assert (small.window_seconds, full.window_seconds) == (4, 30)
    assert small == transcript(watched, rows[0])
    # The 30 s a checkpoint was trained on hold the same speech.
    assert len(full.text.split()) >= 2


def test_a_checkpoint_that_may_not_be_right_sized_sees_thirty_seconds_always(checkpoint: Path):
    watched = Watched(checkpoint, right_sized=False)
    transcripts(watched, [Row(silence(1)), Row(SPEECH)])
    assert watched.windows == [30, 30]


# --- languages ------------------------------------------------------------------------------------


def test_a_language_that_is_given_is_used_and_certain(demo: Whisper):
    results = transcripts(demo, [Row(SPEECH, language=code) for code in ("en", "de", "fr")])
    assert [result.language for result in results] == ["en", "de", "fr"]
    assert [result.language_probability for result in results] == [1, 1, 1]


def test_auto_detects_english_with_its_probability(demo: Whisper):
    results = transcripts(demo, [Row(audio, language="auto") for audio in SENTENCES])
    english = [result for result in results if result.language == "en"]
    assert len(english) >= 0.9 * len(results)
    assert all(0 < result.language_probability <= 1 for result in results)
    assert any(result.language_probability < 1 for result in results)


def test_auto_and_given_languages_may_share_a_batch(greedy: Whisper):
    results = transcripts(greedy, [Row(SPEECH, language="de"), Row(SPEECH), Row(SPEECH, "es")])
    assert [result.language for result in results] == ["de", "en", "es"]


def test_a_language_that_is_not_sure_in_its_window_is_detected_in_a_longer_one(
    demo: Whisper, monkeypatch: pytest.MonkeyPatch
):
    heard = list[int]()

    def watched(audio: Pcm, frames: int, mels: int) -> Any:
        heard.append(frames)
        return log_mel(audio, frames, mels)

    monkeypatch.setattr(whisper_module, "log_mel", watched)
    clear = transcript(demo, Row(SPEECH))
    assert (clear.language, heard) == ("en", [400])
    transcript(demo, Row(SPEECH, "en"))
    assert heard == [400] * 2
    # Neither of these is spoken.
    doubtful = transcript(demo, Row(SPEECH, "de fr"))
    assert heard == [400] * 3 + [1200]
    assert doubtful.language_probability < 0.5
    assert doubtful.window_seconds == 4
    # Of a longer window nothing better is to be had.
    transcript(demo, Row(noise(13, 100), "de fr"))
    assert heard[4:] == [1600]


def test_a_detected_language_is_as_likely_beside_rows_of_all_windows(demo: Whisper):
    audio = np.concatenate([recording.audio for recording in recordings()])
    rows = [*(Row(one.audio) for one in foreign()[:3]), Row(audio[: 29 * SAMPLE_RATE]), Row(SPEECH)]
    together = transcripts(demo, rows)
    for row, one in zip(rows, together, strict=True):
        alone = transcript(demo, row)
        # To the last bit: two languages may be nearly as likely.
        assert (one.language, one.language_probability, one.tokens) == (
            alone.language,
            alone.language_probability,
            alone.tokens,
        )


def test_only_languages_the_checkpoint_was_trained_on_are_detected_and_taken(checkpoint: Path):
    whisper = Whisper(checkpoint, languages=["de", "fr", "klingon"])
    assert whisper.languages == ["de", "fr"]
    result = transcript(whisper, Row(SPEECH))
    assert result.language in ("de", "fr")
    assert result.language_probability < 0.5
    (refused,) = whisper.transcribe([Row(SPEECH, language="en")])
    assert str(refused) == "this model does not know the language 'en'"


def test_without_a_list_every_language_of_the_vocabulary_is_taken(
    greedy: Whisper, vocabulary: Vocabulary
):
    assert set(greedy.languages) == set(vocabulary.languages)


def test_languages_that_are_all_unknown_are_refused_at_once(checkpoint: Path):
    with pytest.raises(ValueError, match="it knows none of klingon"):
        Whisper(checkpoint, languages=["klingon"])


def test_of_several_languages_the_likeliest_is_chosen(greedy: Whisper):
    recording = next(one for one in foreign() if one.language == "de")
    said = {
        languages: transcript(greedy, Row(recording.audio, language=languages)).language
        for languages in ("en de", "fr de es", "en fr", "en")
    }
    assert (said["en de"], said["fr de es"], said["en"]) == ("de", "de", "en")
    assert said["en fr"] in ("en", "fr")


# --- rows that cannot be answered -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (Row(SPEECH, language="tlh"), "this model does not know the language 'tlh'"),
        (Row(SPEECH, language=""), "this model does not know the language ''"),
        (Row(SPEECH, language="en tlh"), "this model does not know the language 'tlh'"),
        (Row(SPEECH, task="summarise"), "unknown task 'summarise'"),
        (Row(SPEECH, prefix=[50257]), "the prefix holds tokens that are no text"),
        (Row(SPEECH, prefix=[-1]), "the prefix holds tokens that are no text"),
        (Row(SPEECH, language="en", prefix=[992] * 224), "a prefix of 224 tokens, 223 at most"),
        (Row(silence(30.01)), "30.01 s of audio, 30 s at most"),
    ],
)
def test_a_bad_row_is_refused_with_a_sentence_and_its_neighbours_are_answered(
    greedy: Whisper, bad: Row, sentence: str
):
    good = Row(SPEECH, language="en")
    first, refused, last = greedy.transcribe([good, bad, good])
    assert isinstance(refused, RowError)
    assert str(refused) == sentence
    assert first == last == transcript(greedy, good)


def test_rows_that_break_the_runtime_are_answered_with_what_broke_and_the_others_with_text(
    greedy: Whisper,
):
    good, bad = Row(SPEECH, language="en"), Row(SPEECH.reshape(-1, 1), language="en")
    first, failure, last = greedy.transcribe([good, bad, good])
    assert isinstance(failure, ValueError)
    assert not isinstance(failure, RowError)
    assert first == last == transcript(greedy, good)


def test_audio_of_thirty_seconds_is_not_too_long(greedy: Whisper):
    audio = np.concatenate([recording.audio for recording in recordings()])[:LONGEST_AUDIO]
    assert transcript(greedy, Row(audio)).text


@pytest.mark.parametrize("samples", [0, 1, 159, 160, 161, 320, 400])
def test_audio_of_next_to_nothing_is_answered_words_and_all(greedy: Whisper, samples: int):
    row = Row(SPEECH[:samples], language="en", words=True)
    assert transcript(greedy, row).text == ""
    # Even if words are put into its mouth.
    forced = Row(SPEECH[:samples], language="en", words=True, prefix=[992, 264, 4292])
    assert [word.end for word in transcript(greedy, forced).words] == [0, 0, 0]


def test_a_folder_without_a_model_is_refused(tmp_path: Path, checkpoint: Path):
    (tmp_path / "vocabulary.json").write_bytes((checkpoint / "vocabulary.json").read_bytes())
    with pytest.raises(ValueError, match=str(tmp_path)):
        Whisper(tmp_path)


# --- tokens and text ------------------------------------------------------------------------------


def test_tokens_spell_the_text_and_their_ends_lie_in_it(demo: Whisper, vocabulary: Vocabulary):
    for result in transcripts(demo, [Row(audio) for audio in SENTENCES]):
        text, ends = vocabulary.decode(result.tokens)
        assert (result.text, result.token_ends) == (text, ends)
        assert result.text == result.text.strip()
        assert ends == sorted(ends)
        assert ends[-1] == len(text)


def test_a_forced_prefix_begins_the_hypothesis(demo: Whisper):
    rows = [Row(audio, language="en") for audio in SENTENCES[:12]]
    free = transcripts(demo, rows)
    # Prefixes of many lengths in one batch; the last is of another utterance.
    prefixes = [result.tokens[: index % 4] for index, result in enumerate(free)]
    prefixes[-1] = free[0].tokens[:3]
    forced = transcripts(
        demo,
        [Row(row.audio, "en", prefix=prefix) for row, prefix in zip(rows, prefixes, strict=True)],
    )
    for prefix, result in zip(prefixes, forced, strict=True):
        assert result.tokens[: len(prefix)] == prefix


def test_a_prefix_of_what_is_heard_anyway_changes_nothing_but_whose_scores_count(greedy: Whisper):
    free = transcript(greedy, Row(SPEECH, language="en"))
    assert len(free.tokens) >= 3
    for count in range(len(free.tokens)):
        forced = transcript(greedy, Row(SPEECH, language="en", prefix=free.tokens[:count]))
        assert (forced.text, forced.tokens) == (free.text, free.tokens)
        assert forced.language_probability == 1


@pytest.mark.parametrize("count", [0, 1, 3, -1])
def test_the_average_logprob_is_of_the_tokens_behind_the_prefix_and_of_the_end(
    greedy: Whisper, checkpoint: Path, vocabulary: Vocabulary, count: int
):
    tokens = transcript(greedy, Row(SPEECH, language="en")).tokens
    prefix = tokens[:count] if count >= 0 else tokens
    result = transcript(greedy, Row(SPEECH, language="en", prefix=prefix))
    assert result.tokens == tokens

    # The same from what the decoder says at each step.
    model = ctranslate2.models.Whisper(str(checkpoint), device="cpu", intra_threads=1)
    features = ctranslate2.StorageView.from_array(log_mel(SPEECH, 400, 80)[None])
    prompt = vocabulary.prompt("en", "transcribe")
    options = {"beam_size": 1, "max_length": 100, "return_logits_vocab": True}
    (steps,) = model.generate(features, [[*prompt, *prefix]], **options)
    logits = np.stack(steps.logits[0]).astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    chosen = [*tokens, vocabulary.end]
    sums = [logprobs[step, token] for step, token in enumerate(chosen)]
    assert result.average_logprob == pytest.approx(np.mean(sums[len(prefix) :]), abs=1e-4)


def test_a_prefix_that_loops_is_kept_all_the_same(greedy: Whisper):
    prefix = [992, 264] * 12
    result = transcript(greedy, Row(SPEECH, language="en", prefix=prefix))
    assert result.tokens[: len(prefix)] == prefix
    assert result.suspect


def test_every_prefix_that_is_allowed_is_answered(babbler: Whisper):
    for count in (1, 100, 207, 208, 223):
        result = transcript(babbler, Row(noise(1, 3000), "en", prefix=[400] * count))
        assert result.tokens[:count] == [400] * count
        assert len(result.tokens) <= TOKENS_LIMIT


def test_text_of_characters_in_several_tokens_has_ends_between_characters(greedy: Whisper):
    # The first 256 tokens of Whisper are the single bytes, the printable ones first.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    order = [*printable, *(byte for byte in range(256) if byte not in printable)]
    prefix = [order.index(byte) for byte in "é你!".encode()]
    result = transcript(greedy, Row(SPEECH, language="en", prefix=prefix))
    assert result.text.startswith("é你!")
    assert result.token_ends[:6] == [0, 1, 1, 1, 2, 3]


# Seconds that a synthesiser takes for it at 160 words a minute.
LETTER_BY_LETTER = [
    ("te", 3.8, "నమస్కారం మిత్రులారా, ఈ రోజు నేను మీకు తెలుగు"),
    ("bn", 4.1, "নমস্কার বন্ধুরা, আজ আমি আপনাদের বাংলা ভাষার ইতিহাস"),
    ("ka", 4.6, "გამარჯობა მეგობრებო, დღეს მე გიამბობთ საქართველოს ისტორიის"),
    ("my", 5.3, "မင်္ဂလာပါ ဒီနေ့ ကျွန်တော် မြန်မာနိုင်ငံရဲ့ သမိုင်းအကြောင်း ပြောပြပါမယ်"),
]


@pytest.mark.parametrize(("language", "seconds", "text"), LETTER_BY_LETTER)
@pytest.mark.parametrize("asked", ["auto", "", "en "])
def test_scripts_that_take_several_tokens_a_letter_have_room_for_them(
    greedy: Whisper, vocabulary: Vocabulary, language: str, seconds: float, text: str, asked: str
):
    row = Row(noise(seconds, 100), asked if asked == "auto" else asked + language)
    tokens = [*vocabulary.encode(text)]
    assert len(tokens) > TOKENS_EXTRA + TOKENS_PER_SECOND * seconds
    answer = _Answer(tokens, -1.0, True, 0.0, language, 1.0)
    judged = greedy._transcript(row, 6, answer)  # pyright: ignore[reportPrivateUsage]
    assert (judged.text, judged.suspect) == (text, False)
    assert greedy._limit(row, seconds) > 1.5 * len(tokens)  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("seconds", [3, 9, 29])
def test_a_decoder_that_never_stops_has_no_more_than_its_language_may_and_is_aligned_all_the_same(
    babbler: Whisper, seconds: float, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(repeats, "without_loop", lambda tokens, keep, heard: tokens)  # pyright: ignore[reportUnknownLambdaType]
    row = Row(noise(seconds, 3000), language="my", words=True)
    english = replace(row, language="en")
    many, few, translated = transcripts(babbler, [row, english, replace(row, task="translate")])
    # A decoder that is seen to say all again is stopped before.
    assert len(many.tokens) <= min(MANY_LIMIT, TOKENS_EXTRA + MANY_PER_SECOND * seconds)
    limit = min(TOKENS_LIMIT, TOKENS_EXTRA + TOKENS_PER_SECOND * seconds)
    assert max(len(few.tokens), len(translated.tokens)) <= limit
    assert many.words


def test_a_text_that_ends_inside_of_a_character_ends_before_it(
    greedy: Whisper, vocabulary: Vocabulary
):
    tokens = [*vocabulary.encode("Բարև ձեզ")]
    row = Row(noise(3, 100), language="hy")
    answer = _Answer(tokens[:-1], -0.1, True, 0.0, "hy", 1.0)
    judged = greedy._transcript(row, 4, answer)  # pyright: ignore[reportPrivateUsage]
    assert judged.text == "Բարև ձե"
    # What the last token begins may be a sign of the letter before it: that is not complete.
    assert judged.token_ends[-1] == len(judged.text) - 1


# --- silence, noise, loops ------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0, 0.2, 1, 3, 10, 30])
def test_silence_has_no_text(demo: Whisper, seconds: float):
    result = transcript(demo, Row(silence(seconds), words=True))
    assert (result.text, result.tokens, result.token_ends, result.words) == ("", [], [], [])
    assert result.no_speech_probability > 0.5
    assert not result.suspect


def test_noise_of_any_loudness_has_no_text(demo: Whisper):
    rows = [
        Row(noise(seconds, loudness, seed), language="en")
        for seed, (seconds, loudness) in enumerate(
            (seconds, loudness) for seconds in (1, 3, 7) for loudness in (3, 30, 300, 3000)
        )
    ]
    assert [result.text for result in transcripts(demo, rows)] == [""] * len(rows)


def test_speech_is_not_taken_for_silence(demo: Whisper):
    for result in transcripts(demo, [Row(audio) for audio in SENTENCES]):
        assert result.text
        assert result.no_speech_probability < 0.5


@pytest.mark.parametrize("seconds", [0, 0.5, 3, 9, 20, 30])
def test_babble_is_cut_at_what_can_be_said_in_the_time_and_suspect(
    babbler: Whisper, seconds: float
):
    result = transcript(babbler, Row(noise(seconds, 3000), language="en"))
    assert len(result.tokens) <= min(TOKENS_LIMIT, TOKENS_EXTRA + TOKENS_PER_SECOND * seconds)
    # Behind 30 s nothing better is to be had.
    assert result.suspect == (seconds < 29)


def test_a_full_window_is_never_suspect(babbler: Whisper):
    assert not transcript(babbler, Row(noise(1, 3000), full_window=True)).suspect


@pytest.mark.parametrize(
    ("changes", "suspect"),
    [
        ({}, False),
        ({"rewound": True}, True),
        ({"logprob": -0.69 * 13}, False),
        ({"logprob": -0.71 * 13}, True),
        ({"logprob": -1.1 * 13, "no_speech": 0.7}, False),  # silence, in any window
        ({"tokens": [*range(400, 438)]}, False),  # 8 a second and 6
        ({"tokens": [*range(400, 439)]}, True),
    ],
)
def test_a_final_is_doubted_by_what_its_decoding_was_like(
    greedy: Whisper, changes: dict[str, Any], suspect: bool, monkeypatch: pytest.MonkeyPatch
):
    row = Row(noise(4, 100), language="en")
    answer = replace(_Answer([*range(400, 412)], -1.0, True, 0.0, "en", 1.0), **changes)
    judged = greedy._transcript(row, 6, answer)  # pyright: ignore[reportPrivateUsage]
    assert judged.suspect == suspect
    # Weights that were adapted to right-sized windows are as sure there as in a full one.
    monkeypatch.setattr(greedy, "_adapted", True)
    judged = greedy._transcript(row, 6, answer)  # pyright: ignore[reportPrivateUsage]
    assert judged.suspect == (suspect and "logprob" not in changes)
    # There is nothing better than a full window.
    assert not greedy._transcript(row, 30, answer).suspect  # pyright: ignore[reportPrivateUsage]


def test_of_a_loop_so_much_is_kept_as_was_heard(greedy: Whisper, vocabulary: Vocabulary):
    word = SPEECH[SAMPLE_RATE // 2 : SAMPLE_RATE]
    said = np.concatenate([silence(0.3), *[word, silence(0.2)] * 8])
    tokens = [*vocabulary.encode("yes, " * 60)]

    def kept(audio: Pcm, **changes: Any) -> int:
        answer = replace(_Answer(tokens, -3.0, False, 0.0, "en", 1.0), **changes)
        judged = greedy._transcript(Row(audio, language="en"), 30, answer)  # pyright: ignore[reportPrivateUsage]
        assert len(judged.tokens) == len(judged.token_ends)
        return judged.text.count("yes")

    sixteen = {"tokens": tokens[:33], "ended": True}  # as many as there are, and one that is not
    hum = noise(6, 1000)
    # Nobody knows where the decoder was: it comes again in the sound, or the decoder stopped.
    assert abs(kept(said) - 8) <= 1
    assert kept(hum) <= 2
    assert kept(hum, **sixteen) == 17
    assert kept(hum, **sixteen, no_speech=0.9) <= 2
    # It is known: its attention went on, or stayed where it was.
    stuck = [100] * len(tokens)
    assert kept(hum, frames=stuck, **sixteen) <= 2
    assert abs(kept(said, frames=stuck) - 8) <= 1
    assert kept(hum, frames=[8 * at for at in range(len(tokens))], **sixteen) == 17


# --- words ----------------------------------------------------------------------------------------


def test_words_spell_the_text_in_order_inside_the_audio(demo: Whisper):
    rows = [Row(audio, words=True) for audio in SENTENCES]
    rows += [Row(recording.audio, words=True) for recording in recordings()]
    for row, result in zip(rows, transcripts(demo, rows), strict=True):
        words, duration = result.words, len(row.audio) / SAMPLE_RATE
        assert " ".join(word.text for word in words) == result.text
        assert all(0 <= word.start <= word.end <= duration for word in words)
        assert all(a.end <= b.start for a, b in zip(words, words[1:], strict=False))
        assert all(0 < word.probability <= 1 for word in words)


@pytest.mark.parametrize("recording", recordings(), ids=lambda recording: recording.name)
def test_words_stand_where_the_speech_is(greedy: Whisper, recording: Recording):
    for sentence in recording.sentences:
        words = transcript(greedy, Row(recording.cut(sentence), "en", words=True)).words
        length = sentence.end - sentence.start
        spoken_for = sum(word.end - word.start for word in words)
        assert spoken_for > 0.6 * length
        # 0.3 s of silence are on both sides.
        assert words[0].start < 0.3 + 0.5 * length
        assert words[-1].end > 0.3 + 0.5 * length


def test_no_words_are_told_to_who_does_not_ask(greedy: Whisper):
    rows = [Row(SPEECH), Row(SPEECH, words=True), Row(SPEECH, language="de")]
    results = transcripts(greedy, rows)
    assert [bool(result.words) for result in results] == [False, True, False]


def test_words_of_rows_in_several_languages_are_aligned_each_with_its_prompt(greedy: Whisper):
    rows = [
        Row(SENTENCES[n], language=code, words=True) for n, code in enumerate(("en", "de", "en"))
    ]
    assert transcripts(greedy, rows) == [transcript(greedy, row) for row in rows]


def test_no_word_takes_the_silence_around_it(greedy: Whisper):
    around, sentences = silence(2), SENTENCES[:8]
    said = transcripts(greedy, [Row(audio, "en") for audio in sentences])
    for audio, alone in zip(sentences, said, strict=True):
        padded = np.concatenate([around, audio, around])
        words = transcript(greedy, Row(padded, "en", words=True, prefix=alone.tokens)).words
        assert len(words) >= 2
        assert words[0].end - words[0].start < 1.5
        assert words[-1].end - words[-1].start < 1.5
