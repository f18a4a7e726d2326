"""A server in a thread of the tests' own process, with tiny random models."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest
import torch

import wukong
from tests.serve.serving import CONTEXT, served
from wukong.api import Policy
from wukong.model.gpt2 import GPT2, GPT2Config
from wukong.model.hub import save_policy
from wukong.serve.service import Service, load_model
from wukong.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """Two models, `sft` and `policy`, whose answers have many lengths and some characters outside ASCII."""
    root = tmp_path_factory.mktemp("served")
    tokenizer = Tokenizer.train([f"Boil {n} eggs für {n % 9} minutes." for n in range(50)], 280, template="plain")
    for seed, name in enumerate(("sft", "policy")):
        torch.manual_seed(seed)
        model = GPT2(GPT2Config(vocab_size=280, n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=2))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.1)
        save_policy(root / name, model, tokenizer)
    return root


@pytest.fixture(scope="session")
def policy(models) -> Policy:
    return wukong.load_policy(models / "policy", device="cpu", precision="float32")


@pytest.fixture(scope="session")
def new_service(models) -> Callable[..., Service]:
    loaded = {name: load_model(name, str(models / name), "float32", "cpu") for name in ("policy", "sft")}
    return lambda **options: Service(loaded, **options)


@pytest.fixture(scope="module")
def service(new_service) -> Service:
    return new_service()


@pytest.fixture(scope="module")
def address(service) -> Iterator[str]:
    with served(service) as url:
        yield url


@pytest.fixture(scope="module")
def client(address) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=120)


@pytest.fixture
def held(before_passes) -> Iterator[threading.Event]:
    """No token is drawn before this is set, however busy the machine is; then each takes a while."""
    go = threading.Event()
    before_passes(lambda _: (go.wait(timeout=600), time.sleep(0.05)))
    yield go
    go.set()
