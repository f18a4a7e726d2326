"""The numerics on another device equal those of the processor: `pytest tests/model --device mps` (or cuda). Without a
GPU, PyTorch's `meta` device shows that no tensor is made on another device than its model's."""

import copy

import torch

from wukong.model.gpt2 import GPT2
from wukong.model.logprobs import token_logprobs
from wukong.rollout import generate
from wukong.training.compute import read
from wukong.training.optimizer import orthogonalised

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def ids_of(batch: int, time: int) -> torch.Tensor:
    return torch.randint(0, 280, (batch, time), generator=torch.Generator().manual_seed(0))


def loss_of(model: GPT2, ids: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of all tokens but the first."""
    hidden = model(ids)[:, :-1].flatten(0, 1)
    logprobs, _ = token_logprobs(hidden, model.wte.weight, ids[:, 1:].flatten())
    return -logprobs.mean()


def test_loss_and_every_gradient_are_those_of_the_processor(model, device):
    there = copy.deepcopy(model).to(device)
    ids = ids_of(3, 40)
    here, found = loss_of(model, ids), loss_of(there, ids.to(device))
    assert found.device.type == device.type
    torch.testing.assert_close(found.cpu(), here, **CLOSE)
    here.backward()
    found.backward()
    for (name, expected), parameter in zip(model.named_parameters(), there.parameters(), strict=True):
        assert parameter.grad.device.type == device.type
        torch.testing.assert_close(parameter.grad.cpu(), expected.grad, **CLOSE, msg=lambda m, n=name: f"{n}: {m}")


def test_the_sampler_draws_the_same_tokens(model, device):
    prompts = [[1, 2, 3], [4, 5], list(range(20))]
    here, there = (
        generate(m.eval(), prompts, eos_id=279, max_new_tokens=12, seeds=[1, 2, 3], temperature=t)
        for m, t in ((model, 0.0), (copy.deepcopy(model).to(device), 0.0))
    )
    assert [one.ids for one in there] == [one.ids for one in here]
    drawn = generate(copy.deepcopy(model).to(device).eval(), prompts, eos_id=279, max_new_tokens=12, seeds=[1, 2, 3])
    for one, expected in zip(
        drawn, generate(model, prompts, eos_id=279, max_new_tokens=12, seeds=[1, 2, 3]), strict=True
    ):
        assert one.ids == expected.ids
        torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(expected.logprobs), **CLOSE)


def test_numbers_are_read_together_whatever_their_types(device):
    values = [torch.tensor(1.5, device=device), torch.tensor(2.5, dtype=torch.float64), torch.tensor(3, device=device)]
    assert read(values) == [1.5, 2.5, 3.0]
    assert read([]) == []


def test_muons_iteration_is_that_of_the_processor(device):
    matrix = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    tolerance = {"rtol": 0, "atol": 1e-2} if device.type == "cuda" else CLOSE  # bfloat16 there
    torch.testing.assert_close(orthogonalised(matrix.to(device)).float().cpu(), orthogonalised(matrix), **tolerance)


def test_no_tensor_of_a_pass_is_made_on_another_device(model):
    """On `meta` an operation that mixes devices fails, as it does on a GPU."""
    there, ids = copy.deepcopy(model).to("meta"), ids_of(2, 16).to("meta")
    there(ids).mean().backward()
    assert {parameter.grad.device.type for parameter in there.parameters()} == {"meta"}
