"""Decoding with our kernels, for each family: against plain loops, PyTorch's operations and `transformers`."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.model.conftest import shake
from tests.model.test_families import Sample, greedy_cached, in_our_names, theirs_of
from tests.reference import decoder_layer
from tests.reference.decoder_layer import LayerWeights
from wukong.model.attention import AttentionContext, KVCache
from wukong.model.config import GPT2Config, LlamaConfig, ModelConfig, RotaryScaling
from wukong.model.cpu import kernels
from wukong.model.cpu.native import NativeBlock, NativeModel
from wukong.model.decoding import decoding_path
from wukong.model.gpt2 import GPT2
from wukong.model.language_model import LanguageModel
from wukong.model.llama import Llama, LlamaBlock

pytestmark = pytest.mark.skipif(kernels.library() is None, reason="our kernels need Linux, a C++ compiler and AVX2")

LLAMA = LlamaConfig(
    vocab_size=50, n_positions=64, n_embd=48, n_layer=2, n_head=4, n_kv_head=2, head_width=16, n_inner=56
)
QWEN2, QWEN3 = replace(LLAMA, qkv_bias=True), replace(LLAMA, qk_norm=True, tied=False, head_width=32)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_ids(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 50, shape, generator=torch.Generator().manual_seed(seed))


def model_of(config: ModelConfig) -> LanguageModel:
    torch.manual_seed(0)
    model = (GPT2(config) if isinstance(config, GPT2Config) else Llama(config)).eval()
    shake(model)
    return model


# ------------------------------------------------------------------------------------- a layer against plain loops


def weights_of(block: LlamaBlock, config: LlamaConfig) -> LayerWeights:
    attn, mlp = block.self_attn, block.mlp

    def array(tensor: torch.Tensor | None) -> np.ndarray | None:
        return None if tensor is None else tensor.detach().double().numpy()

    return LayerWeights(
        heads=config.n_head,
        kv_heads=config.n_kv_head,
        epsilon=config.rms_norm_epsilon,
        input_norm=array(block.input_layernorm.weight),
        q=array(attn.q_proj.weight),
        k=array(attn.k_proj.weight),
        v=array(attn.v_proj.weight),
        o=array(attn.o_proj.weight),
        mlp_norm=array(block.post_attention_layernorm.weight),
        gate=array(mlp.gate_proj.weight),
        up=array(mlp.up_proj.weight),
        down=array(mlp.down_proj.weight),
        q_bias=array(attn.q_proj.bias),
        k_bias=array(attn.k_proj.bias),
        v_bias=array(attn.v_proj.bias),
        q_norm=array(attn.q_norm.weight) if config.qk_norm else None,
        k_norm=array(attn.k_norm.weight) if config.qk_norm else None,
    )


LAYERS = {
    "one key-value head": replace(LLAMA, n_kv_head=1, n_inner=70),
    "as many as queries": replace(LLAMA, n_head=3, n_kv_head=3, head_width=48, n_inner=33),
    "groups of 7, biases": replace(QWEN2, n_embd=64, n_head=14, n_kv_head=2),
    "norms of queries and keys, wide heads": replace(QWEN3, n_embd=32, n_head=4, head_width=128),
    "a head of 80": replace(LLAMA, n_head=6, n_kv_head=2, head_width=80, rms_norm_epsilon=0.1),
}


@pytest.mark.parametrize("config", LAYERS.values(), ids=LAYERS)
@torch.no_grad()
def test_a_llama_layer_is_that_of_plain_loops(library, config):
    """Rows of an empty cache, of a few slots and of so many that the kernel reads them in several blocks."""
    torch.manual_seed(0)
    block, lengths, D = LlamaBlock(config), [0, 5, 291, 40, 300, 1], config.head_width
    shake(block)
    cache = KVCache.empty(config, len(lengths), 301, like=torch.zeros(()))
    cache.advance(torch.tensor(lengths), max(lengths))
    for seed, tensor in enumerate((cache.keys[0], cache.values[0])):
        tensor.copy_(noise(*tensor.shape, seed=seed))
    before = [tensor.double().numpy().copy() for tensor in (cache.keys[0], cache.values[0])]
    frequencies = [1000.0 ** (-2 * i / D) for i in range(D // 2)]
    angles = torch.tensor([[n * f for f in frequencies] for n in lengths], dtype=torch.float64)[:, None, None]
    context = AttentionContext(cache=cache, rotary=(angles.cos().float(), angles.sin().float()))
    x = noise(len(lengths), 1, config.n_embd, seed=2)

    found = NativeBlock(library, block, config, torch.float32)(x, 0, context)

    weights = weights_of(block, config)
    for b, n in enumerate(lengths):
        past = (old[b, :, :n].swapaxes(0, 1) for old in before)  # (S, G, D) each
        y, *written = decoder_layer.layer(weights, x[b, 0].double().numpy(), *past, frequencies)
        torch.testing.assert_close(found[b, 0].double(), torch.tensor(y), rtol=1e-5, atol=2e-5)
        for expected, old, tensor in zip(written, before, (cache.keys[0], cache.values[0]), strict=True):
            now = torch.tensor(old[b])
            now[:, n] = torch.tensor(expected[n])
            torch.testing.assert_close(tensor[b].double(), now, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_swiglu_of_large_numbers(library):
    """exp(-gate) leaves float32's range from a gate of -88 downwards."""
    torch.manual_seed(0)
    block = LlamaBlock(LLAMA)
    block.mlp.gate_proj.weight.mul_(300)
    cache = KVCache.empty(LLAMA, 1, 4, like=torch.zeros(()))
    cache.advance(torch.tensor([1]), 1)
    x, still = noise(1, 1, 48), torch.ones(1, 1, 1, 8)
    context = AttentionContext(cache=cache, rotary=(still, 0 * still))
    found = NativeBlock(library, block, LLAMA, torch.float32)(x, 0, context)
    past = np.zeros((1, 2, 16))
    weights = weights_of(block, LLAMA)
    gates = weights.gate @ decoder_layer.rms_norm(x[0, 0].double().numpy(), weights.mlp_norm, 1e-5)
    assert gates.min() < -100
    expected, *_ = decoder_layer.layer(weights, x[0, 0].double().numpy(), past, past, [0.0] * 8)
    torch.testing.assert_close(found[0, 0].double(), torch.tensor(expected), rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------------- whole models


@torch.no_grad()
def decoded(native: LanguageModel, ids: torch.Tensor, lengths: list[int]) -> list[torch.Tensor]:
    """Hidden states of each row's tokens behind the first `lengths`, read one by one with a cache."""
    cache = native.empty_cache(len(ids), ids.shape[1])
    native(ids[:, : max(lengths)], lengths=torch.tensor(lengths), cache=cache)
    cache.advance(torch.tensor(lengths), max(lengths))
    found: list[list[torch.Tensor]] = [[] for _ in lengths]
    for _ in range(ids.shape[1] - max(lengths)):
        hidden = native(ids.gather(1, cache.lengths[:, None]), cache=cache)
        cache.advance()
        for row, one in enumerate(hidden):
            found[row].append(one[0])
    return [torch.stack(row) for row in found]


def gpt2(heads: int, width: int) -> GPT2Config:
    return GPT2Config(vocab_size=50, n_positions=64, n_embd=heads * width, n_layer=2, n_head=heads)


MODELS = {
    **{f"GPT-2, {heads} x {width}": gpt2(heads, width)
       for heads, width in [(2, 16), (3, 32), (1, 48), (2, 64), (1, 80), (1, 112), (1, 128)]},
    "Llama": replace(LLAMA, rotary_base=5e5, rotary_scaling=RotaryScaling(8.0, 1.0, 4.0, 32)),
    "Qwen2.5": QWEN2,
    "Qwen3": QWEN3,
}  # fmt: skip
FEW = {name: MODELS[name] for name in ("GPT-2, 3 x 32", "Llama", "Qwen2.5", "Qwen3")}
some_models = pytest.mark.parametrize("config", FEW.values(), ids=FEW)


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
@torch.no_grad()
def test_decoding_rows_of_different_lengths_equals_reading_them_whole(library, config):
    model, lengths, ids = model_of(config), [3, 20, 1, 11, 7], random_ids(5, 44)
    for row, found in enumerate(decoded(NativeModel(model, torch.float32), ids, lengths)):
        expected = model(ids[row : row + 1])[0, lengths[row] : lengths[row] + 24]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)


@some_models
@torch.no_grad()
def test_prompts_and_logits_are_the_models_own(library, config):
    model, ids = model_of(config), random_ids(3, 12)
    native, lengths = NativeModel(model, torch.float32), torch.tensor([12, 3, 7])
    hidden = model(ids, lengths=lengths)
    assert torch.equal(native(ids, lengths=lengths), hidden)
    assert torch.equal(native.logits(hidden), model.logits(hidden))
    torch.testing.assert_close(native.centred_logits(hidden), model.centred_logits(hidden), rtol=1e-5, atol=1e-4)


@some_models
@torch.no_grad()
def test_bfloat16_panels_and_cache_are_near(library, config):
    model, lengths, ids = model_of(config), [3, 20, 1], random_ids(3, 44)
    native = NativeModel(model, torch.bfloat16)
    for row, found in enumerate(decoded(native, ids, lengths)):
        expected = model(ids[row : row + 1])[0, lengths[row] : lengths[row] + 24]
        apart = (native.logits(found) - model.logits(expected)).abs()
        assert 1e-4 < apart.mean() < 2e-2 * model.logits(expected).std()
    cache = model.empty_cache(1, 5)
    cache.advance(torch.tensor([1]), 1)
    with pytest.raises(ValueError, match="empty_cache"):
        native(ids[:1, :1], cache=cache)


@some_models
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_sequence_decodes_to_the_same_bits_in_any_company(library, config, dtype):
    native, ids = NativeModel(model_of(config), dtype), random_ids(19, 30)
    together = decoded(native, ids, [4] * 19)
    # Prompts are PyTorch's work: the same prompt, read in the same company, is then continued by few or alone.
    cache = native.empty_cache(19, 30)
    native(ids[:, :4], lengths=torch.tensor([4] * 19), cache=cache)
    cache.advance(torch.tensor([4] * 19), 4)
    for rows in ([13], [13, 2], [5, 13, 0], [13, 1, 2, 3, 4], [*range(9), 13], [13, *range(13), *range(14, 17)]):
        fewer, of_13 = cache.select(torch.tensor(rows)), rows.index(13)
        for step in range(4, 30):
            hidden = native(ids[rows, step : step + 1], cache=fewer)
            assert torch.equal(hidden[of_13, 0], together[13][step - 4])
            fewer.advance()


@some_models
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [-1, 8, 9, 1 << 40])
@torch.no_grad()
def test_a_length_that_does_not_fit_the_cache_is_refused_before_anything_is_written(library, config, dtype, length):
    model = model_of(config)
    native = NativeModel(model, dtype)
    cache = native.empty_cache(3, 8)
    cache.advance(torch.tensor([2, 7, length]), 7)
    context = AttentionContext(cache=cache, rotary=model.rotary(cache.lengths[:, None]))
    with pytest.raises(ValueError, match=f"row 2 of the cache holds {length} tokens in 8 slots"):
        native.blocks[0](noise(3, 1, config.n_embd), 0, context)
    assert not any(tensor.any() for tensor in (*cache.keys, *cache.values))


@pytest.mark.parametrize("config", [gpt2(2, 16), QWEN3], ids=["GPT-2", "Qwen3"])
@torch.no_grad()
def test_decoding_goes_on_with_the_weights_that_were_copied(library, config):
    """All of them: norms that followed the original would be read where they no longer are."""
    model = model_of(config)
    native, ids = NativeModel(model, torch.float32), random_ids(3, 12)
    expected = decoded(native, ids, [4, 4, 4])
    cache = native.empty_cache(3, 12)
    native(ids[:, :4], lengths=torch.tensor([4, 4, 4]), cache=cache)
    cache.advance(torch.tensor([4, 4, 4]), 4)
    for parameter in model.blocks.parameters():
        parameter.fill_(torch.nan)
    found = native(ids[:, 4:5], cache=cache)[:, 0]
    assert torch.equal(found, torch.stack([row[0] for row in expected]))


@pytest.mark.parametrize("shape", [(1, 1, 48), (3, 1, 48), (2, 2, 48), (2, 1, 32)])
@pytest.mark.parametrize("config", [gpt2(3, 16), LLAMA], ids=["GPT-2", "Llama"])
@torch.no_grad()
def test_what_is_not_one_token_for_each_row_of_the_cache_is_refused(library, config, shape):
    model = model_of(config)
    native = NativeModel(model, torch.float32)
    cache = native.empty_cache(2, 8)
    cache.advance(torch.tensor([2, 3]), 3)
    context = AttentionContext(cache=cache, rotary=model.rotary(cache.lengths[:, None]))
    with pytest.raises(ValueError, match="is not one token in float32 for each of the cache's 2 rows"):
        native.blocks[0](noise(*shape), 0, context)


@pytest.mark.parametrize("changes", [{"head_width": 8}, {"head_width": 24}, {"head_width": 144}, {"n_embd": 40}])
def test_sizes_without_kernels_are_left_to_pytorch(library, changes):
    cpu = torch.device("cpu")
    assert decoding_path(LLAMA, cpu, torch.float32) == "native"
    assert decoding_path(replace(LLAMA, **changes), cpu, torch.float32) == "PyTorch"


def test_weights_that_are_not_float32_are_refused(library):
    """The kernels would misread the normalisations and biases, which they take as they are."""
    with pytest.raises(ValueError, match="float32"):
        NativeModel(Llama(LLAMA).bfloat16(), torch.bfloat16)


# -------------------------------------------------------------------------------------------------- transformers


SIZES = {
    "vocab_size": 280, "max_position_embeddings": 64, "hidden_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 88,
}  # fmt: skip
OURS = {
    "vocab_size": 280, "n_positions": 64, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_kv_head": 2, "n_inner": 88,
    "head_width": 16,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
FAMILIES = {
    "GPT-2": Sample(
        "GPT2",
        {"vocab_size": 280, "n_positions": 64, "n_embd": 64, "n_layer": 3, "n_head": 4},
        GPT2Config(vocab_size=280, n_positions=64, n_embd=64, n_layer=3, n_head=4),
    ),
    "Llama 3.2": Sample(
        "Llama",
        {**SIZES, "tie_word_embeddings": True, "rope_parameters": LLAMA3, "rms_norm_eps": 1e-5},
        LlamaConfig(**OURS, rotary_base=5e5, rotary_scaling=RotaryScaling(8.0, 1.0, 4.0, 32)),
    ),
    "SmolLM2": Sample(
        "Llama",
        {**SIZES, "num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 48, "tie_word_embeddings": True,
         "rope_parameters": {"rope_type": "default", "rope_theta": 1e5}, "rms_norm_eps": 1e-5},
        LlamaConfig(**{**OURS, "n_head": 3, "n_kv_head": 1, "n_embd": 48}, rotary_base=1e5),
    ),
    "Qwen2.5": Sample(
        "Qwen2",
        {**SIZES, "tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        LlamaConfig(**OURS, qkv_bias=True, rotary_base=1e6, rms_norm_epsilon=1e-6),
    ),
    "Qwen3": Sample(
        "Qwen3",
        {**SIZES, "tie_word_embeddings": False, "head_dim": 32,
         "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        LlamaConfig(**{**OURS, "head_width": 32}, qk_norm=True, tied=False, rotary_base=1e6, rms_norm_epsilon=1e-6),
    ),
}  # fmt: skip


@pytest.mark.parametrize("sample", FAMILIES.values(), ids=FAMILIES)
@torch.no_grad()
def test_greedy_decoding_equals_transformers_token_for_token(library, sample):
    theirs = theirs_of(sample)
    theirs.generation_config.eos_token_id = None
    ours = model_of(sample.ours)
    ours.load_state_dict(in_our_names(theirs, theirs.state_dict()))
    native = NativeModel(ours, torch.float32)
    prompts = [torch.randint(0, 280, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (1, 7, 20)]
    for prompt, found in zip(prompts, greedy_cached(native, prompts, 24), strict=True):
        ids = torch.tensor([prompt])  # with a mask, or a token 0 in the prompt would be taken for padding
        out = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, pad_token_id=0
        )
        expected = out[0, len(prompt) :].tolist()
        assert len(expected) == 24
        assert found == expected
