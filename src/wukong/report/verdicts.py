"""A verdict on every curve, from its numbers alone: green, amber or red, and one sentence why.

The rules are those that docs/reference/metrics.md gives to readers ("what to watch for"), made definite. A rule sees
the curve's values in order, and those of the curves it is read against; it never sees an option. "At first" is the mean
of the first quarter of the curve, "at the end" that of the last. Curves without a right or wrong (the learning rate)
and those with too few points have none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Literal

from wukong.errors import Text

Level = Literal["green", "amber", "red", "none"]
Values = Sequence[float]
FEWEST_POINTS = 4
"""A course needs this number of points."""


@dataclass(frozen=True)
class CurveVerdict:
    level: Level
    why: Text


@dataclass(frozen=True)
class Course:
    """A curve's values, and those of its step's other curves by name."""

    values: Values
    others: Mapping[str, Values]

    @property
    def first(self) -> float:
        return fmean(self.values[: max(1, len(self.values) // 4)])

    @property
    def last(self) -> float:
        return fmean(self.values[-max(1, len(self.values) // 4) :])

    def of(self, name: str) -> Course | None:
        return Course(self.others[name], self.others) if self.others.get(name) else None


Rule = Callable[[Course], CurveVerdict]
NOTHING = CurveVerdict("none", Text("Nothing to judge."))
TOO_SHORT = CurveVerdict("none", Text("Too few points to judge."))


def figure(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def said(level: Level, template: str, course: Course) -> CurveVerdict:
    """A verdict whose sentence may name {first} and {last}."""
    if "{first}" not in template and "{last}" not in template:
        return CurveVerdict(level, Text(template))
    return CurveVerdict(level, Text(template, first=figure(course.first), last=figure(course.last)))


def by_steps(value: float, steps: Sequence[tuple[float, Level]], rest: Level) -> Level:
    """The level of the first bound that the value does not exceed."""
    return next((level for bound, level in steps if value <= bound), rest)


# ------------------------------------------------------------------------------------------------------------- rules


def falls(course: Course) -> CurveVerdict:
    if course.last < 0.95 * course.first:
        return said("green", "Falls from {first} to {last}.", course)
    if course.last > 1.05 * course.first:
        return said("red", "Rises from {first} to {last}: the learning rate may be too high.", course)
    return said("amber", "Hardly falls: {first} at first, {last} at the end.", course)


def validates(course: Course) -> CurveVerdict:
    best, last = min(course.values), course.values[-1]
    if last > 1.05 * best:
        return said("amber", "Rises after its lowest point: over-fitted from there on.", course)
    if best < 0.99 * course.values[0]:
        return said("green", "Falls, and ends at its lowest point or near it.", course)
    return said("amber", "Hardly falls: {first} at first, {last} at the end.", course)


def reward_validates(course: Course) -> CurveVerdict:
    if course.values[-1] > 0.693:
        return said("red", "Above 0.69, that of a coin toss: over-confident or not learned.", course)
    return validates(course) if len(course.values) > 1 else said("green", "Below 0.69, that of a coin toss.", course)


def accuracy(course: Course) -> CurveVerdict:
    if course.last > 0.98:
        return said("amber", "Near 1: the training pairs are memorised.", course)
    level = by_steps(-course.last, [(-0.6, "green"), (-0.55, "amber")], "red")
    return said(level, "Right for {last} of the pairs at the end; a coin toss is 0.5.", course)


def grows(course: Course) -> CurveVerdict:
    better = course.last > course.first + 0.02 * abs(course.first)
    return said("green", "Grows from {first} to {last}.", course) if better else said(
        "amber", "Does not grow: {first} at first, {last} at the end.", course
    )  # fmt: skip


def score(course: Course) -> CurveVerdict:
    spread = course.of("score_std")
    gain, scale = course.last - course.first, spread.first if spread else 1.0
    if gain > 0.2 * scale:
        return said("green", "Rises from {first} to {last}.", course)
    if gain < -0.1 * scale:
        return said("red", "Falls from {first} to {last}: the policy gets worse by its own reward.", course)
    return said("amber", "Hardly moves: {first} at first, {last} at the end.", course)


def spread_left(course: Course) -> CurveVerdict:
    if course.last < 0.05:
        return said("amber", "Near 0: all answers score alike, so nothing is left to learn from.", course)
    return said("green", "Answers still differ in score: {last} at the end.", course)


def near_score(course: Course) -> CurveVerdict:
    other = course.of("score")
    gap = abs(course.last - other.last) if other else 0.0
    if gap <= 0.25:
        return said("green", "Close to the score.", course)
    return said("amber", "Far from the score: answers that do not end, or other rewards, cost much.", course)


def ended_no_better(course: Course) -> CurveVerdict:
    level = by_steps(course.last, [(0.1, "green"), (0.3, "amber")], "red")
    return said(level, "For {last} of the answers that end, ending did not pay.", course)


def kl(course: Course) -> CurveVerdict:
    quarter = max(1, len(course.values) // 4)
    before = fmean(course.values[-2 * quarter : -quarter])
    if course.last > 50 or (course.last > 25 and course.last > 1.5 * before):
        return said("red", "Runs away: {last} nats at the end.", course)
    if course.last > 25 or (course.last > 10 and course.last > 1.5 * before):
        return said("amber", "Far from the reference, or still rising fast: {last} nats at the end.", course)
    if course.last < 0.2:
        return said("amber", "The policy has hardly moved: {last} nats at the end.", course)
    return said("green", "Settles at a moderate distance: {last} nats at the end.", course)


def agrees_with_kl(course: Course) -> CurveVerdict:
    other = course.of("kl")
    if other is None or abs(course.last - other.last) <= 0.5 * max(abs(other.last), 0.2):
        return said("green", "Agrees with `kl`.", course)
    return said("amber", "Differs from `kl`: a few very unlikely tokens dominate.", course)


def small_loss(course: Course) -> CurveVerdict:
    if abs(course.last) <= 0.2:
        return said("green", "Small, as it should be; it does not measure progress.", course)
    return said("amber", "Large: {last} at the end. The updates may overshoot.", course)


def entropy(course: Course) -> CurveVerdict:
    level = by_steps(-course.last / max(course.first, 1e-9), [(-0.3, "green"), (-0.1, "amber")], "red")
    return said(level, "From {first} to {last} nats per token; near 0 it is always the same answer.", course)


def at_most(bounds: tuple[float, float], template: str, how: Callable[[Values], float] = median) -> Rule:
    """Green up to the first bound, amber up to the second."""

    def rule(course: Course) -> CurveVerdict:
        value = how(course.values)
        level = by_steps(value, [(bounds[0], "green"), (bounds[1], "amber")], "red")
        return CurveVerdict(level, Text(template, value=figure(value)))

    return rule


def at_least(bounds: tuple[float, float], template: str, how: Callable[[Values], float]) -> Rule:
    """Green down to the first bound, amber down to the second."""

    def rule(course: Course) -> CurveVerdict:
        value = how(course.values)
        level = by_steps(-value, [(-bounds[0], "green"), (-bounds[1], "amber")], "red")
        return CurveVerdict(level, Text(template, value=figure(value)))

    return rule


def high(values: Values) -> float:
    """The value that 5 % of the points exceed: single spikes are harmless."""
    return sorted(values)[min(len(values) - 1, int(0.95 * len(values)))]


def low(values: Values) -> float:
    return sorted(values)[int(0.05 * len(values))]


def ending(values: Values) -> float:
    return Course(values, {}).last


def single_tokens(rule: Rule) -> Rule:
    """The ratio of a batch's most changed token; red only if the policy as a whole changes too much too."""

    def milder(course: Course) -> CurveVerdict:
        found, whole = rule(course), course.of("approx_kl")
        if found.level == "red" and (whole is None or median(whole.values) <= 0.05):
            return CurveVerdict("amber", found.why)
        return found

    return milder


def clip_fraction(course: Course) -> CurveVerdict:
    if max(course.values) == 0:
        return said("amber", "Always 0: the steps could be larger.", course)
    return at_most((0.2, 0.3), "A fraction of {value} of the tokens is clipped; up to 0.2 is usual.")(course)


def level_gradient(course: Course) -> CurveVerdict:
    middle = course.values[len(course.values) // 4 : len(course.values) // 2] or course.values
    times = ending(course.values) / max(median(middle), 1e-12)
    level = by_steps(times, [(2, "green"), (5, "amber")], "red")
    why = "Level." if level == "green" else "Grows to {times} times its early size: divergence may follow."
    return CurveVerdict(level, Text(why, times=figure(times)) if level != "green" else Text(why))


def shrinks(course: Course) -> CurveVerdict:
    if course.last <= course.first:
        return said("green", "Falls from {first} to {last}.", course)
    level = by_steps(course.last / max(course.first, 1e-12), [(1.5, "green"), (3, "amber")], "red")
    return said(level, "Rises from {first} to {last}.", course)


def meets_returns(course: Course) -> CurveVerdict:
    other, spread = course.of("return_mean"), course.of("advantage_std")
    gap = abs(course.last - other.last) if other else 0.0
    if gap <= 0.5 * max(spread.last if spread else 1.0, 0.1):
        return said("green", "Follows the returns.", course)
    return said("amber", "Stays away from the returns: the value model is biased.", course)


def returns(course: Course) -> CurveVerdict:
    scores = course.of("score")
    if course.last >= course.first:
        return said("green", "Rises from {first} to {last}.", course)
    if scores and scores.last > scores.first:
        return said("amber", "Falls while the score rises: the KL penalty outweighs the gain.", course)
    return said("red", "Falls from {first} to {last}.", course)


def length(course: Course) -> CurveVerdict:
    times = course.last / max(course.first, 1e-9)
    level = by_steps(max(times, 1 / max(times, 1e-9)), [(1.3, "green"), (1.75, "amber")], "red")
    return said(level, "From {first} to {last} tokens.", course)


def distinct(course: Course) -> CurveVerdict:
    level = by_steps(-course.last / max(course.first, 1e-9), [(-0.7, "green"), (-0.5, "amber")], "red")
    return said(
        level, "From {first} to {last}; below 70 % of the first value it is one phrase again and again.", course
    )


def repeats(course: Course) -> CurveVerdict:
    level = by_steps(course.last - course.first, [(0.04, "green"), (0.1, "amber")], "red")
    return said(level, "From {first} to {last}; a rise means the same words again and again.", course)


def below_spread(course: Course) -> CurveVerdict:
    spread = course.of("score_std")
    if spread is None or course.last <= spread.last:
        return said("green", "Smaller than the differences in score.", course)
    return said("amber", "Larger than the differences in score: staying close pays more than a better answer.", course)


def pays_for_length(course: Course) -> CurveVerdict:
    lengths = course.of("response_length")
    if course.last > 0.3 and lengths and lengths.last > 1.3 * lengths.first:
        return said("amber", "{last} at the end, while answers get longer: length pays.", course)
    return said("green", "No sign that length pays.", course)


def steady_time(course: Course) -> CurveVerdict:
    if course.last <= 1.5 * course.first:
        return said("green", "Level.", course)
    return said("amber", "Rises from {first} to {last}: longer answers, or a busy machine.", course)


def steady_speed(course: Course) -> CurveVerdict:
    if course.last >= 0.6 * course.first:
        return said("green", "Level.", course)
    return said("amber", "Falls from {first} to {last}: longer texts, or a busy machine.", course)


def stays(course: Course) -> CurveVerdict:
    if course.last <= 1.1 * course.first:
        return said("green", "Stays near its first value.", course)
    return said("amber", "Rises from {first} to {last}.", course)


def above_score(course: Course) -> CurveVerdict:
    other = course.of("score")
    if other is None or course.last > other.last:
        return said("green", "Above the score: choosing the best still helps.", course)
    return said("amber", "No better than the score: nothing is left to learn.", course)


def chosen_reward(course: Course) -> CurveVerdict:
    if course.last > course.first - 2:
        return said("green", "Rises, or falls little: {last} at the end.", course)
    return said("amber", "Falls to {last}: probability moves to answers that nobody rated.", course)


_WALL_TIME = ("rollout_seconds", "scoring_seconds", "update_seconds")
_SPEED = ("tokens_per_second", "rollout_tokens_per_second")

RULES: dict[str, Rule] = {
    "loss": falls, "perplexity": falls, "dpo/loss": falls, "kto/loss": falls, "reward/loss": falls,
    "distill/loss": falls, "distill/valid_loss": validates,
    "valid_loss": validates, "valid_perplexity": validates, "valid_bits_per_byte": validates,
    "reward/valid_loss": reward_validates,
    "accuracy": accuracy, "valid_accuracy": accuracy, "dpo/accuracy": accuracy,
    "margin": grows, "valid_margin": grows, "reward_of": grows,
    "score": score, "score_std": spread_left, "advantage_std": spread_left, "reward_model_score": near_score,
    "kept_score": above_score, "ended_no_better": ended_no_better, "ensemble_std": shrinks, "ptx_loss": stays,
    "kl": kl, "kl_k3": agrees_with_kl, "policy_loss": small_loss, "entropy": entropy,
    "approx_kl": at_most((0.02, 0.05), "{value} nats per token in an update; up to 0.02 is usual."),
    "clip_fraction": clip_fraction,
    "importance_weight": at_least((0.95, 0.8), "Mostly above {value}; 1 means that sampler and trainer agree.", low),
    "equal_groups": at_most((0.5, 0.8), "A fraction of {value} of the prompts teaches nothing at the end.", ending),
    "equal_groups_kept": at_most((0.1, 0.5), "A fraction of {value} of the batch teaches nothing at the end.", ending),
    "ratio_max": single_tokens(at_most((3, 10), "Mostly below {value}; up to 3 is usual.", high)),
    "ratio_min": single_tokens(at_least((0.3, 0.05), "Mostly above {value}; down to 0.3 is usual.", low)),
    "first_ratio_error": at_most((0.001, 0.05), "At most {value}: rounding is below 0.001 in float32.", max),
    "sampler_logprob_gap": at_most((0.02, 0.1), "At most {value} nats; sampler and trainer should agree.", max),
    "grad_norm": level_gradient, "grad_norm_policy": level_gradient, "grad_norm_value": level_gradient,
    "explained_variance": at_least((0.3, 0.0), "{value} at the end; 0 is no better than guessing the mean.", ending),
    "value_loss": shrinks, "value_error": shrinks, "value_mean": meets_returns, "return_mean": returns,
    "response_length": length, "distinct_2": distinct,
    "termination_rate": at_least((0.95, 0.8), "A fraction of {value} of the answers ends by itself.", ending),
    "top_response_share": at_most((0.2, 0.5), "The most frequent answer fills {value} of a batch at the end.", ending),
    "top_phrase_share": at_most((0.9, 1.0), "The most widespread phrase is in {value} of a batch at the end.", ending),
    "repetition": repeats, "kl_penalty_std": below_spread, "score_length_correlation": pays_for_length,
    "chosen_reward": chosen_reward, "rejected_reward": shrinks,
    "kl_baseline": at_most((1.0, 5.0), "{value} nats at the end.", ending),
    **dict.fromkeys(_WALL_TIME, steady_time), **dict.fromkeys(_SPEED, steady_speed),
}  # fmt: skip
"""metric, or stage/metric -> its rule; the name before a dot stands for a family (reward_of.NAME)."""

WITHOUT = {
    "lr", "kl_coef", "pairs", "response_tokens", "length_penalty", "baseline", "clip_fraction_high", "passes",
    "further_batches",
}  # fmt: skip
"""Curves without a right or wrong."""

ANY_NUMBER = {"valid_accuracy", "reward/valid_loss", "first_ratio_error", "sampler_logprob_gap"}
"""Metrics that a single point suffices to judge."""


def verdict(stage: str, name: str, curves: Mapping[str, Values]) -> CurveVerdict:
    """The verdict on a curve.

    Args:
        stage: the stage that logged it.
        name: its metric.
        curves: metric -> values, in the order of the steps, of everything that the step logged.
    """
    key = next((one for one in (f"{stage}/{name}", name, name.partition(".")[0]) if one in RULES), None)
    if key is None:
        return NOTHING
    if len(curves[name]) < FEWEST_POINTS and key not in ANY_NUMBER:
        return TOO_SHORT
    return RULES[key](Course(curves[name], curves))


ORDER: tuple[Level, ...] = ("none", "green", "amber", "red")


def worst(levels: Sequence[Level]) -> Level:
    return max(levels, key=ORDER.index, default="none")
