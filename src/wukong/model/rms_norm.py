"""RMSNorm (Zhang & Sennrich 2019, arXiv 1910.07467)."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class RMSNorm(nn.Module):
    """x / rms(x) times a weight, computed in the weight's precision."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(torch.ones(width)), epsilon

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width) in the type of x."""
        wide = x.to(self.weight.dtype)
        on_cpu = wide.dtype == torch.float32 and wide.device.type == "cpu" and not torch.compiler.is_compiling()
        if on_cpu:
            y: Tensor = cast(Any, _OnCPU).apply(wide, self.weight, self.epsilon)
        else:
            y = F.rms_norm(wide, self.weight.shape, self.weight, self.epsilon)
        return y.to(x.dtype)


class _OnCPU(torch.autograd.Function):
    """PyTorch's, on CPUs a composition of operations, keeps x / rms(x) for the backward pass as well as x. With r the
    inverse rms, n = x r and g = dL/dy * w:    dL/dx = r (g - n mean(g n))    dL/dw = sum(dL/dy n)"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        inverse = torch.linalg.vecdot(x, x).div_(x.shape[-1]).add_(epsilon).rsqrt_().unsqueeze(-1)  # (..., 1)
        ctx.save_for_backward(x, weight, inverse)
        y: Tensor = (x * inverse).mul_(weight)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        normed, g = x * inverse, gradient * weight
        of_weight = torch.linalg.vecdot(gradient.flatten(0, -2), normed.flatten(0, -2), dim=0)
        along = torch.linalg.vecdot(g, normed).div_(x.shape[-1]).unsqueeze(-1)  # (..., 1)
        return g.addcmul_(normed, along, value=-1).mul_(inverse), of_weight, None
