"""PPO for a language model in one file, in the order of the algorithm. For a reader of the papers; `wukong ppo` is the
same algorithm with micro-batches, several processes, bfloat16, checkpoints, guards and other rewards, and a test holds
the two to the same tokens and weights.

    wukong run kitchen                         # makes the models and prompts
    python examples/ppo_in_one_file.py runs/kitchen --iterations 36

Papers: Schulman et al. 2017 (PPO), Schulman et al. 2016 (GAE), Ziegler et al. 2019 (language models, KL penalty),
Stiennon et al. 2020 (a value model that starts from the reward model).

Shape legend: B responses in a batch, T prompt + response in tokens, C channels, V vocabulary. Position t holds token t
and predicts token t + 1, so everything about *actions* has T - 1 columns, and `mask` is True where the token predicted
belongs to the response.
"""

import argparse
import copy
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wukong.model.gpt2 import GPT2
from wukong.model.heads import ScalarModel
from wukong.model.hub import load_policy, load_reward
from wukong.seeds import derived_seed, permutation


@dataclass
class Config:
    iterations: int = 36
    batch_size: int = 64  # responses an iteration
    minibatch_size: int = 32  # responses an update
    ppo_epochs: int = 2  # passes over each batch
    max_new_tokens: int = 112
    temperature: float = 0.7
    lr: float = 1.2e-4  # falls linearly to 0
    kl_coef: float = 0.03  # beta, nats
    gamma: float = 1.0
    lam: float = 0.95  # lambda of GAE
    clip_range: float = 0.2
    value_clip_range: float = 0.2
    value_coef: float = 0.1
    max_grad_norm: float = 1.0
    missing_eos_score: float = -1.0  # of a response that never ended, in place of its reward
    seed: int = 0


@torch.no_grad()
def generate(policy: GPT2, prompts: list[list[int]], eos: int, seed: int, config: Config) -> tuple[Tensor, Tensor]:
    """Samples a response to each prompt: sequences (B, T) padded with 0 on the right, and the mask (B, T - 1)."""
    B, n = len(prompts), config.max_new_tokens
    lengths = torch.tensor([len(prompt) for prompt in prompts])  # (B,)
    P = int(lengths.max())
    ids = torch.zeros(B, P + n, dtype=torch.int64)
    mask = torch.zeros(B, P + n - 1, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    # Each response draws from random numbers of its own, so that it does not depend on the others in the batch.
    noise = [np.random.Generator(np.random.Philox(derived_seed(seed, i))).random(n, np.float32) for i in range(B)]
    u = torch.tensor(np.array(noise))  # (B, n) in [0, 1)
    cache = policy.empty_cache(B, P + n)
    hidden = policy(ids[:, :P], cache=cache)  # (B, P, C); padding is on the right, where causal attention never looks
    cache.advance(lengths, P)
    last, writing, rows = hidden[torch.arange(B), lengths - 1], torch.ones(B, dtype=torch.bool), torch.arange(B)
    for step in range(n):
        cumulative = (policy.logits(last) / config.temperature).softmax(-1).cumsum(-1)  # (B, V)
        token = torch.searchsorted(cumulative, u[:, step : step + 1] * cumulative[:, -1:], right=True).squeeze(1)
        ids[rows[writing], lengths[writing] + step] = token[writing]
        mask[rows[writing], lengths[writing] + step - 1] = True
        writing = writing & (token != eos)
        if not writing.any():
            break
        last = policy(token.unsqueeze(1), cache=cache).squeeze(1)
        cache.advance()
    T = int(mask.sum(1).add(lengths).max())
    return ids[:, :T], mask[:, : T - 1]


def logprobs_of(model: GPT2, ids: Tensor, config: Config) -> Tensor:
    """log pi of each token given those before it, at the sampling temperature: (B, T) -> (B, T - 1)."""
    logits = model.logits(model(ids[:, :-1])) / config.temperature  # (B, T - 1, V)
    return logits.log_softmax(-1).gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, config: Config) -> Tensor:
    """Advantages (B, T - 1). After the last token of a response the value is 0."""
    advantages, next_advantage, next_value = torch.zeros_like(rewards), torch.zeros(len(rewards)), torch.zeros(1)
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + config.gamma * next_value - values[:, t]
        next_advantage = torch.where(mask[:, t], delta + config.gamma * config.lam * next_advantage, 0)
        next_value = torch.where(mask[:, t], values[:, t], 0)
        advantages[:, t] = next_advantage
    return advantages


def train(policy: GPT2, reward_model: ScalarModel, eos: int, prompts: list[list[int]], config: Config) -> list[Tensor]:
    """Trains the policy in place, and prints what happens. Returns the sequences sampled, one tensor an iteration."""
    reference = copy.deepcopy(policy).eval().requires_grad_(False)
    value_model = copy.deepcopy(reward_model).eval()  # no dropout anywhere: the first ratio must be 1
    policy.eval()
    optimizer = torch.optim.AdamW(
        [*policy.parameters(), *value_model.parameters()], lr=config.lr, eps=1e-5, weight_decay=0.0
    )
    sampled = []
    for iteration in range(config.iterations):
        optimizer.param_groups[0]["lr"] = config.lr * (1 - iteration / config.iterations)
        # ---- 1. the policy answers a batch of prompts; epochs over the prompts follow each other without a gap
        first = iteration * config.batch_size
        where = [divmod(i, len(prompts)) for i in range(first, first + config.batch_size)]
        batch = [prompts[permutation(len(prompts), config.seed, "epoch", epoch)[place]] for epoch, place in where]
        ids, mask = generate(policy, batch, eos, derived_seed(config.seed, "roll", iteration), config)  # (B, T)
        sampled.append(ids)
        # ---- 2. what policy, reference, value model and reward model say of the responses
        with torch.no_grad():
            old_logprobs, reference_logprobs = (logprobs_of(model, ids, config) for model in (policy, reference))
            old_values = value_model.token_scores(ids[:, :-1])  # (B, T - 1), of the state before each token
            last = mask.shape[1] - 1 - mask.flip(1).int().argmax(1)  # (B,) the column of each response's last token
            ended = ids[torch.arange(len(ids)), last + 1] == eos
            scores = reward_model(ids, torch.where(ended, last + 1, last + 2))  # read without the end token
            scores = torch.where(ended, scores, config.missing_eos_score)
        # ---- 3. rewards: the KL penalty at every token, the score at the last one
        kl = torch.where(mask, old_logprobs - reference_logprobs, 0)
        rewards = -config.kl_coef * kl
        rewards[torch.arange(len(ids)), last] += scores
        # ---- 4. advantages, whitened over all response tokens; returns are what values are trained towards
        advantages = gae(rewards, old_values, mask, config)
        returns = torch.where(mask, advantages + old_values, 0)
        mean, variance = advantages[mask].mean(), advantages[mask].var(correction=0)
        advantages = (advantages - mean) * torch.rsqrt(variance + 1e-8)
        # ---- 5. a few epochs of minibatches with the clipped losses
        ratio = torch.ones(1)
        for epoch in range(config.ppo_epochs):
            order = permutation(len(ids), config.seed, "minibatches", iteration, epoch)
            for mb in torch.tensor(order).split(config.minibatch_size):
                m = mask[mb]
                mb_advantages, mb_returns, mb_old_values = advantages[mb][m], returns[mb][m], old_values[mb][m]  # (N,)
                ratio = (logprobs_of(policy, ids[mb], config)[m] - old_logprobs[mb][m]).exp()
                clipped = ratio.clamp(1 - config.clip_range, 1 + config.clip_range)
                policy_loss = torch.maximum(-mb_advantages * ratio, -mb_advantages * clipped).mean()
                values = value_model.token_scores(ids[mb][:, :-1])[m]
                v_range = config.value_clip_range
                near = mb_old_values + (values - mb_old_values).clamp(-v_range, v_range)
                value_loss = 0.5 * torch.maximum((values - mb_returns) ** 2, (near - mb_returns) ** 2).mean()
                (policy_loss + config.value_coef * value_loss).backward()
                for model in (policy, value_model):
                    torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
        print(
            f"iteration {iteration + 1:3d}: score {scores.mean():6.3f}  KL {kl.sum(1).mean():6.3f}  "
            f"length {mask.sum(1).float().mean():5.1f}  ended {ended.float().mean():4.0%}  "
            f"losses {policy_loss:7.4f} {value_loss:6.4f}  ratio {ratio.min():.2f} to {ratio.max():.2f}",
            flush=True,
        )
    return sampled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run of the recipe kitchen")
    parser.add_argument("--iterations", type=int, default=Config.iterations)
    parser.add_argument("--max-new-tokens", type=int, default=Config.max_new_tokens)
    arguments = parser.parse_args()
    config = Config(arguments.iterations, max_new_tokens=arguments.max_new_tokens)
    policy, tokenizer = load_policy(arguments.run / "sft")
    reward_model, _ = load_reward(arguments.run / "reward")
    lines = (arguments.run / "data" / "prompts-train.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = [tokenizer.prompt_ids(json.loads(line)["messages"]) for line in lines]
    train(policy, reward_model, tokenizer.eos_id, prompts, config)


if __name__ == "__main__":
    main()
