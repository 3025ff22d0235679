import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from dalston.triton.characters import joined
from dalston.triton.contract import LANGUAGES, PROMPT_TOKENS
from dalston.triton.vocabulary import Vocabulary

CONTROLS = [
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|en|>",
    "<|de|>",
    "<|zh|>",
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
    "<|0.00|>",
    "<|0.02|>",
]


def printable(data: bytes) -> str:
    """As GPT-2's encoder.py (bytes_to_unicode) writes bytes into a vocabulary."""
    codes = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(174, 256)]
    characters, more = list(codes), 0
    for byte in range(256):
        if byte not in codes:
            codes.append(byte)
            characters.append(256 + more)
            more += 1
    table = dict(zip(codes, map(chr, characters), strict=True))
    return "".join(table[byte] for byte in data)


def tokenised(pieces: Sequence[bytes]) -> tuple[Vocabulary, list[int]]:
    """A vocabulary of these pieces, and the ids that spell them in this order."""
    known = list(dict.fromkeys(pieces))
    vocabulary = Vocabulary([*map(printable, known), *CONTROLS])
    return vocabulary, [known.index(piece) for piece in pieces]


def words_of(pieces: Sequence[str | bytes], language: str = "en") -> list[tuple[str, int]]:
    data = [piece.encode() if isinstance(piece, str) else piece for piece in pieces]
    vocabulary, tokens = tokenised(data)
    return [(word.text, word.count) for word in vocabulary.words(tokens, language)]


@st.composite
def cut_texts(draw: st.DrawFn) -> tuple[str, list[bytes]]:
    """A text, and its UTF-8 cut anywhere."""
    alphabet = st.sampled_from(list(" aé€😀你.,'\"-¿") + ["\u0301"])
    text = draw(st.one_of(st.text(alphabet, max_size=25), st.text(max_size=15)))
    data = text.encode()
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(data) - 1)), max_size=12)))
    edges = [0, *(cut for cut in cuts if cut < len(data)), len(data)]
    pieces = [data[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    return text, [piece for piece in pieces if piece]


# --- control tokens -------------------------------------------------------------------------------


def test_controls_languages_and_tasks_are_found_by_their_names():
    vocabulary = Vocabulary(["a", "b", *CONTROLS])
    assert len(vocabulary) == 15
    assert (vocabulary.end, vocabulary.start, vocabulary.no_timestamps) == (2, 3, 12)
    assert vocabulary.languages == {"en": 4, "de": 5, "zh": 6}
    assert vocabulary.tasks == {"translate": 7, "transcribe": 8}


def test_the_prompt_says_language_and_task_and_wants_no_times():
    vocabulary = Vocabulary(["a", "", *CONTROLS])
    assert vocabulary.prompt("de", "translate") == [3, 5, 7, 12]
    assert vocabulary.prompt("en", "transcribe") == [3, 4, 8, 12]


def test_the_prompt_of_an_english_only_checkpoint_has_neither():
    vocabulary = Vocabulary(["a", "b", *CONTROLS])
    assert vocabulary.prompt("en", "transcribe") == [3, 12]


def test_the_empty_token_tells_multilingual_vocabularies_from_english_ones():
    assert Vocabulary(["a", "", *CONTROLS]).multilingual
    assert not Vocabulary(["a", "b", *CONTROLS]).multilingual


def test_controls_and_times_are_not_spoken():
    vocabulary = Vocabulary(["a", "b", *CONTROLS])
    assert vocabulary.spoken([13, 1, 0, 14, 2]) == [1, 0]


@pytest.mark.parametrize(
    "missing", ["<|endoftext|>", "<|startoftranscript|>", "<|transcribe|>", "<|notimestamps|>"]
)
def test_tokens_of_another_model_are_refused(missing: str):
    with pytest.raises(ValueError, match="not a Whisper vocabulary: no token"):
        Vocabulary(["a", *(token for token in CONTROLS if token != missing)])


def test_tokens_that_spell_no_bytes_are_refused():
    with pytest.raises(ValueError, match="not a Whisper vocabulary: '▁' in a token"):
        Vocabulary(["▁hello", *CONTROLS])


def test_both_files_of_ctranslate2_are_read_and_the_newer_wins(tmp_path: Path):
    tokens = ["a", "", "Ġb", *CONTROLS]
    (tmp_path / "vocabulary.txt").write_text("\n".join(tokens) + "\n", "utf-8")
    vocabulary = Vocabulary.load(tmp_path)
    assert len(vocabulary) == len(tokens)
    assert vocabulary.decode([0, 1, 2]) == ("a b", [1, 1, 3])
    (tmp_path / "vocabulary.json").write_text(json.dumps(["c", *CONTROLS]), "utf-8")
    assert Vocabulary.load(tmp_path).decode([0]) == ("c", [1])


def test_the_demo_checkpoint_has_whispers_tokens(checkpoint: Path):
    vocabulary = Vocabulary.load(checkpoint)
    assert (len(vocabulary), vocabulary.end, vocabulary.no_timestamps) == (51_865, 50_257, 50_363)
    assert set(vocabulary.languages) == set(LANGUAGES) - {"yue"}
    assert vocabulary.decode([2425, 11, 1002, 0]) == ("Hello, world!", [5, 6, 12, 13])


# --- text -----------------------------------------------------------------------------------------


def test_a_character_of_many_bytes_is_complete_with_its_last():
    vocabulary, tokens = tokenised(
        [b" caf", b"\xc3", b"\xa9", b" \xe4\xbd", b"\xa0\xe5", b"\xa5\xbd"]
    )
    # A token that ends inside of one ends before it: nothing is cut off there.
    assert vocabulary.decode(tokens) == ("café 你好", [3, 3, 4, 4, 4, 7])


def test_spaces_at_both_ends_are_removed_and_not_counted():
    vocabulary, tokens = tokenised([b" ", b" a", b" b", b" ", b" "])
    assert vocabulary.decode(tokens) == ("a b", [0, 1, 3, 3, 3])


def test_of_a_character_that_is_never_finished_nothing_is_said():
    vocabulary, tokens = tokenised([b"a", b"\xe4\xbd"])
    assert vocabulary.decode(tokens) == ("a", [1, 1])
    vocabulary, tokens = tokenised([b"a", b"\xe4\xbd", b"b"])
    assert vocabulary.decode(tokens) == ("ab", [1, 1, 2])


def test_bytes_that_are_no_text_and_what_stands_for_them_are_left_out():
    vocabulary, tokens = tokenised([b"\xff", b"a", "\ufffd".encode(), b"b", b"\xef\xbf", b"\xbd"])
    assert vocabulary.decode(tokens) == ("ab", [0, 1, 1, 2, 2, 2])
    assert words_of([b" a", "\ufffd".encode(), b" \xff"]) == [("a", 3)]


@pytest.mark.parametrize(
    ("pieces", "ends"),
    [
        (["न", "म", "स", "्", "त", "े"], [1, 2, 2, 2, 2, 6]),  # one character is स्ते
        (["ก", "ำ", "ก"], [0, 2, 3]),
        (["e", "\u0301", "t"], [0, 2, 3]),
        (["👍", "🏽", "a"], [0, 2, 3]),
        (["👩", "\u200d", "🚒"], [0, 0, 3]),
        (["한", "ᄒ", "ᅡ", "ᆫ"], [1, 1, 1, 4]),
        ([" न", " ", "ा"], [1, 1, 3]),
    ],
)
def test_no_token_ends_between_a_letter_and_the_signs_that_belong_to_it(
    pieces: list[str], ends: list[int]
):
    vocabulary, tokens = tokenised([piece.encode() for piece in pieces])
    assert vocabulary.decode(tokens) == ("".join(pieces).strip(), ends)


def test_no_tokens_are_no_text():
    assert Vocabulary(CONTROLS).decode([]) == ("", [])


@given(cut_texts())
def test_texts_come_back_however_they_are_cut_and_each_end_is_what_is_complete(
    cut: tuple[str, list[bytes]],
):
    text, pieces = cut
    vocabulary, tokens = tokenised(pieces)
    decoded, ends = vocabulary.decode(tokens)
    text = text.replace("\ufffd", "")
    assert decoded == text.strip()
    leading = len(text) - len(text.lstrip())
    said, before = b"", 0
    for piece, end in zip(pieces, ends, strict=True):
        said += piece
        complete = said.decode(errors="ignore").replace("\ufffd", "")
        end_here = min(max(len(complete) - leading, 0), len(decoded))
        inside = said != said.decode(errors="ignore").encode() or joined(text, len(complete))
        assert end == (before if inside else end_here)
        before = end


# --- words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([" turn", " the", " vol", "ume", " up"], ["turn", "the", "volume", "up"]),
        (["set", " it"], ["set", "it"]),
        ([" yes", ".", " no", "!"], ["yes.", "no!"]),
        ([" well", ",", " I", "'ll", " see", "..."], ["well,", "I'll", "see..."]),
        ([" ten", " o", "'", "clock"], ["ten", "o'clock"]),
        ([" well", "-", "known", " facts"], ["well-known", "facts"]),
        ([" he", " said", ' "', "no", '."'], ["he", "said", '"no."']),
        ([" he", " said", ' "', " no", '"'], ["he", "said", '" no"']),
        ([" he", " said", ",", ' "', "no", '."', " So"], ["he", "said,", '"no."', "So"]),
        ([" the", " '", "90", "s"], ["the", "'90s"]),
        ([" the", " (", "old", ")", " one"], ["the", "(old)", "one"]),
        ([" ¿", "Qué", " tal", "?"], ["¿Qué", "tal?"]),
        ([" Ça", " va", " ?", " Oui", " !"], ["Ça", "va ?", "Oui !"]),
        ([" 12", ":", "30", " at", " $", "5"], ["12:30", "at", "$5"]),
        ([" ", "a", " ", " ", "b", " "], ["a", "b"]),
        ([".", " a"], [".", "a"]),
        ([" caf", b"\xc3", b"\xa9", " au"], ["café", "au"]),
        ([" a", b" \xf0\x9f", b"\x98\x80", " b"], ["a", "😀", "b"]),
        ([" a", b"\xf0\x9f"], ["a"]),
        ([" न", "म", "स्", "त", "े", " ा", " क"], ["नमस्ते ा", "क"]),
    ],
)
def test_tokens_are_grouped_into_words(pieces: list[str | bytes], words: list[str]):
    found = words_of(pieces)
    assert [text for text, _ in found] == words
    assert sum(count for _, count in found) == len(pieces)


@pytest.mark.parametrize("language", ["zh", "ja", "th", "yue"])
def test_languages_without_spaces_have_a_word_for_each_piece_of_whole_characters(language: str):
    pieces = ["今天", "天", b"\xe6\xb0", b"\x94", "。", "好", "！"]
    assert words_of(pieces, language) == [("今天", 1), ("天", 1), ("气。", 3), ("好！", 2)]


@pytest.mark.parametrize(
    ("language", "pieces", "words"),
    [
        ("th", ["ส", "ว", "ั", "ส", "ด", "ี"], ["ส", "วั", "ส", "ดี"]),
        ("my", ["မ", "င", "်", "္", "ဂ", "လ", "ာ"], ["မ", "င်္ဂ", "လာ"]),
        ("ja", ["か", "\u3099", "ｶ", "ﾞ"], ["か\u3099", "ｶﾞ"]),
        ("zh", [b"\xe4\xbd", b"\xa0\xe5", b"\xa5\xbd", b"\xe5\xa5"], ["你好"]),
    ],
)
def test_no_word_begins_with_a_sign_of_the_character_before_it(
    language: str, pieces: list[str | bytes], words: list[str]
):
    found = words_of(pieces, language)
    assert [text for text, _ in found] == words
    assert sum(count for _, count in found) == len(pieces)


def test_languages_without_spaces_make_no_word_of_a_space():
    assert words_of(["好", " ", "的"], "zh") == [("好", 1), ("的", 2)]


def test_the_counts_say_which_tokens_a_word_is_made_of():
    assert words_of([" un", "believ", "able", ",", " yes"]) == [("unbelievable,", 4), ("yes", 1)]


def test_spaces_alone_are_no_word():
    assert words_of([" ", " "]) == []
    assert words_of([]) == []


@given(cut_texts(), st.sampled_from(["en", "zh"]))
def test_words_hold_all_that_is_said_and_every_token(cut: tuple[str, list[bytes]], language: str):
    text, pieces = cut
    vocabulary, tokens = tokenised(pieces)
    words = vocabulary.words(tokens, language)
    text = text.replace("\ufffd", "")
    assert not any(joined(f"a{word.text}", 1) for word in words[1:])
    assert "".join("".join(word.text for word in words).split()) == "".join(text.split())
    assert all(word.text.strip() and word.count > 0 for word in words)
    assert sum(word.count for word in words) == (len(tokens) if text.strip() else 0)


# --- text to tokens -------------------------------------------------------------------------------

DEMO = Path(__file__).parents[2] / "demo" / "checkpoint" / "tokenizer.json"
TEXTS = [
    "Zarathustra, Merneptah, Nuzhat al Zaman",
    "tell the truth: don't, we'll, I'M, it's, 'tis",
    "1234,56 \u20ac5.00 \u00bd \u00b2 \u2163",
    "na\u00efve caf\u00e9, U\u0308ber",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8\u3001\u3067\u3059\u3002",
    "\ud55c\uad6d\uc5b4 \u043f\u0440\u0438\u0432\u0435\u0442 \u0645\u0631\u062d\u0628\u0627",
    "\u0939\u093f\u0928\u094d\u0926\u0940 \U0001f44d\U0001f3fd a_b __init__",
    " spaces \n and\tlines ",
]


@pytest.fixture(scope="module")
def whole() -> tuple[Vocabulary, Tokenizer]:
    """The vocabulary of multilingual Whisper up to large-v2, and the usual tokenizer of it."""
    tokenizer = Tokenizer.from_file(str(DEMO))
    ids = tokenizer.get_vocab()
    return Vocabulary(sorted(ids, key=ids.__getitem__)), tokenizer


def usual(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(" " + " ".join(text.split()), add_special_tokens=False).ids)


@pytest.mark.parametrize("text", TEXTS)
def test_text_becomes_the_tokens_that_the_usual_tokenizer_makes(
    whole: tuple[Vocabulary, Tokenizer], text: str
):
    vocabulary, tokenizer = whole
    assert vocabulary.encode(text) == usual(tokenizer, text)


@given(
    text=st.text(
        st.characters(exclude_categories=["Cs", "Cn", "Co"], exclude_characters="\ufffd"),
        min_size=1,
        max_size=30,
    )
)
def test_any_text_becomes_the_same_tokens_and_they_say_it(
    whole: tuple[Vocabulary, Tokenizer], text: str
):
    vocabulary, tokenizer = whole
    if text.split():
        assert vocabulary.encode(text) == usual(tokenizer, text)
    assert vocabulary.decode(vocabulary.encode(text))[0] == " ".join(text.split())


def test_names_of_control_tokens_are_text(whole: tuple[Vocabulary, Tokenizer]):
    vocabulary, _ = whole
    assert max(vocabulary.encode("<|endoftext|><|startoftranscript|>")) < vocabulary.end


def test_what_was_said_before_begins_with_its_token_and_keywords_go_first(
    whole: tuple[Vocabulary, Tokenizer],
):
    vocabulary, _ = whole
    assert vocabulary.context("", ()) == ([], 0)
    tokens, cut = vocabulary.context("He spoke.", ("Zarathustra", "Quilter"))
    assert (tokens[0], cut) == (vocabulary.previous, 0)
    assert vocabulary.decode(tokens[1:])[0] == "Zarathustra, Quilter. He spoke."


def test_of_a_prompt_that_is_too_long_the_last_tokens_are_kept_and_keywords_are_whole(
    whole: tuple[Vocabulary, Tokenizer],
):
    vocabulary, _ = whole
    prompt = " ".join(f"word {number}" for number in range(200))
    said, names = vocabulary.encode(prompt), vocabulary.encode("Zarathustra.")
    tokens, cut = vocabulary.context(prompt, ["Zarathustra"])
    assert len(tokens) == 1 + PROMPT_TOKENS
    assert cut == len(said) + len(names) - PROMPT_TOKENS
    assert tuple(tokens[1:]) == names + said[-(PROMPT_TOKENS - len(names)) :]
    exactly = vocabulary.decode(said[-PROMPT_TOKENS:])[0]
    assert vocabulary.context(exactly, ())[1] == 0


def test_a_vocabulary_without_the_token_for_it_takes_no_prompt_and_says_so():
    tokens = [token for token in CONTROLS if token != "<|startofprev|>"]
    vocabulary = Vocabulary([*map(printable, [b" ", b"a", b"b"]), *tokens])
    assert vocabulary.context("ab", ()) == ([], 3)
