"""
What the models and their clients agree on: names, tensors, sizes. Knows no runtime.

    silero_vad        AUDIO int16 [n]                        -> PROBABILITY float32 [frames]
    end_of_turn       AUDIO int16 [n]                        -> PROBABILITY float32 [1]
    whisper_<variant> AUDIO int16 [n], LANGUAGE, TASK,       -> TEXT, TOKENS, TOKEN_ENDS, LANGUAGE,
                      PROMPT, KEYWORDS,                         scores, words with times, what of
                      PREFIX and DRAFT int32 [k],               the prompt was cut, and where the
                      WORDS, FULL_WINDOW                        time went

`config.pbtxt` of each model says the same in Triton's words, and a test compares the two.
All audio is 16 kHz mono, 16 bit.
"""

from dataclasses import dataclass
from typing import Literal

SAMPLE_RATE = 16_000  # Hertz

# --- silero_vad ---------------------------------------------------------------------------------
# One probability for each whole frame. The model keeps what is left of an odd chunk, and its
# recurrent state, from START to END of the sequence. A sequence unknown to it without START is
# answered NOT_FOUND (or by Triton itself INVALID_ARGUMENT): start again from the last snapshot.
VAD_MODEL = "silero_vad"
VAD_FRAME = 512  # samples: 32 ms, the only size Silero is trained on at 16 kHz
VAD_CONTEXT = 64  # samples of the frame before that the network sees again

# --- end_of_turn --------------------------------------------------------------------------------
# Whether who spoke has finished, by how it sounds: asked in the pause. Keeps no state. A repository
# may do without it: sessions that ask for it then go by silence.
TURN_MODEL = "end_of_turn"
# Samples: all that the network hears. Of longer audio it is the end, before shorter come zeros.
TURN_AUDIO = 8 * SAMPLE_RATE

# --- whisper_<variant> --------------------------------------------------------------------------
VARIANTS = ("fast", "accurate")
Variant = Literal["fast", "accurate"]
SMALLER: Variant = "fast"  # costs less, so a session of it may take less of a worker
Task = Literal["transcribe", "translate"]

LONGEST_AUDIO = 30 * SAMPLE_RATE  # samples: the window Whisper is trained on
# The encoder sees the smallest of these that holds the audio and a margin of silence behind it
# (seconds). Chosen from the audio's length alone, so batch neighbours cannot change a result. How
# small the window and its margin may be is a property of the checkpoint (triton/models.toml).
WINDOWS = (4, 6, 8, 12, 16, 24, 30)
# A language of which a smaller window is not sure is detected in so much (seconds): as often right
# as in 30 s, and more often than in what a word or two need (docs/log.md).
DETECTION_WINDOW = 12
# Less than a quarter second of silence behind the speech doubles the words that partials change.
MARGIN = 0.25  # seconds, at least


# Whisper is told what was said before in half of its decoder's 448 positions. The last are kept.
PROMPT_TOKENS = 224

# What multilingual Whisper knows, ISO 639-1 where there is a code; `yue` since large-v3.
LANGUAGES = (
    "en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th "
    "ur hr bg lt la mi ml cy sk te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr "
    "pa si km sn yo so af oc ka be tg sd gu am yi lo uz fo ht ps tk nn mt sa lb my bo tl mg as tt "
    "haw ln ha ba jw su yue"
).split()
# Languages written without spaces between words (openai-whisper's tokenizer.py).
SPACELESS = frozenset({"zh", "ja", "th", "lo", "my", "yue"})
# Written in scripts of which Whisper has hardly a token for a whole letter (of Indic, Burmese,
# Georgian, Ethiopic), or not many for more than one (Thai, Hebrew, Arabic). Speech takes 14 to 37
# tokens a second there; others 3 to 6.
MANY_TOKENS = frozenset(
    "hi mr ne sa bn as pa gu ta te kn ml si my km lo th bo ka hy am yi he ar fa ur ps sd".split()
)


def whisper_model(variant: str) -> str:
    return f"whisper_{variant}"


# What controls Triton, these marks with it, wants this header (triton/restricted.py). Supervisor
# and workers find its value in this variable.
TOKEN_HEADER = "dalston-triton-token"
TOKEN_VARIABLE = "DALSTON_TRITON_TOKEN"


def asleep_mark(model: str) -> str:
    """The name of a region of system shared memory that a Triton has registered while a model is
    unloaded because nobody uses it. Who wants the model unregisters it, and it is loaded."""
    return f"asleep.{model}"


def window_seconds(samples: int, shortest: int = WINDOWS[0], margin: float = MARGIN) -> int:
    """The right-sized window for so much audio. Raises ValueError above LONGEST_AUDIO."""
    if samples > LONGEST_AUDIO:
        raise ValueError(f"{samples / SAMPLE_RATE:.2f} s of audio do not fit into one window")
    seconds = max(shortest, samples / SAMPLE_RATE + margin)
    return next((window for window in WINDOWS if window >= seconds), WINDOWS[-1])


@dataclass(frozen=True)
class Tensor:
    name: str
    type: str  # as in config.pbtxt, without TYPE_
    shape: tuple[int, ...]  # of one request, -1 is any


class Input:
    """Names of tensors that go to models."""

    AUDIO = "AUDIO"
    LANGUAGE = "LANGUAGE"
    TASK = "TASK"
    PROMPT = "PROMPT"
    KEYWORDS = "KEYWORDS"
    PREFIX = "PREFIX"
    DRAFT = "DRAFT"
    WORDS = "WORDS"
    FULL_WINDOW = "FULL_WINDOW"


class Output:
    """Names of tensors that come from models."""

    PROBABILITY = "PROBABILITY"
    TEXT = "TEXT"
    TOKENS = "TOKENS"
    TOKEN_ENDS = "TOKEN_ENDS"
    TOKEN_TIMES = "TOKEN_TIMES"
    TOKEN_LOGPROBS = "TOKEN_LOGPROBS"
    LANGUAGE = "LANGUAGE"
    LANGUAGE_PROBABILITY = "LANGUAGE_PROBABILITY"
    AVERAGE_LOGPROB = "AVERAGE_LOGPROB"
    NO_SPEECH_PROBABILITY = "NO_SPEECH_PROBABILITY"
    SUSPECT = "SUSPECT"
    PROMPT_CUT = "PROMPT_CUT"
    WORD = "WORD"
    WORD_START = "WORD_START"
    WORD_END = "WORD_END"
    WORD_PROBABILITY = "WORD_PROBABILITY"
    STAGE_SECONDS = "STAGE_SECONDS"
    WINDOW_SECONDS = "WINDOW_SECONDS"


VAD_INPUTS = (Tensor(Input.AUDIO, "INT16", (-1,)),)
VAD_OUTPUTS = (Tensor(Output.PROBABILITY, "FP32", (-1,)),)

TURN_INPUTS = (Tensor(Input.AUDIO, "INT16", (-1,)),)
TURN_OUTPUTS = (Tensor(Output.PROBABILITY, "FP32", (1,)),)  # that the turn is over

WHISPER_INPUTS = (
    Tensor(Input.AUDIO, "INT16", (-1,)),
    # ISO 639-1, or "auto", or several codes with spaces between them, of which one is spoken.
    Tensor(Input.LANGUAGE, "STRING", (1,)),
    Tensor(Input.TASK, "STRING", (1,)),
    Tensor(Input.PROMPT, "STRING", (1,)),  # text that goes before what is said; empty for none
    Tensor(Input.KEYWORDS, "STRING", (1,)),  # names and terms that may be said, one a line
    Tensor(Input.PREFIX, "INT32", (-1,)),  # tokens that the transcript is made to begin with
    # Those that probably follow. It changes what the row costs, never what it says.
    Tensor(Input.DRAFT, "INT32", (-1,)),
    Tensor(Input.WORDS, "BOOL", (1,)),  # whether word times are wanted
    Tensor(
        Input.FULL_WINDOW, "BOOL", (1,)
    ),  # 30 s whatever the length: the second try of a SUSPECT
)
# Where the time of a row went. Rows that are answered together share these times.
STAGES = ("features", "encode", "decode", "align")
# Of all models an output without elements is left out of the answer.
WHISPER_OUTPUTS = (
    Tensor(Output.TEXT, "STRING", (1,)),
    Tensor(Output.TOKENS, "INT32", (-1,)),
    # Characters of TEXT up to the end of each token, or if it ends inside of one up to that one. A
    # letter and the signs that belong to it are one here.
    Tensor(Output.TOKEN_ENDS, "INT32", (-1,)),
    # Seconds from the start of AUDIO: where in it the decoder was when it chose each token, by its
    # attention; of marks where the token before them is. They may jump back. Left out where the
    # runtime or the checkpoint does not tell.
    Tensor(Output.TOKEN_TIMES, "FP32", (-1,)),
    # How likely each token was when it was chosen; 0 for those of PREFIX, which nobody chose. Left
    # out where the runtime does not tell.
    Tensor(Output.TOKEN_LOGPROBS, "FP32", (-1,)),
    Tensor(Output.LANGUAGE, "STRING", (1,)),  # the one asked for, or the one detected
    Tensor(Output.LANGUAGE_PROBABILITY, "FP32", (1,)),
    Tensor(Output.AVERAGE_LOGPROB, "FP32", (1,)),  # of the tokens behind PREFIX, and of the end
    Tensor(Output.NO_SPEECH_PROBABILITY, "FP32", (1,)),
    Tensor(Output.SUSPECT, "BOOL", (1,)),  # the scores look bad, and FULL_WINDOW may do better
    Tensor(
        Output.PROMPT_CUT, "INT32", (-1,)
    ),  # one: tokens of PROMPT and KEYWORDS beyond PROMPT_TOKENS
    Tensor(Output.WORD, "STRING", (-1,)),
    Tensor(Output.WORD_START, "FP32", (-1,)),  # seconds from the start of AUDIO
    Tensor(Output.WORD_END, "FP32", (-1,)),
    Tensor(Output.WORD_PROBABILITY, "FP32", (-1,)),
    Tensor(Output.STAGE_SECONDS, "FP32", (len(STAGES),)),
    Tensor(
        Output.WINDOW_SECONDS, "FP32", (1,)
    ),  # what the encoder saw: AUDIO and the zeros behind it
)
# Of these, what a partial needs; a final also wants words and scores.
PARTIAL_OUTPUTS = (
    Output.TEXT,
    Output.TOKENS,
    Output.TOKEN_ENDS,
    Output.TOKEN_TIMES,
    Output.TOKEN_LOGPROBS,
    Output.LANGUAGE,
    Output.LANGUAGE_PROBABILITY,
    Output.WINDOW_SECONDS,
)
