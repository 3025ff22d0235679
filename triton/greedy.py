"""
Greedy decoding on ONNX Runtime, of the graphs of graphs.py, with drafts. Knows tokens, not text.

What a row will probably say, its draft, is checked in one pass with its prompt: of the draft
those tokens are kept that greedy decoding would have chosen, and the one it would have chosen
instead of the next. So a draft changes what a row costs, never what it says (Leviathan et al.
2023, "Fast inference from transformers via speculative decoding", with the hypothesis before as
the approximation): to the last bit where the row has no prefix, else but for tokens that are
nearly as likely. From there on each pass gives one token for each row that has not ended.

Where the graphs tell the decoder's attention, each token has a time: the frame of the audio that
was attended most when it was chosen, or forced. A decoder that has come to the end of the audio
and jumps back says once more what it has said: where Controls.guarded says so it is stopped there,
and what it would say is dropped (the use of the attention is that of AlignAtt, Papi et al. 2023).
The times decide that, not how they were computed, so it holds for the tokens of drafts too.

Rows of a batch may have any windows, prompts and limits. The rows that are not over are always
the first of the buffers: where one leaves, the last takes its place.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

Floats = npt.NDArray[np.float32]

ATTENTION = "ATTENTION"  # to the frames, an output of the decoder's graph; not of all checkpoints
# The graphs' files, beside the checkpoint.
ENCODER, DECODER, HEAD = "encoder.onnx", "decoder.onnx", "head.onnx"

# Log probabilities of so many rows are computed at once: each is one of 51,865 tokens.
_HEAD_ROWS = 32
_UNHEARD = -1e30  # the attention of what is not there, before softmax
_ROOM = 32  # what buffers are rounded up to, in tokens
FRAMES_PER_SECOND = 50  # of the encoder
# A repeat begins where the attention has come so near to the end of the audio and goes so far back.
_NEAR_END = FRAMES_PER_SECOND // 2
_BACK = FRAMES_PER_SECOND


def cross_names(layers: int) -> list[str]:
    """The keys and values of the cross attention, in order."""
    return [f"CROSS_{part}_{number}" for number in range(layers) for part in ("KEY", "VALUE")]


def self_names(layers: int, side: str) -> list[str]:
    """Those of the tokens; side: PAST or PRESENT."""
    return [f"{side}_{part}_{number}" for number in range(layers) for part in ("KEY", "VALUE")]


@dataclass(frozen=True)
class Encoded:
    """What the encoder made of a window."""

    encoded: Floats  # [frames, width]
    cross: list[Floats]  # key and value of each decoder layer, [heads, frames, head width]

    @property
    def frames(self) -> int:
        return len(self.encoded)


@dataclass(frozen=True)
class Task:
    encoded: Encoded
    prompt: Sequence[int]
    limit: int  # tokens, the prefix included
    frames: int  # of audio; what else was encoded is the silence that fills the window
    prefix: Sequence[int] = ()  # the tokens are made to begin with these
    draft: Sequence[int] = ()  # and these probably follow
    start: int = 0  # where in the prompt the transcript starts; before it is what was said earlier


@dataclass
class Decoded:
    tokens: list[int]  # the prefix first; without the end
    # For each token the frame of audio attended most when it was chosen; empty where nobody knows.
    frames: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])  # of each new token
    logprob: float = 0.0  # the sum over the new tokens, and the end
    ended: bool = False  # by itself, not by the limit
    rewound: bool = False  # it was about to say all again, and stopped
    no_speech: float = 0.0  # the probability
    passes: int = 0


@dataclass
class _Row:
    task: Task
    decoded: Decoded
    length: int = 0  # tokens whose keys and values are kept
    next: int = 0  # token
    furthest: int = 0  # frame attended
    second: int = 0  # the furthest but one: a single token that is not sure may attend anything

    def accept(
        self, token: int, logprob: float, attention: Floats | None, controls: "Controls"
    ) -> bool:
        """The next token, chosen with this attention to the frames; whether it was the last."""
        if token == controls.end:
            self.decoded.logprob += logprob
            self.decoded.ended = True
            return True
        if attention is not None:
            frame = self.frame(token, attention, controls.marks)
            if controls.guarded and self.rewinds(frame):
                self.decoded.rewound = True
                return True
            self.attend(token, frame, controls.marks)
        self.decoded.logprob += logprob
        self.decoded.tokens.append(token)
        self.decoded.logprobs.append(logprob)
        self.next = token
        return len(self.decoded.tokens) >= self.task.limit

    def attend(self, token: int, frame: int, marks: Set[int]) -> None:
        self.decoded.frames.append(frame)
        if token not in marks:
            self.second, self.furthest = sorted((self.second, self.furthest, frame))[1:]

    def frame(self, token: int, attention: Floats, marks: Set[int]) -> int:
        """Where the token is said. Nobody hears a mark, and the decoder looks anywhere for it: it
        is where the token before it is. And while it says a word of which it is not sure, it may
        look most at one frame in the silence behind the audio, so that is left out."""
        if token in marks:
            return self.decoded.frames[-1] if self.decoded.frames else 0
        return int(attention[: max(1, self.task.frames)].argmax())

    def rewinds(self, frame: int) -> bool:
        return self.furthest >= self.task.frames - _NEAR_END and frame < self.second - _BACK


@dataclass(frozen=True)
class Controls:
    """Tokens with a meaning of their own."""

    end: int
    no_speech: int
    suppressed: Sequence[int] = ()  # never said
    suppressed_first: Sequence[int] = ()  # not said first
    marks: Set[int] = frozenset()  # without a letter or a digit
    # Whether who jumps back is stopped. Weights adapted to their windows do not say things twice,
    # and of 80 recordings four would have been cut off at a word that was misheard (docs/log.md).
    guarded: bool = True


class _Session:
    def __init__(self, path: Path, threads: int):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Spinning threads would take the cores from the other models.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self.run = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # they have no class in common
            raise ValueError(f"{path}: {error}") from None

    def binding(self, inputs: dict[str, Any], outputs: dict[str, Any]) -> "_Binding":
        return _Binding(self.run, inputs, outputs)


class _Binding:
    """Arrays read and written in place, run after run."""

    def __init__(self, session: Any, inputs: dict[str, Any], outputs: dict[str, Any]):
        self._session = session
        self._arrays = (inputs, outputs)  # kept alive
        self._binding = session.io_binding()
        for name, array in inputs.items():
            self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def __call__(self) -> None:
        self._session.run_with_iobinding(self._binding)


class Greedy:
    """The three graphs of a checkpoint in memory. It may be used by one thread at a time."""

    @staticmethod
    def is_in(folder: Path) -> bool:
        return all((folder / name).exists() for name in (ENCODER, DECODER, HEAD))

    def __init__(self, folder: Path, controls: Controls, threads: int = 1):
        """Raises ValueError if the graphs are no good."""
        self.encoder = _Session(folder / ENCODER, threads)
        self.decoder = _Session(folder / DECODER, threads)
        self.head = _Session(folder / HEAD, threads)
        self.controls = controls
        shapes = {value.name: value.shape for value in self.decoder.run.get_inputs()}
        self.attends = any(out.name == ATTENTION for out in self.decoder.run.get_outputs())
        self.layers = sum(name.startswith("PAST_KEY") for name in shapes)
        _, self.heads, _, self.head_width = shapes["PAST_KEY_0"]
        self.vocabulary: int = self.head.run.get_outputs()[0].shape[1]
        self.never = np.array(sorted(controls.suppressed), np.int64)
        first = set(controls.suppressed) | set(controls.suppressed_first)
        self.not_first = np.array(sorted(first), np.int64)
        self._logprobs = np.empty((_HEAD_ROWS, self.vocabulary), np.float32)

    @property
    def width(self) -> int:
        return self.heads * self.head_width

    def encode(self, features: Floats) -> Encoded:
        """features: [mels, frames], twice as many as come out."""
        frames = (features.shape[1] + 1) // 2
        encoded = np.empty((1, frames, self.width), np.float32)
        outputs = {"ENCODED": encoded}
        for name in cross_names(self.layers):
            outputs[name] = np.empty((1, self.heads, frames, self.head_width), np.float32)
        mel = np.ascontiguousarray(features[None], np.float32)
        self.encoder.binding({"MEL": mel}, outputs)()
        cross = [outputs[name][0] for name in cross_names(self.layers)]
        return Encoded(encoded[0], cross)

    def decode(self, tasks: Sequence[Task]) -> list[Decoded]:
        """In the order of the tasks. Those with a prefix share their passes; those without one go
        alone, in passes over two tokens or more."""
        sharing = [task for task in tasks if task.prefix]
        shared = iter(_Batch(self, sharing).decode() if sharing else ())
        return [
            next(shared) if task.prefix else _Batch(self, [task], pairs=True).decode()[0]
            for task in tasks
        ]

    def first_logprobs(self, encoded: Encoded, start: int) -> Floats:
        """What may follow the token `start`, [vocabulary]. Of one row at a time: beside longer
        windows sums are others, and two languages may be nearly as likely."""
        hidden, _ = _Batch(self, [Task(encoded, [start], 1, encoded.frames)]).passed([[start]])
        return self.score(hidden[:, 0], [])[0].copy()

    def score(self, rows: Floats, banned: list[tuple[int, npt.NDArray[np.int64]]]) -> Floats:
        """Log probabilities of all tokens; valid until the next call."""
        out = self._logprobs[: len(rows)]
        pairs = np.empty((sum(len(ids) for _, ids in banned), 2), np.int64)
        at = 0
        for row, ids in banned:
            pairs[at : at + len(ids), 0] = row
            pairs[at : at + len(ids), 1] = ids
            at += len(ids)
        rows = np.ascontiguousarray(rows)
        self.head.binding({"ROWS": rows, "BANNED": pairs}, {"LOGPROBS": out})()
        return out


class _Batch:
    """Tasks that share passes. Buffers hold the rows that are not over, in the order of `_rows`.

    pairs: of a single task: no pass is over one token. Over one, attention multiplies a vector, and
    over several matrices: other code, other sums, and where two tokens are nearly as likely a draft
    would decide. Over two and more every token's are the same to the last bit. (ONNX Runtime does
    this for one task at a time: GroupQueryAttention over several tokens wants a batch of one.)
    """

    def __init__(self, runtime: Greedy, tasks: Sequence[Task], pairs: bool = False):
        self._runtime, self._width = runtime, 2 if pairs else 1
        self._rows = [_Row(task, Decoded(list(task.prefix))) for task in tasks]
        self._decoded = [row.decoded for row in self._rows]
        heads, width = runtime.heads, runtime.head_width
        frames = max(task.encoded.frames for task in tasks)
        count = len(tasks)
        longest = max(len(task.prompt) + task.limit for task in tasks) + self._width - 1
        room = -(-longest // _ROOM) * _ROOM
        names = 2 * runtime.layers
        self._kept = [np.empty((count, heads, room, width), np.float32) for _ in range(names)]
        self._mask = np.zeros((count, 1, 1, frames), np.float32)
        for index, task in enumerate(tasks):
            self._mask[index, ..., task.encoded.frames :] = _UNHEARD
        self._cross = list[Floats]()
        for part in range(names):
            if count == 1:
                self._cross.append(tasks[0].encoded.cross[part][None])
                continue
            together = np.empty((count, heads, frames, width), np.float32)
            for index, task in enumerate(tasks):
                together[index, :, : task.encoded.frames] = task.encoded.cross[part]
                together[index, :, task.encoded.frames :] = 0
            self._cross.append(together)

    def decode(self) -> list[Decoded]:
        self._check_drafts()
        while self._rows:
            self._steps()
        return self._decoded

    def passed(self, tokens: Sequence[Sequence[int]]) -> tuple[Floats, Floats | None]:
        """The first pass, over rows of any length: HIDDEN and ATTENTION."""
        rows, most = len(tokens), max(map(len, tokens))
        ids = np.zeros((rows, most), np.int64)
        for index, row in enumerate(tokens):
            ids[index, : len(row)] = row
        positions = np.broadcast_to(np.arange(most), ids.shape)
        hidden = np.empty((rows, most, self._runtime.width), np.float32)
        attention = self._attention(rows, most)
        self._binding(
            ids,
            np.ascontiguousarray(positions),
            np.array([len(row) - 1 for row in tokens], np.int32),
            np.array(most, np.int32),
            hidden,
            attention,
        )()
        return hidden, attention

    def _attention(self, rows: int, tokens: int) -> Floats | None:
        """Room for it. What lies behind a row's own frames is zero."""
        if not self._runtime.attends:
            return None
        return np.empty((rows, tokens, self._mask.shape[-1]), np.float32)

    def _binding(
        self,
        ids: Any,
        positions: Any,
        lengths: Any,
        total: Any,
        hidden: Floats,
        attention: Floats | None,
    ) -> _Binding:
        layers, rows = self._runtime.layers, len(ids)
        kept = [array[:rows] for array in self._kept]
        inputs = {
            "TOKENS": ids,
            "POSITIONS": positions,
            "LENGTHS": lengths,
            "TOTAL": total,
            "MASK": self._mask[:rows],
            **dict(zip(self_names(layers, "PAST"), kept, strict=True)),
            **dict(zip(cross_names(layers), [array[:rows] for array in self._cross], strict=True)),
        }
        outputs = {"HIDDEN": hidden, **dict(zip(self_names(layers, "PRESENT"), kept, strict=True))}
        if attention is not None:
            outputs[ATTENTION] = attention
        return self._runtime.decoder.binding(inputs, outputs)

    def _check_drafts(self) -> None:
        controls, never = self._runtime.controls, self._runtime.never
        tokens = list[list[int]]()
        wanted = list[tuple[int, int]]()  # row, position
        for index, row in enumerate(self._rows):
            task = row.task
            forced = [*task.prompt, *task.prefix]
            draft = task.draft[: task.limit - len(task.prefix) - 1]
            tokens.append([*forced, *draft])
            # What the start token says is whether anybody speaks.
            wanted.append((index, task.start))
            wanted += [(index, at) for at in range(len(forced) - 1, len(tokens[-1]))]
            row.length = len(forced)
            row.decoded.passes = 1
        hidden, attention = self.passed(tokens)
        if attention is not None:
            for index, row in enumerate(self._rows):
                first = len(row.task.prompt) - 1
                for at, token in enumerate(row.task.prefix, first):
                    frame = row.frame(token, attention[index, at], controls.marks)
                    row.attend(token, frame, controls.marks)
        over = set[int]()
        differs = set[int]()
        for first in range(0, len(wanted), _HEAD_ROWS):
            part = wanted[first : first + _HEAD_ROWS]
            banned = [
                (place, self._runtime.not_first if self._is_first(index, at) else never)
                for place, (index, at) in enumerate(part)
                if at != self._rows[index].task.start
            ]
            gathered = hidden[[index for index, _ in part], [at for _, at in part]]
            logprobs = self._runtime.score(gathered, banned)
            best = logprobs.argmax(1)
            for place, (index, at) in enumerate(part):
                row = self._rows[index]
                if at == row.task.start:
                    row.decoded.no_speech = float(np.exp(logprobs[place, controls.no_speech]))
                    continue
                if index in over or index in differs:
                    continue
                token = int(best[place])
                attended = None if attention is None else attention[index, at]
                if row.accept(token, float(logprobs[place, token]), attended, controls):
                    over.add(index)
                elif at + 1 == len(tokens[index]) or token != tokens[index][at + 1]:
                    differs.add(index)
                else:
                    row.length += 1
        self._leave(over)

    def _is_first(self, index: int, at: int) -> bool:
        task = self._rows[index].task
        return not task.prefix and at == len(task.prompt) - 1

    def _steps(self) -> None:
        """One token for each row and pass, until a row is over. Of a pair the second is the same
        once more: nothing is read of it, and the next pass takes its place."""
        runtime, rows, width = self._runtime, self._rows, self._width
        count = len(rows)
        ids, positions = np.empty((count, width), np.int64), np.empty((count, width), np.int64)
        lengths, total = np.empty(count, np.int32), np.empty((), np.int32)
        hidden = np.empty((count, width, runtime.width), np.float32)
        attention = self._attention(count, width)
        decode = self._binding(ids, positions, lengths, total, hidden, attention)
        pairs = np.empty((count, len(runtime.never), 2), np.int64)
        pairs[..., 0], pairs[..., 1] = np.arange(count)[:, None], runtime.never
        logprobs = np.empty((count, runtime.vocabulary), np.float32)
        score = runtime.head.binding(
            {"ROWS": hidden[:, 0], "BANNED": pairs.reshape(-1, 2)}, {"LOGPROBS": logprobs}
        )
        over = set[int]()
        while not over:
            for index, row in enumerate(rows):
                ids[index], positions[index] = row.next, row.length
                lengths[index] = row.length + width - 1
            total[...] = lengths.max() + 1
            decode()
            score()
            best = logprobs.argmax(1)
            chosen = logprobs[np.arange(count), best]
            for index, row in enumerate(rows):
                row.length += 1
                row.decoded.passes += 1
                attended = None if attention is None else attention[index, 0]
                if row.accept(int(best[index]), float(chosen[index]), attended, runtime.controls):
                    over.add(index)
        self._leave(over)

    def _leave(self, over: set[int]) -> None:
        """The rows that stay close ranks."""
        for index in sorted(over, reverse=True):
            last = self._rows.pop()
            if index == len(self._rows):
                continue
            self._rows[index] = last
            for array in (*self._cross, self._mask):
                array[index] = array[len(self._rows)]
            for array in self._kept:
                array[index, :, : last.length] = array[len(self._rows), :, : last.length]
