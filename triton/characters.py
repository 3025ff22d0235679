"""
Characters that belong together: where a text may not be cut, and what of it is spoken.

What a reader sees as one character may be several: a letter and its vowel sign, a syllable of
jamo, an emoji and its colour. The rules are those of Unicode's grapheme clusters (UAX 29) as far as
speech is written with them; a test compares the two.
"""

import unicodedata

# They continue the character before them, and are no marks by their category: joiners, vowels of
# Thai and Lao, voiced kana, jamo after the first of a syllable, colours of emoji and tags of flags.
_CONTINUES = (
    (0x0E33, 0x0E33),
    (0x0EB3, 0x0EB3),
    (0x1160, 0x11FF),
    (0x200C, 0x200D),
    (0xD7B0, 0xD7FF),
    (0xFF9E, 0xFF9F),
    (0x1F3FB, 0x1F3FF),
    (0xE0020, 0xE007F),
)
_JOINER = "\u200d"
# Signs that a vowel is missing: the next consonant is written into this one, but for these two.
_VIRAMA, _STACKS_NOTHING = 9, "\u0e3a\u103a"
_FLAGS = (0x1F1E6, 0x1F1FF)  # two are one


def letters(text: str) -> str:
    """What is said of it: neither capitals nor punctuation are."""
    return "".join(c for c in text if unicodedata.category(c)[0] in "LMN").casefold()


def joined(text: str, at: int) -> bool:
    """Whether the characters on both sides of this place belong together."""
    if not 0 < at < len(text) or text[at] < "\u0300":
        return False
    before, after = text[at - 1], text[at]
    return (
        unicodedata.category(after)[0] == "M"
        or any(first <= ord(after) <= last for first, last in _CONTINUES)
        or before == _JOINER
        or (
            unicodedata.combining(before) == _VIRAMA
            and before not in _STACKS_NOTHING
            and unicodedata.category(after)[0] == "L"
        )
        or all(_FLAGS[0] <= ord(character) <= _FLAGS[1] for character in (before, after))
    )
