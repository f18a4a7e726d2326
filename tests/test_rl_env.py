"""The environment: Gymnasium's own checker, equality with what `wukong ppo` computes, and another framework's PPO."""

import copy
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from wukong.errors import UsageError
from wukong.feedback.annotators import load_judge
from wukong.model.gpt2 import GPT2, PRESETS, GPT2Config
from wukong.model.heads import ScalarModel
from wukong.model.hub import save_policy, save_reward
from wukong.records import Prompt, as_messages, write_records
from wukong.rl_env import ResponseEnv, next_logprobs, sb3_ppo
from wukong.stages.online import ppo
from wukong.stages.online.ppo import PPOOptions
from wukong.tokenizer import Tokenizer

PROMPTS = ["how are you", "hi", "what is new"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([], 257, "plain")


def gpt2(seed: int) -> GPT2:
    """The `test` preset with its bytes as vocabulary; weights large enough that models differ in what they say."""
    torch.manual_seed(seed)
    model = GPT2(GPT2Config(vocab_size=257, **PRESETS["test"]))
    with torch.no_grad():
        model.wte.weight.mul_(20)
    return model.eval()


def reward(seed: int) -> ScalarModel:
    torch.manual_seed(seed)
    return ScalarModel(gpt2(seed)).eval()


def environment(tokenizer: Tokenizer, **changes) -> ResponseEnv:
    settings = {"max_new_tokens": 6, "policy_logprobs": next_logprobs(gpt2(1)), **changes}
    return ResponseEnv(gpt2(0), reward(2), tokenizer, PROMPTS, **settings)


def test_it_passes_gymnasiums_checker_without_a_warning(tokenizer: Tokenizer):
    gymnasium.register("wukong/Response-v0", lambda **settings: environment(tokenizer, **settings))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            env = gymnasium.make("wukong/Response-v0", render_mode="ansi")
            check_env(env.unwrapped)
    finally:
        gymnasium.registry.pop("wukong/Response-v0")


def test_a_judge_scores_the_response_with_the_answer_of_its_prompt(tokenizer: Tokenizer):
    prompts = [Prompt(messages=as_messages(text), answer=answer) for text, answer in (("hi", "ho"), ("1 + 1", "2"))]
    env = ResponseEnv(gpt2(0), load_judge("exact"), tokenizer, prompts, max_new_tokens=6, kl_coef=0)
    for number, text, score in ((0, "ho", 1.0), (1, "ho", 0.0), (1, "2", 1.0)):
        env.reset(seed=0, options={"prompt": number})
        for token in tokenizer.response_ids(text, finished=True):
            _, reward, over, _, info = env.step(token)
        assert (over, reward, info["score"]) == (True, score, score)


def test_an_episode_is_one_response(tokenizer: Tokenizer):
    env = environment(tokenizer, render_mode="ansi")
    observation, info = env.reset(seed=0, options={"prompt": 1})
    prompt = tokenizer.prompt_ids("hi")
    assert info == {"prompt": 1}
    assert observation[: len(prompt)].tolist() == prompt
    assert (observation[len(prompt) :] == -1).all()
    for number, token in enumerate(b"yes", start=1):
        observation, _, terminated, truncated, info = env.step(tokenizer.encode(chr(token))[0])
        assert (terminated, truncated, "score" in info) == (False, False, False)
        assert (observation >= 0).sum() == len(prompt) + number
    _, reward_at_end, terminated, truncated, info = env.step(tokenizer.eos_id)
    assert (terminated, truncated) == (True, False)
    assert (info["response"], info["finish_reason"]) == ("yes", "stop")
    ids = prompt + tokenizer.encode("yes")
    with torch.no_grad():
        expected = float(env.reward_model(torch.tensor([ids]), torch.tensor([len(ids)])))
    assert info["score"] == pytest.approx(expected, abs=1e-5)
    assert reward_at_end == pytest.approx(info["score"] - env.kl_coef * info["kl"])
    assert env.render().startswith("hi")
    with pytest.raises(UsageError, match="call reset"):
        env.step(0)


def test_a_response_that_is_cut_is_over_and_has_the_fixed_score(tokenizer: Tokenizer):
    env = environment(tokenizer, max_new_tokens=2, kl_coef=0.0)
    env.reset(seed=0)
    assert env.step(5)[1:4] == (0.0, False, False)
    _, earned, terminated, truncated, info = env.step(5)
    assert (earned, terminated, truncated, info["finish_reason"]) == (-1.0, True, False, "length")
    kept = environment(tokenizer, max_new_tokens=1, kl_coef=0.0, missing_eos_score=None)
    kept.reset(seed=0)
    assert kept.step(5)[4]["score"] != -1.0


def test_the_penalty_is_the_log_ratio_at_the_temperature(tokenizer: Tokenizer):
    env = environment(tokenizer, kl_coef=0.5, temperature=0.7, policy_logprobs=next_logprobs(gpt2(1), 0.7))
    env.reset(options={"prompt": 0})
    ids = tokenizer.prompt_ids(PROMPTS[0])
    for token in (70, 71, 72):
        _, earned, *_ = env.step(token)
        with torch.no_grad():
            p, q = (
                (model.logits(model(torch.tensor([ids])))[0, -1] / 0.7).log_softmax(-1)[token]
                for model in (gpt2(1), gpt2(0))
            )
        assert earned == pytest.approx(-0.5 * float(p - q), abs=1e-4)
        ids.append(token)


def spied(monkeypatch, name: str, keep) -> None:
    """Calls `keep(result, *arguments)` whenever a stage calls the function it imported under this name."""
    modules = [m for key, m in sys.modules.items() if key.startswith("wukong.stages.") and hasattr(m, name)]
    assert modules
    for module in modules:
        real = getattr(module, name)

        def call(*arguments, real=real, **named):
            result = real(*arguments, **named)
            keep(result, *arguments)
            return result

        monkeypatch.setattr(module, name, call)


def test_its_returns_equal_those_of_the_trainer(tmp_path: Path, tokenizer: Tokenizer, monkeypatch):
    """`wukong ppo` itself runs for three iterations. Its responses, said again token by token to the environment, with
    the policy of that moment, earn the same rewards, each token and in sum."""
    for name in ("sft", "reward"):
        (tmp_path / name).mkdir()
    save_policy(tmp_path / "sft", gpt2(0), tokenizer)
    save_reward(tmp_path / "reward", reward(2), tokenizer)
    write_records(tmp_path / "prompts.jsonl", [Prompt(messages=as_messages(text)) for text in PROMPTS])
    rollouts, rewards = [], []
    # Responses by the policy itself, of which a copy can be kept.
    monkeypatch.setattr("wukong.stages.online.rollouts.inference_copy", lambda policy, compute: policy)
    spied(
        monkeypatch, "generate",
        lambda sampled, model, prompts: rollouts.append((copy.deepcopy(model), list(prompts), copy.deepcopy(sampled))),
    )  # fmt: skip
    spied(monkeypatch, "token_rewards", lambda found, *arguments: rewards.append(found.clone()))
    settings = {"kl_coef": 0.3, "temperature": 0.8, "max_new_tokens": 6}
    options = PPOOptions(
        out=tmp_path / "policy", model=str(tmp_path / "sft"), reward_model=str(tmp_path / "reward"),
        prompts=[str(tmp_path / "prompts.jsonl")], episodes=36, batch_size=12, lr=3e-3, lr_schedule="constant",
        tensorboard=False, precision="float32", max_kl=1e6, **settings,
    )  # fmt: skip
    ppo.run(options)
    logged = [json.loads(line) for line in (tmp_path / "policy" / "metrics.jsonl").read_text().splitlines()]
    env = ResponseEnv.load(tmp_path / "sft", tmp_path / "reward", PROMPTS, **settings)
    assert len(rollouts) == len(rewards) == len(logged) == 3
    assert logged[-1]["kl"] > 0.1, "the last policy is not the reference any more"
    for (policy, prompts, sampled), expected, line in zip(rollouts, rewards, logged, strict=True):
        env.policy_logprobs = next_logprobs(policy, settings["temperature"])
        returns = []
        for prompt, response, of_trainer in zip(prompts, sampled, expected, strict=True):
            env.reset(options={"prompt": env.prompts.index(list(prompt))})
            earned = [env.step(token)[1] for token in response.ids]
            assert earned == pytest.approx(of_trainer[: len(earned)].tolist(), abs=1e-4)
            returns.append(sum(earned))
        assert np.mean(returns) == pytest.approx(line["score"] - settings["kl_coef"] * line["kl"], abs=1e-4)


def returns_of(env: ResponseEnv, agent, episodes: int) -> np.ndarray:
    found = []
    for number in range(episodes):
        observation, _ = env.reset(options={"prompt": number % len(env.prompts)})
        total, over = 0.0, False
        while not over:
            action, _ = agent.predict(observation, deterministic=False)
            observation, earned, over, _, _ = env.step(action)
            total += earned
        found.append(total)
    return np.array(found)


@pytest.mark.slow
def test_stable_baselines3_starts_as_the_language_model_and_raises_the_reward(tokenizer: Tokenizer):
    """1,536 tokens of its PPO; the mean return of fresh responses rises by more than four standard errors (11 when this
    was written, 8 after half of the tokens with another seed)."""

    def bandit() -> ResponseEnv:
        env = environment(tokenizer, max_new_tokens=2, kl_coef=0.02, missing_eos_score=None)
        env.reward_model.rescale(4.0, 0.0)  # about 1 standard deviation over random responses
        env.reset(seed=0)
        return env

    env, fresh = bandit(), bandit()
    agent = sb3_ppo(env, env.reference, n_steps=256, batch_size=64, n_epochs=4, learning_rate=3e-3, gamma=1.0, seed=0)
    fresh.policy_logprobs = env.policy_logprobs
    tokens = tokenizer.prompt_ids("hi")
    assert env.policy_logprobs(tokens) == pytest.approx(next_logprobs(env.reference)(tokens), abs=1e-4)
    frozen = [parameter.clone() for parameter in env.reference.parameters()]
    before = returns_of(fresh, agent, 120)
    agent.learn(1536)
    after = returns_of(fresh, agent, 120)
    error = np.sqrt(before.var(ddof=1) / 120 + after.var(ddof=1) / 120)
    assert after.mean() - before.mean() > 4 * error, (before.mean(), after.mean(), error)
    assert all(torch.equal(a, b) for a, b in zip(frozen, env.reference.parameters(), strict=True))


def test_what_cannot_be_is_one_line(tokenizer: Tokenizer):
    with pytest.raises(UsageError, match="max_new_tokens 64 must be at least 1 and below the context of 64"):
        environment(tokenizer, max_new_tokens=64)
    with pytest.raises(UsageError, match="at least one prompt"):
        ResponseEnv(gpt2(0), reward(2), tokenizer, [], max_new_tokens=6)
    env = environment(tokenizer, policy_logprobs=None)
    with pytest.raises(UsageError, match="prompt 3: the environment has 3"):
        env.reset(options={"prompt": 3})
    env.reset()
    with pytest.raises(UsageError, match="set policy_logprobs"):
        env.step(0)


def test_without_gymnasium_there_is_one_clear_line():
    code = "import sys; sys.modules['gymnasium'] = None; import wukong.rl_env"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert re.search(r"UsageError: .*needs gymnasium: pip install 'wukong-rlhf\[rl\]'", done.stderr), done.stderr
