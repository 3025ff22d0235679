"""
Train the demo model.

    python train.py BANK_FOLDER OUT_FOLDER [--steps 33000] [--resume]

Loss = cross entropy of the decoder + 0.5 x frame classification on the encoder + 0.3 to 0.5 x
guided cross-attention. The windows are composed here, so the place of every word is known; with
the last two a network this small converges in minutes instead of never (with CTC in their place
the loss sat at the blank prior). The learning rate is constant, then falls to zero over the last
quarter. OUT_FOLDER/checkpoint.pt is written every 500 steps, and --resume goes on from it.
"""

import argparse
import math
import os
import time
from pathlib import Path

# Spinning barriers waste cores that the data loader needs.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import numpy as np
import torch
from compose import MARGIN, Composer, Word
from network import WARPS, Network, log_mel
from tokens import TEXT_TOKENS, Compact
from torch.nn import functional as F
from voices import RATE

# Window seconds and their share of the training audio: the buckets of dalston.triton.contract.
BUCKETS = {2.0: 0.08, 4.0: 0.27, 6.0: 0.2, 8.0: 0.15, 12.0: 0.1, 16.0: 0.08, 24.0: 0.05, 30.0: 0.07}
IGNORE = -100


def targets(
    r: np.random.Generator, compact: Compact, words: list[Word], language: str, size: float
):
    """Input rows, label rows, and for each input the (start, end, reach) it should attend to."""
    rows: list[int] = []
    if r.random() < 0.08:  # some earlier text, as clients may pass
        rows.append(compact["<|startofprev|>"])
        rows += [int(row) for row in r.integers(0, len(compact.text_ids), int(r.integers(1, 20)))]
    start = len(rows)
    rows += [
        compact["<|startoftranscript|>"],
        compact[f"<|{language}|>"],
        compact["<|transcribe|>"],
    ]
    timed = r.random() < 0.15
    if not timed:
        rows.append(compact["<|notimestamps|>"])
    labels = [IGNORE] * (len(rows) - 1)
    labels[start] = compact[f"<|{language}|>"] if words else compact["<|nospeech|>"]
    spans: list[tuple[float, float, float] | None] = [None] * (len(rows) - 1)

    said: list[int] = []

    def stamp(seconds: float) -> int:
        return compact["<|0.00|>"] + int(np.clip(round(seconds / 0.02), 0, 1500))

    if timed:  # decoders allow a first time of at most 1.00
        said.append(stamp(min(1.0, words[0].start or 0.0) if words else 0.0))
        spans.append(None)
    for index, word in enumerate(words):
        pieces = compact.encode(word.text)
        known = word.start is not None and word.end is not None
        following = words[index + 1].start if index + 1 < len(words) else None
        for place, piece in enumerate(pieces):
            said.append(piece)
            if not known:
                spans.append(None)
                continue
            length = (word.end - word.start) / len(pieces)
            a = word.start + place * length
            last = place == len(pieces) - 1
            reach = (following or min(word.end + 0.5, size)) if last else a + length
            spans.append((a, a + length, reach))
    end = words[-1].end if words else None
    if timed and end is not None:
        said.append(stamp(end))
        spans.append(None)
    said.append(compact["<|endoftext|>"])
    spans.append((end + 0.02, size, size) if end is not None and end + 0.1 < size else None)
    return rows + said[:-1], labels + said, spans


def batch(composer: Composer, r: np.random.Generator, size: float, count: int):
    compact = composer.compact
    audio = np.zeros((count, int(size * RATE)), np.float32)
    frames = int(size * 50)
    sequences, place = [], np.full((count, frames), len(compact.text_ids), np.int64)
    smaller = max([s for s in BUCKETS if s < size], default=0.5)
    for row in range(count):
        # Mostly audio that belongs into this window; sometimes less, as in a window of 30 s.
        low = 0.5 if r.random() < (0.35 if size >= 12 else 0.1) else max(0.5, smaller - MARGIN)
        x, words, language = composer.window(r, r.uniform(low, size - MARGIN))
        audio[row, : len(x)] = x
        sequences.append(targets(r, compact, words, language, size))
        untimed_from = None
        for word in words:  # between the known ends of an untimed sentence nothing is asked
            if word.start is not None and word.end is None:
                untimed_from = word.start
            elif word.start is None and word.end is not None and untimed_from is not None:
                place[row, int(untimed_from * 50) : int(word.end * 50) + 1] = IGNORE
    mel = log_mel(
        torch.from_numpy(audio),
        torch.from_numpy(composer.channel(r, count)),
        r.integers(0, len(WARPS), count) if composer.hard > 0.3 else None,
    )
    for row in range(count):  # SpecAugment, mild
        if r.random() < 0.35 * composer.hard:
            at = int(r.integers(0, 70))
            mel[row, at : at + int(r.integers(1, 12))] = mel[row].mean()
        if r.random() < 0.35 * composer.hard:
            at = int(r.integers(0, mel.shape[2]))
            mel[row, :, at : at + int(r.integers(1, 12))] = mel[row].mean()
    # A length from few values lets the kernels be reused.
    length = -(-max(len(rows) for rows, _, _ in sequences) // 8) * 8
    ids = np.full((count, length), compact["<|endoftext|>"], np.int64)
    labels = np.full((count, length), IGNORE, np.int64)
    guides, guided = [], []
    for row, (inputs, outputs, spans) in enumerate(sequences):
        ids[row, : len(inputs)], labels[row, : len(outputs)] = inputs, outputs
        for position, span in enumerate(spans):
            if span is None:
                continue
            a, b, reach = (min(frames, round(seconds * 50)) for seconds in span)
            if b <= a:
                continue
            guide = np.zeros(frames, np.float32)
            guide[a:b], guide[b:reach] = 1.0, 0.6
            guides.append(guide / guide.sum())
            guided.append(row * length + position)
            if outputs[position] < len(compact.text_ids):
                place[row, a:b] = outputs[position]
    guide = np.stack(guides) if guides else np.zeros((0, frames), np.float32)
    arrays = (ids, labels, np.array(guided, np.int64), guide, place)
    return (mel, *(torch.from_numpy(array) for array in arrays))


class Batches(torch.utils.data.IterableDataset):
    """Batches of one window size each, about `audio` seconds in all; the same for every run."""

    def __init__(self, folder: Path, first: int, steps: int, audio: float, seed: int):
        self.folder, self.first, self.steps = folder, first, steps
        self.audio, self.seed = audio, seed

    def __iter__(self):
        torch.set_num_threads(1)
        composer = Composer(self.folder, Compact())
        worker = torch.utils.data.get_worker_info()
        index, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        for step in range(self.first + index, self.steps, workers):
            r = np.random.default_rng([self.seed, step])
            # From clean and short to everything, over the first eighth.
            composer.hard = min(1.0, step / (self.steps / 8))
            sizes = [s for s in BUCKETS if s <= 4 + 60 * max(0, step / self.steps - 0.03)]
            shares = np.array([BUCKETS[s] for s in sizes])
            size = float(r.choice(sizes, p=shares / shares.sum()))
            yield batch(composer, r, size, max(2, round(self.audio / size)))


def losses(network: Network, data):
    mel, ids, labels, guided, guide, place = data
    text = network.shape["text"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        memory = network.encoder(mel)
        logits, weights = network.decoder(ids, memory, TEXT_TOKENS - text)
        classes = network.frame(memory)
    words = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE)
    frame = F.cross_entropy(classes.float().flatten(0, 1), place.flatten(), ignore_index=IGNORE)
    attention = torch.zeros(())
    if len(guided):
        # Head 0 of the last two layers looks at the word being written; the last head of the
        # first layer at the one before. The first two are the model's alignment heads.
        for w in weights[-2:]:
            attention = attention - (w[:, 0].flatten(0, 1)[guided] * guide).sum(-1).mean() / 3
        follows = guided[:-1] + 1 == guided[1:]
        if follows.any():
            w = weights[0][:, -1].flatten(0, 1)[guided[1:][follows]]
            attention = attention - (w * guide[:-1][follows]).sum(-1).mean() / 3
    return words, frame, attention


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("bank", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=33_000)
    parser.add_argument("--audio", type=float, default=64, help="seconds of audio in a batch")
    parser.add_argument("--d", type=int, default=192)
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    saved = args.out / "checkpoint.pt"
    torch.manual_seed(args.seed)
    torch.set_num_threads(2)
    compact = Compact()
    network = Network(args.d, args.heads, 4, 3, compact.rows, len(compact.text_ids))
    large = [p for p in network.parameters() if p.requires_grad and p.ndim > 1]
    small = [p for p in network.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": large, "weight_decay": 0.05}, {"params": small, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), eps=1e-8, fused=True)
    first, heard, average = 0, 0.0, {k: v.clone() for k, v in network.state_dict().items()}
    if args.resume:
        state = torch.load(saved, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        average, first, heard = state["average"], state["step"], state["heard"]
    print(sum(p.numel() for p in network.parameters()) / 1e6, "million parameters", flush=True)
    data = torch.utils.data.DataLoader(
        Batches(args.bank, first, args.steps, args.audio, args.seed),
        batch_size=None, num_workers=1, prefetch_factor=6,
    )  # fmt: skip
    began, recent = time.time(), []
    for step, items in enumerate(data, first):
        progress = step / args.steps
        rate = args.lr * min(1, (step + 1) / 400) * min(1, (1 - progress) / 0.25)
        for group in optimizer.param_groups:
            group["lr"] = rate
        words, frame, attention = losses(network, items)
        loss = words + 0.5 * frame + (0.3 if progress < 0.2 else 0.5) * attention
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        decay = min(0.9990, (1 + step) / (10 + step))
        with torch.no_grad():
            for key, value in network.state_dict().items():
                average[key].lerp_(value, 1 - decay)
        heard += items[0].shape[0] * items[0].shape[2] / 100 / 3600
        recent.append([v.item() for v in (words, frame, attention)])
        if (step + 1) % 100 == 0:
            a, b, c = np.mean(recent, 0)
            recent = []
            print(
                f"step {step + 1} words {a:.3f} frame {b:.3f} attention {c:.3f} "
                f"audio {heard:.1f} h  {(time.time() - began) / (step + 1 - first):.3f} s/step",
                flush=True,
            )
        if (step + 1) % 500 == 0 or step + 1 == args.steps:
            state = {
                "network": network.state_dict(), "optimizer": optimizer.state_dict(),
                "average": average, "step": step + 1, "heard": heard, "shape": network.shape,
            }  # fmt: skip
            torch.save(state, saved.with_suffix(".new"))
            saved.with_suffix(".new").replace(saved)
            if not math.isfinite(a):
                raise SystemExit("the loss is no number any more")


if __name__ == "__main__":
    main()
