"""RLHF as a Gymnasium environment, for any reinforcement-learning framework.

    policy       the language model
    observation  the prompt and the tokens so far, padded with -1
    action       one token of the vocabulary
    episode      one response
    reward       -beta x (log pi - log pi_ref) of each token; at the last one the score of the reward model or judge too

It is exactly the objective of `wukong ppo` (a test compares the two), which is the fast implementation. The first term
depends on the acting policy, which an environment does not know: `policy_logprobs` supplies it. An episode ends as
*terminated* with the end token or after `max_new_tokens`, never as *truncated*: the learner bootstraps the value of a
truncated episode, whereas a response that was cut off is over, with its own score (docs/explanation/rl-formulation.md).

Shape legend: B batch, T time, C channels, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wukong.errors import UsageError
from wukong.feedback.annotators import load_judge, names_judge
from wukong.feedback.judge import Judge
from wukong.model.heads import ScalarModel
from wukong.model.hub import load_policy, load_reward
from wukong.model.language_model import LanguageModel
from wukong.records import Prompt, PromptLike, as_messages
from wukong.tokenizer import Tokenizer

try:
    import gymnasium
    from gymnasium import spaces
except ImportError:
    raise UsageError("the environment needs gymnasium: pip install 'wukong-rlhf[rl]'") from None

PADDING = -1

NextLogprobs = Callable[[Sequence[int]], np.ndarray]
"""Tokens so far -> log-probs (nats) of the next token, (V,)."""


def next_logprobs(model: LanguageModel, temperature: float = 1.0) -> NextLogprobs:
    """The log-probs of a model's next token at this temperature."""

    def logprobs(tokens: Sequence[int]) -> np.ndarray:
        with torch.no_grad():
            hidden = model(torch.tensor([tokens], device=model.device))[:, -1]  # (1, C)
            return (model.logits(hidden).float() / temperature).log_softmax(-1)[0].cpu().numpy()

    return logprobs


class ResponseEnv(gymnasium.Env[np.ndarray, np.int64]):
    """An episode is one response to a random prompt, or to that given by `reset(options={"prompt": number})`.

    Args:
        reference: the frozen reference model, usually the SFT model.
        reward_model: scores prompt + response, read without the end token; or a judge, such as a verifier.
        tokenizer: of all models.
        prompts: the prompts to answer; a `Prompt` has the answer and the columns that a judge reads.
        max_new_tokens: the maximum number of steps per episode.
        kl_coef: beta, the KL coefficient.
        temperature: divides the reference's logits, as it must the acting policy's.
        missing_eos_score: replaces the reward model's score of a response without an end token; None keeps that score.
        policy_logprobs: of the acting policy; may be set later as an attribute.

    Raises:
        UsageError: no prompts, or lengths exceed the context. DataError: a prompt does not fit.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 1}  # the checker requires render_fps

    def __init__(
        self,
        reference: LanguageModel,
        reward_model: ScalarModel | Judge,
        tokenizer: Tokenizer,
        prompts: Sequence[PromptLike | Prompt],
        *,
        max_new_tokens: int = 128,
        kl_coef: float = 0.05,
        temperature: float = 1.0,
        missing_eos_score: float | None = -1.0,
        policy_logprobs: NextLogprobs | None = None,
        render_mode: str | None = None,
    ) -> None:
        context = reference.config.n_positions
        if isinstance(reward_model, ScalarModel):
            context = min(context, reward_model.config.n_positions)
            reward_model.requires_grad_(False).eval()
        if not 1 <= max_new_tokens < context:
            raise UsageError(f"max_new_tokens {max_new_tokens} must be at least 1 and below the context of {context}")
        if not prompts:
            raise UsageError("an environment needs at least one prompt")
        self.reference = reference.requires_grad_(False).eval()
        self.reward_model = reward_model
        self.tokenizer, self.max_new_tokens, self.kl_coef, self.temperature = (
            tokenizer, max_new_tokens, kl_coef, temperature,
        )  # fmt: skip
        self.missing_eos_score, self.policy_logprobs, self.render_mode = missing_eos_score, policy_logprobs, render_mode
        self._asked = [one if isinstance(one, Prompt) else Prompt(messages=as_messages(one)) for one in prompts]
        room = context - max_new_tokens
        self.prompts = [tokenizer.prompt_ids(prompt.messages, max_tokens=room) for prompt in self._asked]
        self._number = 0
        self._width = max(map(len, self.prompts)) + max_new_tokens
        vocabulary = reference.config.vocab_size
        self.action_space = spaces.Discrete(vocabulary)
        self.observation_space = spaces.Box(PADDING, vocabulary - 1, (self._width,), np.int64)
        self._prompt: list[int] = []
        self._response: list[int] = []
        self._over = True

    @classmethod
    def load(
        cls, model: str | Path, reward_model: str | Path, prompts: Sequence[PromptLike | Prompt], **settings: Any
    ) -> ResponseEnv:
        """The environment of a model's directory and a reward model's, or a judge's name (`number`, `module:function`);
        `settings` as for the class.

        Raises:
            UsageError: a directory without such a model, or different tokenizers.
        """
        reference, tokenizer = load_policy(model)
        if names_judge(str(reward_model)):
            return cls(reference, load_judge(str(reward_model)), tokenizer, prompts, **settings)
        scorer, other = load_reward(reward_model)
        if other.fingerprint != tokenizer.fingerprint:
            raise UsageError(f"{reward_model}: its tokenizer or chat template is not {model}'s")
        return cls(reference, scorer, tokenizer, prompts, **settings)

    # ------------------------------------------------------------------------------------------- Gymnasium's four

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts a response. Raises UsageError for a prompt number out of range."""
        super().reset(seed=seed)
        number = (options or {}).get("prompt")
        if number is None:
            number = int(self.np_random.integers(len(self.prompts)))
        if number not in range(len(self.prompts)):
            raise UsageError(f"prompt {number}: the environment has {len(self.prompts)}, counted from 0")
        self._number, self._prompt, self._response, self._over = number, self.prompts[number], [], False
        with torch.no_grad():
            length = len(self._prompt)
            self._cache = self.reference.empty_cache(1, length + self.max_new_tokens)
            hidden = self.reference(torch.tensor([self._prompt], device=self.reference.device), cache=self._cache)
            self._cache.advance(torch.tensor([length], device=self.reference.device), length)
            self._expected = self._logprobs(hidden[:, -1])
        return self._observation(), {"prompt": number}

    def step(self, action: np.int64 | int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Appends one token. Raises UsageError after the end of an episode, or without `policy_logprobs`."""
        if self._over:
            raise UsageError("the response is over: call reset() first")
        token = int(action)
        kl = self._log_ratio(token) if self.kl_coef else 0.0
        self._response.append(token)
        ended = token in self.tokenizer.eos_ids
        self._over = ended or len(self._response) == self.max_new_tokens
        reward = -self.kl_coef * kl
        info: dict[str, Any] = {"kl": kl}
        if self._over:
            score = self._score(ended)
            reward += score
            info |= {
                "score": score,
                "response": self.tokenizer.decode(self._response),
                "finish_reason": "stop" if ended else "length",
            }
        else:
            with torch.no_grad():
                device = self.reference.device
                hidden = self.reference(torch.tensor([[token]], device=device), cache=self._cache)
                self._cache.advance()
                self._expected = self._logprobs(hidden[:, -1])
        return self._observation(), reward, self._over, False, info

    def render(self) -> str | None:
        """The conversation so far as text."""
        text = self.tokenizer.decode([*self._prompt, *self._response], skip_special=False)
        return text if self.render_mode == "ansi" else None

    # ---------------------------------------------------------------------------------------------------- helpers

    def _observation(self) -> np.ndarray:
        tokens = [*self._prompt, *self._response]
        return np.array(tokens + [PADDING] * (self._width - len(tokens)), dtype=np.int64)

    def _logprobs(self, hidden: Tensor) -> np.ndarray:
        """hidden: (1, C) -> (V,)."""
        return (self.reference.logits(hidden).float() / self.temperature).log_softmax(-1)[0].cpu().numpy()

    def _log_ratio(self, token: int) -> float:
        """log pi - log pi_ref of the token: the k1 estimate of the KL."""
        if self.policy_logprobs is None:
            raise UsageError("the KL penalty needs the acting policy: set policy_logprobs, or kl_coef=0")
        return float(self.policy_logprobs([*self._prompt, *self._response])[token] - self._expected[token])

    def _score(self, ended: bool) -> float:
        if not ended and self.missing_eos_score is not None:
            return self.missing_eos_score
        response = self._response[:-1] if ended else self._response
        if not isinstance(self.reward_model, ScalarModel):
            return self.reward_model([self._asked[self._number]], [self.tokenizer.decode(response)])[0].score
        read = [*self._prompt, *response]
        device = self.reward_model.score.weight.device
        with torch.no_grad():
            ids, lengths = torch.tensor([read], device=device), torch.tensor([len(read)], device=device)
            return float(self.reward_model(ids, lengths))


# ---------------------------------------------------------------------------------------------- Stable-Baselines3


def sb3_ppo(env: ResponseEnv, model: LanguageModel, **settings: Any) -> Any:
    """Stable-Baselines3's PPO with a copy of this language model as policy; it sets `env.policy_logprobs`.

    The copy, its output layer and a new linear value head are trained together. `learn`, `predict` etc. are those of
    Stable-Baselines3.

    Args:
        env: the environment; its `policy_logprobs` is set.
        model: the initial policy, usually the reference; it is not changed.
        settings: for `stable_baselines3.PPO`, such as n_steps, batch_size, learning_rate, seed.

    Raises:
        UsageError: Stable-Baselines3 is not installed.
    """
    try:
        from stable_baselines3 import PPO
        from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
    except ImportError:
        raise UsageError("this needs stable-baselines3: pip install 'wukong-rlhf[rl]'") from None

    class LastHidden(BaseFeaturesExtractor):
        """The model's hidden state before the next token: (B, T) observations -> (B, C)."""

        def __init__(self, observation_space: spaces.Box, trunk: LanguageModel) -> None:
            super().__init__(observation_space, trunk.config.n_embd)
            self.trunk = trunk

        def forward(self, observations: Tensor) -> Tensor:
            tokens = observations.long()  # passed as float32, which is exact up to 2^24
            lengths = (tokens != PADDING).sum(1)  # (B,)
            hidden = self.trunk(tokens.clamp(min=0))  # (B, T, C): attention ignores padding on the right
            result: Tensor = hidden[torch.arange(len(tokens), device=tokens.device), lengths - 1]
            return result

    agent: Any = PPO(
        "MlpPolicy",
        env,
        policy_kwargs={
            "features_extractor_class": LastHidden,
            "features_extractor_kwargs": {"trunk": copy.deepcopy(model).requires_grad_(True)},
            "net_arch": [],
            "ortho_init": False,  # else it would reinitialise the language model
            "optimizer_kwargs": {"eps": 1e-5},
        },
        device="cpu",
        **settings,
    )
    with torch.no_grad():
        agent.policy.action_net.weight.copy_(model.output_weight / env.temperature)
        agent.policy.action_net.bias.zero_()

    def logprobs(tokens: Sequence[int]) -> np.ndarray:
        observation = torch.full((1, env.observation_space.shape[0]), float(PADDING))  # type: ignore[index]
        observation[0, : len(tokens)] = torch.tensor(tokens, dtype=torch.float32)
        with torch.no_grad():
            distribution = agent.policy.get_distribution(observation).distribution
            result: np.ndarray = distribution.logits[0].cpu().numpy()  # torch's Categorical normalises them
            return result

    env.policy_logprobs = logprobs
    return agent
