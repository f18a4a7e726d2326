"""What tests of formulas share: tensors from a seed, gradients, and closeness in float32."""

import numpy as np
import torch
from torch import Tensor

FP32 = {"rtol": 1e-5, "atol": 1e-5}


def close(found: Tensor, expected) -> None:
    wanted = expected if isinstance(expected, Tensor) else torch.from_numpy(np.array(expected, dtype=np.float64))
    torch.testing.assert_close(found.detach().double(), wanted.detach().double(), **FP32)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), of)[0]
