"""The formulas for parameters, memory and arithmetic against real models, and what is done where memory is short."""

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from wukong.model.gpt2 import GPT2, PRESETS, GPT2Config
from wukong.objectives import token_logprobs
from wukong.stages.common import frozen
from wukong.training import memory, session
from wukong.training.compute import Compute
from wukong.training.memory import (
    Workload,
    activation_bytes,
    fitting_tokens,
    forward_flops,
    frozen_bytes,
    logits_bytes,
    n_parameters,
    step_bytes,
)
from wukong.training.session import Session, TrainOptions

CONFIG = GPT2Config(vocab_size=500, n_positions=128, n_embd=64, n_layer=3, n_head=4)
CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("name", PRESETS)
def test_the_parameter_count_is_the_models(name: str) -> None:
    config = GPT2Config(**{"vocab_size": 257, **PRESETS[name]})
    with torch.device("meta"):
        assert n_parameters(config) == GPT2(config).n_parameters()


def test_the_released_gpt2_has_124_million() -> None:
    assert n_parameters(GPT2Config()) == 124_439_808


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_frozen_model_takes_what_is_said(dtype: torch.dtype) -> None:
    model = frozen(GPT2(CONFIG), Compute(torch.device("cpu"), dtype))
    assert sum(p.numel() * p.element_size() for p in model.parameters()) == frozen_bytes(CONFIG, dtype)


def kept_bytes(model: GPT2, forward: Callable[[], torch.Tensor], dtype: torch.dtype) -> int:
    """What a forward pass keeps for backward, each memory once, parameters and their copies left out."""
    weights = {p.shape for p in model.parameters()} | {p.T.shape for p in model.parameters() if p.ndim == 2}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tensor.shape not in weights:
            storages[storage.data_ptr()] = storage  # kept alive, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t), torch.autocast("cpu", dtype, dtype != DTYPES[0]):
        forward()
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_activations_take_what_is_said(dtype: torch.dtype) -> None:
    model, ids = GPT2(CONFIG), torch.randint(500, (8, 96))
    found = kept_bytes(model, lambda: model(ids), dtype)
    assert found == pytest.approx(ids.numel() * activation_bytes(CONFIG, dtype, False), rel=0.1)


def test_checkpointed_activations_take_less() -> None:
    model, ids = GPT2(CONFIG), torch.randint(500, (8, 96))
    model.checkpoint_blocks = True
    found = kept_bytes(model, lambda: model(ids), torch.float32)
    fewer = GPT2Config(**{**vars(CONFIG), "n_layer": 2})
    layer = activation_bytes(CONFIG, torch.float32, False) - activation_bytes(fewer, torch.float32, False)
    said = activation_bytes(CONFIG, torch.float32, True) - layer  # that one layer's are there in backward only
    assert found == pytest.approx(ids.numel() * said, rel=0.3)  # the formula counts the result too
    assert found < 0.3 * ids.numel() * activation_bytes(CONFIG, torch.float32, False)


def test_kept_logits_take_what_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model, targets = GPT2(CONFIG), torch.randint(500, (300,))
    hidden = torch.randn(300, 64, requires_grad=True)

    def kept() -> int:
        return kept_bytes(model, lambda: token_logprobs(hidden, model.wte.weight, targets)[0], torch.float32)

    before = kept()
    assert before == pytest.approx(300 * 500 * 4, rel=0.15)  # and hidden states, targets, three numbers a token
    assert logits_bytes(CONFIG, torch.float32, 300) == 300 * 500 * 4 + 3 * 300 * 500 * 4
    assert logits_bytes(GPT2Config(), torch.float32, 10_000) == 3 * 4 * memory.CHUNK_LOGITS  # too many: none is kept


def test_the_arithmetic_is_what_pytorch_counts() -> None:
    model, ids = GPT2(CONFIG), torch.randint(500, (4, 32))
    with FlopCounterMode(display=False) as counter:
        model.logits(model(ids))
    assert forward_flops(CONFIG, 128, 32, 128) == pytest.approx(counter.get_total_flops(), rel=0.05)


# ------------------------------------------------------------------------------------------------- short of memory


def test_a_micro_batch_is_halved_until_it_fits() -> None:
    n = n_parameters(CONFIG)

    def fits(free: int, checkpointing: bool = False) -> int:
        workload = Workload(100_000, trained=(CONFIG,), checkpointing=checkpointing)
        return fitting_tokens(workload, CPU, torch.float32, 8192, free)

    step = step_bytes(CONFIG, torch.float32, 2048, False)
    step += round(0.75 * 2048 * activation_bytes(CONFIG, torch.float32, False))  # gaps in the heap
    step += round(0.25 * logits_bytes(CONFIG, torch.float32, 2048))
    just = 12 * n + step  # the weights are there already
    assert fits(10**12) == 8192
    assert fits(int(just / 0.9) + 10) == 2048
    assert fits(int(just / 0.9) - 10) == 1024
    assert fits(0) == 64
    more = int(1.4 * just / 0.9)
    assert fits(more) == 2048
    assert fits(more, checkpointing=True) == 4096, "checkpointing makes room"


def test_a_resumed_run_keeps_the_micro_batches_it_began_with(tmp_path, monkeypatch, capsys) -> None:
    def begun(free: int) -> int:
        monkeypatch.setattr(session, "free_bytes", lambda device: free)
        options = TrainOptions(out=tmp_path / "run", tensorboard=False, precision="float32")
        with Session(options, {"model": GPT2(CONFIG)}, 2, "toy") as run:
            run.checkpoint(1)
        return options.micro_batch_tokens

    small = begun(30_000_000)
    assert 64 < small < 8192
    assert f"micro-batches of {small:,} tokens, 8,192 would not fit" in capsys.readouterr().err
    assert begun(10**12) == small


def test_gradient_checkpointing_changes_no_gradient(tmp_path) -> None:
    ids, gradients = torch.randint(500, (2, 40)), []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = GPT2(GPT2Config(**{**vars(CONFIG), "dropout": 0.1}))
        name = f"checkpointing-{checkpointing}"
        options = TrainOptions(out=tmp_path / name, tensorboard=False, gradient_checkpointing=checkpointing)
        with Session(options, {"model": model}, 1, "toy"):
            torch.manual_seed(1)  # the same dropout
            assert model.checkpoint_blocks is checkpointing
            model(ids).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
