"""Log-probabilities of tokens, and the output layer's weights as log-probs, losses and draws need them.

Softmax ignores a constant that is added to all logits of a position, but floating-point arithmetic does not: the logits
of the released GPT-2s lie around -110, where bfloat16 steps by 0.5. So wherever logits are computed in fewer bits than
float32, the weights are centred first: (W - 1 m^T) h = W h - (m.h) 1, with m the mean row. The gradient for W is that
for the centred weights, since a softmax's gradient sums to zero over the vocabulary.

Shape legend: N positions (any flattened set), C channels, V vocabulary.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.weak import WeakIdKeyDictionary

CHUNK_LOGITS = 1 << 24
"""Logits that exist in float32 at once."""
KEPT_LOGITS_BYTES = 1 << 29
"""Logits up to this size are kept for the backward pass; larger ones are computed again there."""

_kept: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""weights -> (their version, the centred copy): it is made once an update, not once a micro-batch."""

# FSDP refills the memory of gathered weights without telling their version counter.
register_optimizer_step_post_hook(lambda *_: _kept.clear())


@torch.no_grad()
def centred(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """W less its mean row, (V, C) -> (V, C), computed in float32 and rounded to `dtype`; without gradient.

    In float32 (or more) the weights themselves: there the offset costs nothing that could be measured.
    """
    if dtype.itemsize >= 4:
        return weight.detach().to(dtype)
    if weight.is_inference():  # such tensors count no versions
        return _centred(weight, dtype)
    version, copy = _kept.get(weight, (None, None))
    if version != weight._version or copy.dtype != dtype:
        with torch.inference_mode(False):  # a pass with gradients may use the copy later
            copy = _centred(weight, dtype)
        _kept[weight] = weight._version, copy
    result: Tensor = copy
    return result


def _centred(weight: Tensor, dtype: torch.dtype) -> Tensor:
    wide = weight.detach().float()
    return (wide - wide.mean(0)).to(dtype)


class _TokenLogprobs(torch.autograd.Function):
    """`token_logprobs`, with the gradient written out, so that backward needs nothing of the size of the logits but a
    chunk, or the logits themselves where they are kept. With z the logits, p = softmax(z), H its entropy:

        log p_y = z_y - log sum exp z      d log p_y / dz_j = [j = y] - p_j
        H = log sum exp z - sum p z        d H / dz_j       = -p_j (log p_j + H)

    In fewer bits than float32, z are the centred logits (`centred`).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, with_entropy: bool, dtype: torch.dtype, keep: bool
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        hidden, narrow = hidden.to(dtype), centred(weight, dtype)
        normalisers, logprobs, entropies = hidden.new_zeros(3, len(targets), dtype=torch.float32)  # (N,) each
        kept, e = [], hidden.new_empty(0, dtype=torch.float32)
        for rows in row_chunks(len(targets), len(weight)):
            logits = F.linear(hidden[rows], narrow)  # (n, V)
            z = logits.float()
            largest = z.amax(-1, keepdim=True)  # (n, 1)
            e = torch.sub(z, largest, out=e.resize_(0)).exp_()  # (n, V) in the memory of the last chunk's
            total = e.sum(-1)  # (n,)
            normaliser = largest.squeeze(-1) + total.log()
            normalisers[rows] = normaliser
            logprobs[rows] = z.gather(-1, targets[rows].unsqueeze(-1)).squeeze(-1) - normaliser
            if with_entropy:
                entropies[rows] = normaliser - torch.linalg.vecdot(e, z) / total
            if keep:
                kept.append(logits)
        ctx.save_for_backward(hidden, narrow, targets, normalisers, entropies, *kept)
        ctx.with_entropy, ctx.weight_dtype = with_entropy, weight.dtype
        ctx.set_materialize_grads(False)
        if not with_entropy:
            ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, normalisers, entropies, *kept = ctx.saved_tensors
        zeros = torch.zeros_like(normalisers)
        of_logprobs, of_entropies = (zeros if gradient is None else gradient for gradient in gradients)  # (N,) each
        to_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        to_weight = None
        for number, rows in enumerate(row_chunks(len(targets), len(weight))):
            logits = kept[number] if kept else F.linear(hidden[rows], weight)  # (n, V)
            # In place of the logits, which nothing else needs; a second backward would be an error, as is usual.
            logp = logits.float().sub_(normalisers[rows].unsqueeze(-1))
            # What becomes dL/dz (n, V); each pass over it costs, so nothing is done to it that changes nothing.
            if ctx.with_entropy:
                grad = logp.exp()
                weights = logp.add_(entropies[rows].unsqueeze(-1)).mul_(of_entropies[rows].unsqueeze(-1))
                grad.mul_(weights.add_(of_logprobs[rows].unsqueeze(-1)).neg_())
            else:
                grad = logp.exp_().mul_(-of_logprobs[rows].unsqueeze(-1))
            grad.scatter_add_(-1, targets[rows].unsqueeze(-1), of_logprobs[rows].unsqueeze(-1))
            grad = grad.to(hidden.dtype)
            if to_hidden is not None:
                to_hidden[rows] = grad @ weight
            if ctx.needs_input_grad[1]:
                if to_weight is None:
                    to_weight = (grad.T @ hidden[rows]).to(ctx.weight_dtype)  # (V, C)
                elif to_weight.dtype == grad.dtype:
                    to_weight.addmm_(grad.T, hidden[rows])
                else:
                    to_weight.add_(grad.T @ hidden[rows])
        return to_hidden, to_weight, None, None, None, None


def row_chunks(n: int, vocabulary: int) -> list[slice]:
    """n rows of logits in chunks of at most `CHUNK_LOGITS` logits."""
    rows = max(1, CHUNK_LOGITS // vocabulary)
    return [slice(start, start + rows) for start in range(0, n, rows)]


def token_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, temperature: float = 1.0, with_entropy: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target token, and the entropy of its distribution, in float32.

    Only the N positions given are multiplied with the output layer, in chunks, in autocast's precision where that is
    on. The logits are kept for backward where they fit `KEPT_LOGITS_BYTES`, and otherwise computed again.

    Args:
        hidden: (N, C) hidden states at the positions *before* the targets.
        weight: (V, C) output layer (the tied token embedding).
        targets: (N,) int64 token ids.
        temperature: the logits are divided by it, in rollout, reference and update alike.
        with_entropy: compute the entropy (nats); otherwise zeros are returned in its place.

    Returns:
        logprobs (N,), entropy (N,).
    """
    if hidden.ndim != 2 or targets.ndim != 1:
        raise ValueError(f"expected hidden (N, C) and targets (N,), not {tuple(hidden.shape)}, {tuple(targets.shape)}")
    if targets.dtype != torch.int64:
        raise TypeError(f"targets must be int64, not {targets.dtype}")
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    learns = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    keep = learns and len(targets) * len(weight) * dtype.itemsize <= KEPT_LOGITS_BYTES
    if temperature != 1:  # logits of h / T are those of h, divided by T, and h is the smaller
        hidden = hidden / temperature
    with torch.autocast(device, enabled=False):
        result: tuple[Tensor, Tensor] = cast(Any, _TokenLogprobs).apply(
            hidden, weight, targets, with_entropy, dtype, keep
        )
        return result
