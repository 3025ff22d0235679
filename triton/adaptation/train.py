"""
Self-distillation: a checkpoint in short windows learns to say what it says in the full one.

Only the gains and biases of the layer norms move. The loss over a lesson, of which the student sees
the window of a live server and the teacher saw 30 s:

    KL(teacher || student) over the vocabulary at each token, the end three times as much
    + 1/2 |student's encoder - teacher's|^2 / |teacher's|^2, over the crop and half a second
    + 1/2 the same of the decoder's last state

Where there is no speech, the end is to follow the prompt and the start to say "no speech".

The full window keeps the untouched norms: one set for both was tried (docs/log.md) and costs the
full window two points.

(Self-distillation: Furlanello et al. 2018, "Born-again neural networks". Short contexts by fine-
tuning: futo-org's whisper-acft, which trains all weights of the encoder; norms alone are enough,
and too few to forget anything: Basu et al. 2024, "Strong baselines for parameter-efficient
few-shot fine-tuning".)
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dalston.triton import weights
from dalston.triton.adaptation import network
from dalston.triton.adaptation.lessons import Lesson
from dalston.triton.contract import WINDOWS
from dalston.triton.graphs import Shape

LONGEST_WINDOW = WINDOWS[-2]  # seconds; the full one is not adapted
_FRAMES_TOGETHER = 2100  # of features, in a step; longer ones go alone
_WARM_UP = 15  # steps
_END_WEIGHT, _FIRST_WEIGHT, _PROMPT_WEIGHT = 3.0, 0.5, 0.1


@dataclass(frozen=True)
class Plan:
    """How to train."""

    steps: int = 300
    rate: float = 2e-3
    seed: int = 1


@dataclass(frozen=True)
class Special:
    """Tokens of the vocabulary."""

    end: int
    no_speech: int


def _window(seconds: float, rng: random.Random) -> float:
    """Seconds that a live server may give such a crop."""
    margin = rng.uniform(0.05, 1.05) if rng.random() < 0.8 else rng.uniform(0.02, 4)
    if rng.random() < 0.15:
        return min(seconds + margin, LONGEST_WINDOW)  # any length
    return next(
        window for window in WINDOWS[:-1] if window >= min(seconds + margin, LONGEST_WINDOW)
    )


def _batch(
    lessons: Sequence[Lesson], window: float, first: Lesson, rng: random.Random
) -> list[Lesson]:
    """The first and others that such a window suits."""
    others = max(1, min(6, int(_FRAMES_TOGETHER / (window * 100)))) - 1
    low = 0 if window <= WINDOWS[0] else window - 3.2
    fitting = [one for one in lessons if low <= one.seconds <= window - 0.04 and one is not first]
    return [first, *rng.sample(fitting, min(others, len(fitting)))]


def _features(lesson: Lesson, frames: int) -> Tensor:
    made = np.full((len(lesson.mel), frames), lesson.silence, np.float32)
    count = min(frames, lesson.mel.shape[1])
    made[:, :count] = lesson.mel[:, :count]
    return torch.from_numpy(made)


def _loss(
    p: network.Parameters, shape: Shape, special: Special, batch: Sequence[Lesson], window: float
) -> Tensor:
    frames = round(window * 50) * 2
    encoded = network.encode(p, shape, torch.stack([_features(one, frames) for one in batch]))
    longest = max(len(one.tokens) for one in batch) - 1
    ids = torch.full((len(batch), longest), special.end)
    for row, one in enumerate(batch):
        ids[row, : len(one.tokens) - 1] = torch.from_numpy(one.tokens[:-1].astype(np.int64))
    states = network.decode(p, shape, ids, encoded)

    sound = texts = inner = torch.zeros(())
    for row, one in enumerate(batch):
        taught = torch.from_numpy(one.encoded.astype(np.float32))
        count = min(len(taught), frames // 2)
        sound = sound + (
            F.mse_loss(encoded[row, :count], taught[:count]) / taught[:count].square().mean()
        )
        mine = states[row, : len(one.tokens) - 1]
        said = F.log_softmax(network.logits(p, mine), -1)
        if not one.speech:
            texts = texts - said[one.prompt - 1, special.end] - 0.5 * said[0, special.no_speech]
            continue
        state = torch.from_numpy(one.hidden.astype(np.float32))
        with torch.no_grad():
            aim = F.log_softmax(network.logits(p, state), -1)
        weight = torch.ones(len(mine))
        weight[: one.prompt - 1] = _PROMPT_WEIGHT
        weight[0], weight[-1] = _FIRST_WEIGHT, _END_WEIGHT
        divergence = (aim.exp() * (aim - said)).sum(-1)
        texts = texts + (divergence * weight).sum() / weight.sum()
        squares = (mine - state).square().mean(-1)
        inner = inner + (squares * weight).sum() / weight.sum() / state.square().mean()
    return (texts + 0.5 * sound + 0.5 * inner) / len(batch)


def train(
    tensors: weights.Tensors,
    special: Special,
    lessons: Sequence[Lesson],
    plan: Plan,
    tell: Callable[[int, float], None] = lambda step, loss: None,
) -> dict[str, np.ndarray]:
    """The adapted norms by name, float32. `tell` is given the step and its loss."""
    shape, p = Shape.of(tensors), network.parameters(tensors)
    moving = {name: p[name].clone().requires_grad_() for name in network.norms(p)}
    p |= moving
    optimizer = torch.optim.AdamW(moving.values(), betas=(0.9, 0.98), weight_decay=0)
    rng = random.Random(plan.seed)
    lessons = [one for one in lessons if one.seconds < LONGEST_WINDOW]
    for step in range(plan.steps):
        decay = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / plan.steps))
        for group in optimizer.param_groups:
            group["lr"] = plan.rate * min(1, (step + 1) / _WARM_UP) * decay
        first = rng.choice(lessons)
        window = _window(first.seconds, rng)
        loss = _loss(p, shape, special, _batch(lessons, window, first, rng), window)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(moving.values()), 1.0)
        optimizer.step()
        tell(step + 1, loss.item())
    return {name: value.detach().numpy() for name, value in moving.items()}
