"""What the families of language models are called in Hugging Face's config.json. Imports no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """One `model_type` and its classes in `transformers`."""

    model_type: str
    prefix: str
    """Of the names of the transformer's tensors."""
    policy: str
    base: str
    """The transformer alone, whose files hold a language model if its output layer is tied."""
    reward: str
    """A classifier; one with a single label is a reward model."""


ARCHITECTURES = {
    architecture.model_type: architecture
    for architecture in (
        Architecture("gpt2", "transformer.", "GPT2LMHeadModel", "GPT2Model", "GPT2ForSequenceClassification"),
        Architecture("llama", "model.", "LlamaForCausalLM", "LlamaModel", "LlamaForSequenceClassification"),
        Architecture("qwen2", "model.", "Qwen2ForCausalLM", "Qwen2Model", "Qwen2ForSequenceClassification"),
        Architecture("qwen3", "model.", "Qwen3ForCausalLM", "Qwen3Model", "Qwen3ForSequenceClassification"),
    )
}
OWN_TYPE, OWN_REWARD = "wukong_reward", "WukongRewardModel"
"""Reward models that `transformers` has no class for, and so refuses: an MLP head, or another pooling than the last
token's."""
POLICIES = tuple(name for one in ARCHITECTURES.values() for name in (one.policy, one.base))
REWARDS = (*(one.reward for one in ARCHITECTURES.values()), OWN_REWARD)
