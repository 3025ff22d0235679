"""
The Whisper architecture in plain torch, parameter names as Hugging Face writes them.

The encoder takes any window length: its positions are sinusoids, cut to the window. Two things
exist for training alone and are not exported: `frame`, which names the token spoken in each
encoder frame, and the decoder's way of making time tokens out of the encoder's positions, so
that all 1501 are learnt from windows shorter than 30 s.
"""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

MELS, SOURCE, TARGET, TIMES = 80, 1500, 448, 1501


def sinusoids(length: int, d: int) -> torch.Tensor:
    scale = torch.exp(-math.log(10_000) / (d // 2 - 1) * torch.arange(d // 2))
    angles = torch.arange(length)[:, None] * scale[None]
    return torch.cat([angles.sin(), angles.cos()], 1)


class Attention(nn.Module):
    def __init__(self, d: int, heads: int):
        super().__init__()
        self.heads = heads
        self.k_proj = nn.Linear(d, d, bias=False)
        self.v_proj, self.q_proj, self.out_proj = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)

    def forward(self, x, memory=None, causal=False, keep_weights=False):
        def split(y):
            return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        source = x if memory is None else memory
        q, k, v = split(self.q_proj(x)), split(self.k_proj(source)), split(self.v_proj(source))
        weights = None
        if causal:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:  # written out: on a CPU three times faster than the fused kernel at these lengths
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
            if keep_weights:
                weights = F.log_softmax(scores.float(), -1)
                y = weights.exp().to(v.dtype) @ v
            else:
                with torch.autocast("cpu", enabled=False):
                    y = torch.softmax(scores, -1) @ v
        return self.out_proj(y.transpose(1, 2).flatten(2)), weights


class Layer(nn.Module):
    def __init__(self, d: int, heads: int, decoder: bool):
        super().__init__()
        self.decoder = decoder
        self.self_attn, self.self_attn_layer_norm = Attention(d, heads), nn.LayerNorm(d)
        if decoder:
            self.encoder_attn, self.encoder_attn_layer_norm = Attention(d, heads), nn.LayerNorm(d)
        self.fc1, self.fc2 = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        self.final_layer_norm = nn.LayerNorm(d)

    def forward(self, x, memory=None):
        weights = None
        x = x + self.self_attn(self.self_attn_layer_norm(x), causal=self.decoder)[0]
        if self.decoder:
            y, weights = self.encoder_attn(
                self.encoder_attn_layer_norm(x), memory, keep_weights=self.training
            )
            x = x + y
        return x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x)))), weights


class Encoder(nn.Module):
    def __init__(self, d: int, heads: int, layers: int):
        super().__init__()
        self.conv1 = nn.Conv1d(MELS, d, 3, padding=1)
        self.conv2 = nn.Conv1d(d, d, 3, stride=2, padding=1)
        self.embed_positions = nn.Embedding.from_pretrained(sinusoids(SOURCE, d), freeze=True)
        self.layers = nn.ModuleList(Layer(d, heads, decoder=False) for _ in range(layers))
        self.layer_norm = nn.LayerNorm(d)

    def forward(self, mel):  # [batch, 80, frames] -> [batch, frames / 2, d]
        x = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2)
        x = x + self.embed_positions.weight[: x.shape[1]].to(x.dtype)
        for layer in self.layers:
            x, _ = layer(x)
        return self.layer_norm(x)


class Decoder(nn.Module):
    def __init__(self, d: int, heads: int, layers: int, rows: int):
        super().__init__()
        self.rows = nn.Parameter(torch.randn(rows - TIMES, d) * 0.02)
        self.shared = nn.Parameter(torch.randn(1, d) * 0.02)  # every text token we never say
        self.time = nn.Linear(d, d)
        nn.init.normal_(self.time.weight, std=0.02 / math.sqrt(d / 2))
        nn.init.zeros_(self.time.bias)
        self.register_buffer("time_positions", sinusoids(TIMES, d), persistent=False)
        self.embed_positions = nn.Embedding(TARGET, d)
        self.embed_positions.weight.data = sinusoids(TARGET, d) * 0.02
        self.layers = nn.ModuleList(Layer(d, heads, decoder=True) for _ in range(layers))
        self.layer_norm = nn.LayerNorm(d)

    def table(self) -> torch.Tensor:
        return torch.cat([self.rows, self.time(self.time_positions)])

    def forward(self, ids, memory, unused: int):
        """Logits [batch, length, rows + 1]; the last stands for `unused` tokens that share a row.
        Also the cross-attention log weights of each layer, in training."""
        table, weights = self.table(), []
        x = F.embedding(ids, table) + self.embed_positions.weight[: ids.shape[1]]
        x = x.to(memory.dtype)
        for layer in self.layers:
            x, w = layer(x, memory)
            weights.append(w)
        x = self.layer_norm(x)
        logits = torch.cat([x @ table.t(), x @ self.shared.t() + math.log(unused)], -1)
        return logits, weights


class Network(nn.Module):
    def __init__(self, d: int, heads: int, encoder: int, decoder: int, rows: int, text: int):
        super().__init__()
        self.shape = dict(d=d, heads=heads, encoder=encoder, decoder=decoder, rows=rows, text=text)
        self.encoder = Encoder(d, heads, encoder)
        self.decoder = Decoder(d, heads, decoder, rows)
        self.frame = nn.Linear(d, text + 1)  # the last class: no word
        for module in self.modules():
            if isinstance(module, nn.Linear) and module is not self.decoder.time:
                std = min(0.05, module.weight.shape[1] ** -0.5)
                nn.init.normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # Content must start as loud as the position code that is added to it.
        for conv, gain in ((self.encoder.conv1, 2.0), (self.encoder.conv2, 2.0)):
            nn.init.normal_(conv.weight, std=gain * conv.weight[0].numel() ** -0.5)
            nn.init.zeros_(conv.bias)


def _mel_filters(warp: float = 1.0) -> np.ndarray:
    """Slaney mel filters [80, 201] of 0-8000 Hz, as Whisper uses, over a warped frequency axis.

    `warp` scales frequencies as a longer or shorter vocal tract would (Jaitly and Hinton 2013,
    "Vocal tract length perturbation"), bent back to the end above 4.8 kHz.
    """
    from dalston.triton.features import mel_filters

    if warp == 1.0:
        return mel_filters(MELS)
    hertz = np.linspace(0, 8000, 201)
    edge = 4800 * min(warp, 1) / warp
    bent = np.where(
        hertz <= edge, hertz * warp, 8000 - (8000 - edge * warp) / (8000 - edge) * (8000 - hertz)
    )
    return mel_filters(MELS, bent)


WARPS = np.linspace(0.86, 1.16, 13)
_filters: torch.Tensor | None = None


def log_mel(audio: torch.Tensor, tilt=None, warp=None) -> torch.Tensor:
    """Whisper's features [batch, 80, samples / 160] of audio [batch, samples].

    tilt: [batch, 80], a channel's frequency response in log10 power; warp: index into WARPS.
    """
    global _filters
    if _filters is None:
        _filters = torch.from_numpy(np.stack([_mel_filters(w) for w in [1.0, *WARPS]]))
        _filters = _filters.float()
    window = torch.hann_window(400)
    power = torch.stft(audio, 400, 160, window=window, return_complex=True)[..., :-1].abs() ** 2
    filters = _filters[0] if warp is None else _filters[1 + torch.as_tensor(warp)]
    x = (filters @ power).clamp(min=1e-10).log10()
    if tilt is not None:
        x = x + tilt[:, :, None]
    x = torch.maximum(x, x.amax((1, 2), keepdim=True) - 8.0)
    return (x + 4.0) / 4.0
