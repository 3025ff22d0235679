"""
What the demo model can understand: sentences of a small vocabulary, drawn at random.

English is a home assistant's vocabulary (numbers, clock times, dates, commands); Spanish,
German and French know digits and a few words, enough for language detection to be real.
Lower case without punctuation, names of days and months with a capital (not in Spanish and
French, where they have none). Pure Python: knows nothing about audio or models.
"""

import random
import re

LANGUAGES = ("en", "es", "de", "fr")

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth "
    "thirteenth fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth"
).split()

# A slot in braces is filled by a word of its list or by the function of that name below.
_LISTS = {
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(),
    "month": (
        "January February March April May June July August September October November December"
    ).split(),
    "room": "kitchen|bedroom|bathroom|living room|office|garage|garden".split("|"),
    "thing": "light lights lamp fan heater television radio oven camera alarm".split(),
    "lamp": "light lights fan".split(),
    "openable": "door window garage gate curtains".split(),
    "onoff": ["on", "off"],
    "dial": ["volume", "temperature", "brightness"],
    "unit": ["seconds", "minutes", "hours"],
    "who": ["home", "the office", "my mother", "my father", "the doctor"],
    "track": ["the music", "some music", "the next song", "the last song"],
    "when": ["today", "tomorrow", "now"],
    "word": (
        "yes|no|stop|go|help|cancel|start|thank you|yes please|no thank you|good morning|"
        "good night|hello|left|right|go left|go right|go back|up|down"
    ).split("|"),
}

_COMMANDS = """
turn {onoff} the {thing}
turn {onoff} the {room} {lamp}
turn the {thing} {onoff}
switch {onoff} the {thing} in the {room}
open the {openable}
close the {openable}
open the {openable} please
close the {openable} please
lock the front door
lock the back door
unlock the front door
unlock the back door
set a timer for {duration}
set the alarm for {clock}
wake me up at {clock}
wake me up at {clock} on {day}
wake me up at {clock} tomorrow
remind me tomorrow at {clock}
remind me on {day}
remind me in {duration}
set the {dial} to {hundred}
set the {dial} to {hundred} percent
set the temperature to {hundred} degrees
turn the volume up
turn the volume down
play {track}
stop {track}
pause {track}
what time is it
what time is it now
what is the weather {when}
what is the temperature {when}
what is the date {when}
call {who}
dial {digits}
my number is {digits}
the meeting is on {date}
the meeting is on {date} at {clock}
{word}
""".strip().splitlines()

_FOREIGN = {
    "es": (
        "cero uno dos tres cuatro cinco seis siete ocho nueve".split(),
        "hola|buenos días|buenas noches|gracias|sí|no|mañana|por favor|abre la puerta|"
        "cierra la puerta|enciende la luz|apaga la luz|qué hora es|mi número es".split("|"),
    ),
    "de": (
        "null eins zwei drei vier fünf sechs sieben acht neun".split(),
        "hallo|guten Morgen|gute Nacht|danke|ja|nein|morgen|bitte|mach die Tür auf|"
        "mach die Tür zu|mach das Licht an|mach das Licht aus|wie spät ist es|"
        "meine Nummer ist".split("|"),
    ),
    "fr": (
        "zéro un deux trois quatre cinq six sept huit neuf".split(),
        "bonjour|bonne nuit|merci|oui|non|demain|s'il vous plaît|ouvre la porte|"
        "ferme la porte|allume la lumière|éteins la lumière|quelle heure est-il|"
        "mon numéro est".split("|"),
    ),
}


def number(n: int) -> str:
    """English words for 0 to 100."""
    if n < 20:
        return _UNITS[n]
    if n == 100:
        return "one hundred"
    return _TENS[n // 10 - 2] + (f" {_UNITS[n % 10]}" if n % 10 else "")


def _ordinal(n: int) -> str:
    if n <= 20:
        return _ORDINALS[n - 1]
    return "thirtieth" if n == 30 else f"{_TENS[n // 10 - 2]} {_ORDINALS[n % 10 - 1]}"


def _digits(r: random.Random, low: int = 3, high: int = 10) -> str:
    words = [_UNITS[r.randrange(10)] for _ in range(r.randint(low, high))]
    if r.random() < 0.2:  # telephone style
        words = ["oh" if word == "zero" else word for word in words]
    return " ".join(words)


def _clock(r: random.Random) -> str:
    hour, kind = number(r.randint(1, 12)), r.randrange(5)
    if kind == 0:
        return f"{hour} o'clock"
    if kind == 1:
        return f"half past {hour}"
    if kind == 2:
        return f"quarter {r.choice(['past', 'to'])} {hour}"
    minute = r.choice([*range(5, 60, 5), r.randint(10, 59)])
    part = r.choice(["", "", " in the morning", " in the evening", " tonight"])
    return f"{hour} {'oh ' if minute < 10 else ''}{number(minute)}{part}"


def _date(r: random.Random) -> str:
    the = r.choice(["", "the "])
    day = r.choice(["", r.choice(_LISTS["day"]) + " "])
    return f"{day}{r.choice(_LISTS['month'])} {the}{_ordinal(r.randint(1, 30))}"


_FUNCTIONS = {
    "digits": _digits,
    "clock": _clock,
    "date": _date,
    "duration": lambda r: f"{number(r.randint(2, 59))} {r.choice(_LISTS['unit'])}",
    "hundred": lambda r: number(r.randint(0, 100)),
}


def _command(r: random.Random) -> str:
    def fill(slot: re.Match[str]) -> str:
        name = slot[1]
        return _FUNCTIONS[name](r) if name in _FUNCTIONS else r.choice(_LISTS[name])

    return re.sub(r"\{(\w+)\}", fill, r.choice(_COMMANDS))


def sentence(r: random.Random, language: str = "en") -> str:
    """One thing that somebody might say, in one of LANGUAGES."""
    if language != "en":
        digits, phrases = _FOREIGN[language]
        spoken = " ".join(r.choice(digits) for _ in range(r.randint(1, 8)))
        # Mostly phrase + digits: a shared word such as "no" alone tells no language.
        return r.choice([spoken, r.choice(phrases), f"{r.choice(phrases)} {spoken}"])
    p = r.random()
    if p < 0.25:
        return _digits(r, 1, 10)
    if p < 0.35:
        return " ".join(number(r.randint(0, 100)) for _ in range(r.randint(1, 3)))
    if p < 0.40:
        return r.choice(_LISTS["day"] + _LISTS["month"])
    if p < 0.48:
        return _date(r)
    if p < 0.56:
        return _clock(r)
    return _command(r)


def has_number(text: str) -> bool:
    """Whether it is one of very many of its kind, not a fixed phrase."""
    return not {*_UNITS, *_TENS, *_ORDINALS, "thirtieth", "hundred"}.isdisjoint(text.split())


def vocabulary() -> list[str]:
    """Every word that sentence() can say, sorted."""
    r = random.Random(0)
    words = set(_ORDINALS)
    for language in LANGUAGES:
        for _ in range(60_000 if language == "en" else 5_000):
            words.update(sentence(r, language).split())
    return sorted(words)
