"""
The tokenizer of multilingual Whisper (51 865 ids), and the few of them that training needs.

    python tokens.py MULTILINGUAL_TIKTOKEN

writes demo/checkpoint/tokenizer.json from the ranks that the openai-whisper source distribution
carries as whisper/assets/multilingual.tiktoken (MIT licence). The layout is that of the published
multilingual checkpoints up to large-v2: 50 257 text tokens, <|endoftext|>, <|startoftranscript|>,
99 languages, six more control tokens and 1501 time tokens.
"""

import base64
import re
import sys
from itertools import pairwise
from pathlib import Path

import grammar
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

PATH = Path(__file__).resolve().parent.parent / "checkpoint" / "tokenizer.json"
TEXT_TOKENS, TIMES = 50_257, 1501

LANGUAGES = (
    "en zh de es ru ko fr ja pt tr pl ca nl ar sv it id hi fi vi he uk el ms cs ro da hu ta no th "
    "ur hr bg lt la mi ml cy sk te fa lv bn sr az sl kn et mk br eu is hy ne mn bs kk sq sw gl mr "
    "pa si km sn yo so af oc ka be tg sd gu am yi lo uz fo ht ps tk nn mt sa lb my bo tl mg as tt "
    "haw ln ha ba jw su"
).split()
CONTROLS = [
    "<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in LANGUAGES),
    "<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>",
    "<|notimestamps|>",
]  # fmt: skip


def _printable() -> dict[int, str]:
    """GPT-2's map of bytes to printable characters: what is not printable moves above 255."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in kept]
    return {byte: chr(byte) for byte in kept} | {byte: chr(256 + i) for i, byte in enumerate(moved)}


def _merged(ranks: dict[bytes, int], token: bytes) -> list[bytes]:
    """The two parts whose merge makes `token`: byte pair encoding stopped just before it."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [(ranks.get(a + b, sys.maxsize), i) for i, (a, b) in enumerate(pairwise(parts))]
        rank, i = min(pairs)
        if rank >= ranks[token]:
            break
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def build(tiktoken: Path) -> Tokenizer:
    lines = (line.split() for line in tiktoken.read_bytes().splitlines() if line.strip())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    printable = _printable()
    vocabulary, merges = {}, []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1])[:TEXT_TOKENS]:
        # The empty token at 50 256 stays: CTranslate2 tells a multilingual model by it.
        vocabulary["".join(printable[byte] for byte in token)] = rank
        if len(token) > 1 and len(parts := _merged(ranks, token)) == 2:
            merges.append(tuple("".join(printable[byte] for byte in part) for part in parts))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in CONTROLS])
    times = [AddedToken(f"<|{i * 0.02:.2f}|>", normalized=False) for i in range(TIMES)]
    tokenizer.add_tokens(times)
    assert tokenizer.get_vocab_size() == 51_865
    return tokenizer


class Compact:
    """The rows that training keeps: tokens of our words, controls and times. All other text
    tokens share one row, the negative class, so that the full layout never says them."""

    def __init__(self) -> None:
        self.tokenizer = Tokenizer.from_file(str(PATH))
        texts = [f" {word}" for word in grammar.vocabulary()]
        used = {id for text in texts for id in self.tokenizer.encode(text).ids}
        self.text_ids = sorted(used)  # full ids of the text rows, in row order
        self.rows = len(self.text_ids) + len(CONTROLS) + TIMES
        self._row = {id: row for row, id in enumerate(self.text_ids)}

    def __getitem__(self, token: str) -> int:
        """The row of a control or time token."""
        return self.tokenizer.token_to_id(token) - TEXT_TOKENS + len(self.text_ids)

    def encode(self, word: str) -> list[int]:
        return [self._row[id] for id in self.tokenizer.encode(f" {word}").ids]

    def decode(self, rows: list[int]) -> str:
        return self.tokenizer.decode([self.text_ids[row] for row in rows]).strip()

    def expand(self, table: np.ndarray, shared: np.ndarray) -> np.ndarray:
        """Compact rows [rows, d] and the shared row [1, d] -> the full table [51 865, d]."""
        full = np.repeat(shared, TEXT_TOKENS, 0)
        full[self.text_ids] = table[: len(self.text_ids)]
        return np.concatenate([full, table[len(self.text_ids) :]])


if __name__ == "__main__":
    if len(sys.argv) != 2 or re.match("-", sys.argv[1]):
        raise SystemExit(__doc__)
    PATH.parent.mkdir(exist_ok=True)
    build(Path(sys.argv[1])).save(str(PATH), pretty=False)
