"""
A Whisper checkpoint -> three ONNX graphs for ONNX Runtime's CPU provider, run by greedy.py. Needs
`onnx` to write them; to run them nobody does.

    encoder.onnx   MEL [b, mels, 2t]  -> ENCODED [b, t, d], and for each decoder layer the keys
                                         and values of its cross attention, [b, heads, t, d / heads]
    decoder.onnx   TOKENS, POSITIONS [b, s], LENGTHS [b], TOTAL, self keys and values (in place),
                   cross keys and values, MASK [b, 1, 1, t] -> HIDDEN [b, s, d], and where the
                   checkpoint names alignment heads ATTENTION [b, s, t]
    head.onnx      ROWS [r, d], BANNED [n, 2] -> LOGPROBS [r, vocabulary]

Weights are int8 with one scale for each output, activations int8 with one scale for each row
(token or frame): what a row gives does not depend on the rows beside it. Everything between the
matrix products is float32. ATTENTION is the mean attention of those heads to the frames: they
follow the speech. The decoder is ragged: rows have lengths of their own, and what lies
behind them in the buffers is never looked at.
"""

import functools
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from dalston.triton import weights
from dalston.triton.greedy import ATTENTION, DECODER, ENCODER, HEAD, cross_names, self_names
from dalston.triton.weights import Tensors

Array = npt.NDArray[Any]

OPSET, IR = 21, 10  # of the oldest ONNX Runtime that is allowed: 1.20
_CONTRIB = "com.microsoft"
_EPSILON = 1e-5  # of layer norms
_LEVELS = 127  # of int8, symmetric
# Without VNNI a processor adds two products of a byte of activations and one of weights in 16 bits:
# 2 * 255 * 127 do not fit and saturate, silently; 2 * 255 * 63 do (ONNX Runtime's page on
# quantization, "reduce_range").
_SMALL_LEVELS = 63
_ZERO = np.uint8(128)
_LOWEST = -1e30  # the logit of a token that is not to be said


@dataclass(frozen=True)
class Shape:
    """Of a checkpoint."""

    width: int
    heads: int  # of the decoder
    encoder_heads: int
    layers: int  # of the decoder
    encoder_layers: int
    mels: int
    vocabulary: int

    @classmethod
    def of(cls, tensors: Tensors) -> "Shape":
        width, mels, _ = tensors["model.encoder.conv1.weight"].shape

        def layers(side: str) -> int:
            norm = f"model.{side}.layers.{{}}.final_layer_norm.weight"
            return next(n for n in itertools.count() if norm.format(n) not in tensors)

        return cls(
            width=width,
            heads=int(tensors[weights.HEADS["decoder"]]),
            encoder_heads=int(tensors[weights.HEADS["encoder"]]),
            layers=layers("decoder"),
            encoder_layers=layers("encoder"),
            mels=mels,
            vocabulary=len(tensors[weights.TABLE]),
        )

    @property
    def head_width(self) -> int:
        return self.width // self.heads


@functools.cache
def weight_levels() -> int:
    """How many levels, on either side of zero, weights have on this machine."""
    try:
        flags = Path("/proc/cpuinfo").read_text("utf-8").split()
    except OSError:
        return _SMALL_LEVELS
    return _LEVELS if {"avx512_vnni", "avx_vnni"} & set(flags) else _SMALL_LEVELS


class _Graph:
    """Nodes and constants, named by their number."""

    def __init__(self, quantized: bool) -> None:
        self._quantized = quantized
        self._nodes = list[onnx.NodeProto]()
        self._constants = list[onnx.TensorProto]()
        self._inputs = list[onnx.ValueInfoProto]()
        self._outputs = list[onnx.ValueInfoProto]()
        self._small = dict[tuple[str, tuple[int, ...], bytes], str]()

    def input(self, name: str, type: int, shape: Sequence[int | str]) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, type, shape))
        return name

    def output(self, name: str, shape: Sequence[int | str]) -> None:
        """A value of this name leaves."""
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def constant(self, value: Array | np.generic) -> str:
        value = np.ascontiguousarray(value) if np.ndim(value) else np.asarray(value)
        name = f"c{len(self._constants)}"
        if value.size < 64:
            known = self._small.setdefault((value.dtype.str, value.shape, value.tobytes()), name)
            if known != name:
                return known
        self._constants.append(numpy_helper.from_array(value, name))  # pyright: ignore[reportUnknownMemberType]
        return name

    def floats(self, value: Array) -> str:
        return self.constant(value.astype(np.float32))

    def op(self, kind: str, *inputs: str, name: str = "", domain: str = "", **how: Any) -> str:
        name = name or f"v{len(self._nodes)}"
        self.node(kind, inputs, [name], domain, **how)
        return name

    def contrib(self, kind: str, *inputs: str, **how: Any) -> str:
        return self.op(kind, *inputs, domain=_CONTRIB, **how)

    def node(
        self,
        kind: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        domain: str = "",
        **how: Any,
    ) -> None:
        self._nodes.append(helper.make_node(kind, inputs, outputs, domain=domain, **how))

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(
            self._nodes, "whisper", self._inputs, self._outputs, self._constants
        )
        imports = [helper.make_opsetid("", OPSET), helper.make_opsetid(_CONTRIB, 1)]
        made = helper.make_model(graph, opset_imports=imports)
        made.ir_version = IR
        return made

    # Parts of the network.

    def linear(self, x: str, weight: Array, bias: Array | None = None) -> str:
        """x @ weight.T + bias; `weight` [outputs, inputs] as torch keeps it."""
        return self.linears(x, [(weight, bias)])[0]

    def linears(
        self, x: str, parts: Sequence[tuple[Array, Array | None]], exact: bool = False
    ) -> list[str]:
        """Several of one input, which is quantized but once, or not at all."""
        if self._quantized and not exact:
            levels, largest = self._levels(x)
            products = [self._product(levels, largest, weight) for weight, _ in parts]
        else:
            products = [self.op("MatMul", x, self.floats(weight.T)) for weight, _ in parts]
        return [
            product if bias is None else self.op("Add", product, self.floats(bias))
            for product, (_, bias) in zip(products, parts, strict=True)
        ]

    def _levels(self, x: str) -> tuple[str, str]:
        """`x` in levels, and for each row the value of the highest."""
        last = self.constant(np.array([-1], np.int64))
        largest = self.op("ReduceMax", self.op("Abs", x), last, keepdims=1)
        largest = self.op("Max", largest, self.constant(np.float32(1e-20)))
        factor = self.op("Div", self.constant(np.float32(_LEVELS)), largest)
        # Unsigned by signed is what the processor multiplies fastest: 128 stands for zero.
        one, zero = self.constant(np.float32(1)), self.constant(_ZERO)
        levels = self.op("QuantizeLinear", self.op("Mul", x, factor), one, zero)
        return levels, largest

    def _product(self, levels: str, largest: str, weight: Array) -> str:
        weight = weight.astype(np.float32)
        scale = np.maximum(np.abs(weight).max(1), 1e-12) / weight_levels()
        product = self.contrib(
            "MatMulIntegerToFloat",
            levels,
            self.constant(np.rint(weight / scale[:, None]).astype(np.int8).T),
            self.constant(np.float32(1)),
            self.floats(scale / _LEVELS),
            self.constant(_ZERO),
        )
        return self.op("Mul", product, largest)

    def norm(self, x: str, tensors: Tensors, prefix: str, name: str = "") -> str:
        gamma, beta = (self.floats(tensors[f"{prefix}.{part}"]) for part in ("weight", "bias"))
        return self.op("LayerNormalization", x, gamma, beta, name=name, axis=-1, epsilon=_EPSILON)

    def projections(self, x: str, tensors: Tensors, at: str, parts: str) -> list[str]:
        """Those of an attention; parts: letters of q, k and v."""
        names = [f"{at}.{part}_proj" for part in parts]
        # The keys' has no bias.
        return self.linears(
            x, [(tensors[f"{name}.weight"], tensors.get(f"{name}.bias")) for name in names]
        )

    def residual(self, x: str, inner: str, tensors: Tensors, name: str) -> str:
        """x + linear(inner)"""
        added = self.linear(inner, tensors[f"{name}.weight"], tensors[f"{name}.bias"])
        # SkipLayerNormalization would add and norm in one node; it takes four times as long.
        return self.op("Add", x, added)

    def feed_forward(self, x: str, tensors: Tensors, at: str) -> str:
        normal = self.norm(x, tensors, f"{at}.final_layer_norm")
        inner = self.linear(normal, tensors[f"{at}.fc1.weight"])
        inner = self.contrib("BiasGelu", inner, self.floats(tensors[f"{at}.fc1.bias"]))
        return self.residual(x, inner, tensors, f"{at}.fc2")


def _encoder(tensors: Tensors, shape: Shape, quantized: bool) -> onnx.ModelProto:
    graph = _Graph(quantized)
    mel = graph.input("MEL", TensorProto.FLOAT, ["b", shape.mels, "frames"])
    x = graph.op("Transpose", mel, perm=[0, 2, 1])
    x = _convolution(graph, x, tensors, "model.encoder.conv1", stride=1)
    x = _convolution(graph, x, tensors, "model.encoder.conv2", stride=2)
    table = graph.floats(tensors["model.encoder.embed_positions.weight"])
    zero = graph.constant(np.array([0], np.int64))
    count = graph.op("Shape", x, start=1, end=2)
    x = graph.op("Add", x, graph.op("Slice", table, zero, count, zero))
    for number in range(shape.encoder_layers):
        at = f"model.encoder.layers.{number}"
        normal = graph.norm(x, tensors, f"{at}.self_attn_layer_norm")
        seen = graph.contrib(
            "MultiHeadAttention",
            *graph.projections(normal, tensors, f"{at}.self_attn", "qkv"),
            num_heads=shape.encoder_heads,
        )
        x = graph.residual(x, seen, tensors, f"{at}.self_attn.out_proj")
        x = graph.feed_forward(x, tensors, at)
    x = graph.norm(x, tensors, "model.encoder.layer_norm", name="ENCODED")
    graph.output(x, ["b", "t", shape.width])
    _cross(graph, x, tensors, shape)
    return graph.model()


def _convolution(graph: _Graph, x: str, tensors: Tensors, name: str, stride: int) -> str:
    """gelu(conv(x)) over [b, time, channels], three wide, as one product."""
    padded = graph.op("Pad", x, graph.constant(np.array([0, 1, 0, 0, 1, 0], np.int64)))

    def number(value: int) -> str:
        return graph.constant(np.array([value], np.int64))

    shifted = [
        graph.op(
            "Slice",
            padded,
            number(shift),
            number(shift - 2 if shift < 2 else 2**31 - 1),
            number(1),
            number(stride),
        )
        for shift in range(3)
    ]
    weight = tensors[f"{name}.weight"]  # [out, in, 3]
    flat = weight.transpose(0, 2, 1).reshape(len(weight), -1)
    # The features themselves in 255 levels would cost more words than time is won.
    y = graph.linears(graph.op("Concat", *shifted, axis=-1), [(flat, None)], exact=stride == 1)[0]
    return graph.contrib("BiasGelu", y, graph.floats(tensors[f"{name}.bias"]))


def _cross(graph: _Graph, encoded: str, tensors: Tensors, shape: Shape) -> None:
    """What the decoder's cross attention looks at: computed once, not once a step."""
    parts = [
        (tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))
        for number in range(shape.layers)
        for name in (
            f"model.decoder.layers.{number}.encoder_attn.k_proj",
            f"model.decoder.layers.{number}.encoder_attn.v_proj",
        )
    ]
    form = graph.constant(np.array([0, 0, shape.heads, shape.head_width], np.int64))
    for y, name in zip(graph.linears(encoded, parts), cross_names(shape.layers), strict=True):
        y = graph.op("Reshape", y, form)
        graph.output(
            graph.op("Transpose", y, name=name, perm=[0, 2, 1, 3]),
            ["b", shape.heads, "t", shape.head_width],
        )


def _decoder(
    tensors: Tensors, shape: Shape, quantized: bool, heads: Sequence[tuple[int, int]]
) -> onnx.ModelProto:
    """heads: layers and heads of the cross attention that follow the speech, or none."""
    graph = _Graph(quantized)
    ids = graph.input("TOKENS", TensorProto.INT64, ["b", "s"])
    positions = graph.input("POSITIONS", TensorProto.INT64, ["b", "s"])
    lengths = graph.input("LENGTHS", TensorProto.INT32, ["b"])  # of the row, less one
    total = graph.input("TOTAL", TensorProto.INT32, [])  # the length of the longest
    # Nothing where there is a frame, next to minus infinity behind the last.
    mask = graph.input("MASK", TensorProto.FLOAT, ["b", 1, 1, "t"])
    kept = ("b", shape.heads, "room", shape.head_width)
    seen_frames = ("b", shape.heads, "t", shape.head_width)
    pasts = [
        graph.input(name, TensorProto.FLOAT, kept) for name in self_names(shape.layers, "PAST")
    ]
    presents = self_names(shape.layers, "PRESENT")
    crosses = [
        graph.input(name, TensorProto.FLOAT, seen_frames) for name in cross_names(shape.layers)
    ]
    # Half precision is what checkpoints come in, and half the memory.
    table = graph.constant(tensors[weights.TABLE].astype(np.float16))
    where = graph.floats(tensors["model.decoder.embed_positions.weight"])
    x = graph.op("Cast", graph.op("Gather", table, ids), to=TensorProto.FLOAT)
    x = graph.op("Add", x, graph.op("Gather", where, positions))
    followed = list[str]()  # for each layer with such heads, their attention [b, heads, s, t]
    for number in range(shape.layers):
        at = f"model.decoder.layers.{number}"
        key, value = 2 * number, 2 * number + 1
        normal = graph.norm(x, tensors, f"{at}.self_attn_layer_norm")
        parts = graph.projections(normal, tensors, f"{at}.self_attn", "qkv")
        heard = f"heard{number}"
        graph.node(
            "GroupQueryAttention",
            [*parts, pasts[key], pasts[value], lengths, total],
            [heard, presents[key], presents[value]],
            _CONTRIB,
            num_heads=shape.heads,
            kv_num_heads=shape.heads,
        )
        x = graph.residual(x, heard, tensors, f"{at}.self_attn.out_proj")
        normal = graph.norm(x, tensors, f"{at}.encoder_attn_layer_norm")
        query = graph.projections(normal, tensors, f"{at}.encoder_attn", "q")[0]
        attention, seen = _attention(graph, query, crosses[key], crosses[value], mask, shape)
        if chosen := [head for layer, head in heads if layer == number]:
            ids = graph.constant(np.array(chosen, np.int64))
            followed.append(graph.op("Gather", attention, ids, axis=1))
        x = graph.residual(x, seen, tensors, f"{at}.encoder_attn.out_proj")
        x = graph.feed_forward(x, tensors, at)
    graph.output(
        graph.norm(x, tensors, "model.decoder.layer_norm", name="HIDDEN"), ["b", "s", shape.width]
    )
    if followed:
        together = graph.op("Concat", *followed, axis=1) if len(followed) > 1 else followed[0]
        axis = graph.constant(np.array([1], np.int64))
        graph.op("ReduceMean", together, axis, name=ATTENTION, keepdims=0)
        graph.output(ATTENTION, ["b", "s", "t"])
    for name in presents:
        graph.output(name, kept)
    return graph.model()


def _attention(
    graph: _Graph, query: str, key: str, value: str, mask: str, shape: Shape
) -> tuple[str, str]:
    """The decoder's to the encoder, and what it sees by it. For the one token of a step these plain
    nodes take half the time of MultiHeadAttention, most of what a step of many rows takes."""
    split = graph.constant(np.array([0, 0, shape.heads, shape.head_width], np.int64))
    joined = graph.constant(np.array([0, 0, shape.width], np.int64))
    query = graph.op("Transpose", graph.op("Reshape", query, split), perm=[0, 2, 1, 3])
    scale = shape.head_width**-0.5
    scores = graph.contrib("FusedMatMul", query, key, transB=1, alpha=scale)
    weights = graph.op("Softmax", graph.op("Add", scores, mask), axis=-1)
    seen = graph.op("Transpose", graph.op("MatMul", weights, value), perm=[0, 2, 1, 3])
    return weights, graph.op("Reshape", seen, joined)


def _head(tensors: Tensors, shape: Shape, quantized: bool) -> onnx.ModelProto:
    graph = _Graph(quantized)
    rows = graph.input("ROWS", TensorProto.FLOAT, ["r", shape.width])
    banned = graph.input("BANNED", TensorProto.INT64, ["n", 2])  # rows and their tokens
    logits = graph.linear(rows, tensors[weights.TABLE])
    lowest = numpy_helper.from_array(np.array([_LOWEST], np.float32))  # pyright: ignore[reportUnknownMemberType]
    count = graph.op("Shape", banned, start=0, end=1)
    lows = graph.op("ConstantOfShape", count, value=lowest)
    logits = graph.op("ScatterND", logits, banned, lows)
    graph.output(graph.op("LogSoftmax", logits, name="LOGPROBS", axis=-1), ["r", shape.vocabulary])
    return graph.model()


def write(folder: Path, quantized: bool = True) -> None:
    """Beside model.bin of a CTranslate2 folder. Raises ValueError if there is none to be read."""
    tensors = weights.read(folder / "model.bin")
    try:
        shape = Shape.of(tensors)
        made = {
            ENCODER: _encoder(tensors, shape, quantized),
            DECODER: _decoder(tensors, shape, quantized, _alignment_heads(folder, shape)),
            HEAD: _head(tensors, shape, quantized),
        }
    except KeyError as name:
        raise ValueError(f"{folder}: the tensor {name} is missing") from None
    for name, model in made.items():
        # It may be a link to the file that the checkpoint came with.
        (folder / name).unlink(missing_ok=True)
        onnx.save(model, folder / name)  # pyright: ignore[reportUnknownMemberType]


def _alignment_heads(folder: Path, shape: Shape) -> list[tuple[int, int]]:
    """Layers and heads whose attention follows the speech, by the checkpoint's config.json."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        named = cast(list[tuple[int, int]], config.get("alignment_heads") or [])
        heads = [(int(layer), int(head)) for layer, head in named]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from None
    if any(not (0 <= layer < shape.layers and 0 <= head < shape.heads) for layer, head in heads):
        raise ValueError(
            f"{folder / 'config.json'}: alignment_heads that the decoder does not have"
        )
    return heads
