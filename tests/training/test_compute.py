"""Where and in what precision a run computes."""

import itertools
import math
import time
from contextlib import nullcontext

import pytest
import torch

from wukong.errors import UsageError
from wukong.training import compute
from wukong.training.compute import Compute, best_device, compute_for, wide_type


@pytest.fixture
def speeds(monkeypatch):
    """Sets what the timing of one product of each precision would find."""
    compute._bfloat16_pays.cache_clear()

    def measured(float32: float, bfloat16: float) -> None:
        found = {torch.float32: float32, torch.bfloat16: bfloat16}
        monkeypatch.setattr(compute, "_seconds", lambda dtype, device: found[dtype])

    yield measured
    compute._bfloat16_pays.cache_clear()


@pytest.mark.parametrize(
    ("float32", "bfloat16", "expected"),
    [(1.0, 0.25, torch.bfloat16), (1.0, 0.9, torch.float32), (1.0, 3.0, torch.float32)],
)
def test_auto_takes_bfloat16_where_it_is_clearly_faster(speeds, float32, bfloat16, expected):
    speeds(float32, bfloat16)
    assert compute_for("auto", "cpu").dtype == expected
    assert compute_for("float32", "cpu").dtype == torch.float32
    assert compute_for("bfloat16", "cpu").dtype == torch.bfloat16


def test_auto_decides_once_in_a_process(speeds):
    speeds(1.0, 0.25)
    first = compute_for("auto", "cpu")
    speeds(1.0, 3.0)
    assert compute_for("auto", "cpu") == first


def test_auto_on_this_machine_is_what_its_clock_says():
    compute._bfloat16_pays.cache_clear()
    ratios = [compute._seconds(torch.bfloat16) / compute._seconds(torch.float32) for _ in range(5)]
    found = compute_for("auto", "cpu").dtype
    if max(ratios) < 0.5:  # well away from the threshold of 0.7, else noise decides
        assert found == torch.bfloat16
    elif min(ratios) > 0.9:
        assert found == torch.float32
    else:
        assert found in (torch.float32, torch.bfloat16)


@pytest.mark.skipif(
    time.get_clock_info("process_time").resolution > 1e-4, reason="the processor's time is too coarse, as on Windows"
)
def test_time_that_other_programs_take_does_not_count_when_precisions_are_compared(monkeypatch):
    elapsed = itertools.count(step=100)
    monkeypatch.setattr("time.perf_counter", lambda: float(next(elapsed)))  # each product waits for so many seconds
    assert compute._seconds(torch.float32) < 50


def test_the_device_is_the_processor_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert compute_for("float32", "auto") == Compute(torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(("cuda", "expected"), [(True, "cuda"), (False, "mps")])
def test_an_apple_gpu_is_taken_after_cuda_and_before_the_processor(monkeypatch, cuda, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert best_device() == expected


def test_sums_are_kept_in_the_widest_type_of_the_device():
    assert wide_type(torch.device("mps")) == torch.float32  # it has no float64
    assert wide_type(torch.device("cuda")) == wide_type(torch.device("cpu")) == torch.float64


def test_a_type_that_a_device_lacks_does_not_pay(speeds):
    speeds(1.0, math.inf)
    assert compute._bfloat16_pays("mps") is False
    speeds(1.0, 0.5)
    compute._bfloat16_pays.cache_clear()
    assert compute._bfloat16_pays("mps") is True


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cpu cpu"])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(UsageError, match=f"--device {device} cannot be used here: .") as caught:
        compute_for("float32", device)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
@pytest.mark.parametrize("capable", [True, False])
def test_a_gpu_is_asked_for_bf16_that_is_not_emulated(monkeypatch, device, capable):
    """PyTorch's default answer counts emulation, which every GPU has."""
    asked = []
    compute._bfloat16_pays.cache_clear()
    monkeypatch.setattr(torch.cuda, "device", lambda name: asked.append(name) or nullcontext())
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or capable
    )
    assert compute._bfloat16_pays(device) is capable
    assert asked == [device], "not the first GPU in its place"
    compute._bfloat16_pays.cache_clear()


def test_products_run_in_the_precision_and_weights_stay_float32():
    layer, x = torch.nn.Linear(4, 4), torch.ones(2, 4)
    for dtype in (torch.float32, torch.bfloat16):
        with Compute(torch.device("cpu"), dtype).autocast():
            found = layer(x)
        assert found.dtype == dtype
        found.float().sum().backward()
        assert layer.weight.dtype == layer.weight.grad.dtype == torch.float32
