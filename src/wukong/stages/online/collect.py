"""The responses that an iteration learns from, with their scores: one batch, or with dynamic sampling several, of which
the groups are kept that something can be learnt from.

Shape legend: B episodes, G groups (the responses to one prompt).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from wukong.errors import RunError
from wukong.model.language_model import LanguageModel
from wukong.objectives import equal_groups
from wukong.seeds import derived_seed
from wukong.stages.online.algorithm import OnlineOptions
from wukong.stages.online.rewards import RewardInput, Rewards
from wukong.stages.online.rollouts import Episodes, ScoreFunction, TokenisedPrompt, final_scores, roll_out
from wukong.tokenizer import Tokenizer
from wukong.training.session import Session

FURTHER = "further_batches"
"""The name in a run's state of the number of batches sampled beyond one per iteration."""


@dataclass(frozen=True)
class Collected:
    """Sampled and scored responses."""

    episodes: Episodes
    rewards: Tensor  # (B,)
    scores: Tensor  # (B,) after the rule for responses that never ended
    seconds: float
    """Time spent sampling."""
    tokens: int
    """Tokens sampled, those of dropped responses included."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What dynamic sampling adds to the metrics, and those that it counts over all sampled responses."""


@dataclass(frozen=True)
class Collector:
    """Samples and scores the responses of an iteration.

    Args:
        further: the prompts, each as often as it is answered, of the nth batch after the iteration's first.
    """

    session: Session
    options: OnlineOptions
    policy: LanguageModel
    score: ScoreFunction
    tokenizer: Tokenizer
    further: Callable[[int], Sequence[TokenisedPrompt]] | None = None

    def __call__(self, prompts: Sequence[TokenisedPrompt]) -> Collected:
        """Dynamic sampling (Yu et al. 2025, section 3.2): groups with equal scores are dropped, and further batches of
        prompts are answered until the groups left fill a batch; what exceeds it is dropped too. When the algorithm's
        bound on further batches is reached before, equal groups fill the rest: a batch always has its size, so that
        all processes make the same updates.

        Raises RunError when a reward fails.
        """
        first, most = self._sample(prompts, 0), self.options.algorithm().further_batches
        if not most or self.further is None:
            return first
        batches, size = [first], self.options.samples_per_prompt
        equal = equal_groups(first.scores, size)  # (G,)
        wanted = len(equal)
        while int((~equal).sum()) < wanted and len(batches) <= most:
            batches.append(self._sample(self.further(len(batches)), len(batches)))
            equal = torch.cat([equal, equal_groups(batches[-1].scores, size)])
        self.session.state[FURTHER] = self.session.state.get(FURTHER, 0) + len(batches) - 1
        return self._filled(batches, equal, wanted)

    def _sample(self, prompts: Sequence[TokenisedPrompt], number: int) -> Collected:
        """The `number`th batch of this iteration, from 0."""
        options, started = self.options, time.monotonic()
        further = (number,) if number else ()
        seed = derived_seed(options.seed, "roll", self.session.step, *further)
        episodes = roll_out(self.policy, prompts, self.tokenizer, options, seed, self.session.compute)
        seconds = time.monotonic() - started
        rewards = self.score(episodes)  # (B,)
        scores = final_scores(rewards, episodes, options)
        return Collected(episodes, rewards, scores, seconds, sum(episodes.response_lengths))

    def _filled(self, batches: Sequence[Collected], equal: Tensor, wanted: int) -> Collected:
        """The first `wanted` groups that are not equal, in the order in which they were sampled; where there are fewer,
        the first equal ones fill the rest."""
        groups = sorted(torch.argsort(equal.long(), stable=True)[:wanted].tolist())
        size = self.options.samples_per_prompt
        rows = [group * size + i for group in groups for i in range(size)]
        every, rewards = Episodes.joined([one.episodes for one in batches]), torch.cat([b.rewards for b in batches])
        scores = torch.cat([one.scores for one in batches])
        metrics = {
            "further_batches": len(batches) - 1,
            "equal_groups": float(equal.float().mean()),
            "equal_groups_kept": float(equal[groups].float().mean()),
            "score": float(scores.mean()),
            "score_std": float(scores.std(correction=0)),
            "reward_model_score": float(rewards.mean()),
            "response_length": fmean(every.response_lengths),
            "termination_rate": float(np.mean(every.ended)),
        }
        seconds, tokens = sum(one.seconds for one in batches), sum(one.tokens for one in batches)
        return Collected(every.select(rows), rewards[rows], scores[rows], seconds, tokens, metrics)


@dataclass
class EpisodeScorer:
    """Computes the rewards of a batch of episodes; every term is also logged."""

    session: Session
    rewards: Rewards
    tokenizer: Tokenizer
    name: str

    def __post_init__(self) -> None:
        self._step, self._terms = -1, list[dict[str, float]]()

    def __call__(self, episodes: Episodes) -> Tensor:
        """(B,) float32, of a batch, whose terms are logged: their means over all batches of the step. Raises as
        `score`."""
        if self._step != self.session.step:
            self._step, self._terms = self.session.step, []
        scores = self.score(episodes, log=True)
        means = {name: fmean(terms[name] for terms in self._terms) for name in self._terms[-1]}
        self.session.log(0, **means)
        return scores

    def score(self, episodes: Episodes, log: bool = False) -> Tensor:
        """(B,) float32.

        Raises RunError when a reward fails, after saving a checkpoint: this step has not changed the weights yet.
        """
        session = self.session
        try:
            scored = self.rewards(RewardInput.of(episodes, self.tokenizer))
        except RunError as error:
            if session.step:
                session.checkpoint(session.step)
            at = f"{self.name} stopped at iteration {session.step + 1}"
            raise RunError(f"{at}: {error}; {session.kept_checkpoint()}") from error
        if log:
            self._terms.append(scored.means)
        return torch.tensor(scored.total, dtype=torch.float32, device=session.compute.device)
