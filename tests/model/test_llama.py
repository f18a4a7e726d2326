"""The Llama family against `transformers` on tiny random weights: Llama 3.2, SmolLM2, Qwen2.5, Qwen3."""

import pytest
import torch

from tests.model.conftest import shake
from wukong.model.attention import AttentionContext, attend
from wukong.model.config import LlamaConfig, RotaryScaling
from wukong.model.llama import Llama
from wukong.model.rotary import rotary_frequencies, rotate

SIZES = {"vocab_size": 280, "n_positions": 64, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 56}
SCALING = RotaryScaling(factor=8.0, low=1.0, high=4.0, original_positions=16)


def test_frequencies_are_a_plain_loops():
    """Section by section of Llama 3's scaling, as its authors published it (reference in `RotaryScaling`)."""
    config = LlamaConfig(head_width=64, rotary_base=500_000.0, rotary_scaling=RotaryScaling(32.0, 1.0, 4.0, 8192))
    expected = []
    for pair in range(32):
        frequency = 500_000.0 ** (-2 * pair / 64)
        wavelength = 2 * 3.141592653589793 / frequency
        if wavelength > 8192 / 1.0:
            frequency /= 32
        elif wavelength > 8192 / 4.0:
            smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
            frequency = (1 - smooth) * frequency / 32 + smooth * frequency
        expected.append(frequency)
    torch.testing.assert_close(rotary_frequencies(config), torch.tensor(expected), rtol=1e-5, atol=0)


def test_a_rotated_product_depends_on_the_distance_alone():
    """Two numbers are a point of the plane: turned by 30 and 90 degrees, its products are those of 0 and 60."""
    q, k = torch.tensor([[[3.0, 1.0]]]), torch.tensor([[[0.5, 2.0]]])  # (1, H, D)

    def turned(heads, degrees):
        angle = torch.deg2rad(torch.tensor([[[float(degrees)]]]))
        return rotate(heads, (angle.cos(), angle.sin()))

    product = (turned(q, 30) * turned(k, 90)).sum()
    torch.testing.assert_close(product, (q * turned(k, 60)).sum())
    torch.testing.assert_close(
        turned(torch.tensor([[[1.0, 0.0]]]), 90), torch.tensor([[[0.0, 1.0]]]), atol=1e-6, rtol=0
    )


def test_positions_count_from_the_start_of_a_segment():
    torch.manual_seed(0)
    model = Llama(LlamaConfig(**SIZES, n_kv_head=2, head_width=8))
    shake(model)
    ids = torch.arange(20).reshape(1, 20)
    segments = torch.tensor([[0] * 11 + [1] * 9])
    with torch.no_grad():
        found = model(ids, segments=segments)[:, 11:]
        torch.testing.assert_close(found, model(ids[:, 11:]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("group", "masked"), [(1, False), (2, False), (4, False), (2, True)])
def test_grouped_attention_is_that_of_repeated_keys(group, masked):
    """Against plain softmax attention in which each key-value head is repeated for its query heads."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 7, heads, 8, generator=generator) for heads in (4, 4 // group, 4 // group))
    mask = torch.ones(7, 7, dtype=torch.bool).tril()
    if masked:
        mask = mask & (torch.arange(7)[:, None] - torch.arange(7) < 3)
    found = attend(q, k, v, 0, AttentionContext(mask[None, None] if masked else None))
    for b in range(2):
        for head in range(4):
            scores = q[b, :, head] @ k[b, :, head // group].T / 8**0.5
            expected = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v[b, :, head // group]
            torch.testing.assert_close(found[b, :, head * 8 : head * 8 + 8], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_kv_head": 3}, "n_head 4 is not a multiple of n_kv_head 3"),
        ({"head_width": 7}, "head_width 7 is odd"),
        ({"qkv_bias": True, "qk_norm": True}, "no released model has both"),
    ],
)
def test_impossible_sizes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        LlamaConfig(**{**SIZES, "n_kv_head": 2, "head_width": 8, **changes})


def test_a_scaling_that_shortens_is_refused():
    with pytest.raises(ValueError, match="does not lengthen a context"):
        RotaryScaling(factor=0.5)


def test_swiglu_is_gated_by_silu():
    torch.manual_seed(0)
    model = Llama(LlamaConfig(**SIZES, n_kv_head=2, head_width=8))
    mlp, x = model.blocks[0].mlp, torch.randn(3, 32)
    gate, up = x @ mlp.gate_proj.weight.T, x @ mlp.up_proj.weight.T
    expected = (gate * torch.sigmoid(gate) * up) @ mlp.down_proj.weight.T
    torch.testing.assert_close(mlp(x), expected, rtol=1e-5, atol=1e-6)
