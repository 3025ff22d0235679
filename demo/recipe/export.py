"""
A training checkpoint -> the committed one: demo/checkpoint/{model.safetensors,*.json}.

    python export.py RUN_FOLDER [OUT_FOLDER]

Half precision, and of the token table only the rows that were trained; `dalston models build`
puts them into the full table of 51 865 (triton/conversion.py).
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from network import Network
from safetensors.torch import save_file
from tokens import CONTROLS, LANGUAGES, PATH, TEXT_TOKENS, Compact


def export(run: Path, out: Path) -> None:
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    network = Network(**state["shape"])
    network.load_state_dict(state["average"])
    compact, shape = Compact(), state["shape"]
    tensors = {
        f"model.{name}": tensor.half().contiguous()
        for name, tensor in network.state_dict().items()
        if not name.startswith(("frame", "decoder.rows", "decoder.shared", "decoder.time"))
    }
    with torch.no_grad():
        table = network.decoder.table().half().contiguous()
    tensors["model.decoder.embed_tokens.weight"] = table
    tensors["shared_row"] = network.decoder.shared.detach().half()
    tensors["token_ids"] = torch.tensor(compact.text_ids, dtype=torch.int32)
    tensors["text_tokens"] = torch.tensor([TEXT_TOKENS], dtype=torch.int32)
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})

    ids = {token: TEXT_TOKENS + index for index, token in enumerate(CONTROLS)}
    end = ids["<|endoftext|>"]
    special = dict(
        bos_token_id=end, eos_token_id=end, pad_token_id=end,
        decoder_start_token_id=ids["<|startoftranscript|>"],
    )  # fmt: skip
    config = dict(
        architectures=["WhisperForConditionalGeneration"], model_type="whisper",
        vocab_size=51_865, num_mel_bins=80, d_model=shape["d"],
        encoder_layers=shape["encoder"], decoder_layers=shape["decoder"],
        encoder_attention_heads=shape["heads"], decoder_attention_heads=shape["heads"],
        encoder_ffn_dim=4 * shape["d"], decoder_ffn_dim=4 * shape["d"],
        max_source_positions=1500, max_target_positions=448,
        activation_function="gelu", scale_embedding=False, tie_word_embeddings=True, **special,
    )  # fmt: skip
    blank = compact.tokenizer.token_to_id("\u0120")
    generation = dict(
        max_length=448,
        is_multilingual=True,
        # Heads whose attention was guided to the word being written (train.py).
        alignment_heads=[[shape["decoder"] - 2, 0], [shape["decoder"] - 1, 0]],
        # The end of text stays allowed at the start: silence says nothing.
        begin_suppress_tokens=[blank],
        suppress_tokens=[
            ids[f"<|{name}|>"]
            for name in (
                "startoftranscript",
                "translate",
                "transcribe",
                "startoflm",
                "startofprev",
                "nospeech",
            )  # fmt: skip
        ],
        no_timestamps_token_id=ids["<|notimestamps|>"],
        prev_sot_token_id=ids["<|startofprev|>"],
        lang_to_id={f"<|{code}|>": ids[f"<|{code}|>"] for code in LANGUAGES},
        task_to_id={task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")},
        **special,
    )
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    (out / "generation_config.json").write_text(json.dumps(generation, indent=1) + "\n")
    if out != PATH.parent:
        (out / "tokenizer.json").write_bytes(PATH.read_bytes())
    size = sum(np.prod(t.shape) * t.element_size() for t in tensors.values())
    print(f"step {state['step']}, {state['heard']:.0f} h heard, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    export(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else PATH.parent)
