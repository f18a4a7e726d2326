"""GPT-2 that decodes on a CPU with our kernels (kernels.cpp).

When decoding one token at a time, the product of a few rows with a large matrix is bound by reading the matrix, and
PyTorch's kernels, made for many rows, read it at a third of the memory bandwidth. Ours store the matrix in the order in
which they read it; bias, GELU and the residual addition are applied while the result is in registers, and attention
reads only each sequence's own length. Prompts are still read by the original model.

Shape legend: B batch, C channels, H heads, S cached time, D head width, K and N columns and rows of a weight matrix.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wukong.model.attention import AttentionContext, KVCache
from wukong.model.cpu import kernels
from wukong.model.gpt2 import GPT2, Block
from wukong.model.logprobs import centred

HEAD_WIDTHS = range(16, 129, 16)
ROOM = 16
"""Extra rows of scratch memory that the kernels need."""


def can_decode(model: GPT2) -> bool:
    """Whether these kernels support this machine and model."""
    weight, width = model.wte.weight, model.config.n_embd // model.config.n_head
    fits = weight.device.type == "cpu" and weight.dtype == torch.float32 and width in HEAD_WIDTHS
    return fits and kernels.library() is not None


class _Norm(ctypes.Structure):
    _fields_ = [("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p)]


class _Matrix(ctypes.Structure):
    _fields_ = [("panels", ctypes.c_void_p), ("bias", ctypes.c_void_p)]


class _Layer(ctypes.Structure):
    _fields_ = [
        *[(name, _Norm) for name in ("before_attention", "before_mlp")],
        *[(name, _Matrix) for name in ("qkv", "attention_out", "mlp_gate", "mlp_in", "mlp_out")],
        *[(name, ctypes.c_void_p) for name in ("q_norm", "k_norm")],
        *[(name, ctypes.c_int64) for name in ("C", "H", "G", "D", "I")],
        ("epsilon", ctypes.c_float),
        ("is_bfloat16", ctypes.c_int),
    ]


class PanelLinear:
    """x -> x W^T + b, (..., K) -> (..., N), float32.

    A row's result does not depend on the other rows, to the bit.
    """

    def __init__(self, library: ctypes.CDLL, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        """weight: (N, K); kept as `dtype`, float32 or bfloat16."""
        self.library, (self.N, self.K) = library, weight.shape
        width = library.wukong_width()
        behind = -self.N % width
        panels = F.pad(weight.detach().to(dtype), (0, 0, 0, behind)).unflatten(0, (-1, width))  # (N / width, width, K)
        self.panels = panels.transpose(1, 2).contiguous()
        self.bias = F.pad(torch.zeros(self.N) if bias is None else bias.detach(), (0, behind))
        self.matrix = _Matrix(self.panels.data_ptr(), self.bias.data_ptr())

    @classmethod
    def of(cls, library: ctypes.CDLL, linears: Sequence[nn.Linear], dtype: torch.dtype) -> PanelLinear:
        """Several layers with the same input, whose results are concatenated."""
        weight = torch.cat([linear.weight for linear in linears])
        biases = [linear.bias for linear in linears]
        return cls(library, weight, None if biases[0] is None else torch.cat(biases), dtype)

    def __call__(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32 or x.shape[-1] != self.K:
            raise ValueError(f"{tuple(x.shape)} {x.dtype} is not (..., {self.K}) in float32")
        rows, x = x.shape[:-1].numel(), x.contiguous()
        y, columns = x.new_empty(*x.shape[:-1], self.N), x.new_empty((rows + ROOM) * self.K)
        self.library.wukong_linear(
            x.data_ptr(), ctypes.byref(self.matrix), self.panels.dtype == torch.bfloat16, y.data_ptr(),
            columns.data_ptr(), rows, self.K, self.N, torch.get_num_threads(),
        )  # fmt: skip
        return y


@dataclass(frozen=True)
class LayerParts:
    """What the kernels need to know of a transformer block."""

    norms: tuple[nn.LayerNorm, nn.LayerNorm]
    """Before attention, before the MLP."""
    qkv: Sequence[nn.Linear]
    """The projections whose results, side by side, are all queries, all keys, all values."""
    attention_out: nn.Linear
    mlp_in: nn.Linear
    mlp_out: nn.Linear
    epsilon: float


def layer_parts(block: Block) -> LayerParts:
    attn, mlp = block.attn, block.mlp
    return LayerParts((block.ln_1, block.ln_2), [attn.c_attn], attn.c_proj, mlp.c_fc, mlp.c_proj, block.ln_1.eps)


class NativeBlock(nn.Module):
    """A block for inference: prompts go through the block itself, decoded tokens through `PanelLinear`s."""

    def __init__(self, library: ctypes.CDLL, block: Block, dtype: torch.dtype) -> None:
        super().__init__()
        self.library, self.block, self.dtype = library, block, dtype
        H, parts = block.attn.n_head, layer_parts(block)
        self.panels = {
            name: PanelLinear.of(library, linears, dtype)
            for name, linears in {
                "qkv": parts.qkv,
                "attention_out": [parts.attention_out],
                "mlp_in": [parts.mlp_in],
                "mlp_out": [parts.mlp_out],
            }.items()
        }
        self.layer = _Layer(
            *(_Norm(norm.weight.data_ptr(), norm.bias.data_ptr()) for norm in parts.norms),
            **{name: panels.matrix for name, panels in self.panels.items()},
            C=self.panels["qkv"].K,
            H=H,
            G=H,
            D=self.panels["qkv"].K // H,
            I=self.panels["mlp_in"].N,
            epsilon=parts.epsilon,
            is_bfloat16=dtype == torch.bfloat16,
        )

    def forward(self, x: Tensor, layer: int, context: AttentionContext) -> Tensor:
        cache = context.cache
        if cache is None or not cache.longest:
            result: Tensor = self.block(x, layer, context)
            return result
        keys, values = cache.keys[layer], cache.values[layer]
        if keys.dtype != self.dtype:
            raise ValueError(f"the cache is {keys.dtype}: create it with this model's empty_cache")
        (rows, G, S, D), (B, T, C), lengths = keys.shape, x.shape, cache.lengths.contiguous()
        fits = (G, D, C) == (self.layer.G, self.layer.D, self.layer.C)
        if x.dtype != torch.float32 or T != 1 or len(lengths) != B or rows < B or not fits:
            raise ValueError(
                f"{tuple(x.shape)} {x.dtype} is not one token in float32 for each of the cache's {len(lengths)} rows"
            )
        x = x.clone(memory_format=torch.contiguous_format)  # the kernel writes to it
        scratch = x.new_empty(self.library.wukong_scratch(ctypes.byref(self.layer), B))
        full = self.library.wukong_layer(
            ctypes.byref(self.layer), x.data_ptr(), keys.data_ptr(), values.data_ptr(), lengths.data_ptr(), None, None,
            scratch.data_ptr(), B, S, torch.get_num_threads(),
        )  # fmt: skip
        if full >= 0:
            raise ValueError(f"row {full} of the cache holds {int(lengths[full])} tokens in {S} slots: no room for one")
        return x


class NativeGPT2(GPT2):
    """An inference-only copy made by `rollout.inference_copy`. It decodes with a snapshot of the weights and reads
    prompts with the original, so it is valid only until the original is trained further."""

    def __init__(self, model: GPT2, dtype: torch.dtype) -> None:
        """dtype: of the decoding weights and the cache, float32 or bfloat16; all arithmetic is float32."""
        with torch.device("meta"):  # no memory: every part is replaced
            super().__init__(model.config)
        library = kernels.library()
        assert library is not None, "call can_decode first"
        self.wte, self.wpe, self.ln_f = model.wte, model.wpe, model.ln_f
        self.h = nn.ModuleList(NativeBlock(library, block, dtype) for block in model.h)  # type: ignore[arg-type]
        self.output_panels = PanelLinear(library, centred(model.wte.weight, dtype), None, dtype)
        self.dtype = dtype
        self.eval()

    def empty_cache(self, batch: int, slots: int) -> KVCache:
        return KVCache.empty(self.config, batch, slots, like=self.wte.weight.new_empty(0, dtype=self.dtype))

    def centred_logits(self, hidden: Tensor) -> Tensor:
        return self.output_panels(hidden)
