"""The optimisers: AdamW for everything, or Muon for the hidden matrices and AdamW for the rest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from wukong.errors import UsageError
from wukong.model.language_model import LanguageModel

Algorithm = Literal["adamw", "muon"]

MOMENTS = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")
"""What either keeps for a parameter: AdamW the first three, Muon the last."""


class Optimizer(Protocol):
    """What a training session needs of `torch.optim.Optimizer`."""

    state: defaultdict[Tensor, dict[str, Any]]
    param_groups: list[dict[str, Any]]

    def step(self) -> Any: ...
    def zero_grad(self) -> None: ...


QUINTIC = (3.4445, -4.7750, 2.0315)
"""Jordan's coefficients: after five steps the singular values lie between about 0.7 and 1.2."""


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """Nearly the orthogonal matrix nearest to this one (UV' of its SVD), by a Newton-Schulz iteration.

    In bfloat16 on CUDA, as in `torch.optim.Muon`; elsewhere in float32, since on a CPU bfloat16 products can be a
    hundred times slower (without AVX512-BF16) and differ from machine to machine.

    matrix: (A, B); returned as (A, B) in the dtype of the iteration.
    """
    a, b, c = QUINTIC
    x = matrix.bfloat16() if matrix.device.type == "cuda" else matrix.float()
    x = x.T if x.shape[0] > x.shape[1] else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Muon(torch.optim.Muon):
    """`torch.optim.Muon`, with the update of `orthogonalised`."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                average = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p.grad))
                average.lerp_(p.grad, 1 - momentum)
                update = orthogonalised(p.grad.lerp(average, momentum))  # Nesterov
                p.mul_(1 - lr * group["weight_decay"])
                p.add_(update.to(p.dtype), alpha=-lr * 0.2 * max(p.shape) ** 0.5)  # the size of AdamW's updates


class MuonWithAdamW:
    """Muon for the blocks' matrices, AdamW for embeddings, biases and LayerNorms, as one optimiser.

    Muon replaces the momentum of a matrix by the nearest orthogonal one, so that all directions are learnt at the same
    rate (Jordan 2024, kellerjordan.github.io/posts/muon). Its updates are scaled to the size of AdamW's, so that one
    learning rate serves both (Liu et al. 2025, arXiv:2502.16982).
    """

    def __init__(self, matrices: list[dict[str, Any]], rest: list[dict[str, Any]], lr: float, adamw: dict[str, Any]):
        muon = Muon(matrices, lr=lr)
        self.parts: tuple[torch.optim.Optimizer, ...] = (muon, torch.optim.AdamW(rest, lr=lr, **adamw))
        self.state: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
        for part in self.parts:  # they have no parameter in common
            part.state = self.state
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad()


def hidden_matrices(module: nn.Module) -> set[Tensor]:
    """The weights of the transformer blocks that multiply hidden states."""
    trunks = [part for part in module.modules() if isinstance(part, LanguageModel)]
    return {p for trunk in trunks for p in trunk.blocks.parameters() if p.ndim == 2}


def check_optimizer(algorithm: Algorithm, sharded: bool) -> None:
    """Raises UsageError for Muon on sharded modules: it needs whole matrices."""
    if algorithm == "muon" and sharded:
        raise UsageError("--optimizer muon needs whole matrices: use --parallel ddp, or --optimizer adamw")


def optimizer_of(
    modules: Iterable[nn.Module],
    algorithm: Algorithm,
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    sharded: bool,
) -> Optimizer:
    """The optimiser of the trained parameters of `modules`. Weight decay applies to matrices and embeddings, not to
    biases and LayerNorms.

    Raises UsageError for Muon on sharded modules: it needs whole matrices.
    """
    modules = list(modules)
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    adamw = {"betas": betas, "eps": eps, "fused": True}
    others = {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0}
    if algorithm == "adamw":
        decayed = {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay}
        return torch.optim.AdamW([decayed, others], lr=lr, **adamw)  # type: ignore[arg-type]
    check_optimizer(algorithm, sharded)
    hidden = set().union(*map(hidden_matrices, modules))
    matrices = {"params": [p for p in parameters if p in hidden], "weight_decay": weight_decay}
    embeddings = {
        "params": [p for p in parameters if p.ndim >= 2 and p not in hidden],
        "weight_decay": weight_decay,
    }
    return MuonWithAdamW([matrices], [embeddings, others], lr, adamw)
