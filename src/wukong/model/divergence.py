"""The KL divergence between two models' next-token distributions, exact over the vocabulary.

Shape legend: N positions (any flattened set), C channels of the student, D of the teacher, V vocabulary.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from wukong.model.logprobs import centred, row_chunks


class _ReverseKL(torch.autograd.Function):
    """`reverse_kl`, with the gradient written out, so that nothing of the size of the logits outlives a chunk of rows:
    backward computes them again. With p = softmax(z) the student and q the teacher:

        KL = sum p (log p - log q)      d KL / dz_j = p_j (log p_j - log q_j - KL)
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        ours = hidden.to(dtype), centred(weight, dtype)
        theirs = teacher_hidden.to(dtype), centred(teacher_weight, dtype)
        divergences, entropies = hidden.new_zeros(2, len(hidden), dtype=torch.float32)  # (N,) each
        for rows in row_chunks(len(hidden), 2 * len(weight)):
            logp, logq = (F.linear(states[rows], output).float().log_softmax(-1) for states, output in (ours, theirs))
            p = logp.exp()  # (n, V)
            entropies[rows] = -torch.linalg.vecdot(p, logp)
            divergences[rows] = torch.linalg.vecdot(p, logp.sub_(logq))
        ctx.save_for_backward(*ours, *theirs, divergences)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(entropies)
        ctx.set_materialize_grads(False)
        return divergences, entropies

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, teacher_hidden, teacher_weight, divergences = ctx.saved_tensors
        of_divergences = gradients[0]
        if of_divergences is None:
            return None, None, None, None, None
        to_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        to_weight = torch.zeros_like(weight, dtype=ctx.weight_dtype) if ctx.needs_input_grad[1] else None
        for rows in row_chunks(len(hidden), 2 * len(weight)):
            logp = F.linear(hidden[rows], weight).float().log_softmax(-1)  # (n, V)
            p = logp.exp()
            logq = F.linear(teacher_hidden[rows], teacher_weight).float().log_softmax(-1)
            gaps = logp.sub_(logq).sub_(divergences[rows].unsqueeze(-1))
            grad = p.mul_(gaps).mul_(of_divergences[rows].unsqueeze(-1)).to(hidden.dtype)  # dL/dz (n, V)
            if to_hidden is not None:
                to_hidden[rows] = grad @ weight
            if to_weight is not None:
                to_weight += (grad.T @ hidden[rows]).to(to_weight.dtype)
        return to_hidden, to_weight, None, None, None


def reverse_kl(
    hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """KL(student || teacher) of the next token at each position, and the student's entropy, in float32.

    Exact: the sum over the whole vocabulary, in chunks of rows, in autocast's precision where that is on. The teacher
    gets no gradient, nor does the entropy give any.

    Args:
        hidden, weight: the student's hidden states (N, C) and output layer (V, C).
        teacher_hidden, teacher_weight: the teacher's, (N, D) and (V, D).
        temperature: both models' logits are divided by it.

    Returns:
        KL (N,), entropy (N,), both in nats.

    Raises:
        ValueError: the numbers of positions or the vocabularies differ.
    """
    if len(hidden) != len(teacher_hidden) or len(weight) != len(teacher_weight):
        shapes = [tuple(one.shape) for one in (hidden, weight, teacher_hidden, teacher_weight)]
        raise ValueError(f"expected (N, C), (V, C), (N, D), (V, D), not {', '.join(map(str, shapes))}")
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    if temperature != 1:  # logits of h / T are those of h, divided by T
        hidden, teacher_hidden = hidden / temperature, teacher_hidden / temperature
    with torch.autocast(device, enabled=False):
        result: tuple[Tensor, Tensor] = cast(Any, _ReverseKL).apply(
            hidden, weight, teacher_hidden, teacher_weight, dtype
        )
        return result
