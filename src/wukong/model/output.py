"""The output layer's weights as log-probs, losses and draws need them: without what all tokens have in common.

Softmax ignores what is added to all logits of a position alike, but arithmetic does not: the logits of the released
GPT-2s lie around -110, where numbers in bfloat16 are 0.5 apart. So wherever logits are computed in fewer bits than
float32, the mean over the vocabulary is taken off the weights first: (W - 1 m^T) h = W h - (m.h) 1 with m the mean row.
The gradient for W is that for the centred weights, since a softmax's gradient sums to zero over the vocabulary.

Shape legend: C channels, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.weak import WeakIdKeyDictionary

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
        copy = _centred(weight, dtype)
        _kept[weight] = weight._version, copy
    return copy


def _centred(weight: Tensor, dtype: torch.dtype) -> Tensor:
    wide = weight.detach().float()
    return (wide - wide.mean(0)).to(dtype)
