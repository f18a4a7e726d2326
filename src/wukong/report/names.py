"""The stages' names for readers."""

from __future__ import annotations

from wukong.errors import Text

STAGE_NAMES = {
    "kitchen": "Built-in world",
    "tokenize": "Text and tokenizer",
    "pretrain": "Pretraining",
    "sft": "Instruction fine-tuning",
    "sample": "Sampled answers",
    "label": "Labels",
    "reward": "Reward model",
    "ppo": "PPO",
    "reinforce": "REINFORCE",
    "rloo": "RLOO",
    "grpo": "GRPO",
    "bestofn": "Best of n",
    "dpo": "DPO",
    "kto": "KTO",
    "distill": "Distillation",
    "evaluate": "Evaluation",
    "reward-report": "Reward-model report",
    "compare": "Comparison",
    "frontier": "Frontier",
}


def stage_name(stage: str) -> Text:
    return Text(STAGE_NAMES.get(stage, stage))
