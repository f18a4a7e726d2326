"""The sizes and switches of a language model, one class a family."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockSizes:
    """The parameters of one transformer block."""

    matrices: int
    """Weights of its linear layers."""
    biases: int
    """Their biases."""
    norms: int
    """Of its normalisation layers."""

    @property
    def total(self) -> int:
        return self.matrices + self.biases + self.norms


@dataclass(frozen=True)
class KeptNumbers:
    """What a block keeps per token for the backward pass."""

    normalised: int
    """The inputs of normalisation layers, in float32."""
    computed: int
    """The inputs of matrices, activation functions and attention, in the compute precision."""


@dataclass(frozen=True)
class GPT2Config:
    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    dropout: float = 0.0
    """One rate for embeddings, attention and residuals; the stages set it, a saved model does not carry it."""
    layer_norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")

    @property
    def n_kv_head(self) -> int:
        return self.n_head

    @property
    def head_width(self) -> int:
        return self.n_embd // self.n_head

    @property
    def block(self) -> BlockSizes:
        C = self.n_embd
        return BlockSizes(matrices=12 * C * C, biases=9 * C, norms=4 * C)

    @property
    def kept_by_block(self) -> KeptNumbers:
        """C, C, C and 4 C before the matrices, 3 C for queries, keys and values, 4 C before the GELU."""
        return KeptNumbers(normalised=2 * self.n_embd, computed=14 * self.n_embd)

    @property
    def outside_blocks(self) -> int:
        """Parameters of the embeddings and the final LayerNorm."""
        return (self.vocab_size + self.n_positions + 2) * self.n_embd


@dataclass(frozen=True)
class RotaryScaling:
    """Llama 3's scaling of rotary positions for contexts longer than those of pretraining: frequencies whose wavelength
    exceeds original_positions / low are divided by `factor`, those below original_positions / high are kept, and those
    in between are interpolated (Dubey et al. 2024, arXiv 2407.21783; "llama3" in `transformers`)."""

    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    original_positions: int = 8192

    def __post_init__(self) -> None:
        if not (self.factor >= 1 and 0 < self.low < self.high and self.original_positions >= 1):
            raise ValueError(f"{self} does not lengthen a context")


@dataclass(frozen=True)
class LlamaConfig:
    """The Llama family: Llama 2 and 3, SmolLM2; with `qkv_bias` Qwen2 and Qwen2.5, with `qk_norm` Qwen3."""

    vocab_size: int = 32000
    n_positions: int = 2048
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_kv_head: int = 12
    """Key-value heads, each shared by n_head / n_kv_head query heads (Ainslie et al. 2023)."""
    head_width: int = 64
    n_inner: int = 2048
    """Width of the SwiGLU."""
    tied: bool = True
    """Whether the output layer is the token embedding."""
    qkv_bias: bool = False
    qk_norm: bool = False
    rotary_base: float = 10_000.0
    rotary_scaling: RotaryScaling | None = None
    rms_norm_epsilon: float = 1e-5
    dropout: float = 0.0
    """One rate for embeddings, attention and residuals; the stages set it, a saved model does not carry it."""

    def __post_init__(self) -> None:
        if self.n_head % self.n_kv_head:
            raise ValueError(f"n_head {self.n_head} is not a multiple of n_kv_head {self.n_kv_head}")
        if self.head_width % 2:
            raise ValueError(f"head_width {self.head_width} is odd: rotary positions turn pairs of numbers")
        if self.qkv_bias and self.qk_norm:
            raise ValueError("qkv_bias is Qwen2's and qk_norm Qwen3's: no released model has both")

    @property
    def block(self) -> BlockSizes:
        C, D = self.n_embd, self.head_width
        queries, keys = self.n_head * D, self.n_kv_head * D
        return BlockSizes(
            matrices=C * (2 * queries + 2 * keys) + 3 * C * self.n_inner,
            biases=self.qkv_bias * (queries + 2 * keys),
            norms=2 * C + self.qk_norm * 2 * D,
        )

    @property
    def kept_by_block(self) -> KeptNumbers:
        """C twice and once the heads' and the SwiGLU's width before the matrices, queries, keys and values, and the
        three tensors of which the SwiGLU is made."""
        queries, keys = self.n_head * self.head_width, self.n_kv_head * self.head_width
        return KeptNumbers(
            normalised=2 * self.n_embd + self.qk_norm * (queries + keys),
            computed=2 * self.n_embd + 2 * queries + 2 * keys + 4 * self.n_inner,
        )

    @property
    def outside_blocks(self) -> int:
        """Parameters of the embedding, the output layer (unless it is tied) and the final RMSNorm."""
        return ((1 if self.tied else 2) * self.vocab_size + 1) * self.n_embd


ModelConfig = GPT2Config | LlamaConfig
