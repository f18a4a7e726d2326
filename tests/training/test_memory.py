"""The formulas for parameters, memory and arithmetic against real models, and what is done where memory is short."""

import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from torch.distributed import TCPStore
from torch.utils.flop_counter import FlopCounterMode

from tests.stages.tiny_data import write_jsonl
from wukong.model.config import LlamaConfig, ModelConfig
from wukong.model.cpu.native import NativeModel
from wukong.model.cpu.packed import PackedGPT2
from wukong.model.decoding import decoding_path
from wukong.model.families import PRESET_CONFIGS, new_model
from wukong.model.gpt2 import GPT2, GPT2Config
from wukong.model.heads import ScalarModel
from wukong.model.hub import save_policy, save_reward
from wukong.model.language_model import LanguageModel
from wukong.model.llama import Llama
from wukong.model.logprobs import centred, token_logprobs
from wukong.rollout import inference_copy
from wukong.scoring import frozen
from wukong.stages import tokenize
from wukong.stages.tokenize import TokenizeOptions
from wukong.tokenizer import Tokenizer
from wukong.training import memory, session
from wukong.training.compute import Compute
from wukong.training.memory import (
    Decoding,
    Estimate,
    Workload,
    activation_bytes,
    cache_bytes,
    estimate,
    fitting_tokens,
    forward_flops,
    free_bytes,
    frozen_bytes,
    logits_bytes,
    n_parameters,
    step_bytes,
    training_flops,
)
from wukong.training.session import Session, TrainOptions
from wukong.training.tuning import TuningOptions, hold_frozen, share_frozen, trained_part, tuned

CONFIG = GPT2Config(vocab_size=500, n_positions=128, n_embd=64, n_layer=3, n_head=4)
SIZES = {"vocab_size": 500, "n_positions": 128, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_kv_head": 2, "n_inner": 160}
FAMILIES: dict[str, ModelConfig] = {
    "GPT-2": CONFIG,
    "Llama": LlamaConfig(**SIZES, head_width=16),
    "Qwen2": LlamaConfig(**SIZES, head_width=16, qkv_bias=True),
    "Qwen3": LlamaConfig(**SIZES, head_width=32, qk_norm=True, tied=False),
}
CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16]
every_family = pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES)


@pytest.mark.parametrize("config", [*PRESET_CONFIGS.values(), *FAMILIES.values()], ids=[*PRESET_CONFIGS, *FAMILIES])
def test_the_parameter_count_is_the_models(config: ModelConfig) -> None:
    with torch.device("meta"):
        assert n_parameters(config) == new_model(config).n_parameters()


def test_the_released_gpt2_has_124_million() -> None:
    assert n_parameters(GPT2Config()) == 124_439_808


@every_family
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_frozen_model_takes_what_is_said(config: ModelConfig, dtype: torch.dtype) -> None:
    model = frozen(new_model(config), Compute(torch.device("cpu"), dtype))
    output = centred(model.output_weight, dtype)
    kept = {tensor.data_ptr(): tensor for tensor in (*model.parameters(), output)}.values()
    assert sum(tensor.numel() * tensor.element_size() for tensor in kept) == frozen_bytes(config, dtype)


def kept_bytes(model: LanguageModel, forward: Callable[[], torch.Tensor], dtype: torch.dtype) -> int:
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


@every_family
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_activations_take_what_is_said(config: ModelConfig, dtype: torch.dtype) -> None:
    model, ids = new_model(config), torch.randint(500, (8, 96))
    found = kept_bytes(model, lambda: model(ids), dtype)
    assert found == pytest.approx(ids.numel() * activation_bytes(config, dtype, False), rel=0.1)


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


@every_family
def test_the_arithmetic_is_what_pytorch_counts(config: ModelConfig) -> None:
    model, ids = new_model(config), torch.randint(500, (8, 16))  # PyTorch does not count attention on CPUs
    with FlopCounterMode(display=False) as counter:
        model.logits(model(ids))
    assert forward_flops(config, 128, 16, 128) == pytest.approx(counter.get_total_flops(), rel=0.05)


@every_family
def test_a_cache_takes_what_is_said(config: ModelConfig) -> None:
    cache = new_model(config).empty_cache(3, 50)
    held = sum(tensor.numel() * 4 for tensor in (*cache.keys, *cache.values))
    assert held == cache_bytes(config, 3, 50, 4)


def test_the_decoding_path_that_is_named_is_the_one_taken() -> None:
    kinds = {NativeModel: "native", PackedGPT2: "packed", GPT2: "PyTorch", Llama: "PyTorch"}
    llama = LlamaConfig(vocab_size=500, n_positions=64, n_embd=64, n_layer=1, n_head=4, n_kv_head=2, n_inner=96)
    # Heads of width 16 and 8: there are kernels for the first.
    configs = [CONFIG, replace(CONFIG, n_head=8), replace(llama, head_width=16), replace(llama, head_width=8)]
    for model in (new_model(config).eval() for config in configs):
        for dtype in DTYPES:
            copy = inference_copy(model, Compute(CPU, dtype))
            assert decoding_path(model.config, CPU, dtype) == kinds[type(copy)]


def test_frozen_models_decoding_and_the_local_share_are_counted() -> None:
    n, step = n_parameters(CONFIG), Workload(512, trained=(CONFIG,))

    def of(**changes) -> Estimate:
        return estimate(replace(step, **changes), CPU, torch.float32, 8192)

    alone = of()
    assert alone.total - of(trained=()).total >= 16 * n
    assert of(frozen=(CONFIG, CONFIG)).total - alone.total == 2 * frozen_bytes(CONFIG, torch.float32)
    ddp, fsdp = of(processes=4), of(processes=4, sharded=True)
    assert (ddp.weights, ddp.gradients, ddp.moments) == (4 * n, 4 * n, 8 * n)
    assert (fsdp.weights, fsdp.gradients, fsdp.moments) == (4 * (n // 4), 4 * (n // 4), 8 * (n // 4))
    more = of(decoding=Decoding(CONFIG, 100, 1000)).total
    cache = 100 * 1000 * 2 * 3 * 64 * 4  # rows, slots, keys and values, layers, width, bytes
    assert more >= 12 * n + 1.75 * cache > alone.total


@pytest.mark.parametrize(("size", "local", "share"), [(1, None, 1), (2, None, 2), (8, 4, 4)])
def test_the_processes_of_a_machine_share_its_memory(monkeypatch, size: int, local: int | None, share: int) -> None:
    whole = free_bytes(CPU)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("WORLD_SIZE", str(size))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if local:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
    assert free_bytes(CPU) == pytest.approx(whole / share, rel=0.3)  # others take and give memory meanwhile


# ------------------------------------------------------------------------------------------------- as measured


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of 4 million parameters, and data of 8,192 tokens a step: more than 500 MB each."""
    root, random = tmp_path_factory.mktemp("world"), Random(0)
    words = ["".join(random.choice("abcdefgh") for _ in range(5)) for _ in range(3000)]

    def text(n: int) -> str:
        return " ".join(random.choice(words) for _ in range(n))

    write_jsonl(root / "corpus.jsonl", [{"text": text(200)} for _ in range(300)])
    write_jsonl(root / "sft.jsonl", [{"prompt": text(20), "response": text(60)} for _ in range(400)])
    pairs = [{"prompt": text(20), "chosen": text(60), "rejected": text(60)} for _ in range(200)]
    write_jsonl(root / "pairs.jsonl", pairs)
    write_jsonl(root / "prompts.jsonl", [{"prompt": text(20)} for _ in range(200)])
    tokenize.run(TokenizeOptions(out=root / "tokens", data=[str(root / "corpus.jsonl")], vocab_size=2048))
    tokenizer = Tokenizer.load(root / "tokens")
    torch.manual_seed(0)
    model = GPT2(GPT2Config(vocab_size=tokenizer.vocab_size, n_positions=256, n_embd=256, n_layer=4, n_head=4))
    for name in ("base", "reward"):
        (root / name).mkdir()
    save_policy(root / "base", model, tokenizer)
    save_reward(root / "reward", ScalarModel(model), tokenizer)
    return root


MEASURED = {
    "pretrain": "--data {w}/tokens --model {w}/base --tokens 65536 --batch-tokens 16384",
    "sft": "--model {w}/base --data {w}/sft.jsonl --epochs 0.5 --batch-size 64",
    "reward": "--model {w}/base --data {w}/pairs.jsonl --epochs 0.7 --batch-size 64",
    "ppo": "--model {w}/base --reward-model {w}/reward --prompts {w}/prompts.jsonl --episodes 128 "
    "--allow-chance-reward-model --batch-size 64 --max-new-tokens 48 --ppo-epochs 1",
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read as Linux says it")
@pytest.mark.parametrize(
    ("stage", "size", "parallel"),
    [
        *((stage, 1, "ddp") for stage in MEASURED),
        *((stage, 2, "ddp") for stage in MEASURED),
        *((stage, 2, "fsdp") for stage in MEASURED),
    ],
)
def test_the_estimate_is_what_a_stage_takes_beyond_the_idle_program(
    world: Path, tmp_path: Path, stage: str, size: int, parallel: str
) -> None:
    command = [stage, *MEASURED[stage].format(w=world).split(), "--precision", "float32", "--parallel", parallel]
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    job = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port),
           "TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": "True", "CUDA_VISIBLE_DEVICES": "",
           "GLOO_SOCKET_IFNAME": "lo"}  # fmt: skip
    program = [sys.executable, str(Path(__file__).with_name("measured.py")), str(tmp_path / "grown"), *command]
    processes = []
    for rank in range(size):
        own = os.environ | (job | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if size > 1 else {})
        run = [*program, "--out", str(tmp_path / "out")]
        processes.append(subprocess.Popen(run, env=own, stderr=subprocess.PIPE, text=True))
    said = [process.communicate(timeout=3600)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * size, said
    match = re.search(r"about ([\d.]+) GB of memory per process", said[0])
    assert match
    estimated = float(match[1])
    for rank in range(size):
        grown = int((tmp_path / f"grown.{rank}").read_text()) / 1e9
        assert grown > 0.5
        assert estimated == pytest.approx(grown, rel=0.3)


# ------------------------------------------------------------------------------------------------- short of memory


def test_a_micro_batch_is_halved_until_it_fits() -> None:
    n = n_parameters(CONFIG)

    def fits(free: int, checkpointing: bool = False) -> int:
        workload = Workload(100_000, trained=(CONFIG,), checkpointing=checkpointing)
        return fitting_tokens(workload, CPU, torch.float32, 8192, free)

    step = step_bytes(CONFIG, torch.float32, 2048, False)
    step += round(0.8 * 2048 * activation_bytes(CONFIG, torch.float32, False))  # gaps in the heap
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
        with Session(options, {"model": GPT2(CONFIG)}, 2, "toy", lr=1e-3) as run:
            run.checkpoint(1)
        return run.micro_batch_tokens

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
        with Session(options, {"model": model}, 1, "toy", lr=1e-3):
            torch.manual_seed(1)  # the same dropout
            assert model.checkpoint_blocks is checkpointing
            model(ids).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------- adapters and frozen layers


TUNED = {
    "lora": TuningOptions(lora_rank=4),
    "freeze": TuningOptions(freeze_layers=2),
    "both": TuningOptions(lora_rank=4, freeze_layers=2),
}


def tuned_model(options: TuningOptions, dtype: torch.dtype) -> GPT2:
    model = tuned(GPT2(CONFIG), options, 0)
    hold_frozen(model, dtype)
    return model


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", TUNED.values(), ids=TUNED)
def test_a_partly_trained_model_takes_what_is_said(options: TuningOptions, dtype: torch.dtype) -> None:
    model, part = tuned_model(options, dtype), trained_part(CONFIG, options)
    tensors = [*model.parameters()] + ([centred(model.wte.weight, dtype)] if dtype != torch.float32 else [])
    assert sum(tensor.numel() * tensor.element_size() for tensor in tensors) == part.weights(CONFIG, dtype)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == part.parameters
    reference = GPT2(CONFIG).requires_grad_(False)
    reference.load_state_dict(model.state_dict(), strict=False)
    share_frozen(reference, model)
    frozen(reference, Compute(CPU, dtype))
    own = {p.data_ptr() for p in model.parameters()}
    copied = sum(p.numel() * p.element_size() for p in reference.parameters() if p.data_ptr() not in own)
    assert copied == part.frozen_copy_bytes(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", TUNED.values(), ids=TUNED)
def test_activations_are_kept_above_frozen_layers_only(options: TuningOptions, dtype: torch.dtype) -> None:
    model, ids = tuned_model(options, dtype), torch.randint(500, (8, 96))
    found = kept_bytes(model, lambda: model(ids), dtype)
    kept = replace(CONFIG, n_layer=CONFIG.n_layer - options.freeze_layers)
    # The lowest of these layers may keep less: its input needs no gradient.
    assert found == pytest.approx(ids.numel() * activation_bytes(kept, dtype, False), rel=0.2)


@pytest.mark.parametrize("options", TUNED.values(), ids=TUNED)
def test_the_arithmetic_of_partial_training_is_what_pytorch_counts(options: TuningOptions) -> None:
    thin = options.model_copy(update={"lora_rank": min(1, options.lora_rank)})  # adapters are not counted
    model, ids = tuned(GPT2(CONFIG), thin, 0), torch.randint(500, (4, 32))
    with FlopCounterMode(display=False) as counter:
        model.logits(model(ids)).sum().backward()
    found = training_flops(CONFIG, 128, 32, 128, trained_part(CONFIG, options))
    assert found == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_reference_value_and_reward_model_share_a_base() -> None:
    part = trained_part(CONFIG, TUNED["lora"])
    step = Workload(512, trained=(CONFIG, CONFIG), part=part, frozen_copies=2)
    two, one = (estimate(replace(step, one_base=same), CPU, torch.float32, 8192) for same in (False, True))
    base = 4 * n_parameters(CONFIG)
    assert two.weights == 2 * (base + 4 * part.parameters)
    assert one.weights == base + 2 * 4 * part.parameters
    assert (one.frozen, one.moments) == (0, 2 * 8 * part.parameters)
    sharded = estimate(replace(step, sharded=True, processes=4), CPU, torch.float32, 8192)
    assert sharded.weights == math.ceil(two.weights / 4)
    assert sharded.frozen == 2 * frozen_bytes(CONFIG, torch.float32), "parts of a sharded model cannot be shared"
