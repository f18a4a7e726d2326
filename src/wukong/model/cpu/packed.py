"""GPT-2 in bfloat16 on a CPU, with matrices in oneDNN's packed layout.

When decoding one token at a time, the product of a few rows with a large matrix is bound by reading the matrix.
PyTorch's linear layer repacks it at every call; here it is packed once, when the copy is made, and GELU and the
residual addition are fused into the product's kernel. `torch.compile` does the same when it freezes a model
(torch/_inductor/fx_passes/mkldnn_fusion.py); this needs no compiling. It is used on processors with AMX tiles, and
where there is no compiler for our kernels (native.py).

Shape legend: B batch, T time, C channels, V vocabulary.
"""

from __future__ import annotations

import copy
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from wukong.model.attention import AttentionContext, attend
from wukong.model.gpt2 import GPT2, Block, split_heads
from wukong.model.logprobs import centred


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this machine has such kernels: bfloat16 on a CPU with instructions for it."""
    return (
        device.type == "cpu"
        and dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def multiplies_tiles() -> bool:
    """Whether the processor has AMX tiles for bfloat16: then oneDNN's kernels are the fastest."""
    return torch.cpu._is_amx_tile_supported()


Module = TypeVar("Module", bound=nn.Module)


def _copy(module: Module, dtype: torch.dtype) -> Module:
    return copy.deepcopy(module).to(dtype)


class PackedLinear:
    """x -> x W^T + b, (..., C) -> (..., N), in `dtype`; then plus `residual` (..., N), or GELU."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, dtype: torch.dtype = torch.bfloat16) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype, copy=True))
        self.bias = None if bias is None else bias.detach().to(dtype, copy=True)

    def __call__(self, x: Tensor, *, residual: Tensor | None = None, gelu: bool = False) -> Tensor:
        if residual is not None:
            return cast(Tensor, torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.weight, self.bias, "add"))
        name, algorithm = ("gelu", "tanh") if gelu else ("none", "")
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, name, [], algorithm))


class PackedBlock(nn.Module):
    """`Block` for inference."""

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        super().__init__()
        self.n_head = block.attn.n_head
        self.ln_1, self.ln_2 = _copy(block.ln_1, dtype), _copy(block.ln_2, dtype)
        self.qkv, self.attn_proj, self.c_fc, self.mlp_proj = (
            PackedLinear(linear.weight, linear.bias, dtype)
            for linear in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj)
        )

    def forward(self, x: Tensor, layer: int, context: AttentionContext) -> Tensor:
        y = attend(*split_heads(self.qkv(self.ln_1(x)), self.n_head), layer, context)
        x = self.attn_proj(y, residual=x)
        return self.mlp_proj(self.c_fc(self.ln_2(x), gelu=True), residual=x)


class PackedGPT2(GPT2):
    """An inference-only copy made by `rollout.inference_copy`. It does not follow the original's training."""

    def __init__(self, model: GPT2, dtype: torch.dtype = torch.bfloat16) -> None:
        """dtype: of weights and arithmetic; float32 works on any CPU, but only bfloat16 is faster (`can_pack`)."""
        with torch.device("meta"):  # no memory: every part is replaced
            super().__init__(model.config)
        self.wte, self.wpe, self.ln_f = _copy(model.wte, dtype), _copy(model.wpe, dtype), _copy(model.ln_f, dtype)
        self.h = nn.ModuleList(PackedBlock(block, dtype) for block in model.h)  # type: ignore[arg-type]
        self.packed_output = PackedLinear(centred(model.wte.weight, dtype), None, dtype)
        self.eval()

    def centred_logits(self, hidden: Tensor) -> Tensor:
        return self.packed_output(hidden)
