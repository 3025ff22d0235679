"""
Whisper in torch, as functions of its tensors by the names that Hugging Face gives them.

Exists to be trained: serving knows nothing of it. The audio may be of any length up to 30 s; the
table of positions is sliced, as CTranslate2 and the own graphs do.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from dalston.triton import weights
from dalston.triton.graphs import Shape

Parameters = dict[str, Tensor]
NORM = "layer_norm"  # is in the name of every gain and bias of a layer norm


def parameters(tensors: weights.Tensors) -> Parameters:
    return {
        name: torch.from_numpy(values.copy())
        for name, values in tensors.items()
        if values.ndim and name not in weights.HEADS.values()
    }


def norms(values: Mapping[str, Tensor]) -> Parameters:
    return {name: value for name, value in values.items() if NORM in name}


def _norm(p: Parameters, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"])


def _linear(p: Parameters, name: str, x: Tensor) -> Tensor:
    return F.linear(x, p[f"{name}.weight"], p.get(f"{name}.bias"))


def _attention(
    p: Parameters, name: str, x: Tensor, seen: Tensor, heads: int, causal: bool
) -> Tensor:
    def split(y: Tensor) -> Tensor:
        return y.view(y.shape[0], y.shape[1], heads, -1).transpose(1, 2)

    mixed = F.scaled_dot_product_attention(
        split(_linear(p, f"{name}.q_proj", x)),
        split(_linear(p, f"{name}.k_proj", seen)),
        split(_linear(p, f"{name}.v_proj", seen)),
        is_causal=causal,
    )
    return _linear(p, f"{name}.out_proj", mixed.transpose(1, 2).reshape(x.shape))


def _feed_forward(p: Parameters, name: str, x: Tensor) -> Tensor:
    inner = F.gelu(_linear(p, f"{name}.fc1", _norm(p, f"{name}.final_{NORM}", x)))
    return x + _linear(p, f"{name}.fc2", inner)


def encode(p: Parameters, shape: Shape, mel: Tensor) -> Tensor:
    """mel [b, mels, 2t] -> [b, t, d]"""
    at = "model.encoder"
    x = F.gelu(F.conv1d(mel, p[f"{at}.conv1.weight"], p[f"{at}.conv1.bias"], padding=1))
    x = F.gelu(F.conv1d(x, p[f"{at}.conv2.weight"], p[f"{at}.conv2.bias"], stride=2, padding=1))
    x = x.transpose(1, 2)
    x = x + p[f"{at}.embed_positions.weight"][: x.shape[1]]
    for number in range(shape.encoder_layers):
        name = f"{at}.layers.{number}"
        y = _norm(p, f"{name}.self_attn_{NORM}", x)
        x = x + _attention(p, f"{name}.self_attn", y, y, shape.encoder_heads, False)
        x = _feed_forward(p, name, x)
    return _norm(p, f"{at}.{NORM}", x)


def decode(p: Parameters, shape: Shape, tokens: Tensor, encoded: Tensor) -> Tensor:
    """tokens [b, s], encoded [b, t, d] -> the state behind the last norm, [b, s, d]"""
    at = "model.decoder"
    x = F.embedding(tokens, p[weights.TABLE])
    x = x + p[f"{at}.embed_positions.weight"][: tokens.shape[1]]
    for number in range(shape.layers):
        name = f"{at}.layers.{number}"
        y = _norm(p, f"{name}.self_attn_{NORM}", x)
        x = x + _attention(p, f"{name}.self_attn", y, y, shape.heads, True)
        y = _norm(p, f"{name}.encoder_attn_{NORM}", x)
        x = x + _attention(p, f"{name}.encoder_attn", y, encoded, shape.heads, False)
        x = _feed_forward(p, name, x)
    return _norm(p, f"{at}.{NORM}", x)


def logits(p: Parameters, hidden: Tensor) -> Tensor:
    return F.linear(hidden, p[weights.TABLE])
