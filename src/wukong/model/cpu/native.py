"""Language models that decode on a CPU with our kernels (kernels.cpp).

When decoding one token at a time, the product of a few rows with a large matrix is bound by reading the matrix, and
PyTorch's kernels, made for many rows, read it at a third of the memory bandwidth. Ours store the matrix in the order in
which they read it; biases, activations and the residual addition are applied while the result is in registers, and
attention reads only each sequence's own length, once for all queries that share its keys. Prompts are still read by the
original model.

Shape legend: B batch, C channels, H query heads, G key-value heads, D head width, I columns inside the MLP, S cached
time, K and N columns and rows of a weight matrix.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wukong.model.attention import AttentionContext, KVCache
from wukong.model.config import ModelConfig
from wukong.model.cpu import kernels
from wukong.model.gpt2 import Block
from wukong.model.language_model import LanguageModel
from wukong.model.llama import LlamaBlock
from wukong.model.logprobs import centred
from wukong.model.rms_norm import RMSNorm

ROOM = 16
"""Extra rows of scratch memory that a product needs."""


def fits(config: ModelConfig) -> bool:
    """Whether these kernels support a model of these sizes."""
    return config.n_embd % 16 == 0 and config.head_width in range(16, 129, 16)


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
        self.bias = F.pad(torch.zeros(self.N) if bias is None else bias.detach().float(), (0, behind))
        self.matrix = _Matrix(self.panels.data_ptr(), self.bias.data_ptr())

    @classmethod
    def of(cls, library: ctypes.CDLL, linears: Sequence[nn.Linear], dtype: torch.dtype) -> PanelLinear:
        """Several layers of the same input, whose results are concatenated."""
        weight = torch.cat([linear.weight.detach().to(dtype) for linear in linears])
        biases = [torch.zeros(len(one.weight)) if one.bias is None else one.bias.detach() for one in linears]
        return cls(library, weight, torch.cat(biases), dtype)

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
    """What the kernels compute of a transformer block.

    Attributes:
        norms: weights and biases of the normalisations before attention and before the MLP; without a bias: RMSNorm.
        epsilon: of all its normalisations.
        head_norms: weights of the RMSNorm of queries and of keys, each (D,), if they have one.
        linears: by the kernels' names. Those of a name have the same input; `qkv` gives all queries, all keys, all
            values. With `mlp_gate` the MLP is a SwiGLU, without it GELU.
    """

    norms: Sequence[tuple[Tensor, Tensor | None]]
    epsilon: float
    head_norms: tuple[Tensor, Tensor] | None
    linears: Mapping[str, Sequence[nn.Linear]]


def gpt2_parts(block: Block) -> LayerParts:
    """Those of GPT-2's block."""
    norms, attn, mlp = (block.ln_1, block.ln_2), block.attn, block.mlp
    linears = {"qkv": [attn.c_attn], "attention_out": [attn.c_proj], "mlp_in": [mlp.c_fc], "mlp_out": [mlp.c_proj]}
    return LayerParts([(norm.weight, norm.bias) for norm in norms], block.ln_1.eps, None, linears)


def llama_parts(block: LlamaBlock) -> LayerParts:
    """Those of a block of the Llama family."""
    norms, attn, mlp = (block.input_layernorm, block.post_attention_layernorm), block.self_attn, block.mlp
    linears = {
        "qkv": [attn.q_proj, attn.k_proj, attn.v_proj],
        "attention_out": [attn.o_proj],
        "mlp_gate": [mlp.gate_proj],
        "mlp_in": [mlp.up_proj],
        "mlp_out": [mlp.down_proj],
    }
    q_norm, k_norm = attn.q_norm, attn.k_norm
    heads = (q_norm.weight, k_norm.weight) if isinstance(q_norm, RMSNorm) and isinstance(k_norm, RMSNorm) else None
    return LayerParts([(norm.weight, None) for norm in norms], norms[0].epsilon, heads, linears)


def _copied(weight: Tensor) -> Tensor:
    return weight.detach().to(torch.float32, copy=True)


class NativeBlock(nn.Module):
    """A block for inference: prompts go through the block itself, decoded tokens through the kernels."""

    def __init__(
        self, library: ctypes.CDLL, block: Block | LlamaBlock, config: ModelConfig, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.library, self.block, self.dtype = library, block, dtype
        parts = llama_parts(block) if isinstance(block, LlamaBlock) else gpt2_parts(block)
        self.panels = {name: PanelLinear.of(library, linears, dtype) for name, linears in parts.linears.items()}
        # Copies, as the panels are: the block may get other tensors, and what it had would be freed.
        self.norms = [(_copied(weight), None if bias is None else _copied(bias)) for weight, bias in parts.norms]
        self.head_norms = [_copied(weight) for weight in parts.head_norms or ()]
        q_norm, k_norm = [weight.data_ptr() for weight in self.head_norms] or (None, None)
        self.layer = _Layer(
            *(_Norm(weight.data_ptr(), None if bias is None else bias.data_ptr()) for weight, bias in self.norms),
            **{name: panels.matrix for name, panels in self.panels.items()},
            q_norm=q_norm,
            k_norm=k_norm,
            C=config.n_embd,
            H=config.n_head,
            G=config.n_kv_head,
            D=config.head_width,
            I=self.panels["mlp_in"].N,
            epsilon=parts.epsilon,
            is_bfloat16=dtype == torch.bfloat16,
        )

    def forward(self, x: Tensor, layer: int, context: AttentionContext) -> Tensor:
        cache = context.cache
        if cache is None or not cache.longest:
            result: Tensor = self.block(x, layer, context)
            return result
        keys, values, lengths = cache.keys[layer], cache.values[layer], cache.lengths.contiguous()
        if keys.dtype != self.dtype:
            raise ValueError(f"the cache is {keys.dtype}: create it with this model's empty_cache")
        (rows, G, S, D), (B, T, C) = keys.shape, x.shape
        fitting = (G, D, C) == (self.layer.G, self.layer.D, self.layer.C) and len(lengths) == B <= rows
        if x.dtype != torch.float32 or T != 1 or not fitting:
            raise ValueError(
                f"{tuple(x.shape)} {x.dtype} is not one token in float32 for each of the cache's {len(lengths)} rows"
            )
        x = x.clone(memory_format=torch.contiguous_format)  # the kernel writes to it
        angles = [angle.float().expand(B, T, 1, D // 2).contiguous() for angle in context.rotary or ()]
        cosines, sines = [angle.data_ptr() for angle in angles] or (None, None)
        scratch = x.new_empty(self.library.wukong_scratch(ctypes.byref(self.layer), B))
        full = self.library.wukong_layer(
            ctypes.byref(self.layer), x.data_ptr(), keys.data_ptr(), values.data_ptr(), lengths.data_ptr(), cosines,
            sines, scratch.data_ptr(), B, S, torch.get_num_threads(),
        )  # fmt: skip
        if full >= 0:
            raise ValueError(f"row {full} of the cache holds {int(lengths[full])} tokens in {S} slots: no room for one")
        return x


class NativeModel(LanguageModel):
    """An inference-only copy made by `rollout.inference_copy`. It decodes with a snapshot of the weights and reads
    prompts with the original, so it is valid only until the original is trained further."""

    def __init__(self, model: LanguageModel, dtype: torch.dtype) -> None:
        """dtype: of the decoding weights and the cache, float32 or bfloat16; all arithmetic is float32.

        Raises ValueError for a model whose weights are not float32.
        """
        super().__init__(model.config)
        library = kernels.library()
        assert library is not None, "ask decoding_path first"
        if any(parameter.dtype != torch.float32 for parameter in model.parameters()):
            raise ValueError("the kernels need a model whose weights are float32")
        self.original, self.dtype = model, dtype
        self.embedding_name, self.output_name = (f"original.{n}" for n in (model.embedding_name, model.output_name))
        self.native_blocks = nn.ModuleList(
            NativeBlock(library, block, model.config, dtype)  # type: ignore[arg-type]
            for block in model.blocks
        )
        self.output_panels = PanelLinear(library, centred(model.output_weight, dtype), None, dtype)
        self.eval()

    @property
    def embedding(self) -> nn.Embedding:
        return self.original.embedding

    @property
    def blocks(self) -> nn.ModuleList:
        return self.native_blocks

    @property
    def final_norm(self) -> nn.Module:
        return self.original.final_norm

    def embed(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        return self.original.embed(input_ids, positions)

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor] | None:
        return self.original.rotary(positions)

    def empty_cache(self, batch: int, slots: int) -> KVCache:
        return KVCache.empty(self.config, batch, slots, like=self.embedding.weight.new_empty(0, dtype=self.dtype))

    def centred_logits(self, hidden: Tensor) -> Tensor:
        return self.output_panels(hidden)
