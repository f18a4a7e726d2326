"""Our kernels for this processor, and for one with half as wide registers."""

import ctypes
from collections.abc import Iterator

import pytest
import torch

from wukong.model.cpu import kernels


@pytest.fixture(scope="module", params=["native", "haswell"])
def compiled(request) -> ctypes.CDLL:
    if request.param == "haswell" and not torch.cpu._is_avx2_supported():
        pytest.skip("needs AVX2")
    return kernels.load("c++", request.param)


@pytest.fixture
def library(compiled) -> Iterator[ctypes.CDLL]:
    with kernels.using(compiled):
        yield compiled
