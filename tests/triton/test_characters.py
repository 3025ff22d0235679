import regex
from hypothesis import given
from hypothesis import strategies as st

from dalston.triton.characters import joined, letters

# One character each, as Unicode takes it (UAX 29), of every kind that is joined of several.
CHARACTERS = [
    *"a é.,7म今か한ကक",
    *("e\u0301", "कि", "स्त्री", "क्ष", "ন্ধু", "చ్చె", "ખ્ખો", "မ္ဘ", "ကျွ", "ခဲ့", "ဂ်", "ก", "ขำ", "วั", "ดี"),
    *(
        "ລຳ",
        "か\u3099",
        "ｶﾞ",
        "\u1112\u1161\u11ab",
        "❤\ufe0f",
        "👍🏽",
        "👩\u200d🚒",
        "🇩🇪",
        "म\u200d",
    ),
]


@given(characters=st.lists(st.sampled_from(CHARACTERS), max_size=12))
def test_nothing_is_cut_that_unicode_takes_for_one_character(characters: list[str]) -> None:
    text = "".join(characters)
    ends, at = {0}, 0
    for one in regex.findall(r"\X", text):
        at += len(one)
        ends.add(at)
    assert all(at in ends for at in range(len(text)) if not joined(text, at))


def test_words_of_scripts_without_signs_may_be_cut_anywhere() -> None:
    text = "Yes, das ist 12 % von 今天 и так 한국어"
    assert not any(joined(text, at) for at in range(len(text) + 1))


def test_what_is_spoken_of_a_text_are_letters_with_their_signs_and_digits() -> None:
    assert letters("Don't, कि 5 %!") == "dontकि5"
    assert letters("की") != letters("कि")
