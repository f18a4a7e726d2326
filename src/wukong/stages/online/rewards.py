"""The reward of a response: a weighted sum of reward models (one or an ensemble), judges and your own functions.

Additional rewards are given as `[WEIGHT*]NAME`, where NAME is a reward model's directory or a judge of
`wukong.feedback.annotators` (rubric, lexicon, a verifier such as number, module:function, openai:MODEL@URL):

    --reward-model runs/a/reward --ensemble runs/b/reward --ensemble-by min --rewards 0.5*lexicon --length-penalty 0.01

Algorithms maximise the sum; every term is also logged separately.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field
from torch import nn

from wukong import require
from wukong.errors import DataError, Text, UsageError
from wukong.feedback.annotators import load_judge, prompt_needs
from wukong.feedback.judge import JudgedPrompt
from wukong.feedback.reward_models import is_model
from wukong.model.hub import load_reward
from wukong.options import Options
from wukong.processes import all_gather, local_part
from wukong.require import Need
from wukong.scoring import frozen, scores_of
from wukong.stages.online.rollouts import Episodes
from wukong.tokenizer import Tokenizer
from wukong.training.compute import Compute
from wukong.training.tuning import share_frozen


class ScoringOptions(Options):
    """The reward of a response."""

    reward_model: str | None = None
    """The reward model's directory."""
    ensemble: list[str] = []
    """Directories of more reward models, combined with --reward-model into one reward."""
    ensemble_by: Literal["mean", "min", "mean-std"] = "mean"
    """How to combine them: mean, minimum, or the mean minus --uncertainty-coef times their standard deviation."""
    uncertainty_coef: float = Field(1.0, ge=0)
    """Weight of the ensemble's standard deviation in mean-std."""
    rewards: list[str] = []
    """Additional rewards, each [WEIGHT*]NAME: rubric, lexicon, a verifier (exact, number, regex[:PATTERN],
    json[:SCHEMA.json], constraints), module:function, openai:MODEL[@URL][#RUBRIC], or a reward model's directory."""
    length_penalty: float = Field(0.0, ge=0)
    """Subtracted from the reward for each token of a response."""

    @classmethod
    def needed(cls, given: Mapping[str, Any]) -> list[str]:
        return [] if given.get("reward_model") or given.get("rewards") else [Text("--reward-model (or --rewards)")]


def model_inputs(options: ScoringOptions) -> list[str]:
    """The directories among the rewards, on which a result depends."""
    return [*ensemble_of(options), *filter(is_model, judge_names(options))]


def reward_needs(options: ScoringOptions) -> list[Need]:
    """The reward models and judges. Raises UsageError if there is none or one is named twice."""
    if options.ensemble and not options.reward_model:
        raise UsageError("--ensemble adds to --reward-model: give the first one there")
    if not options.reward_model and not options.rewards:
        raise UsageError("there is no reward: give --reward-model, --rewards or both")
    models, names = ensemble_of(options), judge_names(options)
    _names([*models, *names])
    return [*map(require.reward_model, models), *map(require.judge, names)]


def judge_names(options: ScoringOptions) -> list[str]:
    """The names of the rewards that are not in the ensemble."""
    return [name for _, name in map(parsed, options.rewards)]


def require_judged(options: ScoringOptions, prompt: JudgedPrompt, where: str) -> None:
    """Raises DataError, after `where`, for a prompt that lacks what one of the rewards needs."""
    for name in judge_names(options):
        if not is_model(name) and (check := prompt_needs(name).check) is not None:
            try:
                check(prompt)
            except DataError as error:
                problem = "{where}: {problem}, which {judge} needs"
                raise DataError(problem, where=where, problem=error.problem, judge=name) from None


def ensemble_of(options: ScoringOptions) -> list[str]:
    """The reward models that are combined into one reward."""
    return [*([options.reward_model] if options.reward_model else []), *options.ensemble]


def parsed(term: str) -> tuple[float, str]:
    """The weight and the name of "[WEIGHT*]NAME". Raises UsageError if the weight is not a number."""
    weight, star, name = term.partition("*")
    if not star or ":" in weight:  # the star of regex:a*b is no weight's
        return 1.0, term
    if not re.fullmatch(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", weight) or not name.strip():
        raise UsageError(f"--rewards {term}: write WEIGHT*NAME, as in 0.5*lexicon")
    if not math.isfinite(float(weight)):
        raise UsageError(f"--rewards {term}: the weight is not a finite number")
    return float(weight), name.strip()


@dataclass(frozen=True)
class RewardInput:
    """A batch of responses, in each form a reward may read."""

    prompts: Sequence[JudgedPrompt]
    texts: Sequence[str]
    sequences: Sequence[list[int]]  # prompt + response without the end token, as a reward model reads them
    lengths: Sequence[int]  # of the responses, in tokens

    @classmethod
    def of(cls, episodes: Episodes, tokenizer: Tokenizer) -> RewardInput:
        read = episodes.scored_sequences
        texts = [tokenizer.decode(s[n:]) for s, n in zip(read, episodes.prompt_lengths, strict=True)]
        return cls(episodes.prompts, texts, read, episodes.response_lengths)

    def local_part(self) -> RewardInput:
        """The rows that this process scores."""
        return RewardInput(
            local_part(self.prompts), local_part(self.texts), local_part(self.sequences), local_part(self.lengths)
        )


@dataclass(frozen=True)
class RewardOutput:
    total: np.ndarray  # (B,) float64
    means: dict[str, float]
    """The unweighted mean of each term, by the name it is logged under."""


Term = Callable[[RewardInput], list[float]]


@dataclass(frozen=True)
class Rewards:
    """The sum of all terms; made by `load_rewards`."""

    ensemble: dict[str, Term]
    by: Literal["mean", "min", "mean-std"]
    uncertainty_coef: float
    terms: list[tuple[float, str, Term]]  # weight, name
    length_penalty: float

    def __call__(self, answers: RewardInput) -> RewardOutput:
        """Raises RunError when a function or judge fails."""
        total = np.zeros(len(answers.texts))
        means: dict[str, float] = {}
        mine = answers.local_part()
        if self.ensemble:
            every = [all_gather(functools.partial(score, mine)) for score in self.ensemble.values()]
            scores = np.array(every)  # (models, B)
            total += combined(scores, self.by, self.uncertainty_coef)
            means |= {f"reward_of.{name}": float(row.mean()) for name, row in zip(self.ensemble, scores, strict=True)}
            if len(scores) > 1:
                means["ensemble_std"] = float(scores.std(0).mean())
        for weight, name, score in self.terms:
            row = np.array(all_gather(functools.partial(score, mine)))
            total += weight * row
            means[f"reward_of.{name}"] = float(row.mean())
        if self.length_penalty:
            penalty = self.length_penalty * np.array(answers.lengths)
            total -= penalty
            means["length_penalty"] = float(penalty.mean())
        return RewardOutput(total, means if len(means) > 1 else {})


def combined(scores: np.ndarray, by: Literal["mean", "min", "mean-std"], uncertainty_coef: float) -> np.ndarray:
    """One reward from several reward models: (models, B) -> (B,). Coste et al. 2023 (arXiv 2310.02743) compare the
    three: mean, worst case, and the mean minus the (biased) standard deviation times `uncertainty_coef`."""
    if by == "min":
        return np.asarray(scores.min(0))
    return np.asarray(scores.mean(0) - (uncertainty_coef * scores.std(0) if by == "mean-std" else 0))


def load_rewards(
    options: ScoringOptions, tokenizer: Tokenizer, compute: Compute, max_tokens: int, kept: Path | None = None,
    holders: Sequence[nn.Module] = (),
) -> Rewards:  # fmt: skip
    """All rewards of the options, ready to score.

    Args:
        tokenizer: the policy's; reward models must have the same one, including the template.
        max_tokens: tokens per forward pass of a reward model.
        kept: the file that caches the replies of a judge behind an API, so that a resumed run does not pay twice.
        holders: models whose frozen weights are used in place of equal ones.

    Raises:
        UsageError: there is no reward, or one cannot be loaded.
    """
    reward_needs(options)

    def model(directory: str) -> Term:
        network, its_tokenizer = load_reward(directory, merge=not holders)  # unmerged, its base may be shared
        if its_tokenizer.fingerprint != tokenizer.fingerprint:
            raise UsageError(f"{directory}: its tokenizer or chat template is not the policy's")
        network.requires_grad_(False)
        for holder in holders:
            share_frozen(network, holder)
        frozen(network, compute)
        return lambda answers: scores_of(network, answers.sequences, compute, max_tokens)

    def scorer(name: str) -> Term:
        if is_model(name):
            return model(name)
        judge = load_judge(name, kept)
        return lambda answers: [opinion.score for opinion in judge(answers.prompts, answers.texts)]

    models = ensemble_of(options)
    terms = [parsed(term) for term in options.rewards]
    names = _names([*models, *(name for _, name in terms)])
    return Rewards(
        ensemble={name: model(directory) for name, directory in zip(names, models, strict=False)},
        by=options.ensemble_by,
        uncertainty_coef=options.uncertainty_coef,
        terms=[(w, name, scorer(n)) for (w, n), name in zip(terms, names[len(models) :], strict=True)],
        length_penalty=options.length_penalty,
    )


def _names(sources: Sequence[str]) -> list[str]:
    """The name of each in the metrics: a directory's last part, or its whole path if that is ambiguous."""
    if len(set(sources)) < len(sources):
        raise UsageError(f"the reward {next(s for s in sources if sources.count(s) > 1)} is named twice")
    short = [Path(source).name if is_model(source) else source for source in sources]
    return [source if short.count(name) > 1 else name for name, source in zip(short, sources, strict=True)]
