"""Small runs of every online algorithm with a trace."""

from collections.abc import Callable
from pathlib import Path

import torch

from wukong.model.gpt2 import GPT2, GPT2Config
from wukong.model.heads import ScalarModel
from wukong.model.hub import save_policy, save_reward
from wukong.records import Prompt, as_messages, write_records
from wukong.stages.online import bestofn, grpo, ppo, reinforce, rloo
from wukong.stages.online.algorithm import OnlineOptions
from wukong.stages.online.bestofn import BestOfNOptions
from wukong.stages.online.grpo import GRPOOptions
from wukong.stages.online.ppo import PPOOptions
from wukong.stages.online.reinforce import ReinforceOptions
from wukong.stages.online.rloo import RLOOOptions
from wukong.tokenizer import Tokenizer

RUNS: dict[str, tuple[type[OnlineOptions], Callable, dict]] = {
    "ppo": (PPOOptions, ppo.run, {"minibatch_size": 4, "whiten_rewards": True, "gamma": 0.99}),
    "shared": (PPOOptions, ppo.run, {"value_model": "shared", "missing_eos_score": -1.0}),
    "running": (ReinforceOptions, reinforce.run, {}),
    "learned": (ReinforceOptions, reinforce.run, {"baseline": "learned"}),
    "rloo": (RLOOOptions, rloo.run, {"samples_per_prompt": 4}),
    "grpo": (GRPOOptions, grpo.run, {"samples_per_prompt": 4, "epochs": 2, "minibatch_size": 8}),
    "grpo-reward": (GRPOOptions, grpo.run, {"samples_per_prompt": 4, "kl_in": "reward", "scale": "batch"}),
    "bestofn": (BestOfNOptions, bestofn.run, {"samples_per_prompt": 4}),
}
FAST = {"tensorboard": False, "precision": "float32", "checkpoint_seconds": 1e9, "missing_eos_score": None}
TINY = GPT2Config(vocab_size=257, n_positions=64, n_embd=16, n_layer=1, n_head=2)
TRACE = {"trace": 2, "trace_every": 1, "trace_prompts": ["say: 好"]}


def world(root: Path) -> Path:
    """sft/, reward/ and prompts.jsonl; the policy often ends its answers."""
    tokenizer = Tokenizer.train([], 257, "plain")
    for name in ("sft", "reward"):
        (root / name).mkdir()
        torch.manual_seed(len(name))
        model = GPT2(TINY)
        if name == "sft":
            with torch.no_grad():
                model.wte.weight[tokenizer.eos_id] += 0.5
            save_policy(root / name, model, tokenizer)
        else:
            save_reward(root / name, ScalarModel(model), tokenizer)
    write_records(root / "prompts.jsonl", [Prompt(messages=as_messages(f"say {n}")) for n in range(12)])
    return root


def options_of(root: Path, name: str, out: str, **changes) -> OnlineOptions:
    kind, _, own = RUNS[name]
    given = {"model": str(root / "sft"), "reward_model": str(root / "reward"), "prompts": [str(root / "prompts.jsonl")]}
    given |= {"episodes": 48, "batch_size": 16, "max_new_tokens": 12, "lr": 3e-3, "kl_coef": 0.1}
    return kind(out=root / out, **(given | FAST | own | changes))


def run(options: OnlineOptions) -> Path:
    next(run for kind, run, _ in RUNS.values() if type(options) is kind)(options)
    return options.out
