"""What a judge that training never saw says of a policy, where the run has an evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from wukong.errors import Text
from wukong.report.contents import PairResult, RunContents, StepResult


@dataclass(frozen=True)
class Preference:
    """A policy against an older model, by the evaluation's judge."""

    pair: PairResult

    @property
    def better(self) -> bool:
        return self.pair.interval[0] > 0.5

    @property
    def worse(self) -> bool:
        return self.pair.interval[1] < 0.5

    @property
    def sentence(self) -> Text:
        low, high = self.pair.interval
        return Text(
            "{judge} prefers {a} to {b} on {rate:.0%} [{low:.0%}, {high:.0%}] of {n} prompts (evaluation.json)",
            judge=self.pair.judge, a=self.pair.a, b=self.pair.b, rate=self.pair.win_rate, low=low, high=high,
            n=self.pair.n,
        )  # fmt: skip


def judged(run: RunContents, step: StepResult) -> Preference | None:
    """The policy of a step against the nearest older model; None without an independent judge."""
    for evaluation in run.evaluations:
        for pair in evaluation.result.newest_first:
            if pair.judge != "reward_model" and pair.a in (step.out.name, step.name, "policy"):
                return Preference(pair)
    return None


def better_at_equal_length(verdict: Preference | None) -> bool:
    """Whether the judge prefers the policy even where both answers are equally long."""
    if verdict is None or not verdict.better:
        return False
    rate = verdict.pair.length_controlled_win_rate
    return rate is not None and rate > 0.55
