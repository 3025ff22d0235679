"""
A checkpoint and a folder of speech -> a delta that makes right-sized windows as good as full ones,
or a refusal that says why not.

Recordings are parted: most are trained on, the rest (or a folder of their own, with or without
texts) prove. Takes about an hour of one core for a checkpoint of base's size and 400 crops, most
of it to hear what the checkpoint itself says in full windows; larger ones in proportion.
"""

import json
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dalston.triton import weights
from dalston.triton.adaptation import delta, network
from dalston.triton.adaptation.choose import Proof, Reference, Sample, between, prove
from dalston.triton.adaptation.crops import Recording, crops, read, recordings
from dalston.triton.adaptation.lessons import Lesson, lessons
from dalston.triton.adaptation.train import Plan, Special, train
from dalston.triton.contract import LANGUAGES, LONGEST_AUDIO
from dalston.triton.vocabulary import Vocabulary

FEWEST = 20  # recordings: with fewer there is nothing to prove by
_PROVING = 0.15  # of the recordings
_SHARES = (1.0, 0.85, 0.7)  # of the way from the untouched norms to the trained ones


class AdaptationError(Exception):
    """A delta that cannot be had; says why."""


@dataclass(frozen=True)
class Work:
    """What is asked for."""

    checkpoint: Path  # a CTranslate2 folder
    audio: Path
    out: Path
    proof: Path | None = None  # a folder of recordings, beside a manifest.json if there are texts
    crops: int = 400
    plans: Sequence[Plan] = (Plan(),)
    processes: int = 1
    about: str = ""  # a note for the delta's metadata


def samples_of(sources: Sequence[Recording], seed: int = 3) -> list[Sample]:
    """Recordings as they are, the first 30 s of each."""
    made = list[Sample]()
    for source in sources:
        audio = read(source.path, random.Random(seed))[:LONGEST_AUDIO]
        pcm = np.clip(audio * 32768, -32768, 32767).astype(np.int16)
        made.append(Sample(pcm, "en" if source.language == "auto" else source.language))
    return made


def samples_with_texts(folder: Path) -> list[Sample]:
    """The utterances of manifest.json: entries with file, text, language, kind and seconds."""
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    made = list[Sample]()
    for entry in manifest:
        if entry.get("kind", "utterance") == "utterance" and entry["seconds"] < 29.5:
            (sample,) = samples_of([Recording(folder / entry["file"], entry["language"])])
            made.append(Sample(sample.audio, sample.language, entry["text"]))
    return made


def adapt(work: Work, tell: Callable[[str], None]) -> Proof:
    """Write the delta. Raises AdaptationError, with nothing written, and ValueError if the folder
    is no checkpoint."""
    known = weights.read(work.checkpoint / "model.bin")
    sources = recordings(work.audio, LANGUAGES)
    proving = list[Recording]()
    if work.proof is None:
        if len(sources) < FEWEST:
            raise AdaptationError(
                f"{work.audio} holds {len(sources)} recordings, and at least {FEWEST} are needed: "
                "a part of them is kept back to prove the result"
            )
        random.Random(0).shuffle(sources)
        kept = max(5, round(_PROVING * len(sources)))
        proving, sources = sources[:kept], sorted(sources[kept:], key=lambda one: one.path)
    elif not sources:
        raise AdaptationError(f"{work.audio} holds no recording")
    with_texts = work.proof and (work.proof / "manifest.json").exists()
    if work.proof is not None and not with_texts:
        proving = recordings(work.proof, LANGUAGES)
    samples = samples_with_texts(work.proof) if with_texts and work.proof else samples_of(proving)
    taught = _lessons(work, sources, tell)
    reference = Reference.of(work.checkpoint, samples, tell)
    vocabulary = Vocabulary.load(work.checkpoint)
    special = Special(vocabulary.end, vocabulary.no_timestamps - 1)
    stock = {name: value for name, value in known.items() if network.NORM in name}
    best: tuple[Proof, dict[str, np.ndarray], str] | None = None
    for plan in work.plans:
        trained = train(known, special, taught, plan, _telling(plan, tell))
        for share in _SHARES:
            norms = between(stock, trained, share)
            proof = _proof(work, norms, reference)
            name = f"seed {plan.seed}, {share:.0%} of the way"
            tell(f"{name}: {proof}")
            if best is None or proof.badness < best[0].badness:
                best = proof, norms, name
    assert best, "there is at least one plan"
    proof, norms, name = best
    if objections := proof.objections():
        raise AdaptationError(
            f"no delta was written: the best ({name}) does not prove itself. "
            + "; ".join(objections)
        )
    about = {
        "recipe": f"{len(taught)} crops of {len(sources)} recordings; {work.plans}; {name}",
        "proof": str(proof),
        "note": work.about,
    }
    delta.write(work.out, norms, work.checkpoint, about)
    tell(f"{work.out} is written: {name}")
    return proof


def _lessons(work: Work, sources: Sequence[Recording], tell: Callable[[str], None]) -> list[Lesson]:
    def progress(count: int) -> None:
        if count % 20 < 2 or count == work.crops:
            tell(f"crop {count} of {work.crops} heard in its full window")

    made = crops(sources, work.crops, work.plans[0].seed)
    return lessons(work.checkpoint, made, work.processes, progress)


def _telling(plan: Plan, tell: Callable[[str], None]) -> Callable[[int, float], None]:
    recent = list[float]()

    def progress(step: int, loss: float) -> None:
        recent.append(loss)
        if step % 25 == 0 or step == plan.steps:
            tell(f"seed {plan.seed}, step {step} of {plan.steps}: loss {np.mean(recent[-25:]):.3f}")

    return progress


def _proof(work: Work, norms: weights.Tensors, reference: Reference) -> Proof:
    with tempfile.TemporaryDirectory() as folder:
        file, made = Path(folder) / "delta.safetensors", Path(folder) / "adapted"
        delta.write(file, norms, work.checkpoint, {})
        delta.apply(file, work.checkpoint, made)
        return prove(made, reference)
