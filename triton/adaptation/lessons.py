"""
What the student is to learn of each crop: what the checkpoint itself makes of it in the window of
30 s that it was trained on.

A lesson holds the crop's features, the teacher's tokens (its own greedy text, or nothing where
there is no speech), the state behind its last norm at each of them and what its encoder gave. No
text by people is used anywhere.
"""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import numpy.typing as npt
import torch

from dalston.triton import weights
from dalston.triton.adaptation import network
from dalston.triton.adaptation.crops import Crop
from dalston.triton.contract import LONGEST_AUDIO, SAMPLE_RATE
from dalston.triton.features import HOP, log_mel
from dalston.triton.graphs import Shape
from dalston.triton.vocabulary import Vocabulary

_FULL = LONGEST_AUDIO // HOP  # frames of features
_TOGETHER = 2  # crops: memory, not time, decides


@dataclass(frozen=True)
class Lesson:
    name: str
    seconds: float
    mel: npt.NDArray[np.float16]  # [mels, frames], of the crop alone
    silence: float  # what features are behind it
    encoded: npt.NDArray[np.float16]  # [t, d], half a second longer than the crop
    tokens: npt.NDArray[np.int32]  # prompt, text, end
    hidden: npt.NDArray[np.float16]  # [tokens - 1, d]
    prompt: int  # how many of the tokens
    speech: bool


_teacher: "_Teacher"


class _Teacher:
    def __init__(self, checkpoint: Path, threads: int):
        torch.set_num_threads(threads)
        tensors = weights.read(checkpoint / "model.bin")
        self.shape, self.parameters = Shape.of(tensors), network.parameters(tensors)
        self.vocabulary = Vocabulary.load(checkpoint)
        self.model: Any = ctranslate2.models.Whisper(
            str(checkpoint), compute_type="int8_float32", intra_threads=threads
        )

    @torch.inference_mode()
    def teach(self, crops: Sequence[Crop]) -> list[Lesson]:
        mels = [log_mel(crop.audio, _FULL, self.shape.mels) for crop in crops]
        view = self.model.encode(ctranslate2.StorageView.from_array(np.stack(mels)), to_cpu=True)
        encoded = torch.from_numpy(np.array(view))
        if self.vocabulary.multilingual:
            detected = [likely[0][0][2:-2] for likely in self.model.detect_language(view)]
        else:
            detected = ["en"] * len(crops)
        prompts = [
            self.vocabulary.prompt(
                crop.language if crop.language in self.vocabulary.languages else found, "transcribe"
            )
            for crop, found in zip(crops, detected, strict=True)
        ]
        texts = self.model.generate(view, [list(one) for one in prompts], beam_size=1)
        return [
            self._lesson(crop, mel, one, prompt, text.sequences_ids[0] if crop.name else [])
            for crop, mel, one, prompt, text in zip(
                crops, mels, encoded, prompts, texts, strict=True
            )
        ]

    def _lesson(
        self, crop: Crop, mel: Any, encoded: torch.Tensor, prompt: list[int], text: Sequence[int]
    ) -> Lesson:
        tokens = [*prompt, *(token for token in text if token != self.vocabulary.end)]
        tokens.append(self.vocabulary.end)
        ids = torch.tensor([tokens[:-1]])
        hidden = network.decode(self.parameters, self.shape, ids, encoded[None])[0]
        return Lesson(
            name=crop.name,
            seconds=crop.seconds,
            mel=mel[:, : int(crop.seconds * 100) + 6].astype(np.float16),
            silence=float(mel[:, -1].max()),
            encoded=encoded[: int(crop.seconds * 50) + 26].numpy().astype(np.float16),
            tokens=np.array(tokens, np.int32),
            hidden=hidden.numpy().astype(np.float16),
            prompt=len(prompt),
            speech=bool(crop.name),
        )


def _begin(checkpoint: Path) -> None:
    global _teacher
    _teacher = _Teacher(checkpoint, 1)


def _teach(crops: Sequence[Crop]) -> list[Lesson]:
    return _teacher.teach(crops)


def lessons(
    checkpoint: Path, crops: Iterator[Crop], processes: int, tell: Callable[[int], None]
) -> list[Lesson]:
    """Of all the crops, in order. `tell` is given how many there are so far."""
    made = list[Lesson]()

    def groups() -> Iterator[list[Crop]]:
        group = list[Crop]()
        for crop in crops:
            group.append(crop)
            if len(group) == _TOGETHER:
                yield group
                group = []
        if group:
            yield group

    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, _begin, (checkpoint,)) as pool:
        for group in pool.imap(_teach, groups()):
            made += group
            tell(len(made))
    return made


assert SAMPLE_RATE == 100 * HOP
